"""The session with the coordinator: dial out, say what really runs, take commands, come back whenever it breaks.

A break costs a back-off and nothing else: durable events are kept by the agent and repeated after the next hello. A device that is
refused (revoked, unknown) says so once, tries again much later, and goes on serving its model meanwhile.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import structlog

from edge_agent.link.backoff import Backoff
from edge_agent.link.channel import fleet_channel
from edge_agent.link.credentials import Credentials
from edge_agent.link.transfer import Cache, Transfers
from edge_agent.state import SESSION, SessionEvent, SessionState, advance
from protos.fleet.v1 import enrolment_pb2, enrolment_pb2_grpc, metrics_pb2_grpc, session_pb2, session_pb2_grpc
from shared.clock import Clock
from shared.errors import Forbidden, Malformed, ShoalError, Unauthenticated, Unavailable
from shared.ids import Digest, TaskId
from shared.rpc_errors import typed_errors
from shared.session import AgentEvent, Command, MetricBatch, Renew, Welcome
from shared.wire import batch_to_proto, command_from_proto, event_to_proto

_log = structlog.get_logger()
_CALL_S = 30.0
_WELCOME_S = 20.0
_LOOK_AT_CLOCK_S = 3600.0
_MAX_QUEUED = 4096


@dataclass(frozen=True)
class LinkSettings:
    address: str
    reconnect_min_s: float = 0.5
    reconnect_max_s: float = 30.0
    barred_retry_s: float = 300.0


class Link:
    """`opening()` gives the first events of a session: the hello, then what was not acknowledged. `handle` takes each command."""

    def __init__(
        self,
        credentials: Credentials,
        settings: LinkSettings,
        cache: Cache,
        clock: Clock,
        *,
        opening: Callable[[], Awaitable[Sequence[AgentEvent]]],
        handle: Callable[[Command], None],
    ) -> None:
        self.attached = asyncio.Event()
        self.state = SessionState.OFFLINE
        self.reason = ""
        self.heartbeat_s = 5.0
        self._credentials = credentials
        self._settings = settings
        self._clock = clock
        self._opening = opening
        self._handle = handle
        self._channel: Any = None
        self._outgoing: asyncio.Queue[AgentEvent] | None = None
        self._session_task: asyncio.Task[ShoalError | None] | None = None
        self._again = asyncio.Event()  # reconnect at once
        self._renew = asyncio.Event()
        self.transfers = Transfers(cache, self._present_channel, self._backoff)

    # ---- the port

    def send(self, event: AgentEvent) -> None:
        if self._outgoing is None:
            return
        try:
            self._outgoing.put_nowait(event)
        except asyncio.QueueFull:
            self._break("the coordinator does not read; reconnecting")

    async def fetch(self, digest: Digest) -> Path:
        return await self.transfers.fetch(digest)

    async def put(self, path: Path, digest: Digest, task_id: TaskId) -> None:
        await self.transfers.put(path, digest, task_id)

    async def report(self, batches: Sequence[MetricBatch]) -> int:
        """The number up to which all batches are stored. Raises `Unavailable`, and what the coordinator answers."""
        stub = metrics_pb2_grpc.MetricsStub(self._present_channel())

        async def messages() -> AsyncIterator[Any]:
            for batch in batches:
                yield batch_to_proto(batch)

        with typed_errors():
            answer = await stub.Report(messages(), timeout=_CALL_S)
        return int(answer.acknowledged)

    # ---- the session

    async def run(self) -> None:
        """Until cancelled."""
        backoff = self._backoff()
        event = SessionEvent.START
        try:
            while True:
                self.state = advance(SESSION, self.state, event)
                error = await self._ended(backoff)
                barred = isinstance(error, Forbidden | Unauthenticated)
                self._lost(error, SessionEvent.REFUSE if barred else SessionEvent.BREAK)
                wait_s = self._settings.barred_retry_s if barred else backoff.next()
                if not self._again.is_set():
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(wait_s):  # wait_for may lose a cancellation (CPython 86296)
                            await self._again.wait()
                self._again.clear()
                event = SessionEvent.RETRY
        finally:
            self.state = SessionState.OFFLINE
            self.attached.clear()

    async def _ended(self, backoff: Backoff) -> ShoalError | None:
        """Run one session to its end. Why it ended; None: it was ended here, or by the coordinator in good order."""
        session = self._session_task = asyncio.create_task(self._session(backoff), name="session")
        try:
            await asyncio.wait([session])
        finally:
            if not session.done():
                session.cancel()
                await asyncio.wait([session])
            await self._close()
        return None if session.cancelled() else session.result()

    async def _session(self, backoff: Backoff) -> ShoalError | None:
        try:
            self._channel = fleet_channel(self._settings.address, self._credentials.identity, self._credentials.ca_der)
            self._outgoing = asyncio.Queue(_MAX_QUEUED)  # what happens from here on is in the opening, or follows it
            opening = await self._opening()
            call = session_pb2_grpc.SessionStub(self._channel).Attach()
            writer = asyncio.create_task(_write(call, opening, self._outgoing), name="session writer")
            try:
                with typed_errors():
                    await self._welcome(call)
                    backoff.reset()
                    while (message := await call.read()) is not grpc.aio.EOF:
                        self._take(message)
            finally:
                writer.cancel()
                await asyncio.wait([writer])
                call.cancel()
        except ShoalError as error:
            return error
        return None

    async def _welcome(self, call: Any) -> None:
        try:
            async with asyncio.timeout(_WELCOME_S):
                first = await call.read()
        except TimeoutError:
            raise Unavailable("the coordinator does not answer") from None
        if first is grpc.aio.EOF:
            raise Unavailable("the coordinator hung up")
        command = command_from_proto(first)
        if not isinstance(command.order, Welcome) or not 0 < command.order.heartbeat_s < 3600:
            raise Malformed("a session begins with a welcome")
        self.heartbeat_s = command.order.heartbeat_s
        self.state = advance(SESSION, self.state, SessionEvent.WELCOME)
        self.reason = ""
        self.attached.set()
        _log.info("attached", coordinator=self._settings.address)

    def _take(self, message: session_pb2.Command) -> None:
        """A command that cannot be read is left aside: a newer coordinator may know more orders than this agent."""
        try:
            command = command_from_proto(message)
        except ShoalError as error:
            _log.warning("command not understood", command=message.command_id[:40], reason=str(error))
            return
        if isinstance(command.order, Renew):
            self._renew.set()
        else:
            self._handle(command)

    def _lost(self, error: ShoalError | None, event: SessionEvent) -> None:
        self.attached.clear()
        before = self.reason
        self.reason = "reconnecting" if error is None else str(error)
        self.state = advance(SESSION, self.state, event)
        if self.state is SessionState.BARRED:
            _log.error(
                "the coordinator refuses this device; it goes on serving",
                reason=self.reason,
                retry_s=self._settings.barred_retry_s,
            )
        elif self.reason != before:
            _log.warning("no session", reason=self.reason)

    def _break(self, reason: str) -> None:
        self.reason = reason
        self._again.set()
        if self._session_task is not None:
            self._session_task.cancel()

    # ---- certificates

    async def keep_renewed(self) -> None:
        """Renew at two thirds of the certificate's life, or when told to. Until cancelled."""
        backoff = Backoff(min_s=5.0, max_s=_LOOK_AT_CLOCK_S)
        while True:
            left = self._credentials.renew_at() - self._clock.now()
            if left > 0:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min(left, _LOOK_AT_CLOCK_S)):
                        await self._renew.wait()
                if not self._renew.is_set() and self._credentials.renew_at() > self._clock.now():
                    continue
            await self.attached.wait()
            self._renew.clear()
            try:
                await self._renewed()
                backoff.reset()
            except (ShoalError, OSError) as error:
                _log.warning("certificate not renewed", reason=str(error))
                await asyncio.sleep(backoff.next())
                self._renew.set()

    async def _renewed(self) -> None:
        renewal = self._credentials.renewal()
        stub = enrolment_pb2_grpc.EnrolmentStub(self._present_channel())
        with typed_errors():
            answer = await stub.Renew(enrolment_pb2.RenewRequest(csr_der=renewal.csr_der), timeout=_CALL_S)
        renewal.adopt(answer.certificate_der)
        _log.info("certificate renewed", until=self._credentials.renew_at())
        self._break("using the new certificate")

    # ---- inside

    def _backoff(self) -> Backoff:
        return Backoff(self._settings.reconnect_min_s, self._settings.reconnect_max_s)

    def _present_channel(self) -> Any:
        if self._channel is None:
            raise Unavailable("not connected to the coordinator")
        return self._channel

    async def _close(self) -> None:
        channel, self._channel, self._outgoing = self._channel, None, None
        if channel is not None:
            await channel.close()


async def _write(call: Any, opening: Sequence[AgentEvent], queue: "asyncio.Queue[AgentEvent]") -> None:
    """Until the stream ends, which its reader notices too."""
    with contextlib.suppress(grpc.RpcError, grpc.aio.UsageError, asyncio.InvalidStateError):
        for event in opening:
            await call.write(event_to_proto(event))
        while True:
            await call.write(event_to_proto(await queue.get()))
