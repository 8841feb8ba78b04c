"""A grid's dispatcher: who is waited for, who is cancelled, who comes back."""

import threading
from typing import Any

import pytest

from coordinator.rounds.closing import Close, Policy
from shared.errors import RoundAborted
from shared.flower import APP_RAISED
from shared.ids import DeviceId
from shared.session import NODE_UNAVAILABLE, Acknowledged, Part, RunTask
from tests.integration.grid_scene import Scene, Scenes, failure


def test_a_device_that_is_silent_until_the_time_is_up_gave_no_answer_in_time(scenes: Scenes) -> None:
    scene = scenes.make(policy=Policy(60.0, quorum=0.5))
    scene.attach()
    tasks = scene.ask()
    scene.answer(tasks[1])
    scene.answer(tasks[2])
    scene.advance(60.0)
    assert failure(scene.replies()[3]) == (NODE_UNAVAILABLE, "no answer in time")


def test_a_straggler_is_cancelled_after_the_grace_and_fails(scenes: Scenes) -> None:
    scene = scenes.make(policy=Policy(60.0, quorum=0.5, quantile=0.6, grace_s=10.0))
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


def test_a_lost_quorum_ends_the_wait_at_once(scenes: Scenes) -> None:
    scene = scenes.make(policy=Policy(60.0, quorum=1.0))
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


def test_stopping_a_job_ends_the_wait_and_cancels_everybody(scene: Scene) -> None:
    scene.attach()
    scene.ask()
    scene.cancellation.reason = "the job was stopped"
    scene.fleet.dispatcher.wake()

    with pytest.raises(RoundAborted, match="the job was stopped"):
        scene.replies()
    assert scene.cancelled() == ["dev-1", "dev-2", "dev-3"]


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
