"""Files are whole or absent, whatever happens while they are written."""

import errno
import os
import stat
from pathlib import Path

import pytest

from shared.errors import StorageFull
from shared.files import atomic_file, fsync_folder, storage_errors, write_atomic


def test_a_file_appears_whole_and_with_its_mode(tmp_path: Path) -> None:
    write_atomic(tmp_path / "key", b"secret", mode=0o600)

    assert (tmp_path / "key").read_bytes() == b"secret"
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    target = tmp_path / "model"
    write_atomic(target, b"old")
    with atomic_file(target) as file:
        file.write(b"ne")
        assert target.read_bytes() == b"old"
        file.write(b"w")
    assert target.read_bytes() == b"new"


@pytest.mark.parametrize("durable", [True, False])
def test_a_failure_half_way_leaves_what_was_there_and_nothing_else(tmp_path: Path, durable: bool) -> None:
    target = tmp_path / "model"
    write_atomic(target, b"old")

    def fail_half_way() -> None:
        with atomic_file(target, durable=durable) as file:
            file.write(b"half")
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_called_that_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    target = tmp_path / "model"
    write_atomic(target, b"old")

    def full(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageFull, match="free some"):
        write_atomic(target, b"new")
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_other_failures_keep_their_own_class() -> None:
    with pytest.raises(PermissionError), storage_errors("x"):
        raise PermissionError(errno.EACCES, "denied")


def test_the_content_is_on_disk_before_its_name_and_the_name_before_we_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, seen = tmp_path / "model", []
    real = os.fsync

    def watched(handle: int) -> None:
        seen.append((stat.S_ISDIR(os.fstat(handle).st_mode), target.exists()))
        real(handle)

    monkeypatch.setattr(os, "fsync", watched)
    write_atomic(target, b"new")
    assert seen == [(False, False), (True, True)]


def test_what_may_be_lost_is_not_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "fsync")
    with atomic_file(tmp_path / "cache", durable=False) as file:
        file.write(b"x")
    assert (tmp_path / "cache").read_bytes() == b"x"


def test_a_folder_that_is_none_cannot_be_synced(tmp_path: Path) -> None:
    write_atomic(tmp_path / "file", b"")
    with pytest.raises(NotADirectoryError):
        fsync_folder(tmp_path / "file")
