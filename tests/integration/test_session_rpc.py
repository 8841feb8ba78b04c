"""Live sessions over real TLS sockets: attach, command, replace, revoke, fall silent."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from protos.fleet.v1 import session_pb2, session_pb2_grpc
from shared import session as s
from shared.errors import Forbidden, Malformed, Unavailable
from shared.ids import DeviceId, TaskId, digest_of
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
    kinds = [kind for kind, _, _ in front.recorder.events]
    assert kinds.count("attached") == 2
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
