"""How the devices of an exchange are split into secret groups, each summed apart. Chance is an argument."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from shared.secagg.graph import Rates

Shuffle = Callable[[Sequence[int]], Sequence[int]]


def how_many(clients: int, wanted: int, least: int) -> int:
    """Groups: as many as are wanted, but no more than `clients` can fill with `least` each. One at least."""
    return max(1, min(wanted, clients // least))


def sizes(clients: int, groups: int) -> tuple[int, ...]:
    """Of the groups, which differ by one at most; the larger ones first."""
    return tuple(len(range(place, clients, groups)) for place in range(groups))


def split(nodes: Sequence[int], groups: int, shuffle: Shuffle) -> tuple[frozenset[int], ...]:
    """`nodes` dealt out like cards, in the order that `shuffle` puts them in."""
    order = shuffle(nodes)
    return tuple(frozenset(order[place::groups]) for place in range(groups))


def bearing_one(rates: Rates, clients: int) -> Rates:
    """`rates` for a group of so many: one of them at least may be corrupt. A share of few, rounded down, would be none."""
    return replace(rates, corrupt=max(rates.corrupt, (1 + 2**-20) / clients))
