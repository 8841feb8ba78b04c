"""Blobs in a folder: across restarts, and on disks that are full or fail."""

import errno
import math
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from shared.blobs import FolderBlobs
from shared.errors import StorageFull, Unavailable
from shared.ids import digest_of
from shared.remote_blobs import open_blobs


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
