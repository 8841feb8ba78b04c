"""How a command reaches the coordinator: on the Unix socket in its home folder, or from afar as an issued admin."""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
import platformdirs
from click.core import ParameterSource

from coordinator.config import Home
from shared.clock import SystemClock
from shared.errors import Unauthenticated, Unavailable

if TYPE_CHECKING:
    import grpc

F = TypeVar("F", bound=Callable[..., Any])
CALL_TIMEOUT_S = 60.0
MAX_NUMBER = 2**31 - 1  # of releases, rounds and attempts
WATCHED_FAILED = 40  # exit code of a watch whose job or rollout did not complete


@dataclass(frozen=True)
class Where:
    """The coordinator of a home folder on this machine, or, with a profile, the one that the profile names."""

    home: Path
    profile: Path | None = None


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


def where_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--home` or `--profile`, on every command that works from afar too; the command is given `where`."""

    @functools.wraps(function)
    def command(home: Path, profile: Path | None, **arguments: Any) -> Any:
        source = click.get_current_context().get_parameter_source
        if profile is not None and source("home") is ParameterSource.COMMANDLINE:
            if source("profile") is ParameterSource.COMMANDLINE:
                raise click.UsageError("--home is a coordinator here, --profile one from afar: give one of them")
            profile = None
        return function(where=Where(home, profile), **arguments)

    option = click.option(
        "--profile",
        type=click.Path(path_type=Path, file_okay=False),
        envvar="SHOAL_PROFILE",
        show_envvar=True,
        help="Command from afar, as the admin whose folder this is.",
    )
    return home_option(option(command))


def json_option(function: F) -> F:
    """`--json`, on every listing."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")(function)


@contextlib.contextmanager
def admin(where: Where) -> Iterator[Any]:
    """The Admin stub. gRPC errors come out as the typed errors that the coordinator raised; what it found malformed was typed
    here, so that is an `InputError`.

    Raises `Unavailable`, and `Unauthenticated` for a profile whose certificate has expired.
    """
    import grpc

    from protos.fleet.v1 import admin_pb2_grpc
    from shared.cli import given
    from shared.rpc_errors import error_from_rpc

    with given(), _channel(where) as channel:
        try:
            yield admin_pb2_grpc.AdminStub(channel)
        except grpc.RpcError as error:
            raise error_from_rpc(error) from None


def _channel(where: Where) -> "grpc.Channel":
    import grpc

    if where.profile is not None:
        from coordinator.cli.profile import load

        found = load(where.profile)
        if found.profile.expires_at < SystemClock().now():
            raise Unauthenticated(
                f"the certificate of admin {found.profile.name} has expired; have one issued where the coordinator runs"
            )
        credentials = grpc.ssl_channel_credentials(found.authority, found.key, found.certificate)
        return grpc.secure_channel(found.profile.fleet_address, credentials)
    socket = Home(where.home).admin_socket
    if not socket.exists():
        raise Unavailable(
            f"no coordinator runs at {where.home}: start it with `coordinator serve --home {where.home}`,"
            " or name an admin's --profile"
        )
    return grpc.insecure_channel(f"unix:{socket.resolve()}")
