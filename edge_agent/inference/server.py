"""The service's two listeners: the Open Inference Protocol on the loopback address, control on a Unix socket."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import grpc.aio

from edge_agent.inference.engine import Engine
from edge_agent.inference.oip_server import InferenceServicer
from edge_agent.inference.rpc import MESSAGE_OPTIONS, SERVER_OPTIONS
from edge_agent.inference.slots_server import SlotsServicer
from protos.edge.v1.slots_pb2_grpc import add_SlotsServicer_to_server
from protos.inference_pb2_grpc import add_GRPCInferenceServiceServicer_to_server
from shared.errors import Unavailable
from shared.files import check_socket_path

HOST = "127.0.0.1"
_BIND_TRIES = 60
_BIND_WAIT_S = 0.05  # a service that was killed a moment ago may still hold the port
_LAST_ANSWERS_S = 1.0


class OipListener:
    """Serves an engine to applications. `port` is the one the system chose when it was asked for 0."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._server: grpc.aio.Server | None = None
        self.port = 0

    async def start(self, port: int) -> None:
        """Raises `Unavailable` when the port stays taken."""
        for _ in range(_BIND_TRIES):
            server = grpc.aio.server(options=SERVER_OPTIONS)
            add_GRPCInferenceServiceServicer_to_server(InferenceServicer(self._engine), server)
            try:
                self.port = server.add_insecure_port(f"{HOST}:{port}")
            except RuntimeError:
                await asyncio.sleep(_BIND_WAIT_S)
                continue
            await server.start()
            self._server = server
            return
        raise Unavailable(f"{HOST}:{port} is taken by another program: free it, or give another inference_port")

    async def stop(self, timeout_s: float) -> None:
        """Answers what is queued, refuses the rest, and frees the models."""
        await self._engine.close(timeout_s)
        if self._server is not None:
            await self._server.stop(_LAST_ANSWERS_S)


def remove_file(path: Path) -> None:
    path.unlink(missing_ok=True)


async def start_control(engine: Engine, socket: Path, shut_down: Callable[[float], None]) -> grpc.aio.Server:
    """Serves `edge.v1.Slots` at `socket`, which only this user can open. Raises `ConfigError`, `Unavailable`."""
    socket = check_socket_path(socket)
    remove_file(socket)  # left behind by a service that was killed
    server = grpc.aio.server(options=MESSAGE_OPTIONS)
    add_SlotsServicer_to_server(SlotsServicer(engine, shut_down), server)
    before = os.umask(0o177)  # the socket is 0600 from the moment it exists
    try:
        server.add_insecure_port(f"unix:{socket}")
    except RuntimeError as error:
        raise Unavailable(f"cannot listen at {socket}: does the folder exist, and is it ours?") from error
    finally:
        os.umask(before)
    await server.start()
    return server
