"""CPU, bytes and memory of secure aggregation, beside Flower's SecAgg+ on the same vectors in the same run.

Both run as they are, ours with `SecureGrid` and `SecureMod`, Flower's with its workflow and its mod: the server in one process on
one core, all clients in another, messages in Flower's own encoding. CPU is that process's, less the encoding and the pipe, which
sends one message at a time. Each client drops out by chance: it does not answer when it is asked for its vector (or, so marked,
never again after it sent it), and is back in the next round.

Ours is what a job of 16 rounds or more gets by default: devices sign their keys and check each other's signatures, which Flower's
do not; keys serve 16 rounds, so a figure is the mean of 16 of which the first makes them (beyond 100 clients two are played, and
the second stands for fifteen), and both kinds of round stand below it. Certificates were seen in an earlier group of the job, as a
device whose process lives on sees most of them but once (`--strangers`: never; so it is on Flower's SuperNode, where each message
begins anew). A job states twice the dropout that happens (5 % where it is 0, 40 % where it is 30; "10% of 20%" is what happens, of
what is stated), and 5 % corrupt.

Flower's makes keys in each round and has the degree that its users give it, k = 2 ceil(log2 n) + 1; where its sparse graph leaves a
client with too few neighbours it gives up, and is asked up to three times. Its rounds of more than a minute, and those that it gave
up, are extrapolated from smaller cases of the same run, and marked so; where there are too few of these, it is left out.

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
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product
from typing import TypeVar

import click
import numpy as np

from coordinator.rounds.exchange import DEFAULT_GROUP_ROUNDS
from coordinator.rounds.unmasking import apply_masks_on_all_cores
from shared.errors import Unsupported
from shared.secagg.graph import Rates, derive
from shared.secagg.keys import InsecureWarning
from shared.secagg.masks import apply_masks
from simulations.benchmarks import flower_secagg, secagg_extrapolate, secagg_ours
from simulations.benchmarks.harness import Figure, figure, publish
from simulations.benchmarks.secagg_ours import Round, Vector, keystream_s, unmasking_s, vector_of
from simulations.benchmarks.secagg_plot import plot
from simulations.benchmarks.two_processes import Memory

SMALL = ((50, 100), (10_000, 100_000), (0.0, 0.1, 0.3))
FULL = ((50, 100, 500, 1000), (10_000, 100_000, 1_000_000), (0.0, 0.1, 0.3))
MANY = 100  # clients; beyond, a second round stands for all that find keys at hand
LARGE = 100_000_000  # elements of all clients: so much of Flower's is played only where it is known how long it takes
PATIENCE_S = 60.0  # for one round of Flower's
TRIES = 3  # of Flower's
OFF = 0.2  # of a mean over n unit Gaussians, rounded to 8 bits: at most so much over the root of n
T = TypeVar("T")
ONE_CORE = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Case:
    clients: int
    elements: int
    dropout: float
    after_masking: bool = False
    signed: bool = True
    strangers: bool = False

    @property
    def name(self) -> str:
        size = f"{self.elements // 1000} k" if self.elements < 1_000_000 else f"{self.elements // 1_000_000} M"
        when = " after masking" if self.after_masking else ""
        stated = f"{self.dropout:.0%} of {self.rates.dropout:.0%} dropout{when}"
        how = ", unsigned" if not self.signed else ", strangers" if self.strangers else ""
        return f"n = {self.clients}, d = {size}, {stated}{how}"

    @property
    def nodes(self) -> Sequence[int]:
        return range(1, self.clients + 1)

    @property
    def rates(self) -> Rates:
        """Twice the dropout that happens, as a careful admin states it, and what any threshold can bear at most."""
        return Rates(dropout=min(2 * self.dropout, 0.4) if self.dropout else 0.05)

    @property
    def bits(self) -> int:
        return 8 + (self.clients - 1).bit_length()

    def gone(self, number: int) -> frozenset[int]:
        """Who drops out in a round: the same in every run, and for both sides. No more than what is stated."""
        chance = random.Random(f"{self.clients} {number}")
        found = [node for node in self.nodes if chance.random() < self.dropout]
        return frozenset(found[: self.rates.dropped(self.clients)])

    def check(self, mean: Vector, gone: frozenset[int]) -> None:
        """Raises `ArithmeticError` unless it is that of the counted vectors: those of all, if clients vanish after masking."""
        counted = [node for node in self.nodes if self.after_masking or node not in gone]
        expected = np.zeros(self.elements)
        for node in counted:
            expected += vector_of(node, self.elements)
        if np.abs(mean - expected / len(counted)).max() > OFF / len(counted) ** 0.5:
            raise ArithmeticError(f"{self.name}: not the mean of the vectors")


@dataclass(frozen=True)
class Ours:
    """The rounds that were played. Seconds of wall time to take a round's masks out on one core and on all, and of CPU to make a
    mask; the server's peak memory in bytes.
    """

    rounds: tuple[Round, ...]
    one_core_s: float
    all_cores_s: float
    keystream_s: float
    memory: int

    def made(self, of: Callable[[Round], float]) -> float:
        """Of a round that makes keys."""
        return statistics.median(of(one) for one in self.rounds if one.makes_keys)

    def at_hand(self, of: Callable[[Round], float]) -> float | None:
        """Of a round that finds keys at hand, if there was one."""
        found = [of(one) for one in self.rounds if not one.makes_keys]
        return statistics.median(found) if found else None

    def mean(self, of: Callable[[Round], float]) -> float:
        """Over the rounds of a group. Where only two were played the second stands for all but the first."""
        first, *later = map(of, self.rounds)
        return (first + (DEFAULT_GROUP_ROUNDS - 1) * statistics.mean(later or [first])) / DEFAULT_GROUP_ROUNDS


def play_ours(case: Case) -> Ours:
    """In a process of its own, whose peak memory is then the case's."""
    warnings.simplefilter("ignore", InsecureWarning)
    fleet = secagg_ours.Fleet(case.clients, Rates(), signed=case.signed, strangers=case.strangers)
    fleet.round(case.nodes[:5], 64, frozenset())  # what is loaded once is loaded
    fleet.begin(case.rates)
    memory, rounds, peak = Memory(), [], 0
    for number in range(DEFAULT_GROUP_ROUNDS if case.clients <= MANY else 2):
        gone = case.gone(number)
        cost, mean = fleet.round(case.nodes, case.elements, gone, after_masking=case.after_masking)
        rounds.append(cost)
        peak = max(peak, memory.peak())
        case.check(mean, gone)
        memory.again()
    fleet.grid.close()
    one_core, all_cores = (
        unmasking_s(case.elements, case.bits, rounds[-1].masks, apply)
        for apply in (apply_masks, apply_masks_on_all_cores)
    )
    return Ours(tuple(rounds), one_core, all_cores, keystream_s(case.elements, case.bits), peak)


@dataclass(frozen=True)
class Flowers:
    """Not `finished`: it gave up each time, at the cost of `tried`."""

    tried: flower_secagg.Round
    finished: bool
    memory: int


def play_flower(case: Case) -> Flowers:
    """In a process of its own."""
    fleet = flower_secagg.Fleet()
    fleet.round(case.nodes[:4], 64, frozenset())
    memory, gone = Memory(), case.gone(0)
    for _ in range(TRIES):
        cost, mean = fleet.round(case.nodes, case.elements, gone, after_masking=case.after_masking)
        if mean is not None:
            break
    peak = memory.peak()
    fleet.grid.close()
    if mean is not None:
        case.check(mean, gone)
    return Flowers(cost, mean is not None, peak)


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
        if not guess["server"] and case.clients * case.elements > LARGE:
            return "Flower SecAgg+, extrapolated", guess
        flowers = alone(play_flower, case)
        cost = flowers.tried
        found = {
            "client": cost.client_s,
            "server": cost.server_s,
            "bytes": cost.bytes_up,
            "memory": flowers.memory / 2**20,
        }
        if not flowers.finished:  # what an aborted round costs says nothing about whole ones
            return "Flower SecAgg+, which gave up, extrapolated", guess
        self.learn(case, found)
        return "Flower SecAgg+", found


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

    def beside(what: str, value: float, unit: str, part: str, aim: float | None = None) -> Figure:
        if not theirs[part]:  # it gave up, and too little is known to say what it would cost
            return figure(f"{what}, {name}", value, unit)
        return figure(f"{what}, {name}", value, unit, peer=(label, theirs[part]), aim=aim)

    def kinds(what: str, unit: str, part: str, of: Callable[[Round], float], aim: float) -> list[Figure]:
        found = [beside(what, ours.mean(of), unit, part, aim), beside(f"{what}, keys made", ours.made(of), unit, part)]
        at_hand = ours.at_hand(of)
        return found if at_hand is None else [*found, beside(f"{what}, keys at hand", at_hand, unit, part)]

    bound = ours.keystream_s * ours.rounds[-1].masks
    figures = [
        *kinds("client CPU", "s", "client", lambda one: one.client_s, 10 if small else 5),
        *kinds("server CPU", "s", "server", lambda one: one.server_s, 50 if small else 15),
        *kinds("bytes up", "bytes", "bytes", lambda one: one.bytes_up, 4),
        beside("server memory", max(ours.memory, 1) / 2**20, "MiB", "memory", 10),
        figure(
            f"server CPU over its keystream's, last round, {name}", ours.rounds[-1].server_s / bound, "times", aim=2
        ),
        figure(f"taking masks out, one core, {name}", ours.one_core_s, "s"),
        figure(f"taking masks out, all cores, {name}", ours.all_cores_s, "s"),
    ]
    if (case.clients, case.elements, case.dropout) == (500, 100_000, 0.1):
        figures.append(figure(f"a whole round's server CPU, {name}", ours.mean(lambda one: one.server_s), "s", aim=1))
    return figures


@click.command(help=__doc__, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--full", is_flag=True, help="Up to 1000 clients and a million elements.")
@click.option("--clients", type=click.IntRange(5), multiple=True, help="Only these numbers of clients.")
@click.option("--elements", type=click.IntRange(1), multiple=True, help="Only these lengths.")
@click.option("--dropout", type=click.FloatRange(0, 0.3), multiple=True, help="Only these shares of the clients.")
@click.option("--after-masking", is_flag=True, help="They vanish after they sent their vectors, not before.")
@click.option("--unsigned", is_flag=True, help="Nobody signs, as nobody does with Flower's.")
@click.option("--strangers", is_flag=True, help="Each device checks every certificate for the first time.")
def main(
    *,
    full: bool,
    clients: tuple[int, ...],
    elements: tuple[int, ...],
    dropout: tuple[float, ...],
    after_masking: bool,
    unsigned: bool,
    strangers: bool,
) -> None:
    known = FULL if full else SMALL
    sizes = sorted(
        product(clients or known[0], elements or known[1], dropout or known[2]), key=lambda s: (s[0] * s[1], s)
    )
    peer, figures = Peer(), list[Figure]()
    more = {"after_masking": after_masking, "signed": not unsigned, "strangers": strangers}
    cases = [Case(*size, **more) for size in sizes]
    try:
        for case in cases:
            derive(case.clients, case.rates)
    except Unsupported as error:
        raise click.BadParameter(error.message) from error
    for number, case in enumerate(cases, start=1):
        click.echo(f"{case.name} ({number} of {len(cases)})", err=True)
        figures += figures_of(case, alone(play_ours, case), peer.cost(case))
        publish(
            "secagg", figures, plot=plot, told=number == len(cases)
        )  # an hour's work is not lost by its last minute


if __name__ == "__main__":
    main()
