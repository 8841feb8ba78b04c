"""What every store of blobs must do: in memory, in a folder, under an fsspec URL."""

import errno
import math
import os
import resource
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from shared.blobs import Blobs, FolderBlobs, MemoryBlobs
from shared.errors import ConfigError, DigestMismatch, Malformed, NotFound, StorageFull, Unavailable
from shared.ids import Digest, digest_of
from shared.remote_blobs import open_blobs
from shared.spilling import SpillingBlobs

KINDS: dict[str, Callable[[Path], Blobs]] = {
    "memory": lambda _: MemoryBlobs(),
    "folder": lambda folder: FolderBlobs(folder / "blobs"),
    "folder, not durable": lambda folder: FolderBlobs(folder / "blobs", durable=False),
    "spilling": lambda folder: SpillingBlobs(FolderBlobs(folder / "blobs", durable=False), memory_bytes=1 << 20),
    "spilling, little room": lambda folder: SpillingBlobs(FolderBlobs(folder / "blobs", durable=False), memory_bytes=5),
    "spilling, no room": lambda folder: SpillingBlobs(FolderBlobs(folder / "blobs", durable=False), memory_bytes=0),
    "a folder by URL": lambda folder: open_blobs(f"file://{folder}/remote", folder / "staging"),
    "fsspec, memory": lambda folder: in_memory(folder / "staging"),
}


def in_memory(staging: Path) -> Blobs:
    return open_blobs(f"memory://{uuid.uuid4().hex}", staging)


@pytest.fixture(params=KINDS)
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> Blobs:
    return KINDS[request.param](tmp_path)


def test_what_is_written_is_read_back_under_its_digest(blobs: Blobs) -> None:
    digest = blobs.write(b"weights")

    assert digest == digest_of(b"weights")
    assert blobs.has(digest)
    assert (blobs.size(digest), blobs.read(digest)) == (7, b"weights")
    with blobs.open(digest, 2) as file:
        assert file.read() == b"ights"


def test_writing_twice_keeps_one(blobs: Blobs) -> None:
    assert blobs.write(b"weights") == blobs.write(b"weights")
    blobs.write(b"")
    assert sorted(blobs.digests()) == sorted([digest_of(b"weights"), digest_of(b"")])


def test_a_blob_nobody_stored_is_not_found(blobs: Blobs) -> None:
    missing = digest_of(b"missing")

    assert not blobs.has(missing)
    for look in (blobs.size, blobs.read, blobs.open):
        with pytest.raises(NotFound):
            look(missing)


def test_what_is_deleted_is_gone_and_deleting_it_again_is_no_error(blobs: Blobs) -> None:
    digest = blobs.write(b"weights")
    for _ in range(2):
        blobs.delete(digest)
    assert not blobs.has(digest)
    assert list(blobs.digests()) == []


def test_an_arrival_counts_only_once_it_is_whole(blobs: Blobs) -> None:
    digest = digest_of(b"weights")
    blobs.append(digest, 0, b"wei")
    assert (blobs.received(digest), blobs.has(digest)) == (3, False)

    blobs.append(digest, 3, b"ghts")
    blobs.finish(digest)

    assert blobs.read(digest) == b"weights"
    assert blobs.received(digest) == 0


def test_an_arrival_goes_on_where_it_stands_and_nowhere_else(blobs: Blobs) -> None:
    digest = digest_of(b"weights")
    blobs.append(digest, 0, b"wei")

    for wrong in (0, 2, 4):
        with pytest.raises(Malformed, match="stands at byte 3"):
            blobs.append(digest, wrong, b"ghts")
    assert blobs.received(digest) == 3


def test_bytes_that_are_not_what_they_promise_are_forgotten(blobs: Blobs) -> None:
    digest = digest_of(b"weights")
    blobs.append(digest, 0, b"poison!")

    with pytest.raises(DigestMismatch):
        blobs.finish(digest)

    assert not blobs.has(digest)
    assert blobs.received(digest) == 0


def test_finishing_what_never_began_is_a_mismatch_unless_it_is_empty(blobs: Blobs) -> None:
    with pytest.raises(DigestMismatch):
        blobs.finish(digest_of(b"weights"))
    blobs.finish(digest_of(b""))
    assert blobs.read(digest_of(b"")) == b""


def test_two_senders_of_the_same_bytes_do_not_meet(blobs: Blobs) -> None:
    digest = digest_of(b"weights")
    blobs.append(digest, 0, b"wei", sender="dev1")
    blobs.append(digest, 0, b"weights", sender="dev2")
    blobs.finish(digest, sender="dev2")
    assert blobs.received(digest, sender="dev1") == 3

    blobs.append(digest, 3, b"ghts", sender="dev1")
    blobs.finish(digest, sender="dev1")

    assert blobs.read(digest) == b"weights"
    assert list(blobs.digests()) == [digest]


def test_an_append_that_cannot_be_done_at_once_changes_nothing(blobs: Blobs) -> None:
    digest = digest_of(b"weights")

    done = blobs.append_now(digest, 0, b"weights")

    assert blobs.received(digest) == (7 if done else 0)
    if not done:
        blobs.append(digest, 0, b"weights")
    blobs.finish(digest)
    assert blobs.read(digest) == b"weights"


def test_an_arrival_that_is_discarded_begins_anew_and_only_that_sender_s(blobs: Blobs) -> None:
    digest = digest_of(b"weights")
    for sender in ("one", "two"):
        blobs.append(digest, 0, b"wei", sender=sender)

    blobs.discard(digest, sender="one")
    blobs.discard(digest, sender="nobody")

    assert (blobs.received(digest, sender="one"), blobs.received(digest, sender="two")) == (0, 3)
    blobs.append(digest, 0, b"weights", sender="one")
    blobs.finish(digest, sender="one")
    assert blobs.read(digest) == b"weights"
    blobs.discard(digest, sender="two")
    assert blobs.read(digest) == b"weights"


@pytest.mark.parametrize("evil", ["../../etc/passwd", "", "A" * 64, "0" * 63, "0" * 64 + "/x"])
def test_a_digest_that_is_a_path_goes_nowhere(blobs: Blobs, evil: str, tmp_path: Path) -> None:
    with pytest.raises(Malformed):
        blobs.append(Digest(evil), 0, b"x")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@given(data=st.binary(max_size=200), cuts=st.lists(st.integers(1, 50), max_size=8))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None)
def test_pieces_of_any_size_make_the_whole(blobs: Blobs, data: bytes, cuts: list[int]) -> None:
    digest, at = digest_of(data), 0
    for size in [*cuts, len(data)]:
        if piece := data[at : at + size]:
            blobs.append(digest, at, piece)
            at += len(piece)
    blobs.finish(digest)

    assert blobs.read(digest) == data
    blobs.delete(digest)


def test_what_outgrows_the_memory_goes_on_in_the_folder(tmp_path: Path) -> None:
    folder = FolderBlobs(tmp_path, durable=False)
    blobs = SpillingBlobs(folder, memory_bytes=10)
    one, two = digest_of(b"0123456"), digest_of(b"abcdef")
    assert blobs.append_now(one, 0, b"0123")
    assert blobs.append_now(two, 0, b"abc")

    assert not blobs.append_now(one, 4, b"4567")
    blobs.append(one, 4, b"456")
    assert folder.received(one) == 0

    assert not blobs.append_now(two, 3, b"def")
    blobs.append(two, 3, b"def")
    assert folder.received(two) == 6
    assert blobs.append_now(one, 7, b"")
    blobs.finish(one)
    blobs.finish(two)

    assert (blobs.read(one), blobs.read(two)) == (b"0123456", b"abcdef")
    assert (folder.has(one), folder.has(two)) == (False, True)
    assert sorted(blobs.digests()) == sorted([one, two])


def test_room_is_given_back_when_a_blob_is_deleted_refused_or_there_already(tmp_path: Path) -> None:
    blobs = SpillingBlobs(FolderBlobs(tmp_path, durable=False), memory_bytes=7)
    digest = digest_of(b"weights")
    for _ in range(3):
        assert blobs.append_now(digest, 0, b"weights", sender="dev1")
        blobs.finish(digest, sender="dev1")
        blobs.delete(digest)
        assert blobs.append_now(digest, 0, b"poison!", sender="dev1")
        with pytest.raises(DigestMismatch):
            blobs.finish(digest, sender="dev1")
    assert blobs.write(b"weights") == blobs.write(b"weights") == digest
    assert list(tmp_path.rglob("*.*")) == []


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """As if the disk were full: the kernel refuses to write past `size`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_changes_nothing_that_was_stored(tmp_path: Path) -> None:
    blobs, large = FolderBlobs(tmp_path), os.urandom(100_000)
    kept = blobs.write(b"kept")

    with files_of_at_most(50_000):
        with pytest.raises(StorageFull):
            blobs.write(large)
        with pytest.raises(StorageFull):
            blobs.append(digest_of(large), 0, large)

    assert list(blobs.digests()) == [kept]
    assert [path.name for path in tmp_path.rglob("*.tmp")] == []
    stands = blobs.received(digest_of(large))
    blobs.append(digest_of(large), stands, large[stands:])
    blobs.finish(digest_of(large))
    assert blobs.read(digest_of(large)) == large


def test_a_folder_survives_a_restart(tmp_path: Path) -> None:
    digest = FolderBlobs(tmp_path).write(b"weights")
    FolderBlobs(tmp_path).append(digest_of(b"other"), 0, b"oth")

    again = FolderBlobs(tmp_path)

    assert again.read(digest) == b"weights"
    assert again.received(digest_of(b"other")) == 3


# ---- disks and networks that fail


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


def test_a_folder_by_url_holds_whole_blobs_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blobs = open_blobs(f"file://{tmp_path}/blobs", tmp_path / "staging")
    assert isinstance(blobs, FolderBlobs)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        blobs.write(b"weights")
    monkeypatch.undo()
    assert list(blobs.digests()) == []

    half = blobs.path(digest_of(b"weights")).with_name(".weights.0123.tmp")  # of a process that was killed harder
    half.write_bytes(b"wei")
    blobs.append(digest_of(b"other"), 0, b"oth")
    kept = blobs.write(b"weights")
    blobs.sweep(before=0.0)
    assert half.exists(), "somebody may be at work on it"
    blobs.sweep(before=math.inf)
    assert list(blobs.digests()) == [kept]
    assert (half.exists(), blobs.received(digest_of(b"other"))) == (False, 0)


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


def test_a_disk_that_fails_is_unavailable_and_one_that_is_full_is_said_to_be_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs = FolderBlobs(tmp_path)
    digest = blobs.write(b"weights")
    blobs.append(digest_of(b"later"), 0, b"later")
    for number, kind in ((errno.EIO, Unavailable), (errno.ENOSPC, StorageFull)):

        def fails(*_: object, _number: int = number, **__: object) -> None:
            raise OSError(_number, "a failing disk")

        with monkeypatch.context() as patch:
            patch.setattr(Path, "open", fails)
            patch.setattr(os, "open", fails)
            for call in (lambda: blobs.write(b"others"), lambda: blobs.finish(digest_of(b"later"))):
                with pytest.raises(kind):
                    call()
    assert blobs.read(digest) == b"weights"
    blobs.finish(digest_of(b"later"))
    assert blobs.read(digest_of(b"later")) == b"later"


# ---- memory that spills


def test_an_arrival_that_cannot_move_to_a_full_disk_stays_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = FolderBlobs(tmp_path, durable=False)
    blobs = SpillingBlobs(folder, memory_bytes=4)
    digest = digest_of(b"weights")
    blobs.append(digest, 0, b"wei")

    def half(digest: Digest, offset: int, data: bytes, *, sender: str = "") -> None:
        (tmp_path / "arriving" / digest).write_bytes(data[:1])
        raise StorageFull("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(folder, "append", half)
        with pytest.raises(StorageFull):
            blobs.append(digest, 3, b"ghts")
    assert blobs.received(digest) == 3
    assert folder.received(digest) == 0

    blobs.append(digest, 3, b"ghts")
    blobs.finish(digest)
    assert folder.read(digest) == b"weights"
    assert blobs.append_now(digest_of(b"four"), 0, b"four")  # all the room was given back


def test_a_sender_s_two_streams_of_the_same_bytes_do_not_split_an_arrival(tmp_path: Path) -> None:
    """While an arrival moves to the folder, nothing of it may begin anew in memory."""
    folder = FolderBlobs(tmp_path, durable=False)
    blobs = SpillingBlobs(folder, memory_bytes=4)
    digest = digest_of(b"weights")
    blobs.append(digest, 0, b"wei")
    really, seen = folder.append, []

    def meanwhile(digest: Digest, offset: int, data: bytes, *, sender: str = "") -> None:
        seen.append(blobs.append_now(digest, 0, b"w", sender=sender))
        really(digest, offset, data, sender=sender)

    folder.append = meanwhile  # type: ignore[method-assign]
    blobs.append(digest, 3, b"ghts")
    assert seen == [False, False]
    blobs.finish(digest)
    assert blobs.read(digest) == b"weights"


@pytest.mark.parametrize("room", [0, 1 << 16, 1 << 22])
def test_many_threads_at_once_lose_nothing_and_give_all_room_back(tmp_path: Path, room: int) -> None:
    blobs = SpillingBlobs(FolderBlobs(tmp_path, durable=False), memory_bytes=room)
    shared = [bytes([number]) * 30_000 for number in range(4)]

    def send(sender: int) -> None:
        for data in (*shared, bytes([100 + sender]) * 20_000):
            digest = digest_of(data)
            for start in range(0, len(data), 7_000):
                piece = data[start : start + 7_000]
                if not blobs.append_now(digest, start, piece, sender=f"dev{sender}"):
                    blobs.append(digest, start, piece, sender=f"dev{sender}")
            blobs.finish(digest, sender=f"dev{sender}")
            assert blobs.read(digest) == data

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(send, range(8)))
    found = list(blobs.digests())
    assert len(found) == 4 + 8
    for digest in found:
        blobs.delete(digest)
    assert list(tmp_path.rglob("*.*")) == []
    assert not room or blobs.append_now(digest_of(bytes(room)), 0, bytes(room))
