"""Blobs in memory that spill into a folder: nothing is lost on the way, and room is given back."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shared.blobs import FolderBlobs
from shared.errors import DigestMismatch, StorageFull
from shared.ids import Digest, digest_of
from shared.spilling import SpillingBlobs


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
