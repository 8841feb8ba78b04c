"""`FleetGrid`: whom it chooses, one reply a message, and which blobs an exchange leaves behind."""

import threading

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from coordinator.rounds.grid import EXTRA_BYTES, FleetGrid
from coordinator.rounds.plan import Selection
from coordinator.rounds.validate import checked
from shared.errors import RoundAborted
from shared.flower import APP_RAISED, REFUSED, encode_records, new_message
from shared.ids import DeviceId, Digest, digest_of
from shared.session import Acknowledged, Order, Part, RunTask
from tests.integration.grid_scene import ANSWER, Scene, Scenes, failure


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


def test_it_names_the_same_devices_to_whoever_asks_whoever_else_attaches(scenes: Scenes) -> None:
    scene = scenes.make(size=6, selection=Selection(min_devices=2, fraction=0.5))
    scene.attach(1, 2, 3, 4)
    chosen = scene.grid.get_node_ids()
    scene.attach(5, 6)
    assert len(chosen) == 2
    assert scene.grid.get_node_ids() == chosen


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
