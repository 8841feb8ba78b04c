"""A fleet in one process: `Sessions` in memory, and agents that run real Flower client apps in threads of their own."""

import queue
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from coordinator.fleet.ports import SessionListener
from coordinator.rounds.round import DeviceRef
from edge_agent.ledger import MemoryLedgers
from edge_agent.secure_mod import ModPolicy, make_secure_mod
from shared.blobs import Blobs, MemoryBlobs
from shared.errors import Unavailable
from shared.flower import APP_RAISED, decode_records, encode_records, new_message, stamp
from shared.ids import DeviceId, Digest, NodeId, TaskId, new_command_id
from shared.session import Acknowledged, CancelTask, Hello, Order, Part, RunTask, TaskResult
from tests.protocol.secagg.appgrid import Handler, evaluate, train
from tests.protocol.secagg.kit import Authority

Obey = Callable[[DeviceId, Order], None]


class MemorySessions:
    """Implements `coordinator.fleet.ports.Sessions`. An agent attaches with what it does about an order."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._listeners: list[SessionListener] = []
        self._attached: dict[DeviceId, tuple[Hello, Obey]] = {}
        self.sent: list[tuple[DeviceId, Order]] = []

    def connected(self) -> Mapping[DeviceId, Hello]:
        with self._lock:
            return {device: hello for device, (hello, _) in self._attached.items()}

    def send(self, device: DeviceId, order: Order, *, command_id: str = "") -> None:
        with self._lock:
            if device not in self._attached:
                raise Unavailable(f"device {device} is not connected")
            self.sent.append((device, order))
            _, obey = self._attached[device]
        obey(device, order)

    def subscribe(self, listener: SessionListener) -> None:
        self._listeners.append(listener)

    # ---- the agents' side

    def attach(self, device: DeviceId, obey: Obey, *running: TaskId) -> None:
        hello = Hello("test", "{}", running_tasks=running)
        with self._lock:
            self._attached[device] = (hello, obey)
        for listener in self._listeners:
            listener.attached(device, hello)

    def detach(self, device: DeviceId) -> None:
        with self._lock:
            self._attached.pop(device, None)
        for listener in self._listeners:
            listener.detached(device)

    def report(self, device: DeviceId, result: TaskResult) -> None:
        for listener in self._listeners:
            listener.received(device, new_command_id(), result)

    def orders(self, kind: type[Order]) -> list[tuple[DeviceId, Order]]:
        with self._lock:
            return [(device, order) for device, order in self.sent if isinstance(order, kind)]


class Silence(Exception):
    """Raised by a trainer that never answers."""


@dataclass
class MemoryAgent:
    """One device. `trainers[round]` replaces its training in that round, `before` is told of each task before it is run."""

    ref: DeviceRef
    sessions: MemorySessions
    lasting: Blobs
    inbox: Blobs
    app: ClientApp
    before: Callable[["MemoryAgent", RunTask], None] = lambda agent, task: None
    run_config: dict[str, Any] = field(default_factory=dict)
    fetched: list[Digest] = field(default_factory=list)
    acknowledged: list[str] = field(default_factory=list)
    cancelled: list[TaskId] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._tasks: queue.Queue[RunTask | None] = queue.Queue()
        self._contexts: dict[int, Context] = {}
        self._thread = threading.Thread(target=self._work, name=self.ref.name, daemon=True)
        self._thread.start()

    def attach(self, *running: TaskId) -> None:
        self.sessions.attach(self.ref.id, self._obey, *running)

    def detach(self) -> None:
        self.sessions.detach(self.ref.id)

    def restart(self) -> None:
        """As after SIGKILL: the stream breaks, what was in memory is gone, the device comes back."""
        self.detach()
        self._contexts.clear()
        self.attach()

    def close(self) -> None:
        self._tasks.put(None)
        self._thread.join()

    def _obey(self, device: DeviceId, order: Order) -> None:
        match order:
            case RunTask():
                self._tasks.put(order)
            case CancelTask(task_id):
                self.cancelled.append(task_id)
            case Acknowledged(event_id):
                self.acknowledged.append(event_id)

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            try:
                self.before(self, task)
                result = self._run(task)
            except Silence:
                continue
            except Exception as error:  # noqa: BLE001  # as an agent does: the app's failure is the task's
                result = TaskResult(
                    task.task_id, error_code=APP_RAISED, error_reason=f"{type(error).__name__}: {error}"
                )
            self.sessions.report(self.ref.id, result)

    def _run(self, task: RunTask) -> TaskResult:
        message = new_message(
            self._content(task.parts), run_id=task.run_id, node_id=task.node_id, message_type=task.message_type
        )
        stamp(message, run_id=task.run_id, message_id=task.message_id)
        fresh = Context(task.run_id, task.node_id, {}, RecordDict(), self.run_config)
        reply = self.app(message, self._contexts.setdefault(task.run_id, fresh))
        if reply.has_error():
            return TaskResult(task.task_id, error_code=reply.error.code, error_reason=reply.error.reason or "")
        encoded = encode_records(reply.content)
        part = Part(inline=encoded) if not reply.content.array_records else Part(digest=self.inbox.write(encoded))
        return TaskResult(task.task_id, parts=(part,))

    def _content(self, parts: tuple[Part, ...]) -> RecordDict:
        content = RecordDict()
        for part in parts:
            if part.digest is not None:
                self.fetched.append(part.digest)
            content.update(decode_records(self.lasting.read(part.digest) if part.digest else part.inline))
        return content


@dataclass
class MemoryFleet:
    """`size` devices, nodes 1 to `size`. `trainers[node]` replaces a device's training; `ledgers` say what privacy has cost."""

    size: int = 4
    trainers: Mapping[int, Handler] = field(default_factory=dict)
    lasting: Blobs = field(default_factory=MemoryBlobs)
    inbox: Blobs = field(default_factory=MemoryBlobs)
    authority: Authority = field(default_factory=Authority)

    def __post_init__(self) -> None:
        self.ledgers = {node: MemoryLedgers() for node in range(1, self.size + 1)}
        self.sessions = MemorySessions()
        self.agents = {node: self._agent(node) for node in range(1, self.size + 1)}

    def members(self, cohort: str) -> list[DeviceRef]:
        """Implements `coordinator.rounds.ports.Directory`: one cohort, everybody."""
        return [agent.ref for agent in self.agents.values()]

    def attach_all(self) -> None:
        for agent in self.agents.values():
            agent.attach()

    def close(self) -> None:
        for agent in self.agents.values():
            agent.close()

    def _agent(self, node: int) -> MemoryAgent:
        ref = DeviceRef(DeviceId(f"dev-{node}"), NodeId(node), f"device-{node}")
        policy = ModPolicy(allow_plain=True)
        identity, ledgers = self.authority.enrol(ref.id), self.ledgers[node]
        mod = make_secure_mod(identity, self.authority, policy, client_app="numbers", ledgers=ledgers)
        app = ClientApp(mods=[mod])
        app.train()(self.trainers.get(node, train))
        app.evaluate()(evaluate)
        return MemoryAgent(ref, self.sessions, self.lasting, self.inbox, app)


def failing(message: Message, context: Context) -> Message:
    """Training that always raises."""
    raise RuntimeError("out of memory")


def silent(message: Message, context: Context) -> Message:
    """Training that never ends, as far as anybody sees."""
    raise Silence
