"""Who masks with whom. Drawn over all invited, clients 1 to n, so both ends build the same graph and it is not sent.

The complete graph (CCS 2017) costs each client one exchange a peer. Both roles ask only `neighbours`, so a sparse graph
(Bell et al., CCS 2020) needs another class here and a name in `GRAPHS`, nothing else.
"""

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from typing import Protocol

from shared.errors import ProtocolError


class Graph(Protocol):
    def neighbours(self, member: int, present: Container[int]) -> tuple[int, ...]:
        """Those of `present` that share a mask with `member`, in ascending order, without itself."""
        ...


@dataclass(frozen=True)
class CompleteGraph:
    clients: int

    def neighbours(self, member: int, present: Container[int]) -> tuple[int, ...]:
        return tuple(other for other in range(1, self.clients + 1) if other != member and other in present)


GRAPHS: Mapping[str, Callable[[int], Graph]] = {"complete": CompleteGraph}


def build_graph(name: str, clients: int) -> Graph:
    """Raises `ProtocolError` for a name we do not know."""
    if name not in GRAPHS:
        raise ProtocolError(f"unknown masking graph {name[:40]!r}: this side knows {', '.join(sorted(GRAPHS))}")
    return GRAPHS[name](clients)
