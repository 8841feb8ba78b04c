"""`fleet.v1.Session`: the live streams of all agents, and the port through which the nouns reach them.

One stream a device: a second one replaces the first. Listeners run in threads, in order for each device even across streams, so
none of them can hold up the loop; a device that says more than they can take is slowed down by its own stream. An agent that
misses its heartbeats is detached.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import structlog

from coordinator.fleet.device import Device
from coordinator.fleet.ports import SessionListener
from coordinator.fleet.registry import Registry
from coordinator.fleet.states import DeviceState
from coordinator.rpc.interceptors import calling_device, calling_peer
from coordinator.rpc.traffic import TrafficMeter
from protos.fleet.v1 import session_pb2, session_pb2_grpc
from shared.errors import Forbidden, Malformed, ShoalError, Unavailable
from shared.ids import CommandId, DeviceId, new_command_id
from shared.session import (
    NODE_UNAVAILABLE,
    AgentEvent,
    Command,
    Event,
    Heartbeat,
    Hello,
    Order,
    RunTask,
    TaskResult,
    Welcome,
)
from shared.wire import command_to_proto, event_from_proto

_log = structlog.get_logger()
MISSED_HEARTBEATS = 2.5
MAX_QUEUED_COMMANDS = 1024
MAX_UNHEARD_EVENTS = 256
LAST_WRITE_S = 5.0
_CLOSE = None


@dataclass(eq=False)
class _Stream:
    """One attached agent. `inbox` feeds its listener task, `outbox` the wire; None ends either."""

    device: DeviceId
    hello: Hello
    outbox: "asyncio.Queue[Command | None]" = field(default_factory=lambda: asyncio.Queue(MAX_QUEUED_COMMANDS))
    inbox: "asyncio.Queue[Callable[[], None] | None]" = field(default_factory=asyncio.Queue)
    room: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MAX_UNHEARD_EVENTS))
    reader: "asyncio.Task[None] | None" = None
    writer: "asyncio.Task[Any] | None" = None
    reason: ShoalError | None = None


class SessionHub(session_pb2_grpc.SessionServicer):
    """Implements `coordinator.fleet.ports.Sessions`. Build it inside the running event loop. Of what it carries, tasks and their
    results count as `traffic`.
    """

    def __init__(self, registry: Registry, traffic: TrafficMeter, *, heartbeat_s: float, threads: int = 8) -> None:
        self._registry = registry
        self._traffic = traffic
        self._heartbeat_s = heartbeat_s
        self._loop = asyncio.get_running_loop()
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="session")
        self._listeners: list[SessionListener] = []
        self._streams: dict[DeviceId, _Stream] = {}
        self._hearing: dict[DeviceId, asyncio.Task[None]] = {}  # the newest listener task of each device
        self._barred: frozenset[DeviceId] = frozenset()
        self._closing = False

    # ---- the port

    def connected(self) -> Mapping[DeviceId, Hello]:
        return {device: stream.hello for device, stream in tuple(self._streams.items()) if device not in self._barred}

    def attached(self) -> frozenset[DeviceId]:
        """Every attached device, quarantined ones too."""
        return frozenset(tuple(self._streams))

    def send(self, device: DeviceId, order: Order, *, command_id: str = "") -> None:
        stream = self._streams.get(device)
        if stream is None:
            raise Unavailable(f"device {device} is not connected")
        if isinstance(order, RunTask) and device in self._barred:
            raise Unavailable(f"device {device} is in quarantine and gets no work")
        command = Command(CommandId(command_id) or new_command_id(), order)
        self._on_loop(self._enqueue, stream, command)

    def subscribe(self, listener: SessionListener) -> None:
        self._listeners.append(listener)

    def device_changed(self, device: Device) -> None:
        """An admin changed a device's state: it takes effect on open streams too. Safe to call from any thread."""
        self._on_loop(self._apply_state, device)

    async def close(self) -> None:
        """End every stream; listeners finish what they have."""
        self._closing = True
        for stream in tuple(self._streams.values()):
            self._end(stream, Unavailable("the coordinator is stopping; reconnect"))
        await asyncio.gather(*self._hearing.values())
        await asyncio.to_thread(self._threads.shutdown)

    # ---- the service

    async def Attach(
        self, request_iterator: AsyncIterator[session_pb2.AgentEvent], context: Any
    ) -> AsyncIterator[session_pb2.Command]:
        device = calling_device()
        events = aiter(request_iterator)
        stream = await self._open(device, events)
        stream.writer = asyncio.current_task()
        stream.reader = asyncio.create_task(self._read(stream, events), name=f"session {device.name}")
        try:
            while (command := await stream.outbox.get()) is not _CLOSE:
                said = command_to_proto(command)
                if isinstance(command.order, RunTask):
                    self._traffic.sent(device.id, said.ByteSize())
                yield said
            if stream.reason is not None:
                raise stream.reason
        finally:
            stream.reader.cancel()
            self._detach(stream)

    async def _open(self, device: Device, events: AsyncIterator[session_pb2.AgentEvent]) -> _Stream:
        try:
            first = event_from_proto(await asyncio.wait_for(anext(events), self._patience_s))
        except (TimeoutError, StopAsyncIteration) as error:
            raise Malformed("a session begins with a hello") from error
        if not isinstance(first.event, Hello):
            raise Malformed("a session begins with a hello")
        device = await asyncio.to_thread(self._registry.hello, device.id, first.event)
        if self._closing:
            raise Unavailable("the coordinator is stopping; reconnect")
        stream = _Stream(device.id, first.event)
        if (old := self._streams.get(device.id)) is not None:
            self._end(old, Unavailable("a newer session of this device took over"))
        self._streams[device.id] = stream
        self._apply_state(device)
        stream.outbox.put_nowait(Command(new_command_id(), Welcome(self._heartbeat_s)))
        for listener in self._listeners:
            stream.inbox.put_nowait(partial(listener.attached, device.id, first.event))
        hearing = asyncio.create_task(
            self._hear(stream, self._hearing.get(device.id)), name=f"listener of {device.name}"
        )
        self._hearing[device.id] = hearing
        hearing.add_done_callback(partial(self._heard, device.id))
        serving = [f"{item.model}:{item.release}" for item in first.event.serving]
        _log.info("device attached", device=device.name, serving=serving)
        return stream

    async def _read(self, stream: _Stream, events: AsyncIterator[session_pb2.AgentEvent]) -> None:
        """Until the agent hangs up, falls silent, or may no longer speak."""
        subject = calling_peer().subject
        try:
            while True:
                said = await asyncio.wait_for(anext(events), self._patience_s)
                message = event_from_proto(said)
                if isinstance(message.event, TaskResult):
                    self._traffic.received(stream.device, said.ByteSize())
                if subject is not None:
                    device = self._registry.admitted(subject)
                    if device is None:
                        device = await asyncio.to_thread(self._registry.admit, subject)
                    self._apply_state(device)
                await stream.room.acquire()
                self._hand_over(stream, message)
        except StopAsyncIteration:
            self._end(stream, None)
        except TimeoutError:
            self._end(stream, Unavailable("no heartbeat; reconnect"))
        except ShoalError as error:
            self._end(stream, error)
        except Exception as error:  # noqa: BLE001  # whatever it was, it ends this session alone
            _log.error("session failed", device=stream.device, exc_info=error)
            self._end(stream, Unavailable("the session failed; reconnect"))

    def _hand_over(self, stream: _Stream, message: AgentEvent) -> None:
        event = message.event
        if isinstance(event, Heartbeat):
            stream.inbox.put_nowait(partial(self._registry.seen, stream.device, event.serving))
            return
        stream.inbox.put_nowait(partial(self._tell, stream.device, message.event_id, self._judged(stream, event)))

    def _judged(self, stream: _Stream, event: Event) -> Event:
        """What a quarantined device has worked out does not count."""
        if isinstance(event, TaskResult) and stream.device in self._barred:
            reason = "the device is in quarantine"
            return replace(event, parts=(), error_code=NODE_UNAVAILABLE, error_reason=reason)
        return event

    def _tell(self, device: DeviceId, event_id: str, event: Event) -> None:
        for listener in self._listeners:
            listener.received(device, event_id, event)

    async def _hear(self, stream: _Stream, former: "asyncio.Task[None] | None") -> None:
        """Run what is in the inbox, one after the other, once the device's former stream has been heard out."""
        if former is not None:
            await asyncio.wait([former])
        while (call := await stream.inbox.get()) is not _CLOSE:
            try:
                await self._loop.run_in_executor(self._threads, call)
            except ShoalError as error:
                _log.warning("event refused", device=stream.device, reason=str(error))
            except Exception as error:  # noqa: BLE001  # one bad event must not end the others
                _log.error("event failed", device=stream.device, exc_info=error)
            stream.room.release()

    def _heard(self, device: DeviceId, task: "asyncio.Task[None]") -> None:
        if self._hearing.get(device) is task:
            del self._hearing[device]

    # ---- inside, on the loop

    @property
    def _patience_s(self) -> float:
        return MISSED_HEARTBEATS * self._heartbeat_s

    def _on_loop(self, call: Callable[..., None], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(call, *arguments)
        except RuntimeError as error:
            raise Unavailable("the coordinator is stopping") from error

    def _enqueue(self, stream: _Stream, command: Command) -> None:
        try:
            stream.outbox.put_nowait(command)
        except asyncio.QueueFull:
            self._end(stream, Unavailable("the agent does not read its commands; reconnect"))

    def _end(self, stream: _Stream, reason: ShoalError | None) -> None:
        """Queued commands are dropped: who sent them hears of the detachment."""
        stream.reason = stream.reason or reason
        self._detach(stream)
        with contextlib.suppress(asyncio.QueueEmpty):
            while True:
                stream.outbox.get_nowait()
        stream.outbox.put_nowait(_CLOSE)
        if stream.reader is not None and stream.reader is not asyncio.current_task():
            stream.reader.cancel()
        if stream.writer is not None:
            # An agent that does not read blocks the last write, and would keep its dead stream for ever.
            self._loop.call_later(LAST_WRITE_S, stream.writer.cancel)

    def _detach(self, stream: _Stream) -> None:
        if self._streams.get(stream.device) is not stream:
            return
        del self._streams[stream.device]
        for listener in self._listeners:
            stream.inbox.put_nowait(partial(listener.detached, stream.device))
        stream.inbox.put_nowait(_CLOSE)
        _log.info("device detached", device=stream.device)

    def _apply_state(self, device: Device) -> None:
        barred = device.state is not DeviceState.ACTIVE
        if barred != (device.id in self._barred):
            self._barred = self._barred ^ {device.id}
        stream = self._streams.get(device.id)
        if stream is not None and device.state is DeviceState.REVOKED:
            self._end(stream, Forbidden(f"device {device.name} was revoked", detail=device.reason))
