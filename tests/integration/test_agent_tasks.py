"""Tasks on a real agent: what a cancelled one costs, what is left on disk, how long keys of a secure round are kept."""

import asyncio
import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest

from edge_agent import tasks as tasks_module
from edge_agent.agent import Agent
from edge_agent.trainer.worker import Worker
from shared.errors import Malformed
from shared.ids import TaskId, digest_of
from shared.session import AgentEvent, CancelTask, Part, TaskResult
from tests.integration.agent_kit import FAST, Kit, kit, until
from tests.integration.test_agent_link import million, order, small


def updates(k: Kit) -> list[Path]:
    return [path for path in k.home.outgoing.rglob("*") if path.is_file()]


async def test_a_cancelled_task_that_waits_for_the_trainer_is_never_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A release is being specialised meanwhile, say."""
    ran: list[TaskId] = []
    real = Worker.run

    def run(self: Worker, task: Any) -> Any:
        ran.append(task.task_id)
        return real(self, task)

    monkeypatch.setattr(Worker, "run", run)
    async with kit(tmp_path) as k, k.agent() as agent:
        await k.attached()
        long, short = order(small()), order(small())
        async with agent._parts.trainer._turn:  # type: ignore[attr-defined]
            k.front.hub.send(k.device.id, long)
            await until(lambda: agent._tasks._current == long.task_id)
            k.front.hub.send(k.device.id, CancelTask(long.task_id))
            await until(lambda: not agent._tasks.busy)
        k.front.hub.send(k.device.id, short)
        await k.result(short.task_id)
        assert ran == [short.task_id]
        assert long.task_id not in agent._tasks.running


async def cancelled(k: Kit, agent: Agent, task_id: TaskId) -> None:
    k.front.hub.send(k.device.id, CancelTask(task_id))
    await until(lambda: not agent._tasks.busy)


async def answered(k: Kit, agent: Agent, task_id: TaskId) -> None:
    assert (await k.result(task_id)).error_code != 0


@pytest.mark.parametrize(
    ("error", "end"),
    [(None, cancelled), (Malformed("a blob of 5 bytes; 4 are allowed"), answered)],
    ids=["cancelled", "refused"],
)
async def test_an_update_that_cannot_be_sent_does_not_stay_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception | None, end: Callable[..., Any]
) -> None:
    sending = asyncio.Event()

    async def put(*_: object) -> None:
        assert updates(k)
        sending.set()
        if error is not None:
            raise error
        await asyncio.Event().wait()

    async with kit(tmp_path) as k, k.agent() as agent:
        monkeypatch.setattr(agent._link, "put", put)
        await k.attached()
        task = order(Part(digest=k.front.lasting.write(million())))
        k.front.hub.send(k.device.id, task)
        await asyncio.wait_for(sending.wait(), 20)
        await end(k, agent, task.task_id)
        assert updates(k) == []


async def test_what_nobody_foresaw_costs_one_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def no_handles(*_: object) -> NoReturn:
        raise OSError("too many open files, a password is in this text")

    async with kit(tmp_path) as k, k.agent() as agent:
        await k.attached()
        first, second = order(small()), order(small())
        with monkeypatch.context() as patch:
            patch.setattr(agent._parts.trainer, "run", no_handles)
            k.front.hub.send(k.device.id, first)
            result = await k.result(first.task_id)
        assert (result.error_code, result.error_reason) == (5, "this device failed: OSError; see its log")
        k.front.hub.send(k.device.id, second)
        assert (await k.result(second.task_id)).error_code == 0


async def test_tasks_are_counted_by_how_they_ended(tmp_path: Path) -> None:
    async with kit(tmp_path) as k, k.agent() as agent:
        await k.attached()
        waiting, done, refused, failed = (
            order(small()),
            order(small()),
            order(small(), app="nowhere"),
            order(small(), kind="x"),
        )
        async with agent._parts.trainer._turn:  # type: ignore[attr-defined]
            k.front.hub.send(k.device.id, waiting)
            await until(lambda: agent._tasks._current == waiting.task_id)
            await cancelled(k, agent, waiting.task_id)
        k.front.hub.send(k.device.id, CancelTask(waiting.task_id))  # repeated: nothing is left to cancel
        for task in (done, refused, failed):
            k.front.hub.send(k.device.id, task)
            await k.result(task.task_id)
        assert (await agent.status())["tasks_ended"] == {"done": 1, "failed": 1, "refused": 1, "cancelled": 1}


async def test_an_upload_that_was_cut_off_earlier_does_not_spoil_the_next_one_of_the_same_bytes(
    tmp_path: Path,
) -> None:
    async with kit(tmp_path) as k, k.agent():
        await k.attached()
        part = Part(digest=k.front.lasting.write(million()))
        first, second = order(part), order(part)
        k.front.hub.send(k.device.id, first)
        (digest,) = (piece.digest for piece in (await k.result(first.task_id)).parts if piece.digest)
        data = k.front.inbox.read(digest)
        k.front.inbox.delete(digest)
        k.front.inbox.append(digest, 0, data[:1000], sender=k.device.id)  # what a cut leaves
        k.front.hub.send(k.device.id, second)
        result = await k.result(second.task_id)
        assert (result.error_code, result.error_reason) == (0, "")
        assert k.front.inbox.read(digest) == data


async def test_updates_of_a_former_process_are_swept_away(tmp_path: Path) -> None:
    async with kit(tmp_path) as k:
        async with k.agent():
            await k.attached()
            task = order(Part(digest=k.front.lasting.write(million())))
            k.front.hub.send(k.device.id, task)
            await until(lambda: task.task_id in {_about(event) for _, _, event in k.front.recorder.events})
            assert len(updates(k)) == 1  # not acknowledged: it may have to be sent again
        half = k.home.outgoing / "aa" / ".half-written.tmp"
        half.parent.mkdir(exist_ok=True)
        half.write_bytes(b"x")
        async with k.agent():
            assert updates(k) == []


async def test_updates_that_nobody_will_ask_for_are_swept_away_while_idle_and_others_stay(tmp_path: Path) -> None:
    async with kit(tmp_path) as k, k.agent(replace(FAST, trainer_idle_s=0.1)):
        await k.attached()
        task = order(Part(digest=k.front.lasting.write(million())))
        k.front.hub.send(k.device.id, task)
        await until(lambda: task.task_id in {_about(event) for _, _, event in k.front.recorder.events})
        (kept,) = updates(k)
        stray = kept.with_name(digest_of(b"of a trainer that was killed"))
        stray.write_bytes(b"x")
        await until(lambda: not stray.exists())
        assert updates(k) == [kept]


def _about(event: object) -> TaskId | None:
    return event.task_id if isinstance(event, TaskResult) else None


async def test_the_trainer_keeps_its_keys_while_other_devices_of_a_secure_round_still_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks_module, "_NEXT_PHASE_S", 0.0)
    released: list[float] = []
    async with kit(tmp_path) as k, k.agent(replace(FAST, trainer_idle_s=0.1)) as agent:
        real = agent._parts.trainer.release

        async def release() -> None:
            released.append(time.monotonic())
            await real()

        monkeypatch.setattr(agent._parts.trainer, "release", release)
        await k.attached()
        await until(lambda: bool(released))  # nothing to do yet
        released.clear()
        begun = time.monotonic()
        task = order(small(), secure=True, timeout_s=1.0)
        k.front.hub.send(k.device.id, task)
        await k.result(task.task_id)
        await until(lambda: bool(released))
        assert released[0] - begun >= 1.0


async def test_what_is_said_between_hello_and_welcome_arrives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with kit(tmp_path) as k:
        real: Callable[..., Any] = k.front.registry.hello
        hold = threading.Event()

        def slow(*arguments: Any) -> Any:
            hold.wait(20)
            return real(*arguments)

        monkeypatch.setattr(k.front.registry, "hello", slow)
        async with k.agent() as agent:
            try:
                await until(lambda: agent._link._outgoing is not None)
                assert not agent._link.attached.is_set()
                agent._link.send(AgentEvent("evt-early", TaskResult(TaskId("tsk-9"))))
            finally:
                hold.set()
            await until(lambda: "evt-early" in {kind for kind, _, _ in k.front.recorder.events})


async def test_a_cached_blob_that_a_crash_cut_short_is_fetched_again(tmp_path: Path) -> None:
    blob = million()
    async with kit(tmp_path) as k:
        digest = k.front.lasting.write(blob)
        async with k.agent() as agent:
            await k.attached()
            path = await agent._link.fetch(digest)
        os.truncate(path, 100)  # its name was on disk before its bytes
        async with k.agent() as agent:
            await k.attached()
            assert (await agent._link.fetch(digest)).read_bytes() == blob
            received = agent._link.transfers.received_bytes
            await agent._link.fetch(digest)
            assert agent._link.transfers.received_bytes == received
