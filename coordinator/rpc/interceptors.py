"""The one gate in front of every servicer: who calls, may they, and which status does a failure become."""

import asyncio
import secrets
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
import structlog

from coordinator.fleet.device import Device
from coordinator.fleet.registry import Registry
from coordinator.rpc.roles import ALLOWED, Caller
from shared.errors import Forbidden, ShoalError, Unauthenticated, Unavailable
from shared.rpc_errors import status_of, trailers_of
from shared.signing.certificates import Subject

_log = structlog.get_logger()


@dataclass(frozen=True)
class Peer:
    """Who is calling. `device` is set for devices; `name` is what the audit log shows."""

    caller: Caller
    name: str
    subject: Subject | None = None
    device: Device | None = None


# grpc.aio runs each call in a task of its own, so this is the call's own value.
_peer: ContextVar[Peer] = ContextVar("peer")


def calling_peer() -> Peer:
    """The authenticated caller of the present call."""
    return _peer.get()


def calling_device() -> Device:
    """The calling device. Raises `Unauthenticated`."""
    device = _peer.get().device
    if device is None:
        raise Unauthenticated("only a device may call this")
    return device


class Gate(grpc.aio.ServerInterceptor):
    """Wraps each handler: authenticate → authorise by the table → run → map errors.

    `default` is the caller on a port without client certificates (`ANYONE` for enrolment, `LOCAL` for the Unix socket), or
    None where a certificate is demanded.
    """

    def __init__(self, registry: Registry, default: Caller | None) -> None:
        self._registry = registry
        self._default = default

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], details: grpc.HandlerCallDetails
    ) -> Any:
        handler = await continuation(details)
        if handler is None:
            return None
        method = details.method
        if handler.response_streaming:
            kind = (
                grpc.stream_stream_rpc_method_handler
                if handler.request_streaming
                else grpc.unary_stream_rpc_method_handler
            )
            wrapped: Any = self._streaming(method, handler.stream_stream or handler.unary_stream)
        else:
            kind = (
                grpc.stream_unary_rpc_method_handler
                if handler.request_streaming
                else grpc.unary_unary_rpc_method_handler
            )
            wrapped = self._unary(method, handler.stream_unary or handler.unary_unary)
        return kind(
            wrapped, request_deserializer=handler.request_deserializer, response_serializer=handler.response_serializer
        )

    def _unary(
        self, method: str, behaviour: Callable[[Any, Any], Awaitable[Any]]
    ) -> Callable[[Any, Any], Awaitable[Any]]:
        async def call(request: Any, context: Any) -> Any:
            try:
                _peer.set(await self._admit(method, context))
                return await behaviour(request, context)
            except Exception as error:  # noqa: BLE001  # every failure becomes a status, below
                await _abort(context, method, error)

        return call

    def _streaming(
        self, method: str, behaviour: Callable[[Any, Any], AsyncGenerator[Any, None]]
    ) -> Callable[[Any, Any], Awaitable[None]]:
        """Writes what a generator yields. It is closed here, also when the peer hangs up in the middle of a write: grpc.aio
        leaves that to the garbage collector.

        An admin who is revoked while watching sees nothing more.
        """

        async def call(request: Any, context: Any) -> None:
            try:
                _peer.set(peer := await self._admit(method, context))
                async with aclosing(behaviour(request, context)) as items:
                    async for item in items:
                        if peer.caller is Caller.ADMIN:
                            await self._admit(method, context)
                        await context.write(item)
            except asyncio.CancelledError:
                if context.cancelled():  # by the peer
                    raise
                await _abort(context, method, Unavailable("the peer did not read what it was sent; reconnect"))
            except Exception as error:  # noqa: BLE001  # every failure becomes a status, below
                await _abort(context, method, error)

        return call

    async def _admit(self, method: str, context: Any) -> Peer:
        peer = await self._authenticate(context)
        if peer.caller not in ALLOWED.get(method, frozenset()):
            raise Forbidden(f"{peer.caller} may not call {method.rpartition('/')[2]}")
        return peer

    async def _authenticate(self, context: Any) -> Peer:
        if self._default is not None:
            return Peer(self._default, str(self._default))
        pem = (context.auth_context().get("x509_pem_cert") or [b""])[0]
        subject = self._registry.authenticate(_der(pem))
        if subject.role == "device":
            device = self._registry.admitted(subject)
            if device is None:
                device = await asyncio.to_thread(self._registry.admit, subject)
            return Peer(Caller.DEVICE, device.id, subject, device)
        if subject.role == "admin":
            await asyncio.to_thread(self._registry.admins.admit, subject)
            return Peer(Caller.ADMIN, f"admin {subject.id}", subject)
        raise Unauthenticated(f"a {subject.role} certificate cannot call the coordinator")


def _der(pem: bytes) -> bytes:
    try:
        return ssl.PEM_cert_to_DER_cert(pem.decode("ascii"))
    except ValueError as error:
        raise Unauthenticated("no client certificate") from error


async def _abort(context: Any, method: str, error: Exception) -> None:
    """Ends the call with the error's status: `context.abort` raises, always."""
    if isinstance(error, ShoalError):
        context.set_trailing_metadata(trailers_of(error))
        await context.abort(status_of(error), error.message)
    if isinstance(error, grpc.aio.AbortError):
        raise error
    reference = secrets.token_hex(4)
    _log.error("call failed", method=method, reference=reference, exc_info=error)
    await context.abort(grpc.StatusCode.INTERNAL, f"internal error, see the coordinator's log for {reference}")
