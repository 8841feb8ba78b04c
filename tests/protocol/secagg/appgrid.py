"""A Flower grid in memory: real client apps, messages encoded and decoded both ways, and faults where a test asks for them."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.serde import context_from_proto, context_to_proto

from coordinator.rounds.exchange import Outcome, Summary
from edge_agent.ledger import Ledgers
from edge_agent.secure_mod import ModPolicy, make_secure_mod
from shared.flower import encode_records, reply_with, to_numpy, with_content
from shared.privacy.events import Event
from shared.secagg.messages import RECORD, Phase
from simulations.local_grid import LocalGrid, Node
from tests.protocol.secagg.kit import Authority

RUN_ID = 7
Fault = Callable[[Message], Message | None]


def phase_of(message: Message) -> str:
    record = message.content.get(RECORD)
    return str(record["phase"]) if record is not None else "plain"


@dataclass
class AppGrid(LocalGrid):
    """`faults[node, phase]` is called with the request instead of the app, and answers for it, or not at all (None)."""

    run_id: int = RUN_ID
    faults: dict[tuple[int, str], Fault] = field(default_factory=dict)
    sent: list[tuple[int, str, bytes]] = field(default_factory=list)  # node, phase, what it replied, as bytes
    budgets: list[float | None] = field(default_factory=list)
    pushed: list[Message] = field(default_factory=list)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        self.pushed += messages
        return [message.metadata.message_id for message in self.pushed]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [message for message in self.pushed if message.metadata.message_id in set(message_ids)]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        self.budgets.append(timeout)
        yield from super().send_and_receive(messages, timeout=timeout)

    def restart(self, node: int) -> None:
        """As after SIGKILL: what the device kept in memory is gone."""
        self.nodes[node].context.state = RecordDict()

    def answer(self, arrived: Message) -> Message | None:
        node_id, phase = arrived.metadata.dst_node_id, phase_of(arrived)
        reply = self.faults.get((node_id, phase), self.handle)(arrived)
        if reply is not None and not reply.has_error():
            self.sent.append((node_id, phase, encode_records(reply.content)))
        return reply


def silent(message: Message) -> None:
    """The device is gone."""


def losing_the_reply(grid: AppGrid) -> Fault:
    """The device works and its answer never arrives."""

    def fault(message: Message) -> None:
        grid.handle(message)

    return fault


def rewriting(grid: AppGrid, change: Callable[[RecordDict], None]) -> Fault:
    def fault(message: Message) -> Message:
        reply = grid.handle(message)
        change(reply.content)
        return reply

    return fault


def tampering(grid: AppGrid, replies: list[Message], change: Callable[[dict[str, Any]], None]) -> Fault:
    """Deliver a changed request first, keep the answer, then the one that was meant."""

    def fault(message: Message) -> Message:
        honest = dict(message.content.config_records[RECORD])
        lie = dict(honest)
        change(lie)
        content = RecordDict(dict(message.content.items()))
        content[RECORD] = ConfigRecord(lie)
        state = grid.nodes[message.metadata.dst_node_id].context.state
        before = dict(state.items())
        replies.append(grid.handle(with_content(message, content)))
        assert dict(state.items()) == before, "a refusal changes nothing"
        return grid.handle(message)

    return fault


class ProcessPerMessage(AppGrid):
    """As Flower's SuperNode does it: the context goes through protobuf before each message."""

    def handle(self, message: Message) -> Message:
        node = self.nodes[message.metadata.dst_node_id]
        node.context = context_from_proto(context_to_proto(node.context))
        return super().handle(message)


@dataclass
class Recorder:
    """An observer that remembers."""

    phases: list[tuple[Phase, Mapping[int, Outcome]]] = field(default_factory=list)
    summaries: list[Summary] = field(default_factory=list)
    passed: list[list[str]] = field(default_factory=list)  # the phases of each exchange that is closed
    spent: list[Event] = field(default_factory=list)
    _open: list[str] = field(default_factory=list)

    def spends(self, event: Event) -> None:
        self.spent.append(event)

    def phase(self, phase: Phase, outcomes: Mapping[int, Outcome]) -> None:
        self.phases.append((phase, outcomes))
        self._open.append(str(phase))

    def closed(self, summary: Summary) -> None:
        self.summaries.append(summary)
        self.passed.append(self._open)
        self._open = []

    @property
    def fates(self) -> dict[int, str]:
        return {node: str(outcome.fate) for node, outcome in sorted(self.summaries[-1].outcomes.items())}

    def reason(self, node: int) -> str:
        return self.summaries[-1].outcomes[node].reason


START: dict[str, np.ndarray[Any, Any]] = {
    "w": np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4),
    "b": np.array(0.5, dtype=np.float64),
    "steps": np.array([10, 20], dtype=np.int64),
}


def start_arrays() -> ArrayRecord:
    return ArrayRecord({name: Array(value) for name, value in START.items()})


def train(message: Message, context: Context) -> Message:
    """One deterministic step towards a point of the device's own; FedProx's term if it is asked for."""
    config = message.content.config_records["config"]
    arrays = {name: to_numpy(array) for name, array in message.content.array_records["arrays"].items()}
    rng = np.random.default_rng(context.node_id)
    mu = float(config.get("proximal-mu", 0.0))  # type: ignore[arg-type]
    new = {}
    for name, value in arrays.items():
        if value.dtype.kind == "f":
            goal = rng.standard_normal(value.shape).astype(value.dtype)
            new[name] = np.asarray(value + (goal - value) / (2 + mu), dtype=value.dtype)
        else:
            new[name] = value + context.node_id
    metrics = MetricRecord(
        {"num-examples": 10 * context.node_id, "loss": 1.0 / context.node_id, "private": 0.123456789}
    )
    records = RecordDict({"arrays": ArrayRecord({n: Array(v) for n, v in new.items()}), "metrics": metrics})
    return reply_with(message, records)


def raising(message: Message, context: Context) -> Message:
    raise RuntimeError("out of memory")


def evaluate(message: Message, context: Context) -> Message:
    metrics = MetricRecord({"num-examples": 5 * context.node_id, "accuracy": context.node_id / 10})
    return reply_with(message, RecordDict({"metrics": metrics}))


def query(message: Message, context: Context) -> Message:
    return reply_with(message, RecordDict({"metrics": MetricRecord({"node": context.node_id})}))


Handler = Callable[[Message, Context], Message]


def changed(message: Message, context: Context, **arrays: np.ndarray[Any, Any]) -> Message:
    reply = train(message, context)
    reply.content["arrays"] = ArrayRecord({**reply.content["arrays"], **{n: Array(v) for n, v in arrays.items()}})
    return reply


def metrics(**values: float) -> Handler:
    def trainer(message: Message, context: Context) -> Message:
        reply = train(message, context)
        reply.content["metrics"] = MetricRecord({name.replace("_", "-"): value for name, value in values.items()})
        return reply

    return trainer


def make_grid(
    size: int = 5,
    *,
    policy: ModPolicy | None = None,
    trainers: Mapping[int, Handler] | None = None,
    authority: Authority | None = None,
    ledgers: Mapping[int, Ledgers] | None = None,
) -> tuple[AppGrid, Authority]:
    """Nodes 1 to `size`, each a real app behind the mod; `trainers` replaces some nodes' training,
    `ledgers` are for those that add noise.
    """
    authority = authority or Authority()
    nodes = {}
    for node_id in range(1, size + 1):
        kept = (ledgers or {}).get(node_id)
        mod = make_secure_mod(authority.enrol(f"dev-{node_id}"), authority, policy, ledgers=kept)
        app = ClientApp(mods=[mod])
        app.train()((trainers or {}).get(node_id, train))
        app.evaluate()(evaluate)
        app.query()(query)
        nodes[node_id] = Node.of(app, RUN_ID, node_id)
    return AppGrid(nodes), authority
