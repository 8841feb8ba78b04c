"""A `FleetGrid` and its dispatcher on a clock that a test moves, over devices that do what the test says."""

import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict

from coordinator.rounds.closing import Policy
from coordinator.rounds.dispatch import Cancellation
from coordinator.rounds.grid import Ask, Fleet, FleetGrid
from coordinator.rounds.plan import Selection
from coordinator.rounds.round import DeviceRef
from shared.blobs import MemoryBlobs
from shared.clock import ManualClock
from shared.errors import RoundAborted
from shared.flower import encode_records, new_message
from shared.ids import DeviceId, JobId, NodeId
from shared.session import CancelTask, Order, Part, RunTask, TaskResult
from tests.memory_fleet import MemorySessions

ANSWER = encode_records(RecordDict({"metrics": MetricRecord({"num-examples": 1})}))


@dataclass
class Scene:
    """Devices that do what the test says; the exchange runs in a thread of its own."""

    size: int = 3
    policy: Policy = field(default_factory=lambda: Policy(60.0, quorum=0.5))
    selection: Selection = field(default_factory=lambda: Selection(min_devices=3, wait_for_devices_s=30.0))
    clock: ManualClock = field(default_factory=ManualClock)
    cancellation: Cancellation = field(default_factory=Cancellation)
    orders: list[tuple[DeviceId, Order]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.sessions = MemorySessions()
        self.lasting, self.inbox = MemoryBlobs(), MemoryBlobs()
        self.refs = [DeviceRef(DeviceId(f"dev-{n}"), NodeId(n), f"device-{n}") for n in range(1, self.size + 1)]
        self.fleet = Fleet.open(
            self.sessions, self, lasting=self.lasting, inbox=self.inbox, clock=self.clock, reconnect_grace_s=5.0
        )
        ask = Ask(JobId("job-1"), 77, 4, "echo", False, self.selection, self.policy, self.cancellation)
        self.grid = FleetGrid(self.fleet, ask)
        self._asked = threading.Semaphore(0)
        self._outcome: list[list[Message] | Exception] = []

    def members(self, cohort: str) -> list[DeviceRef]:
        return self.refs

    def attach(self, *nodes: int, running: tuple[RunTask, ...] = ()) -> None:
        for node in nodes or range(1, self.size + 1):
            self.sessions.attach(DeviceId(f"dev-{node}"), self._obey, *(task.task_id for task in running))

    def detach(self, node: int) -> None:
        self.sessions.detach(DeviceId(f"dev-{node}"))

    def _obey(self, device: DeviceId, order: Order) -> None:
        self.orders.append((device, order))
        if isinstance(order, RunTask):
            self._asked.release()

    def ask(self, content: Callable[[int], RecordDict] | None = None, kind: str = "query") -> dict[int, RunTask]:
        """Start an exchange with everybody; returns the task of each node once all are sent."""
        made = content or (lambda node: RecordDict({"config": ConfigRecord({"node": node})}))
        nodes = self.grid.get_node_ids()
        messages = [new_message(made(node), run_id=0, node_id=node, message_type=kind) for node in nodes]

        def exchange() -> None:
            try:
                self._outcome.append(self.grid.send_and_receive(messages))
            except RoundAborted as error:
                self._outcome.append(error)

        self._thread = threading.Thread(target=exchange)
        self._thread.start()
        for _ in nodes:
            assert self._asked.acquire(timeout=20.0)
        return {order.node_id: order for _, order in self.orders if isinstance(order, RunTask)}

    def answer(self, task: RunTask, *parts: Part, code: int = 0, by: int = 0) -> None:
        device = DeviceId(f"dev-{by or task.node_id}")
        content = parts or (() if code else (Part(inline=ANSWER),))
        self.sessions.report(device, TaskResult(task.task_id, content, code, "it failed" if code else ""))

    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.fleet.dispatcher.wake()

    def replies(self) -> dict[int, Message]:
        """Waits for the exchange to end."""
        self._thread.join(20.0)
        assert not self._thread.is_alive()
        (outcome,) = self._outcome
        if isinstance(outcome, Exception):
            raise outcome
        return {reply.metadata.src_node_id: reply for reply in outcome}

    def end(self) -> None:
        self.cancellation.reason = "the test is over"
        self.fleet.dispatcher.wake()

    def cancelled(self) -> list[str]:
        return [device for device, order in self.orders if isinstance(order, CancelTask)]


class Scenes(contextlib.ExitStack):
    """Makes scenes; their exchanges end with the test, also with one that fails."""

    def make(self, **given: Any) -> Scene:
        scene = Scene(**given)
        self.callback(scene.end)
        return scene


def failure(reply: Message) -> tuple[int, str]:
    assert reply.has_error()
    return reply.error.code, reply.error.reason or ""
