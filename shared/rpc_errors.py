"""gRPC status ↔ the errors of `shared.errors`: one map for every server and every client.

A server sends the class name in the trailing metadata `shoal-error`, so a client raises the very class that the server raised.
"""

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

import grpc
import grpc.aio

from shared import errors
from shared.errors import DeadlineExceeded, Malformed, ShoalError, Unauthenticated, Unavailable, Unsupported

CLASS_KEY = "shoal-error"
_STATUS = {code.name: code for code in grpc.StatusCode}


def _classes(root: type[ShoalError]) -> dict[str, type[ShoalError]]:
    out = {root.__name__: root}
    for child in root.__subclasses__():
        out |= _classes(child)
    return out


def status_of(error: ShoalError) -> grpc.StatusCode:
    return _STATUS[error.status]


def trailers_of(error: ShoalError) -> tuple[tuple[str, str], ...]:
    return ((CLASS_KEY, type(error).__name__),)


def error_from_rpc(error: grpc.RpcError) -> ShoalError:
    """The typed error behind a failed call. Network failures become `Unavailable`, time-outs `DeadlineExceeded`."""
    code, details = error.code(), error.details() or "the call failed"
    name = _class_name(error)
    if name in (known := _classes(errors.ShoalError)):
        return known[name](details)
    return _by_status(code, details)


@contextlib.contextmanager
def typed_errors() -> Iterator[None]:
    """Raises the typed error behind a failed call of an asyncio stub.

    A channel that is closed under a call cancels the task that waits for it, and one that was closed before refuses the call; both
    are `Unavailable`, unless the task itself was asked to stop.
    """
    try:
        yield
    except grpc.RpcError as error:
        raise error_from_rpc(error) from error
    except grpc.aio.UsageError as error:  # which is no RpcError
        raise Unavailable("the connection is closed; try again", detail=str(error)[:200]) from error
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise Unavailable("the connection ended; try again") from None


def _by_status(code: grpc.StatusCode, details: str) -> ShoalError:
    """For what the library itself refused, and for servers that are not ours."""
    match code:
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return DeadlineExceeded("no answer in time; try again")
        case grpc.StatusCode.UNAVAILABLE | grpc.StatusCode.CANCELLED:
            return Unavailable("the peer is not reachable; try again", detail=details[:200])
        case grpc.StatusCode.UNAUTHENTICATED:
            return Unauthenticated(details)
        case grpc.StatusCode.INVALID_ARGUMENT:
            return Malformed(details)
        case grpc.StatusCode.UNIMPLEMENTED:
            return Unsupported(details)
    return ShoalError(details, detail=code.name)


def _class_name(error: Any) -> str:
    for key, value in error.trailing_metadata() or ():
        if key == CLASS_KEY:
            return str(value)
    return ""
