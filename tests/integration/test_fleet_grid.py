"""`FleetGrid` and its dispatcher on a clock that a test moves: who is waited for, who is cancelled, who comes back."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from coordinator.rounds.closing import Close, Policy
from coordinator.rounds.dispatch import Cancellation
from coordinator.rounds.grid import EXTRA_BYTES, Ask, Fleet, FleetGrid
from coordinator.rounds.plan import Selection
from coordinator.rounds.round import DeviceRef
from coordinator.rounds.validate import checked
from shared.blobs import MemoryBlobs
from shared.clock import ManualClock
from shared.errors import RoundAborted
from shared.flower import APP_RAISED, REFUSED, encode_records, new_message
from shared.ids import DeviceId, Digest, JobId, NodeId, digest_of
from shared.session import NODE_UNAVAILABLE, Acknowledged, CancelTask, Order, Part, RunTask, TaskResult
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

    def cancelled(self) -> list[str]:
        return [device for device, order in self.orders if isinstance(order, CancelTask)]


@pytest.fixture
def scene() -> Iterator[Scene]:
    made = Scene()
    yield made
    made.cancellation.reason = "the test is over"
    made.fleet.dispatcher.wake()


def failure(reply: Message) -> tuple[int, str]:
    assert reply.has_error()
    return reply.error.code, reply.error.reason or ""


def test_each_message_gets_one_reply_in_order_and_each_result_is_acknowledged(scene: Scene) -> None:
    scene.attach()
    tasks = scene.ask()
    for node in (2, 3, 1):
        scene.answer(tasks[node])

    replies = scene.replies()

    assert list(replies) == [1, 2, 3]
    for node, reply in replies.items():
        assert reply.metadata.reply_to_message_id == tasks[node].message_id
        assert reply.metadata.run_id == 77
    assert sum(isinstance(order, Acknowledged) for _, order in scene.orders) == 3
    assert {(task.round, task.run_id, task.client_app, task.timeout_s) for task in tasks.values()} == {
        (4, 77, "echo", 60.0)
    }


def test_it_waits_until_there_are_enough_devices_which_ends_flowers_first_round_race(scene: Scene) -> None:
    scene.attach(1, 2)
    found: list[list[int]] = []
    thread = threading.Thread(target=lambda: found.append(scene.grid.get_node_ids()))
    thread.start()
    scene.attach(3)
    thread.join(20.0)

    assert found == [[1, 2, 3]]


def test_too_few_devices_in_time_abort_the_round(scene: Scene) -> None:
    scene.attach(1, 2)
    scene.clock.advance(0.0)
    failed: list[str] = []

    def ask() -> None:
        try:
            scene.grid.get_node_ids()
        except RoundAborted as error:
            failed.append(error.message)

    thread = threading.Thread(target=ask)
    thread.start()
    scene.advance(31.0)
    thread.join(20.0)
    assert failed == ["2 devices are connected, 3 are needed"]


def test_it_names_the_same_devices_to_whoever_asks_whoever_else_attaches() -> None:
    scene = Scene(size=6, selection=Selection(min_devices=2, fraction=0.5))
    scene.attach(1, 2, 3, 4)
    chosen = scene.grid.get_node_ids()
    scene.attach(5, 6)
    assert len(chosen) == 2
    assert scene.grid.get_node_ids() == chosen


def test_a_device_that_is_silent_until_the_time_is_up_gave_no_answer_in_time() -> None:
    scene = Scene(policy=Policy(60.0, quorum=0.5))
    scene.attach()
    tasks = scene.ask()
    scene.answer(tasks[1])
    scene.answer(tasks[2])
    scene.advance(60.0)
    assert failure(scene.replies()[3]) == (NODE_UNAVAILABLE, "no answer in time")


def test_a_straggler_is_cancelled_after_the_grace_and_fails() -> None:
    scene = Scene(policy=Policy(60.0, quorum=0.5, quantile=0.6, grace_s=10.0))
    scene.attach()
    tasks = scene.ask()
    scene.answer(tasks[1])
    scene.answer(tasks[2])
    scene.advance(10.0)

    replies = scene.replies()

    why = "cancelled: enough answered, and the grace for the others is over"
    assert failure(replies[3]) == (NODE_UNAVAILABLE, why)
    assert scene.cancelled() == ["dev-3"]
    scene.answer(tasks[3])  # too late: acknowledged, and nobody minds
    assert isinstance(scene.orders[-1][1], Acknowledged)


def test_a_lost_quorum_ends_the_wait_at_once() -> None:
    scene = Scene(policy=Policy(60.0, quorum=1.0))
    scene.attach()
    tasks = scene.ask()
    scene.answer(tasks[1], code=APP_RAISED)

    replies = scene.replies()

    assert failure(replies[1]) == (APP_RAISED, "it failed")
    assert scene.cancelled() == ["dev-2", "dev-3"]


def test_a_device_that_comes_back_still_working_is_waited_for(scene: Scene) -> None:
    scene.attach()
    tasks = scene.ask()
    scene.detach(3)
    scene.advance(4.0)
    scene.attach(3, running=(tasks[3],))
    scene.advance(20.0)
    for task in tasks.values():
        scene.answer(task)

    assert not any(reply.has_error() for reply in scene.replies().values())


def test_a_device_that_comes_back_without_its_task_fails_it_at_once(scene: Scene) -> None:
    scene.attach()
    tasks = scene.ask()
    scene.detach(3)
    scene.attach(3)
    scene.answer(tasks[1])
    scene.answer(tasks[2])

    assert failure(scene.replies()[3]) == (NODE_UNAVAILABLE, "the agent came back without this task")


def test_a_replaced_stream_counts_even_when_nobody_told_of_the_old_ones_end(scene: Scene) -> None:
    scene.attach()
    tasks = scene.ask()
    scene.attach(3)
    scene.answer(tasks[1])
    scene.answer(tasks[2])

    assert failure(scene.replies()[3]) == (NODE_UNAVAILABLE, "the agent came back without this task")


def test_a_detach_heard_of_late_does_not_hurt_a_task_on_the_new_stream(scene: Scene) -> None:
    scene.attach()
    tasks = scene.ask()
    scene.fleet.dispatcher.detached(DeviceId("dev-3"))
    scene.advance(20.0)
    for task in tasks.values():
        scene.answer(task)

    assert not scene.replies()[3].has_error()


def test_a_device_that_stays_away_fails_its_task_after_the_reconnect_grace(scene: Scene) -> None:
    scene.attach()
    tasks = scene.ask()
    scene.answer(tasks[1])
    scene.answer(tasks[2])
    scene.detach(3)
    looked = threading.Event()
    usual = scene.sessions.connected
    scene.sessions.connected = lambda: (looked.set(), usual())[1]  # type: ignore[func-returns-value,method-assign]
    scene.fleet.dispatcher.wake()
    assert looked.wait(20.0)
    scene.advance(5.0)

    assert failure(scene.replies()[3]) == (NODE_UNAVAILABLE, "no connection for 5 s")


def test_a_result_from_another_device_than_was_asked_is_not_taken(scene: Scene) -> None:
    scene.attach()
    tasks = scene.ask()
    scene.answer(tasks[1])
    scene.answer(tasks[2])
    scene.answer(tasks[3], Part(inline=b"forged"), by=1)
    scene.answer(tasks[3])

    assert not scene.replies()[3].has_error()


def test_a_second_result_changes_nothing(scene: Scene) -> None:
    scene.attach()
    tasks = scene.ask()
    scene.answer(tasks[1])
    scene.answer(tasks[1], code=APP_RAISED)
    scene.answer(tasks[2])
    scene.answer(tasks[3])

    assert not scene.replies()[1].has_error()


BROKEN: dict[str, tuple[Part, int, str]] = {
    "a blob that never arrived": (Part(digest=digest_of(b"lost")), APP_RAISED, "its update never arrived"),
    "bytes that are no records": (Part(inline=b"pickle?"), REFUSED, "not a record blob"),
}


@pytest.mark.parametrize(("part", "code", "reason"), BROKEN.values(), ids=BROKEN)
def test_an_unreadable_result_fails_its_device_alone(scene: Scene, part: Part, code: int, reason: str) -> None:
    scene.attach()
    tasks = scene.ask()
    scene.answer(tasks[1], part)
    scene.answer(tasks[2])
    scene.answer(tasks[3])

    replies = scene.replies()

    assert failure(replies[1])[0] == code
    assert reason in failure(replies[1])[1]
    assert not replies[2].has_error()


def test_stopping_a_job_ends_the_wait_and_cancels_everybody(scene: Scene) -> None:
    scene.attach()
    scene.ask()
    scene.cancellation.reason = "the job was stopped"
    scene.fleet.dispatcher.wake()

    with pytest.raises(RoundAborted, match="the job was stopped"):
        scene.replies()
    assert scene.cancelled() == ["dev-1", "dev-2", "dev-3"]


def test_equal_updates_of_several_devices_are_one_blob_and_all_count(scene: Scene) -> None:
    scene.grid._check = checked
    model = ArrayRecord({"w": Array(np.ones(5000, dtype=np.float32))})
    scene.attach()
    tasks = scene.ask(lambda node: RecordDict({"arrays": model, "config": ConfigRecord({"node": node})}), "train")
    update = encode_records(RecordDict({"arrays": model, "metrics": MetricRecord({"num-examples": 1})}))
    for task in tasks.values():
        scene.answer(task, Part(digest=scene.inbox.write(update)))

    replies = scene.replies()
    scene.grid.close()

    assert not any(reply.has_error() for reply in replies.values())
    digests = {part.digest for task in tasks.values() for part in task.parts if part.digest}
    assert len(digests) == 1
    assert list(scene.inbox.digests()) == []
    assert list(scene.lasting.digests()) == []


def test_known_arrays_are_sent_by_the_digest_they_are_stored_under_and_stay(scene: Scene) -> None:
    model = ArrayRecord({"w": Array(np.ones(5000, dtype=np.float32))})
    digest = scene.lasting.write(encode_records(RecordDict({"arrays": model})))
    scene.grid.know(model, digest)
    scene.attach()
    tasks = scene.ask(lambda node: RecordDict({"arrays": model}))
    for task in tasks.values():
        scene.answer(task)
    scene.replies()
    scene.grid.close()

    assert {task.parts for task in tasks.values()} == {(Part(digest=digest),)}
    assert list(scene.lasting.digests()) == [digest]


def test_a_late_updates_blob_is_deleted_by_the_next_exchange(scene: Scene) -> None:
    scene.attach()
    tasks = scene.ask()
    for task in tasks.values():
        scene.answer(task)
    scene.replies()
    scene.answer(tasks[1], Part(digest=scene.inbox.write(b"late")))

    scene.grid.close()

    assert list(scene.inbox.digests()) == []


def test_push_and_pull_are_the_two_halves_of_an_exchange(scene: Scene) -> None:
    scene.attach()
    nodes = scene.grid.get_node_ids()
    config = RecordDict({"config": ConfigRecord({"x": 1})})
    ids = scene.grid.push_messages([scene.grid.create_message(config, "query", node, "") for node in nodes])
    for _, order in list(scene.orders):
        assert isinstance(order, RunTask)
        scene.answer(order)

    replies = scene.grid.pull_messages(ids)

    assert [reply.metadata.reply_to_message_id for reply in replies] == ids


# ---- what one device cannot do to the others


def test_a_check_that_fails_as_nobody_foresaw_costs_that_device_only(scene: Scene) -> None:
    def check(request: Message, content: RecordDict) -> RecordDict:
        if request.metadata.dst_node_id == 2:
            raise ZeroDivisionError
        return content

    scene.grid = FleetGrid(scene.fleet, scene.grid._ask, check=check)
    scene.attach()
    for task in scene.ask().values():
        scene.answer(task)
    replies = scene.replies()
    assert failure(replies[2]) == (REFUSED, "an answer that cannot be read (ZeroDivisionError)")
    assert not replies[1].has_error()


def test_an_answer_that_is_too_large_is_refused_before_it_is_read(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.attach()
    tasks = scene.ask()
    huge = scene.inbox.write(bytes(EXTRA_BYTES + 1))
    read: list[Digest] = []
    monkeypatch.setattr(scene.inbox, "read", read.append)
    scene.answer(tasks[1], Part(digest=huge))
    scene.answer(tasks[2])
    scene.answer(tasks[3], Part(inline=ANSWER), Part(digest=huge))
    replies = scene.replies()
    for node in (1, 3):
        assert failure(replies[node])[0] == REFUSED
        assert f"to a task that allows {EXTRA_BYTES}" in failure(replies[node])[1]
    assert read == []
    scene.grid.close()
    assert list(scene.inbox.digests()) == []


def test_an_answer_that_comes_while_the_exchange_closes_is_still_a_reply(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    dispatcher = scene.fleet.dispatcher
    look = dispatcher._next
    late: list[RunTask] = []

    def then_one_more(*args: Any) -> Any:
        found = look(*args)
        if isinstance(found, Close):
            scene.answer(late.pop())
        return found

    monkeypatch.setattr(dispatcher, "_next", then_one_more)
    scene.attach()
    tasks = scene.ask()
    late.append(tasks[3])
    scene.answer(tasks[1])
    scene.answer(tasks[2])
    scene.advance(61.0)
    replies = scene.replies()
    assert not replies[3].has_error()


def test_answers_that_nobody_will_read_any_more_leave_no_blobs(scene: Scene) -> None:
    scene.attach()
    tasks = scene.ask()
    dispatcher = scene.fleet.dispatcher
    for node in (1, 2):
        scene.answer(tasks[node], Part(digest=scene.inbox.write(ANSWER + bytes([node]))))
    scene.cancellation.reason = "stopped"
    dispatcher.wake()
    with pytest.raises(RoundAborted):
        scene.replies()
    scene.grid.close()
    assert list(scene.inbox.digests()) == []


def test_a_stream_gives_replies_as_they_come_and_forgets_each_update_once_it_is_read(scene: Scene) -> None:
    order, tasks = [3, 1, 2], dict[int, RunTask]()

    def answer(node: int) -> None:
        update = encode_records(RecordDict({"arrays": ArrayRecord({"w": Array(np.full(2000, node, np.float32))})}))
        scene.answer(tasks[node], Part(digest=scene.inbox.write(update)))

    def obey(device: DeviceId, told: Order) -> None:
        if isinstance(told, RunTask):
            tasks[told.node_id] = told
            if len(tasks) == len(order):
                answer(order[0])

    for node in order:
        scene.sessions.attach(DeviceId(f"dev-{node}"), obey)
    content = RecordDict({"config": ConfigRecord({"step": 1})})
    nodes = scene.grid.get_node_ids()
    messages = [new_message(content, run_id=0, node_id=node, message_type="query") for node in nodes]
    seen = []
    for reply in scene.grid.stream(messages):
        seen.append(reply.metadata.src_node_id)
        assert len(list(scene.inbox.digests())) == 1, "its own, until the next is asked for"
        if len(seen) < len(order):
            answer(order[len(seen)])
            assert len(list(scene.inbox.digests())) == 2
    assert seen == order
    assert list(scene.inbox.digests()) == []
