"""What the service's two gRPC interfaces share: channel options, and how an error leaves."""

from typing import Any, NoReturn

import grpc.aio

from shared.errors import ShoalError
from shared.rpc_errors import status_of, trailers_of

MAX_MESSAGE_BYTES = 64 << 20  # a video frame or a batch of images is a few MB
MESSAGE_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
)
SERVER_OPTIONS = (
    *MESSAGE_OPTIONS,
    ("grpc.so_reuseport", 0),  # a second service on a port that is taken must fail, not share its requests
)
CLIENT_OPTIONS = (
    *MESSAGE_OPTIONS,
    ("grpc.enable_http_proxy", 0),  # both interfaces are on this machine
    ("grpc.use_local_subchannel_pool", 1),  # a new channel starts without an old one's backoff
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 1000),
)
Context = grpc.aio.ServicerContext[Any, Any]


async def abort(context: Context, error: ShoalError) -> NoReturn:
    """Ends the call with the error's status; a client of ours raises the same class again."""
    await context.abort(status_of(error), str(error), trailers_of(error))
