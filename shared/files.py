"""Files that are whole or absent: write temp → fsync → rename → fsync the folder."""

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from shared.errors import ConfigError, StorageFull

MAX_SOCKET_PATH = 107  # bytes in sockaddr_un, less the closing zero (unix(7))
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def storage_errors(what: str) -> Iterator[None]:
    """Turn "no space left" into `StorageFull`; other `OSError`s pass."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise StorageFull(f"no space left for {what}; free some and try again", detail=str(error)) from error
        raise


def fsync_folder(folder: Path) -> None:
    """Make a rename in `folder` durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def atomic_file(path: Path, *, mode: int = 0o644, durable: bool = True) -> Iterator[BinaryIO]:
    """A file that appears at `path` complete, or not at all. `durable=False` skips fsync for what may be lost.

    Raises `StorageFull` when the disk is full; whatever stood at `path` is then unchanged.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    with storage_errors(path.name):
        try:
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            with os.fdopen(handle, "wb") as file:
                yield file
                file.flush()
                if durable:
                    os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        if durable:
            fsync_folder(path.parent)


def write_atomic(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """`atomic_file` for bytes at hand."""
    with atomic_file(path, mode=mode) as file:
        file.write(data)


def check_socket_path(path: Path) -> Path:
    """`path`, resolved. Raises `ConfigError` for one that no Unix socket can have."""
    resolved = path.resolve()
    size = len(os.fsencode(resolved))
    if size > MAX_SOCKET_PATH:
        raise ConfigError(
            f"too long for a Unix socket, {size} bytes of {MAX_SOCKET_PATH}: use a shorter home folder",
            path=str(resolved),
        )
    return resolved
