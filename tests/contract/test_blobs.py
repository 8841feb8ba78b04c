"""What every store of blobs must do: in memory, in a folder, under an fsspec URL."""

import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.blobs import Blobs, FolderBlobs, MemoryBlobs
from shared.errors import DigestMismatch, Malformed, NotFound
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
