"""A Flower grid in memory: real client apps, messages encoded and decoded both ways, and faults where a test asks for them."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from coordinator.rounds.exchange import Outcome, Summary
from edge_agent.secure_mod import ModPolicy, make_secure_mod
from shared.flower import (
    APP_RAISED,
    decode_records,
    encode_records,
    new_message,
    reply_error,
    reply_with,
    stamp,
    to_numpy,
)
from shared.secagg.messages import RECORD, Phase
from tests.protocol.secagg.kit import Authority

RUN_ID = 7
Fault = Callable[[Message], Message | None]


def phase_of(message: Message) -> str:
    record = message.content.get(RECORD)
    return str(record["phase"]) if record is not None else "plain"


@dataclass
class Node:
    app: ClientApp
    context: Context


@dataclass
class AppGrid(Grid):
    """`faults[node, phase]` is called with the request instead of the app, and answers for it, or not at all (None)."""

    nodes: dict[int, Node]
    faults: dict[tuple[int, str], Fault] = field(default_factory=dict)
    sent: list[tuple[int, str, bytes]] = field(default_factory=list)  # node, phase, what it replied, as bytes
    budgets: list[float | None] = field(default_factory=list)
    pushed: list[Message] = field(default_factory=list)

    def set_run(self, run: Any) -> None:
        raise AssertionError("strategies do not call this")

    @property
    def run(self) -> Any:
        return RUN_ID

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return new_message(content, run_id=RUN_ID, node_id=dst_node_id, message_type=message_type, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        return list(self.nodes)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        self.pushed += messages
        return [message.metadata.message_id for message in self.pushed]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [message for message in self.pushed if message.metadata.message_id in set(message_ids)]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        self.budgets.append(timeout)
        for place, message in enumerate(messages):
            stamp(message, run_id=RUN_ID, message_id=f"m{place}")
            reply = self._deliver(message)
            if reply is not None:
                yield reply

    def restart(self, node: int) -> None:
        """As after SIGKILL: what the device kept in memory is gone."""
        self.nodes[node].context.state = RecordDict()

    def _deliver(self, message: Message) -> Message | None:
        node_id, phase = message.metadata.dst_node_id, phase_of(message)
        arrived = new_message(
            decode_records(encode_records(message.content)),
            run_id=RUN_ID,
            node_id=node_id,
            message_type=message.metadata.message_type,
        )
        stamp(arrived, run_id=RUN_ID, message_id=message.metadata.message_id)
        fault = self.faults.get((node_id, phase), self.handle)
        reply = fault(arrived)
        if reply is None or reply.has_error():
            return reply
        blob = encode_records(reply.content)
        self.sent.append((node_id, phase, blob))
        return reply_with(message, decode_records(blob))

    def handle(self, message: Message) -> Message:
        """What a host does: the app answers, and its exception becomes an error reply."""
        node = self.nodes[message.metadata.dst_node_id]
        try:
            return node.app(message, node.context)
        except Exception as error:  # noqa: BLE001 - a host survives whatever an app raises
            return reply_error(message, APP_RAISED, f"the app raised {type(error).__name__}")


def silent(message: Message) -> None:
    """The device is gone."""


def losing_the_reply(grid: AppGrid) -> Fault:
    """The device works and its answer never arrives."""

    def fault(message: Message) -> None:
        grid.handle(message)

    return fault


@dataclass
class Recorder:
    """An observer that remembers."""

    phases: list[tuple[Phase, Mapping[int, Outcome]]] = field(default_factory=list)
    summaries: list[Summary] = field(default_factory=list)
    passed: list[list[str]] = field(default_factory=list)  # the phases of each exchange that is closed
    _open: list[str] = field(default_factory=list)

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


def make_grid(
    size: int = 5,
    *,
    policy: ModPolicy | None = None,
    trainers: Mapping[int, Handler] | None = None,
    authority: Authority | None = None,
) -> tuple[AppGrid, Authority]:
    """Nodes 1 to `size`, each a real app behind the mod; `trainers` replaces some nodes' training."""
    authority = authority or Authority()
    nodes = {}
    for node_id in range(1, size + 1):
        mod = make_secure_mod(authority.enrol(f"dev-{node_id}"), authority, policy)
        app = ClientApp(mods=[mod])
        app.train()((trainers or {}).get(node_id, train))
        app.evaluate()(evaluate)
        app.query()(query)
        nodes[node_id] = Node(app, Context(RUN_ID, node_id, {}, RecordDict(), {}))
    return AppGrid(nodes), authority
