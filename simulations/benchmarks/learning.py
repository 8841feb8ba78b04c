"""What secure aggregation and its bit budget cost in accuracy and save in bytes: Fashion-MNIST, 20 devices, Dirichlet 0.5.

Every way starts from the same weights and gives each device the same examples; all devices take part in every round. Plain is
Flower's FedAvg on float32; the others go through the real protocol, in this process, with every message encoded. Bytes are those
of all messages of a round, both directions, the mean over all rounds, the first one (which takes whole words) and all that makes
keys included; once pruned, the mean of the rounds after the one that sent the smaller model whole, with their share of the keys.
Devices sign, and make keys once for as many rounds as are run (a job's default is 8; its signatures then come five times as often).
Accuracy is on the set's own test split, the mean of the last five rounds.

\b
python simulations/benchmarks/learning.py               the set is fetched first, once: about half an hour
python simulations/benchmarks/learning.py --rounds 10 --way plain --way b8
python simulations/benchmarks/learning.py --width 32 --way small --way pruned
"""

import logging
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import click
import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from coordinator.rounds.exchange import SecureConfig
from coordinator.rounds.secure_grid import SecureGrid
from edge_agent.secure_mod import make_secure_mod
from shared.clock import SystemClock
from shared.flower import assume_identity, record_to_numpy, reply_with
from shared.learning.hyperparameters import TrainSettings
from shared.learning.models import build, initial_state, load_state
from shared.learning.prune import prune
from shared.learning.spec import ModelSpec, new_spec
from shared.learning.state import State
from shared.learning.train import FloatLearner, evaluate, fit, refresh_statistics
from shared.secagg.messages import RECORD, Inbox, Phase
from shared.signing.certificates import Authority
from shared.signing.identity import DeviceIdentity, FleetVerifier
from simulations import data
from simulations.benchmarks.harness import Figure, figure, publish
from simulations.local_grid import LocalGrid, Node
from simulations.partition import Rows, dirichlet_split

DEVICES = 20
EXAMPLES = 12_000  # of the training split, over all devices
ROUNDS = 40
LAST = 5  # rounds whose accuracy is averaged
PRUNED = 0.5  # of the channels, after a quarter of the rounds
DAY_S = 86_400.0
PUBLIC = 256  # examples that measure BatchNorm's statistics again after pruning


@dataclass(frozen=True)
class Way:
    """A way to run the rounds. `secure` None: plain. Aims: points of accuracy that may be lost, bytes that must be saved."""

    name: str
    secure: SecureConfig | None = None
    pruned: bool = False
    points: float | None = None
    saved: float | None = None


SMALL = SecureConfig(bits=8, subsample=1 / 4, delta_broadcast=True, group_rounds=ROUNDS)
WAYS: dict[str, Way] = {
    "plain": Way("float32 FedAvg"),
    "b8": Way("b = 8", SecureConfig(bits=8, group_rounds=ROUNDS), points=0.3),
    "b4": Way("b = 4", SecureConfig(bits=4, group_rounds=ROUNDS), points=1.0),
    "small": Way("b = 8, a quarter of the elements up, changes down", SMALL, saved=0.85),
    "pruned": Way("the same, half of the channels pruned", SMALL, pruned=True, saved=0.95),
}


@dataclass(frozen=True)
class Run:
    """By round: the accuracy after it, and the bytes that all devices sent and were sent, without those that made keys."""

    accuracies: Sequence[float]
    sent: Sequence[int]
    keys: int

    @property
    def accuracy(self) -> float:
        return statistics.mean(self.accuracies[-LAST:])

    def bytes_a_round(self, after: int = 0) -> float:
        """Of a device, in the rounds after so many."""
        return (statistics.mean(self.sent[after:]) + self.keys / len(self.sent)) / DEVICES


class CountingGrid(LocalGrid):
    """Counts apart what makes keys: whole phases, and the letters in the first round's messages."""

    keys = 0

    def _deliver(self, message: Message) -> Message | None:
        record, before = message.content.get(RECORD), self.bytes_down + self.bytes_up
        reply = super()._deliver(message)
        if isinstance(record, ConfigRecord):
            making = record["phase"] in (Phase.KEYS, Phase.COINS, Phase.SHARES)
            letters = Inbox.from_fields(dict(record)).boxes if "boxes" in record else {}
            self.keys += self.bytes_down + self.bytes_up - before if making else sum(map(len, letters.values()))
        return reply


@dataclass
class Lab:
    """Devices with their examples, a network, and the weights that all ways start from."""

    images: np.ndarray
    labels: np.ndarray
    parts: tuple[Rows, ...]
    test: tuple[np.ndarray, np.ndarray]
    spec: ModelSpec
    start: State
    seed: int
    learners: dict[str, FloatLearner] = field(default_factory=dict)  # workbenches, which all devices share

    @classmethod
    def make(cls, seed: int, width: int) -> "Lab":
        clothes = data.load("fashion-mnist", say=lambda line: click.echo(line, err=True))
        rng = np.random.default_rng(seed)
        train = rng.permutation(clothes.test_from or len(clothes.y))[:EXAMPLES]
        images, labels = 2 * clothes.x[train] - 1, clothes.y[train]
        parts = dirichlet_split(labels, DEVICES, 0.5, rng, minimum=10)
        arguments: dict[str, Any] = {"shape": "1x28x28", "classes": ",".join(clothes.classes), "width": width}
        spec = new_spec("cnn-small", arguments)
        test = (2 * clothes.x[clothes.test_from :] - 1, clothes.y[clothes.test_from :])
        return cls(images, labels, parts, test, spec, initial_state(spec, rng), seed)

    def learner(self, spec: str) -> FloatLearner:
        if spec not in self.learners:
            self.learners[spec] = FloatLearner(ModelSpec.from_json(spec))
        return self.learners[spec]

    def train(self, message: Message, context: Context) -> Message:
        """One epoch over the device's own examples, the same for all ways that start from the same weights."""
        config = message.content.config_records["config"]
        start = record_to_numpy(message.content.array_records["arrays"])
        rows = self.parts[context.node_id - 1]
        rng = np.random.default_rng((self.seed, context.node_id, int(str(config["server-round"]))))
        settings = TrainSettings(lr=float(str(config["lr"])))
        learner = self.learner(str(config["spec"]))
        fitted = fit(learner, start, self.images[rows], self.labels[rows], settings=settings, rng=rng)
        metrics = MetricRecord({"num-examples": fitted.examples, "loss": fitted.loss})
        return reply_with(message, RecordDict({"arrays": records_of(fitted.state), "metrics": metrics}))

    def grid(self, way: Way) -> tuple[CountingGrid, Grid]:
        """The grid that counts bytes, and the one that the strategy is given."""
        nodes, now = {}, SystemClock().now()
        authority = Authority.create("benchmark", now)
        verifier = FleetVerifier(authority.certificate_der, lambda: now)
        for node in range(1, DEVICES + 1):
            identity = DeviceIdentity.create(authority, f"device-{node}", now=now, valid_for_s=DAY_S)
            app = ClientApp(mods=[] if way.secure is None else [make_secure_mod(identity, verifier)])
            app.train()(self.train)
            nodes[node] = Node.of(app, 1, node)
        inner = CountingGrid(nodes)
        return inner, inner if way.secure is None else SecureGrid(inner, way.secure, verifier)

    def accuracy(self, spec: ModelSpec, state: State) -> float:
        module = build(spec)
        load_state(module, state)
        return evaluate(module, *self.test).accuracy

    def prune(self, spec: ModelSpec, state: State) -> tuple[ModelSpec, State]:
        spec, state = prune(spec, state, PRUNED)
        return spec, refresh_statistics(self.learner(spec.to_json()), state, self.images[:PUBLIC])


def records_of(state: State) -> ArrayRecord:
    return ArrayRecord({name: Array(array) for name, array in state.items()})


def run(lab: Lab, way: Way, rounds: int, say: Callable[[str], None]) -> Run:
    inner, grid = lab.grid(way)
    spec, state, accuracies, sent = lab.spec, lab.start, [], []
    strategy = FedAvg(fraction_train=1.0, fraction_evaluate=0.0, min_train_nodes=DEVICES, min_available_nodes=DEVICES)
    for number in range(1, rounds + 1):
        before = inner.bytes_down + inner.bytes_up - inner.keys
        if way.pruned and number == 1 + pruned_after(rounds):
            spec, state = lab.prune(spec, state)
        config = ConfigRecord({"lr": 0.05 * (1 - (number - 1) / rounds), "spec": spec.to_json()})
        messages = strategy.configure_train(number, records_of(state), config, grid)
        arrays, _ = strategy.aggregate_train(number, grid.send_and_receive(messages))
        if arrays is None:
            raise RuntimeError("a round came to nothing")
        state = record_to_numpy(arrays)
        sent.append(inner.bytes_down + inner.bytes_up - inner.keys - before)
        accuracies.append(lab.accuracy(spec, state))
        say(f"{way.name}: round {number}, {accuracies[-1]:.2%}")
    return Run(accuracies, sent, inner.keys)


def figures_of(runs: dict[str, list[Run]]) -> list[Figure]:
    plain = runs["plain"]
    size = statistics.mean(one.bytes_a_round() for one in plain)
    figures = [
        figure("accuracy, float32 FedAvg", 100 * statistics.mean(one.accuracy for one in plain), "%"),
        figure("bytes a device and round, float32 FedAvg", size / 1000, "kB"),
    ]

    def saved(what: str, found: list[Run], aim: float | None, after: int = 0) -> Figure:
        share = 1 - statistics.mean(one.bytes_a_round(after) for one in found) / size
        return figure(what, 100 * share, "% saved", aim=aim and 100 * aim, better="more")

    for key, found in runs.items():
        way = WAYS[key]
        if way.secure is None:
            continue
        accuracy = 100 * statistics.mean(one.accuracy for one in found)
        lost = 100 * statistics.mean(b.accuracy - a.accuracy for a, b in zip(found, plain, strict=True))
        figures += [
            figure(f"accuracy, {way.name}", accuracy, "%"),
            figure(f"lost to float32 FedAvg, {way.name}", lost, "points", aim=way.points),
            saved(f"bytes saved, both ways, {way.name}", found, way.saved),
        ]
        if way.pruned:
            after = pruned_after(len(found[0].sent)) + 1
            figures.append(saved(f"bytes saved, both ways, {way.name}, once pruned", found, way.saved, after))
    return figures


def pruned_after(rounds: int) -> int:
    return rounds // 4


@click.command(help=__doc__, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--rounds", default=ROUNDS, show_default=True)
@click.option(
    "--seeds", default=1, show_default=True, help="Runs of each way, with other splits and starts; means are told."
)
@click.option(
    "--width", default=16, show_default=True, help="Of the network: 16 are 30,000 parameters, 32 are 110,000."
)
@click.option("--way", "ways", type=click.Choice(list(WAYS)), multiple=True, help="Only these; plain is always there.")
def main(rounds: int, seeds: int, width: int, ways: tuple[str, ...]) -> None:
    logging.getLogger("flwr").setLevel(logging.ERROR)
    assume_identity(run_id=1)
    runs: dict[str, list[Run]] = {key: [] for key in WAYS if key == "plain" or not ways or key in ways}
    for seed in range(seeds):
        lab = Lab.make(seed, width)
        for key, found in runs.items():
            found.append(run(lab, WAYS[key], rounds, lambda line: click.echo(line, err=True)))
    publish("learning", figures_of(runs))


if __name__ == "__main__":
    main()
