"""Blobs under an fsspec URL: stores that fail, and URLs that are none."""

import errno
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem
from structlog.testing import capture_logs

from shared.blobs import Blobs
from shared.errors import ConfigError, Unavailable
from shared.ids import Digest, digest_of
from shared.remote_blobs import open_blobs
from tests.contract.test_blobs import in_memory


class ClientError(Exception):
    """As botocore, Azure's and others have them: of no base class that we know."""


BROKEN = (OSError(errno.ECONNRESET, "connection reset by peer"), ClientError("SlowDown\nretry later"))
CALLS: dict[str, Callable[[Blobs, Digest], object]] = {
    "has": lambda blobs, digest: blobs.has(digest),
    "size": lambda blobs, digest: blobs.size(digest),
    "open": lambda blobs, digest: blobs.open(digest),
    "read": lambda blobs, digest: blobs.read(digest),
    "write": lambda blobs, digest: blobs.write(b"others"),
    "delete": lambda blobs, digest: blobs.delete(digest),
    "digests": lambda blobs, digest: list(blobs.digests()),
}


@pytest.mark.parametrize("broken", BROKEN, ids=["of the system", "of a library"])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_remote_store_that_fails_is_unavailable_and_nothing_worse(
    call: Callable[[Blobs, Digest], object], broken: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs = in_memory(tmp_path)
    digest = blobs.write(b"weights")

    def fails(*_: object, **__: object) -> None:
        raise broken

    for name in ("isfile", "size", "open", "pipe_file", "rm_file", "glob"):
        monkeypatch.setattr(MemoryFileSystem, name, fails)
    with pytest.raises(Unavailable, match="is tried again"):
        call(blobs, digest)
    monkeypatch.undo()
    assert blobs.read(digest) == b"weights"


@pytest.mark.parametrize("broken", BROKEN, ids=["of the system", "of a library"])
def test_a_remote_store_that_fails_in_the_middle_of_a_blob_is_unavailable_too(
    broken: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs = in_memory(tmp_path)
    digest = blobs.write(b"weights")

    def fails(*_: object) -> None:
        raise broken

    with blobs.open(digest, 2) as file:
        monkeypatch.setattr(MemoryFile, "read", fails)
        with pytest.raises(Unavailable):
            file.read(3)
        monkeypatch.undo()
        assert file.read(3) == b"igh"


def test_half_a_blob_in_a_remote_store_is_replaced_by_the_whole(tmp_path: Path) -> None:
    root, digest = uuid.uuid4().hex, digest_of(b"weights")
    blobs = open_blobs(f"memory://{root}", tmp_path)
    blobs.write(b"weights")
    MemoryFileSystem().pipe_file(f"/{root}/{digest[:2]}/{digest}", b"wei")
    assert blobs.size(digest) == 3

    assert blobs.write(b"weights") == digest
    assert blobs.read(digest) == b"weights"


@pytest.mark.parametrize("url", ["nope://secret@bucket", "blobs", "/srv/blobs"])
def test_a_store_that_no_library_knows_is_refused_and_no_secret_is_shown(url: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="URL") as refused:
        open_blobs(url, tmp_path)
    assert "secret" not in str(refused.value)


REFUSED = {
    "jlab://x": (ConfigError, "blobs_url: no blobs at a URL of jlab://"),
    "reference://x": (ConfigError, "blobs_url: no blobs at a URL of reference://"),
    "ftp://ann:secret@127.0.0.1:1/x": (Unavailable, "blobs_url: the store at ftp:// does not answer"),
    "ftp://ann:5@host:secret/x": (ConfigError, "blobs_url: no blobs at a URL of ftp://"),
}


@pytest.mark.parametrize(("url", "error", "says"), [(url, *rest) for url, rest in REFUSED.items()], ids=REFUSED)
def test_whatever_a_library_raises_for_a_url_names_the_setting_and_no_secret(
    url: str, error: type[Exception], says: str, tmp_path: Path
) -> None:
    with pytest.raises(error) as refused:
        open_blobs(url, tmp_path, where="blobs_url")
    assert str(refused.value).startswith(says)
    assert "secret" not in str(refused.value)


def test_a_login_that_fails_names_the_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class LoginError(Exception):
        """As the libraries have them: of no class that others share."""

    def login(*_: object) -> None:
        raise LoginError("530 Login incorrect.")

    monkeypatch.setattr("fsspec.core.url_to_fs", login)
    with pytest.raises(ConfigError, match=r"^blobs_url: no blobs at a URL of ftp:// \(LoginError: 530 Login"):
        open_blobs("ftp://host/x", tmp_path, where="blobs_url")


@pytest.mark.parametrize(("scheme", "warnings"), [("memory", 1), ("file", 0)])
def test_a_store_that_a_restart_loses_warns(scheme: str, warnings: int, tmp_path: Path) -> None:
    with capture_logs() as logs:
        open_blobs(f"{scheme}://{tmp_path}/blobs", tmp_path / "staging", where="blobs_url")
    assert [(entry["log_level"], entry["setting"]) for entry in logs] == [("warning", "blobs_url")] * warnings
    assert all("a restart loses them all" in entry["event"] for entry in logs)
