"""Live sessions over real TLS sockets: attach, command, replace, revoke, fall silent."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from coordinator.rpc import session
from coordinator.rpc.session import MAX_UNHEARD_EVENTS
from protos.fleet.v1 import session_pb2, session_pb2_grpc
from shared import session as s
from shared.errors import Forbidden, Malformed, Unavailable
from shared.ids import DeviceId, JobId, TaskId, digest_of
from shared.rpc_errors import error_from_rpc
from shared.wire import command_from_proto, event_to_proto
from tests.integration.front import Front, Member, running

HELLO = s.Hello("1.0", "{}", serving=(s.Serving("digits", 1, digest_of(b"b"), True),))


@pytest.fixture
async def front(tmp_path: Path) -> AsyncIterator[Front]:
    async with running(tmp_path) as started:
        yield started


class Agent:
    """The device's end of one session."""

    def __init__(self, member: Member) -> None:
        self._channel = member.channel()
        self.call: Any = session_pb2_grpc.SessionStub(self._channel).Attach()

    async def say(self, event: s.Event, event_id: str = "e1") -> None:
        await self.call.write(event_to_proto(s.AgentEvent(event_id, event)))

    async def hear(self) -> s.Order:
        message = await asyncio.wait_for(self.call.read(), 10)
        assert isinstance(message, session_pb2.Command), "the session ended"
        return command_from_proto(message).order

    async def ended(self) -> Exception:
        """The typed error that ended the session."""
        try:
            while await asyncio.wait_for(self.call.read(), 10) is not grpc.aio.EOF:
                pass
        except grpc.aio.AioRpcError as error:
            return error_from_rpc(error)
        raise AssertionError("the session ended without an error")

    async def close(self) -> None:
        await self._channel.close()


def run_task(inline: bytes = b"x") -> s.RunTask:
    return s.RunTask(TaskId("tsk-1"), JobId("job-1"), 1, 1, 1, "m1", "train", "app", 10.0, False, (s.Part(inline),))


async def attach(front: Front, member: Member) -> Agent:
    agent = Agent(member)
    await agent.say(HELLO)
    assert await agent.hear() == s.Welcome(30.0)
    return agent


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  # the condition is another thread's doing
            await asyncio.sleep(0)


async def test_an_agent_attaches_and_gets_commands_from_any_thread(front: Front) -> None:
    member = front.member("dev1")
    agent = await attach(front, member)

    await asyncio.to_thread(front.hub.send, member.device.id, s.CancelTask(TaskId("tsk-1")))

    assert await agent.hear() == s.CancelTask(TaskId("tsk-1"))
    assert front.hub.connected() == {member.device.id: HELLO}
    assert front.registry.device("dev1").serving == HELLO.serving
    await agent.close()
    await until(lambda: front.recorder.events[-1][0] == "detached")
    assert front.hub.connected() == {}


async def test_a_task_and_its_result_count_as_traffic_and_nothing_else_that_a_session_carries(front: Front) -> None:
    """Keys and shares of a secure round go this way: a device that sent nothing but those sent something."""
    member = front.member("dev1")
    agent = await attach(front, member)
    front.hub.send(member.device.id, s.Renew())
    await agent.hear()
    await agent.say(s.Heartbeat())
    front.hub.send(member.device.id, run_task(bytes(1000)))
    await agent.hear()
    await agent.say(s.TaskResult(TaskId("tsk-1"), (s.Part(bytes(3000)),)))
    await until(lambda: front.recorder.events[-1][0] == "e1")

    down, up = front.traffic.take(member.device.id)
    assert 1000 < down < 1200
    assert 3000 < up < 3100
    await agent.close()


async def test_events_reach_listeners_in_order(front: Front) -> None:
    member = front.member("dev1")
    agent = await attach(front, member)
    for number in range(20):
        await agent.say(s.TaskResult(TaskId(f"tsk-{number}"), error_code=1), f"e{number}")

    await until(lambda: len(front.recorder.events) == 21)

    assert [kind for kind, _, _ in front.recorder.events] == ["attached", *(f"e{number}" for number in range(20))]
    await agent.close()


async def test_a_command_to_an_absent_device_says_so(front: Front) -> None:
    with pytest.raises(Unavailable):
        front.hub.send(DeviceId("dev-nobody"), s.Renew())


async def test_a_second_session_of_a_device_replaces_the_first(front: Front) -> None:
    member = front.member("dev1")
    first = await attach(front, member)
    second = await attach(front, member)

    assert isinstance(await first.ended(), Unavailable)
    front.hub.send(member.device.id, s.Renew())
    assert await second.hear() == s.Renew()
    await until(lambda: front.recorder.heard == ["attached", "detached", "attached"])
    await first.close()
    await second.close()


async def test_revocation_ends_an_open_session(front: Front) -> None:
    member = front.member("dev1")
    agent = await attach(front, member)

    front.hub.device_changed(front.registry.revoke("dev1", "admin", "stolen"))

    assert isinstance(await agent.ended(), Forbidden)
    assert front.hub.connected() == {}
    await agent.close()


async def test_a_quarantined_device_stays_attached_but_gets_no_work(front: Front) -> None:
    member = front.member("dev1")
    agent = await attach(front, member)

    front.hub.device_changed(front.registry.quarantine("dev1", "admin", "odd"))
    await until(lambda: front.hub.connected() == {})
    assert front.hub.attached() == {member.device.id}

    front.hub.device_changed(front.registry.release("dev1", "admin"))
    await until(lambda: set(front.hub.connected()) == {member.device.id})
    await agent.close()


async def test_what_a_quarantined_device_has_worked_out_does_not_count(front: Front) -> None:
    member = front.member("dev1")
    agent = await attach(front, member)

    front.registry.quarantine("dev1", "admin", "odd")
    await agent.say(s.TaskResult(TaskId("tsk-1"), parts=(s.Part(inline=b"weights"),)), "e1")
    await until(lambda: len(front.recorder.events) == 2)

    _, _, result = front.recorder.events[1]
    assert isinstance(result, s.TaskResult)
    assert (result.parts, result.error_code) == ((), 5)
    assert "quarantine" in result.error_reason
    assert front.hub.connected() == {}
    with pytest.raises(Unavailable, match="quarantine"):
        front.hub.send(member.device.id, run_task())
    await agent.close()


async def test_a_revocation_takes_effect_on_the_next_message_even_if_nobody_told_the_hub(front: Front) -> None:
    agent = await attach(front, front.member("dev1"))

    front.registry.revoke("dev1", "admin", "stolen")
    await agent.say(s.TaskResult(TaskId("tsk-1"), error_code=1))

    assert isinstance(await agent.ended(), Forbidden)
    await until(lambda: front.recorder.heard == ["attached", "detached"])
    await agent.close()


async def test_a_session_of_a_newer_stream_is_heard_after_the_older_one_is_over(front: Front) -> None:
    gate = threading.Event()
    front.recorder.before = lambda kind: gate.wait(10) if kind == "e1" else None
    member = front.member("dev1")
    first = await attach(front, member)
    await first.say(s.TaskResult(TaskId("tsk-1"), error_code=1), "e1")
    await first.say(s.TaskResult(TaskId("tsk-2"), error_code=1), "e2")
    await until(lambda: front.recorder.heard == ["attached", "e1"])

    second = await attach(front, member)
    await second.say(s.TaskResult(TaskId("tsk-3"), error_code=1), "e3")
    assert isinstance(await first.ended(), Unavailable)
    gate.set()
    await until(lambda: front.recorder.heard[-1] == "e3")

    assert front.recorder.heard in (
        ["attached", "e1", "e2", "detached", "attached", "e3"],
        ["attached", "e1", "detached", "attached", "e3"],  # e2 was not read yet: the agent sends it again
    )
    await first.close()
    await second.close()


async def test_a_slow_listener_holds_up_its_device_and_nobody_else(front: Front) -> None:
    gate = threading.Event()
    slow, quick = front.member("slow"), front.member("quick")
    front.recorder.before = lambda kind: gate.wait(10) if kind == "stuck" else None
    one, two = await attach(front, slow), await attach(front, quick)
    await one.say(s.TaskResult(TaskId("tsk-0"), error_code=1), "stuck")
    for number in range(2 * MAX_UNHEARD_EVENTS):
        await one.say(s.TaskResult(TaskId("tsk-1"), error_code=1), f"slow{number}")

    await two.say(s.TaskResult(TaskId("tsk-2"), error_code=1), "quick")
    await until(lambda: "quick" in front.recorder.heard)
    assert not [kind for kind in front.recorder.heard if kind.startswith("slow")]

    gate.set()
    await until(lambda: front.recorder.heard[-1] == f"slow{2 * MAX_UNHEARD_EVENTS - 1}")
    await one.close()
    await two.close()


async def test_a_listener_that_fails_on_one_event_hears_the_next(front: Front) -> None:
    def fail(kind: str) -> None:
        if kind == "e1":
            raise RuntimeError("a bug")

    front.recorder.before = fail
    agent = await attach(front, front.member("dev1"))
    for event_id in ("e1", "e2"):
        await agent.say(s.TaskResult(TaskId("tsk-1"), error_code=1), event_id)

    await until(lambda: [kind for kind, _, _ in front.recorder.events] == ["attached", "e2"])
    await agent.close()


async def test_an_agent_that_does_not_read_its_commands_is_let_go(
    front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "LAST_WRITE_S", 0.1)
    member = front.member("dev1")
    agent = await attach(front, member)

    async def flood() -> None:
        while True:
            front.hub.send(member.device.id, run_task(bytes(500_000)))
            await asyncio.sleep(0)

    with pytest.raises(Unavailable):
        await flood()

    assert isinstance(await agent.ended(), Unavailable)
    assert front.hub.connected() == {}
    await agent.close()


async def test_heartbeats_say_what_really_runs(front: Front) -> None:
    agent = await attach(front, front.member("dev1"))
    now = (s.Serving("digits", 2, digest_of(b"b2"), False),)

    await agent.say(s.Heartbeat(now))

    await until(lambda: front.registry.device("dev1").serving == now)
    await agent.close()


async def test_a_coordinator_that_stops_tells_its_agents_and_its_listeners(front: Front) -> None:
    agent = await attach(front, front.member("dev1"))

    await front.hub.close()

    assert isinstance(await agent.ended(), Unavailable)
    assert front.recorder.heard == ["attached", "detached"]
    late = Agent(front.member("dev2"))
    await late.say(HELLO)
    assert isinstance(await late.ended(), Unavailable)
    await agent.close()
    await late.close()


async def test_a_session_that_does_not_begin_with_a_hello_is_refused(front: Front) -> None:
    agent = Agent(front.member("dev1"))
    await agent.say(s.Heartbeat())

    assert isinstance(await agent.ended(), Malformed)
    await agent.close()


async def test_a_malformed_event_ends_the_session_and_names_the_reason(front: Front) -> None:
    agent = await attach(front, front.member("dev1"))
    await agent.call.write(session_pb2.AgentEvent(event_id="e9"))

    assert isinstance(await agent.ended(), Malformed)
    await agent.close()


async def test_an_agent_that_falls_silent_is_detached(tmp_path: Path) -> None:
    async with running(tmp_path, heartbeat_s=0.1) as front:
        agent = Agent(front.member("dev1"))
        await agent.say(HELLO)

        assert isinstance(await agent.ended(), Unavailable)
        await agent.close()
