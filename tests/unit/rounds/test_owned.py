"""Which blobs are the jobs' own."""

from pathlib import Path

import pytest

from coordinator.rounds.owned import OwnedBlobs
from shared.blobs import MemoryBlobs
from shared.errors import Unavailable


def test_jobs_delete_what_jobs_wrote_and_nothing_else(tmp_path: Path) -> None:
    store = MemoryBlobs()
    release = store.write(b"a release's file")
    blobs = OwnedBlobs(store, tmp_path / "notes")
    mine = blobs.write(b"arrays")

    assert blobs.write(b"a release's file") == release
    assert list(blobs.digests()) == [mine]
    blobs.delete(release)
    blobs.delete(mine)
    blobs.delete(mine)

    assert store.read(release) == b"a release's file"
    assert (list(store.digests()), list(blobs.digests())) == ([release], [])


def test_what_a_killed_process_was_about_to_write_is_known_to_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = MemoryBlobs()
    written = OwnedBlobs(store, tmp_path).write(b"arrays of a round that was not committed")

    def killed(data: bytes) -> None:
        raise Unavailable("the store fails")

    with monkeypatch.context() as patch:
        patch.setattr(store, "write", killed)
        with pytest.raises(Unavailable):
            OwnedBlobs(store, tmp_path).write(b"never arrived")

    again = OwnedBlobs(store, tmp_path)
    left = list(again.digests())
    assert written in left
    for digest in left:
        again.delete(digest)
    assert list(store.digests()) == []
