"""Content-addressed storage: the SHA-256 of the bytes is their name, checked before they count as stored.

`Blobs` is the port; `FolderBlobs` keeps them on local disk, `MemoryBlobs` in memory, `shared.spilling` in memory while there is
room, `shared.remote_blobs` under any fsspec URL. All pass `tests/contract/test_blobs.py`. An arrival is resumable: `received` says
where to go on. Each sender's arrivals are its own, so two that send the same bytes at once do not meet. Every method may raise
`Unavailable` where a disk or a network fails.
"""

import contextlib
import hashlib
import io
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

from shared.errors import DigestMismatch, Malformed, NotFound, Unavailable
from shared.files import atomic_file, fsync_folder, storage_errors
from shared.ids import Digest, digest_of, parse_digest, parse_name

READ_SIZE = 1 << 20


class Blobs(Protocol):
    def has(self, digest: Digest) -> bool: ...

    def size(self, digest: Digest) -> int:
        """Bytes. Raises `NotFound`."""
        ...

    def open(self, digest: Digest, offset: int = 0) -> BinaryIO:
        """For reading, from `offset` on; close it. Raises `NotFound`."""
        ...

    def read(self, digest: Digest) -> bytes: ...

    def write(self, data: bytes) -> Digest:
        """Store `data`; storing it again changes nothing. Raises `StorageFull`."""
        ...

    def received(self, digest: Digest, *, sender: str = "") -> int:
        """How much of an unfinished arrival is here, in bytes."""
        ...

    def append(self, digest: Digest, offset: int, data: bytes, *, sender: str = "") -> None:
        """Add to an arrival. Raises `Malformed` when `offset` is not where it stands, `StorageFull`."""
        ...

    def append_now(self, digest: Digest, offset: int, data: bytes, *, sender: str = "") -> bool:
        """`append`, if that needs no waiting for a disk or a network. False: it does, and nothing was changed."""
        ...

    def finish(self, digest: Digest, *, sender: str = "") -> None:
        """End an arrival. Raises `DigestMismatch`, and forgets the arrival, unless the bytes are what the digest says."""
        ...

    def discard(self, digest: Digest, *, sender: str = "") -> None:
        """Forget an unfinished arrival; an unknown one is no error."""
        ...

    def delete(self, digest: Digest) -> None:
        """Forget a blob; an unknown one is no error."""
        ...

    def digests(self) -> Iterator[Digest]: ...


@contextlib.contextmanager
def store_errors(what: str) -> Iterator[None]:
    """Turn what a disk or a network raises into `StorageFull` or `Unavailable`: whoever asked may try again later."""
    try:
        with storage_errors(what):
            yield
    except OSError as error:
        raise Unavailable(f"the store of {what} fails; it is tried again", detail=str(error)[:200]) from error


def hash_file(path: Path) -> Digest:
    """SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return Digest(hashlib.file_digest(file, "sha256").hexdigest())


class MemoryBlobs:
    """For simulations and tests, and for a process that may forget."""

    def __init__(self) -> None:
        self._blobs: dict[Digest, bytes] = {}
        self._arrivals: dict[tuple[Digest, str], bytearray] = {}

    def has(self, digest: Digest) -> bool:
        return digest in self._blobs

    def size(self, digest: Digest) -> int:
        return len(self._stored(digest))

    def open(self, digest: Digest, offset: int = 0) -> BinaryIO:
        return reader(self._stored(digest), offset)

    def read(self, digest: Digest) -> bytes:
        return self._stored(digest)

    def _stored(self, digest: Digest) -> bytes:
        try:
            return self._blobs[digest]
        except KeyError:
            raise unknown(digest) from None

    def write(self, data: bytes) -> Digest:
        digest = digest_of(data)
        self._blobs[digest] = bytes(data)
        return digest

    def received(self, digest: Digest, *, sender: str = "") -> int:
        return len(self._arrivals.get((digest, sender), b""))

    def append(self, digest: Digest, offset: int, data: bytes, *, sender: str = "") -> None:
        arrival = self._arrivals.setdefault((parse_digest(digest), sender), bytearray())
        check_offset(len(arrival), offset)
        arrival += data

    def append_now(self, digest: Digest, offset: int, data: bytes, *, sender: str = "") -> bool:
        self.append(digest, offset, data, sender=sender)
        return True

    def finish(self, digest: Digest, *, sender: str = "") -> None:
        data = bytes(self._arrivals.pop((digest, sender), b""))
        check_digest(digest, digest_of(data))
        self._blobs[digest] = data

    def discard(self, digest: Digest, *, sender: str = "") -> None:
        self._arrivals.pop((digest, sender), None)

    def delete(self, digest: Digest) -> None:
        self._blobs.pop(digest, None)

    def digests(self) -> Iterator[Digest]:
        return iter(tuple(self._blobs))


class FolderBlobs:
    """Files named by digest under `root`, in 256 subfolders; arrivals under `root/arriving`.

    `durable=False` skips fsync, for a folder whose content may be lost at a crash (a round's updates, a device's cache).
    """

    def __init__(self, root: Path, *, durable: bool = True) -> None:
        self._root = root
        self._durable = durable
        self._arriving = root / "arriving"
        self._arriving.mkdir(parents=True, exist_ok=True)

    def path(self, digest: Digest) -> Path:
        """Where a stored blob's file is; it exists when `has(digest)`."""
        return self._root / digest[:2] / parse_digest(digest)

    def has(self, digest: Digest) -> bool:
        return self.path(digest).is_file()

    def size(self, digest: Digest) -> int:
        with _reading(digest):
            return self.path(digest).stat().st_size

    def open(self, digest: Digest, offset: int = 0) -> BinaryIO:
        with _reading(digest):
            file = self.path(digest).open("rb")
            file.seek(offset)
        return file

    def read(self, digest: Digest) -> bytes:
        with _reading(digest):
            return self.path(digest).read_bytes()

    def write(self, data: bytes) -> Digest:
        digest = digest_of(data)
        target = self.path(digest)
        with store_errors("blobs"):
            if target.is_file():
                return digest
            target.parent.mkdir(exist_ok=True)
            with atomic_file(target, durable=self._durable) as file:
                file.write(data)
        return digest

    def received(self, digest: Digest, *, sender: str = "") -> int:
        try:
            return self._arrival(digest, sender).stat().st_size
        except FileNotFoundError:
            return 0

    def append(self, digest: Digest, offset: int, data: bytes, *, sender: str = "") -> None:
        check_offset(self.received(digest, sender=sender), offset)
        with store_errors("arriving blobs"), self._arrival(digest, sender).open("ab") as file:
            file.write(data)

    def append_now(self, digest: Digest, offset: int, data: bytes, *, sender: str = "") -> bool:
        return False

    def finish(self, digest: Digest, *, sender: str = "") -> None:
        arrival, target = self._arrival(digest, sender), self.path(digest)
        with store_errors("arriving blobs"):
            arrival.touch()
            found = hash_file(arrival)
            if found != digest:
                arrival.unlink()
            check_digest(digest, found)
            target.parent.mkdir(exist_ok=True)
            if self._durable:
                with arrival.open("rb") as file:
                    os.fsync(file.fileno())
            arrival.replace(target)
            if self._durable:
                fsync_folder(target.parent)

    def discard(self, digest: Digest, *, sender: str = "") -> None:
        self._arrival(digest, sender).unlink(missing_ok=True)

    def forget_arrivals(self, *, before: float) -> None:
        """Those that have not grown since then, in seconds since the epoch."""
        _drop(self._arriving.iterdir(), before)

    def sweep(self, *, before: float) -> None:
        """Drop what was half arrived or half written then, and has not grown since: whoever did it was killed."""
        self.forget_arrivals(before=before)
        _drop(self._root.glob("[0-9a-f][0-9a-f]/.*.tmp"), before)

    def delete(self, digest: Digest) -> None:
        self.path(digest).unlink(missing_ok=True)

    def digests(self) -> Iterator[Digest]:
        return (Digest(path.name) for path in self._root.glob("[0-9a-f][0-9a-f]/*") if not path.name.startswith("."))

    def _arrival(self, digest: Digest, sender: str) -> Path:
        return self._arriving / (f"{parse_digest(digest)}.{parse_name(sender)}" if sender else parse_digest(digest))


def _drop(paths: Iterable[Path], before: float) -> None:
    for path in paths:
        with contextlib.suppress(FileNotFoundError):  # it ended just now
            if path.stat().st_mtime < before:
                path.unlink()


@contextlib.contextmanager
def _reading(digest: Digest) -> Iterator[None]:
    with store_errors("blobs"):
        try:
            yield
        except FileNotFoundError:
            raise unknown(digest) from None


def reader(data: bytes, offset: int) -> BinaryIO:
    file = io.BytesIO(data)
    file.seek(offset)
    return file


def unknown(digest: Digest) -> NotFound:
    return NotFound(f"no blob {digest[:12]}…")


def check_offset(stands_at: int, offset: int) -> None:
    if offset != stands_at:
        raise Malformed(f"the arrival stands at byte {stands_at}, not {offset}; resume there")


def check_digest(promised: Digest, found: Digest) -> None:
    if promised != found:
        raise DigestMismatch(
            f"bytes do not match digest {promised[:12]}…; send them again", detail=f"got {found[:12]}…"
        )
