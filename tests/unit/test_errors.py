"""One tree of errors, and what each becomes on the wire and on the command line."""

import inspect
import re
from typing import Any

import grpc
import pytest

from shared import errors
from shared.errors import ConfigError, LocalError, PeerError, ShoalError
from shared.rpc_errors import error_from_rpc, status_of, trailers_of

CLASSES = [value for _, value in inspect.getmembers(errors, inspect.isclass) if issubclass(value, ShoalError)]


class Failed(grpc.RpcError):
    """A failed call, as a client sees it."""

    def __init__(self, status: grpc.StatusCode, details: str, trailers: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__()
        self._seen = (status, details, trailers)

    def code(self) -> grpc.StatusCode:
        return self._seen[0]

    def details(self) -> str:
        return self._seen[1]

    def trailing_metadata(self) -> Any:
        return self._seen[2]


def test_the_drawing_shows_the_tree() -> None:
    """Each class stands in the drawing, indented below its parent."""
    drawn: dict[str, str] = {}
    path: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        if match := re.match(r"    ([│├└─ ]*)(\w+)", line):
            depth, name = len(match[1]), match[2]
            path = [item for item in path if item[0] < depth]
            drawn[name] = path[-1][1] if path else ""
            path.append((depth, name))

    real = {cls.__name__: cls.__base__.__name__ for cls in CLASSES if cls.__base__ and cls is not ShoalError}
    assert drawn == real | {"ShoalError": ""}


@pytest.mark.parametrize("cls", CLASSES)
def test_every_error_has_a_status_and_an_exit_code_that_is_a_failure(cls: type[ShoalError]) -> None:
    assert status_of(cls("x")) is not grpc.StatusCode.OK
    assert 1 <= cls.exit_code < 126


def test_our_fault_and_the_peers_are_told_apart() -> None:
    assert not [cls for cls in CLASSES if issubclass(cls, LocalError) and issubclass(cls, PeerError)]


@pytest.mark.parametrize("cls", CLASSES)
def test_a_client_raises_the_very_class_that_the_server_raised(cls: type[ShoalError]) -> None:
    raised = cls("do this next", detail="not sent")

    got = error_from_rpc(Failed(status_of(raised), raised.message, trailers_of(raised)))

    assert type(got) is cls
    assert str(got) == "do this next"
    if isinstance(got, ConfigError):
        assert got.path == ""


@pytest.mark.parametrize(
    ("status", "expected"),
    {
        grpc.StatusCode.UNAVAILABLE: errors.Unavailable,
        grpc.StatusCode.CANCELLED: errors.Unavailable,
        grpc.StatusCode.DEADLINE_EXCEEDED: errors.DeadlineExceeded,
        grpc.StatusCode.UNAUTHENTICATED: errors.Unauthenticated,
        grpc.StatusCode.INVALID_ARGUMENT: errors.Malformed,
        grpc.StatusCode.UNIMPLEMENTED: errors.Unsupported,
        grpc.StatusCode.INTERNAL: ShoalError,
    }.items(),
)
def test_what_the_library_refused_by_itself_is_typed_too(status: grpc.StatusCode, expected: type[ShoalError]) -> None:
    assert type(error_from_rpc(Failed(status, "details"))) is expected


def test_a_server_cannot_make_a_client_raise_anything_else() -> None:
    got = error_from_rpc(Failed(grpc.StatusCode.INTERNAL, "x", (("shoal-error", "SystemExit"),)))
    assert type(got) is ShoalError


def test_the_place_of_a_mistake_stands_before_what_is_wrong() -> None:
    error = ConfigError("must be positive", path="job.toml: rounds", detail="found -1")
    assert str(error) == "job.toml: rounds: must be positive (found -1)"
