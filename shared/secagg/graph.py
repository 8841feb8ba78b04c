"""Who masks with whom and holds whose shares, who bears witness to who is counted, and how many of each there must be.

Bell et al., "Secure Single-Server Aggregation with (Poly)Logarithmic Overhead" (CCS 2020): not all pairs need to share a mask.
A graph of degree k is the union of k/2 random Hamiltonian cycles, a good expander. Neighbours share a mask, and hold shares of
each other's secrets. Besides, some clients are witnesses: each tells all the others, once, who is counted. Both are drawn from
a seed to which every client contributed before it could know the others' part.

What `derive` makes sure of, for n clients of which a share `dropout` may fail and a share `corrupt` may work with the server:

1. **There is one story about who is counted.** A client believes a set that a `majority` M of the w witnesses confirm, and
   reveals nothing otherwise. With c witnesses corrupt, who confirm any set, 2M > w + c leaves no two sets that anybody
   believes. Neighbours alone could not see to that: a victim's could be told a story of their own.
2. **No client's two secrets leak.** So a client's holders reveal the same kind of share of it, and the corrupt among them
   both; T are needed, and fewer are corrupt.
3. **Enough are left**: at least T of a client's k neighbours survive, and M of the witnesses.
4. **No small set is cut off.** A server may say that whoever it likes dropped out, up to the share `dropout`, and so try to
   learn the sum over a set S, all of whose neighbours outside it are corrupt or said to have dropped. Each client wants
   `partners` neighbours counted; of one that is silent so many must reveal shares, who are counted themselves (T is that
   number, but in a complete graph). So S must be dense inside, which no small set of a random graph is, or surrounded by
   few, which no large one is.

1, 2 and 4 fail with probability 2^-40 at most (`Rates.security_bits`), over all n clients; 3 costs a round, not a secret, and
fails with 2^-20 (`Rates.abort_bits`). The server hears every coin before it says whose counted, and so may pick the graph out
of as many as it can draw, 2^60 say: that many bits come on top of the 40 (`GRINDING_BITS`).

A client has distinct neighbours by chance; so many of k draws are distinct and survive (or are corrupt) is counted exactly, as
a Markov chain over the draws, and witnesses, who are distinct, by the hypergeometric distribution. For 4 it is the union bound
over sets of each size s, of the smaller of: the probability that s k/2 successor draws hold s `inside`/2 within the set; and
that all of them stay within the set, the dropped and the corrupt, times the number of ways to choose these. Where the degree
so found is n - 1 or more, the graph is complete, and all are witnesses: nothing is left to chance.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from shared.errors import Unsupported
from shared.secagg.keys import Secret
from shared.secagg.masks import keystream

Row = NDArray[np.float64]
GRINDING_BITS = 60


@dataclass(frozen=True)
class Rates:
    """What a job expects. `dropout` and `corrupt` are shares of the clients; the bits are of failure probabilities."""

    dropout: float = 0.25
    corrupt: float = 0.05
    security_bits: int = 40
    abort_bits: int = 20

    def __post_init__(self) -> None:
        if not (0 <= self.dropout < 1 and 0 <= self.corrupt < 1):
            raise Unsupported("dropout and corrupt are shares from 0 to below 1")
        if not (1 <= self.security_bits <= 256 and 1 <= self.abort_bits <= 256):
            raise Unsupported("security_bits and abort_bits are from 1 to 256")

    def dropped(self, clients: int) -> int:
        return math.floor(self.dropout * clients)

    def corrupted(self, clients: int) -> int:
        return math.floor(self.corrupt * clients)


@dataclass(frozen=True)
class Degrees:
    """Of one set-up: how many `neighbours` a client has, the `threshold` of shares, the least number of neighbours that a client
    wants as `partners` in a round and counted; how many `witnesses` there are, and the `majority` that must agree.
    """

    neighbours: int
    threshold: int
    partners: int
    witnesses: int
    majority: int
    complete: bool = False  # nothing to draw


@cache
def derive(clients: int, rates: Rates) -> Degrees:
    """The sparsest graph that keeps the module's promises. Raises `Unsupported` if not even the complete one does."""
    dropped, corrupt, everyone = rates.dropped(clients), rates.corrupted(clients), clients - 1
    threshold = (everyone + min(corrupt, everyone)) // 2 + 1
    if threshold > everyone - dropped:
        raise Unsupported(
            f"of {clients} clients, {dropped} may drop out and {corrupt} may be corrupt: too many for any threshold to be safe. "
            "State a lower dropout, or select more devices"
        )
    bits = rates.security_bits + GRINDING_BITS
    for degree, least, most in _sparse(clients, rates):
        if least > most and _is_cut_off_rarely(clients, degree, least - most, dropped + corrupt, bits):
            return Degrees(degree, least, least, *_witnesses(clients, rates, degree))
    return Degrees(
        everyone, threshold, max(1, everyone - dropped), clients, (clients + corrupt) // 2 + 1, complete=True
    )


def _sparse(clients: int, rates: Rates) -> Iterator[tuple[int, int, int]]:
    """Even degrees below the complete one, each with the least surviving neighbours and the most corrupt ones, of any client."""
    population, union = clients - 1, (clients - 1).bit_length()
    surviving = _marked(population, population - rates.dropped(clients))
    corrupt = _marked(population, rates.corrupted(clients))
    for (degree, left), (_, bad) in zip(surviving, corrupt, strict=True):
        least = int(np.searchsorted(np.cumsum(left), 2.0 ** -(rates.abort_bits + union), side="right"))
        above = int(
            np.searchsorted(np.cumsum(bad[::-1]), 2.0 ** -(rates.security_bits + GRINDING_BITS + union), side="right")
        )
        yield degree, min(least, degree), max(0, degree - above)


def _marked(population: int, marked: int) -> Iterator[tuple[int, Row]]:
    """For every even number of draws with returns: the probability that k distinct ones of those drawn are marked, by k."""
    chance = np.maximum(0, marked - np.arange(population + 1)) / population
    row = np.zeros(population + 1)
    row[0] = 1.0
    for draws in range(1, population):
        step = row * chance
        row -= step
        row[1:] += step[:-1]
        if draws % 2 == 0:
            yield draws, row[: draws + 1]


def _is_cut_off_rarely(clients: int, degree: int, inside: int, bad: int, bits: int) -> bool:
    """Promise 4."""
    largest = (clients - bad) // 2
    if inside < 2 or largest <= inside:
        return inside >= 2
    sizes = np.arange(inside + 1, largest + 1)
    draws, edges = sizes * degree // 2, -(-sizes * inside // 2)
    dense = _log2_choose(draws, edges) + edges * np.log2(sizes / (clients - 1))
    surrounded = _log2_choose(np.array([clients]), np.array([bad])) + draws * np.log2(
        np.minimum(1, (sizes + bad) / (clients - 1))
    )
    chance = _log2_choose(np.full_like(sizes, clients), sizes) + np.minimum(dense, surrounded)
    return float(np.exp2(np.minimum(chance, 0)).sum()) <= 2.0**-bits


def _witnesses(clients: int, rates: Rates, least: int) -> tuple[int, int]:
    """How many, `least` or more, and their majority."""
    dropped, corrupt = rates.dropped(clients), rates.corrupted(clients)
    count = least
    while count < clients:
        alive = np.cumsum(_drawn_among(clients, clients - dropped, count))
        bad = np.cumsum(_drawn_among(clients, corrupt, count)[::-1])
        surviving = int(np.searchsorted(alive, 2.0**-rates.abort_bits, side="right"))
        most = count - int(np.searchsorted(bad, 2.0 ** -(rates.security_bits + GRINDING_BITS), side="right"))
        if (majority := (count + most) // 2 + 1) <= surviving:
            return count, majority
        count += 1 + count // 16
    return clients, (clients + corrupt) // 2 + 1


def _drawn_among(population: int, marked: int, drawn: int) -> Row:
    """The probability that k of `drawn` distinct ones are marked, by k."""
    count = np.arange(drawn + 1)
    ways = _log2_choose(np.full(drawn + 1, marked), count)
    ways += _log2_choose(np.full(drawn + 1, population - marked), drawn - count)
    return np.asarray(np.exp2(ways - _log2_choose(np.array([population]), np.array([drawn]))))


def _log2_choose(n: NDArray[np.int64], k: NDArray[np.int64]) -> Row:
    """Minus infinity where k > n."""
    logs = np.concatenate([[0.0], np.cumsum(np.log2(np.arange(1, int(n.max(initial=1)) + 1)))])
    fits = k <= n
    known = np.where(fits, k, 0)
    return np.where(fits, logs[n] - logs[known] - logs[n - known], -np.inf)


@dataclass(frozen=True)
class Graph:
    """Clients 1 to n. `order[c]` is cycle c: client numbers; `place[c]` where each client stands in it."""

    clients: int
    degrees: Degrees
    seed: bytes
    order: NDArray[np.int64]
    place: NDArray[np.int64]
    witnesses: frozenset[int]

    def neighbours(self, client: int) -> tuple[int, ...]:
        """Who shares a mask with `client` and holds shares of it, in ascending order. It is mutual."""
        if self.degrees.complete:
            return self._others(client)
        before, after = self.place[:, client - 1] - 1, (self.place[:, client - 1] + 1) % self.clients
        cycles = np.arange(len(self.order))
        return tuple(sorted({*self.order[cycles, before].tolist(), *self.order[cycles, after].tolist()}))

    def contacts(self, client: int) -> tuple[int, ...]:
        """Whose key `client` needs, in ascending order: its neighbours', the witnesses', and as a witness everybody's."""
        if client in self.witnesses:
            return self._others(client)
        return tuple(sorted(self.witnesses.union(self.neighbours(client))))

    def _others(self, client: int) -> tuple[int, ...]:
        return tuple(other for other in range(1, self.clients + 1) if other != client)


def draw(clients: int, degrees: Degrees, seed: bytes) -> Graph:
    """The graph that a seed of 32 bytes stands for; the same at both ends, so it is not sent."""
    cycles = 0 if degrees.complete else degrees.neighbours // 2
    raw = keystream(Secret(seed), 8 * clients * (cycles + 1)).view("<u8").reshape(cycles + 1, clients)
    order = np.argsort(raw, axis=1, kind="stable")
    witnesses = frozenset((order[-1, : degrees.witnesses] + 1).tolist())
    order = order[:-1]
    return Graph(clients, degrees, seed, order + 1, np.argsort(order, axis=1, kind="stable"), witnesses)
