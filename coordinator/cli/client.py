"""How a command reaches the coordinator: the Admin service on the Unix socket in its home folder."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import click
import platformdirs

from coordinator.config import Home
from shared.errors import Unavailable

F = TypeVar("F", bound=Callable[..., Any])
CALL_TIMEOUT_S = 60.0


def default_home() -> Path:
    """`$SHOAL_HOME`, else the platform's folder for user data."""
    named = os.environ.get("SHOAL_HOME")
    return Path(named) if named else Path(platformdirs.user_data_dir("shoal")) / "coordinator"


def home_option(function: F) -> F:
    """`--home`, on every command."""
    return click.option(
        "--home",
        type=click.Path(path_type=Path, file_okay=False),
        default=default_home,
        show_default="$SHOAL_HOME or the user's data folder",
        help="The coordinator's home folder.",
    )(function)


def json_option(function: F) -> F:
    """`--json`, on every listing."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")(function)


@contextlib.contextmanager
def admin(home: Path) -> Iterator[Any]:
    """The Admin stub. gRPC errors come out as the typed errors that the coordinator raised. Raises `Unavailable`."""
    import grpc

    from protos.fleet.v1 import admin_pb2_grpc
    from shared.rpc_errors import error_from_rpc

    socket = Home(home).admin_socket
    if not socket.exists():
        raise Unavailable(f"no coordinator runs at {home}: start it with `coordinator serve --home {home}`")
    with grpc.insecure_channel(f"unix:{socket.resolve()}") as channel:
        try:
            yield admin_pb2_grpc.AdminStub(channel)
        except grpc.RpcError as error:
            raise error_from_rpc(error) from None
