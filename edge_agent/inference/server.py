"""The gRPC servers of one inference service, over an engine that they do not own."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

import grpc.aio

from edge_agent.inference.control import SlotsServicer
from edge_agent.inference.engine import Engine
from edge_agent.inference.oip import InferenceServicer
from edge_agent.inference.rpc import MESSAGE_OPTIONS
from protos import inference_pb2_grpc
from protos.edge.v1 import slots_pb2_grpc
from shared.errors import ConfigError, Unavailable

_MAX_SOCKET_PATH = 107  # bytes in sockaddr_un, less the closing zero (unix(7))
# One server a port: with SO_REUSEPORT a second process could take a share of the requests unnoticed.
_SERVER_OPTIONS = (*MESSAGE_OPTIONS, ("grpc.so_reuseport", 0))


class InferenceServer:
    """The Open Inference Protocol on `host:port`, and on a Unix socket when one is named."""

    def __init__(self, engine: Engine, *, host: str = "127.0.0.1", port: int = 0, socket: Path | None = None) -> None:
        self._engine = engine
        self._host = host
        self._asked_port = port
        self._socket = socket
        self._server: grpc.aio.Server | None = None
        self.port = 0

    @property
    def address(self) -> str:
        return f"{self._host}:{self.port}"

    async def start(self) -> None:
        """Raises `Unavailable` when the port is taken, `ConfigError` for a socket path that cannot be one."""
        server = grpc.aio.server(options=_SERVER_OPTIONS)
        inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(  # type: ignore[no-untyped-call]  # generated
            InferenceServicer(self._engine), server
        )
        try:
            self.port = server.add_insecure_port(f"{self._host}:{self._asked_port}")
        except RuntimeError as error:
            raise Unavailable(f"cannot listen on {self._host}:{self._asked_port}: is the port taken?") from error
        if self._socket is not None:
            _bind_private(server, self._socket)
        await server.start()
        self._server = server

    async def stop(self, grace_s: float) -> None:
        """Refuses new calls, lets running ones end for `grace_s`."""
        if self._server is not None:
            await self._server.stop(grace_s)
            self._server = None


class ControlServer:
    """`edge.v1.Slots` on a Unix socket that only this user can open."""

    def __init__(self, engine: Engine, socket: Path, shut_down: Callable[[float], None]) -> None:
        self._engine = engine
        self._socket = socket
        self._shut_down = shut_down
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        """Raises `ConfigError`."""
        server = grpc.aio.server(options=MESSAGE_OPTIONS)
        slots_pb2_grpc.add_SlotsServicer_to_server(  # type: ignore[no-untyped-call]  # generated
            SlotsServicer(self._engine, self._shut_down), server
        )
        _bind_private(server, self._socket)
        await server.start()
        self._server = server

    async def stop(self, grace_s: float) -> None:
        if self._server is not None:
            await self._server.stop(grace_s)
            self._server = None


def check_socket_path(path: Path) -> None:
    """Raises `ConfigError` for a path that a Unix socket cannot have."""
    if not path.is_absolute():
        raise ConfigError(f"{path} must be an absolute path", path="socket")
    if len(os.fsencode(path)) > _MAX_SOCKET_PATH:
        raise ConfigError(f"{path} is longer than {_MAX_SOCKET_PATH} bytes: choose a shorter folder", path="socket")
    if not path.parent.is_dir():
        raise ConfigError(f"the folder {path.parent} does not exist: create it", path="socket")


def _bind_private(server: grpc.aio.Server, path: Path) -> None:
    """The umask makes the socket private from its first moment; it is the process's, and changed for this call only."""
    check_socket_path(path)
    previous = os.umask(0o177)
    try:
        server.add_insecure_port(f"unix:{path}")
    except RuntimeError as error:
        raise ConfigError(f"cannot listen on {path}: is the folder writable?", path="socket") from error
    finally:
        os.umask(previous)
    path.chmod(stat.S_IRUSR | stat.S_IWUSR)
