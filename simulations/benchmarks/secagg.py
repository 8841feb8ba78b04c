"""CPU, bytes and memory of secure aggregation, beside Flower's SecAgg+ on the same vectors in the same run.

Clients drop out at random after they dealt their shares and before they mask. Ours is laid out for twice that rate (5 % where it
is 0, 40 % where it is 30); Flower's has the degree that its users give it, k = 2 ceil(log2 n) + 1, and no such figure: its rounds
are given up where a client loses too many neighbours, and its cost until then is what stands there. Each case and side has a
process of its own, which plays all parts on one core, and is charged to the client or the server whose code runs. Keys and shares
are made once for many rounds, so a round costs what stands there, and with the whole set-up what stands on the next line: what a
round costs after a device vanished, since it makes a new group. Flower's makes keys in each round. Flower's rounds of more than a
minute are extrapolated and marked so.

Ours is the protocol's core (`shared.secagg`) with nothing around it: neither records nor the state between messages, which
Flower's mod pays for, nor error feedback, nor signatures (Flower has none; with its checks they cost a client of 50 some 30 ms).

\b
python simulations/benchmarks/secagg.py                                  up to 100 clients and 100 k elements: minutes
python simulations/benchmarks/secagg.py --full                           up to 1000 clients and a million elements: an hour
python simulations/benchmarks/secagg.py --clients 500 --elements 100000 --dropout 0.1
"""

import multiprocessing
import os
import random
import statistics
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product
from typing import TypeVar

import click
import numpy as np
import psutil

from coordinator.rounds.unmasking import apply_masks_on_all_cores
from shared.secagg.graph import Rates
from shared.secagg.keys import InsecureWarning
from simulations.benchmarks import flower_secagg, secagg_extrapolate
from simulations.benchmarks.harness import Figure, figure, publish
from simulations.benchmarks.secagg_ours import BITS, Cost, Fleet, Vectors, keystream_s

ROUNDS = 4  # of one group: three on one core, of which the median is told, and one on all cores
SMALL = ((50, 100), (10_000, 100_000), (0.0, 0.1, 0.3))
FULL = ((50, 100, 500, 1000), (10_000, 100_000, 1_000_000), (0.0, 0.1, 0.3))
PATIENCE_S = 60.0  # for one round of Flower's
T = TypeVar("T")
ONE_CORE = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Case:
    clients: int
    elements: int
    dropout: float

    @property
    def name(self) -> str:
        size = f"{self.elements // 1000} k" if self.elements < 1_000_000 else f"{self.elements // 1_000_000} M"
        return f"n = {self.clients}, d = {size}, {self.dropout:.0%} dropout"

    @property
    def rates(self) -> Rates:
        """Twice the dropout that happens, as a careful admin states it, and what any threshold can bear at most."""
        return Rates(dropout=min(2 * self.dropout, 0.4) if self.dropout else 0.05)

    def vectors(self) -> Vectors:
        return lambda seat: np.random.default_rng(seat).standard_normal(self.elements, dtype=np.float32)

    def gone(self) -> list[frozenset[int]]:
        """Who drops out, in each round: the same in every run, and for both sides."""
        chance, seats = random.Random(self.clients), range(1, self.clients + 1)
        return [frozenset(chance.sample(seats, int(self.dropout * self.clients))) for _ in range(ROUNDS)]


@dataclass(frozen=True)
class Ours:
    """`finish_s` is wall time on all cores, from the last answer to the sum; `keystream_s` CPU a mask."""

    setup: Cost
    rounds: tuple[Cost, ...]
    finish_s: float
    keystream_s: float
    memory: float

    def median(self, of: Callable[[Cost], float]) -> float:
        return statistics.median(map(of, self.rounds))


def play_ours(case: Case) -> Ours:
    """In a process of its own, whose peak memory is then the case's."""
    warnings.simplefilter("ignore", InsecureWarning)
    vectors, gone = case.vectors(), case.gone()
    Fleet(4, Rates(), 1).round(1, lambda seat: np.ones(64, np.float32), frozenset())  # what is loaded once is loaded
    before = psutil.Process().memory_info().rss
    fleet = Fleet(case.clients, case.rates, ROUNDS)
    rounds = tuple(fleet.round(number, vectors, gone[number - 1]) for number in range(1, ROUNDS))
    memory = _peak() - before
    last = fleet.round(ROUNDS, vectors, gone[-1], apply_masks_on_all_cores)
    bits = BITS + (case.clients - 1).bit_length()
    return Ours(fleet.setup, rounds, last.finish_s, keystream_s(case.elements, bits), memory)


def play_flower(case: Case) -> tuple[flower_secagg.Cost, float]:
    """In a process of its own: its cost, and its peak memory in bytes."""
    ones = np.ones(64, np.float32)
    flower_secagg.one_round(4, 64, lambda seat: ones, frozenset())
    before = psutil.Process().memory_info().rss
    cost = flower_secagg.one_round(case.clients, case.elements, case.vectors(), case.gone()[0])
    return cost, _peak() - before


def _peak() -> int:
    """The most memory that this process has held so far, in bytes."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Peer:
    """Flower's cost, measured where a round takes less than a minute; else from the measured ones, by what it does."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int, float], dict[str, float]] = {}

    def learn(self, case: Case, found: dict[str, float]) -> None:
        self._known[(case.clients, case.elements, case.dropout)] = found

    def cost(self, case: Case) -> tuple[str, dict[str, float]]:
        key = (case.clients, case.elements, case.dropout)
        guess = {what: secagg_extrapolate.guess(self._known, key, what) for what in secagg_extrapolate.TERMS}
        if guess["server"] + case.clients * guess["client"] > PATIENCE_S:
            return "Flower SecAgg+, extrapolated", guess
        cost, memory = alone(play_flower, case)
        found = {"client": cost.client_s, "server": cost.server_s, "bytes": cost.bytes_up, "memory": memory}
        if not cost.aborted:  # what an aborted round costs says nothing about whole ones
            self.learn(case, found)
        return f"Flower SecAgg+{', which gave up' if cost.aborted else ''}", found


def alone(play: Callable[[Case], T], case: Case) -> T:
    """`play(case)` in a new process on one core."""
    before = {name: os.environ.get(name) for name in ONE_CORE}
    os.environ.update(ONE_CORE)
    try:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            return pool.submit(play, case).result()
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def figures_of(case: Case, ours: Ours, peer: tuple[str, dict[str, float]]) -> list[Figure]:
    label, theirs = peer
    small, name = case.elements <= 100_000, case.name
    server = ours.median(lambda one: one.server_s)
    bound = ours.keystream_s * ours.median(lambda one: one.masks)

    def beside(what: str, value: float, unit: str, part: str, aim: float | None = None) -> Figure:
        return figure(f"{what}, {name}", value, unit, peer=(label, max(theirs[part], 1e-9)), aim=aim)

    client = ours.median(lambda one: one.client_s)
    return [
        beside("client CPU", client, "s", "client", 10 if small else 5),
        beside("client CPU with set-up", client + ours.setup.client_s, "s", "client"),
        beside("server CPU", server, "s", "server", 50 if small else 15),
        beside("server CPU with set-up", server + ours.setup.server_s, "s", "server"),
        beside("bytes up", ours.median(lambda one: one.bytes_up), "bytes", "bytes", 4),
        beside("bytes up with set-up", ours.median(lambda one: one.bytes_up) + ours.setup.bytes_up, "bytes", "bytes"),
        beside("memory", max(1.0, ours.memory) / 2**20, "MiB", "memory_mib", 10),
        figure(f"server CPU over its keystream's, {name}", server / bound, "times", aim=2),
        figure(f"from the last answer to the sum, all cores, {name}", ours.finish_s, "s"),
    ]


def measure(cases: Iterable[Case]) -> list[Figure]:
    peer, figures = Peer(), []
    for case in cases:
        click.echo(case.name, err=True)
        ours = alone(play_ours, case)
        label, theirs = peer.cost(case)
        theirs["memory_mib"] = theirs["memory"] / 2**20
        figures += figures_of(case, ours, (label, theirs))
    return figures


@click.command(help=__doc__, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--full", is_flag=True, help="Up to 1000 clients and a million elements.")
@click.option("--clients", type=int, multiple=True, help="Only these numbers of clients.")
@click.option("--elements", type=int, multiple=True, help="Only these lengths.")
@click.option("--dropout", type=float, multiple=True, help="Only these shares of the clients.")
def main(full: bool, clients: tuple[int, ...], elements: tuple[int, ...], dropout: tuple[float, ...]) -> None:
    known = FULL if full else SMALL
    if min(clients, default=4) < 4 or min(elements, default=1) < 1 or not all(0 <= share <= 0.3 for share in dropout):
        raise click.BadParameter("at least 4 clients and 1 element, and a dropout from 0 to 0.3")
    sizes = product(clients or known[0], elements or known[1], dropout or known[2])
    publish("secagg", measure(Case(*size) for size in sizes))


if __name__ == "__main__":
    main()
