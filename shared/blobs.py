"""Content-addressed storage: the SHA-256 of the bytes is their name, checked before they count as stored.

`Blobs` is the port; `FolderBlobs` keeps them on local disk, `FsspecBlobs` under any fsspec URL (arrivals are staged on local disk),
`MemoryBlobs` in memory, `SpillingBlobs` in memory while there is room. All pass `tests/contract/test_blobs.py`. An arrival is
resumable: `received` says where to go on. Each sender's arrivals are its own, so two that send the same bytes at once do not meet.
"""

import hashlib
import io
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Protocol

import fsspec

from shared.errors import DigestMismatch, Malformed, NotFound
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

    def delete(self, digest: Digest) -> None:
        """Forget a blob; an unknown one is no error."""
        ...

    def digests(self) -> Iterator[Digest]: ...


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
        return len(self.read(digest))

    def open(self, digest: Digest, offset: int = 0) -> BinaryIO:
        return _reader(self.read(digest), offset)

    def read(self, digest: Digest) -> bytes:
        try:
            return self._blobs[digest]
        except KeyError:
            raise _unknown(digest) from None

    def write(self, data: bytes) -> Digest:
        digest = digest_of(data)
        self._blobs[digest] = bytes(data)
        return digest

    def received(self, digest: Digest, *, sender: str = "") -> int:
        return len(self._arrivals.get((digest, sender), b""))

    def append(self, digest: Digest, offset: int, data: bytes, *, sender: str = "") -> None:
        arrival = self._arrivals.setdefault((parse_digest(digest), sender), bytearray())
        _check_offset(len(arrival), offset)
        arrival += data

    def append_now(self, digest: Digest, offset: int, data: bytes, *, sender: str = "") -> bool:
        self.append(digest, offset, data, sender=sender)
        return True

    def finish(self, digest: Digest, *, sender: str = "") -> None:
        data = bytes(self._arrivals.pop((digest, sender), b""))
        _check_digest(digest, digest_of(data))
        self._blobs[digest] = data

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
        try:
            return self.path(digest).stat().st_size
        except FileNotFoundError:
            raise _unknown(digest) from None

    def open(self, digest: Digest, offset: int = 0) -> BinaryIO:
        try:
            file = self.path(digest).open("rb")
        except FileNotFoundError:
            raise _unknown(digest) from None
        file.seek(offset)
        return file

    def read(self, digest: Digest) -> bytes:
        with self.open(digest) as file:
            return file.read()

    def write(self, data: bytes) -> Digest:
        digest = digest_of(data)
        target = self.path(digest)
        if not target.is_file():
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
        _check_offset(self.received(digest, sender=sender), offset)
        with storage_errors("an arriving blob"), self._arrival(digest, sender).open("ab") as file:
            file.write(data)

    def append_now(self, digest: Digest, offset: int, data: bytes, *, sender: str = "") -> bool:
        return False

    def finish(self, digest: Digest, *, sender: str = "") -> None:
        arrival = self._arrival(digest, sender)
        arrival.touch()
        found = hash_file(arrival)
        if found != digest:
            arrival.unlink()
        _check_digest(digest, found)
        target = self.path(digest)
        target.parent.mkdir(exist_ok=True)
        if self._durable:
            with arrival.open("rb") as file:
                os.fsync(file.fileno())
        arrival.replace(target)
        if self._durable:
            fsync_folder(target.parent)

    def delete(self, digest: Digest) -> None:
        self.path(digest).unlink(missing_ok=True)

    def digests(self) -> Iterator[Digest]:
        return (Digest(path.name) for path in self._root.glob("[0-9a-f][0-9a-f]/*") if not path.name.startswith("."))

    def _arrival(self, digest: Digest, sender: str) -> Path:
        return self._arriving / (f"{parse_digest(digest)}.{parse_name(sender)}" if sender else parse_digest(digest))


@dataclass
class _Arrival:
    pieces: list[bytes] = field(default_factory=list)
    size: int = 0


class SpillingBlobs:
    """In memory as long as all of it fits into `memory_bytes`, and what does not in `folder`: for what need not survive a crash.

    An arrival that outgrows the room moves to the folder. Safe to call from any thread.
    """

    def __init__(self, folder: FolderBlobs, *, memory_bytes: int) -> None:
        self._folder = folder
        self._room = memory_bytes
        self._lock = threading.Lock()
        self._blobs: dict[Digest, bytes] = {}
        self._arrivals: dict[tuple[Digest, str], _Arrival] = {}

    def has(self, digest: Digest) -> bool:
        return digest in self._blobs or self._folder.has(digest)

    def size(self, digest: Digest) -> int:
        found = self._blobs.get(digest)
        return self._folder.size(digest) if found is None else len(found)

    def open(self, digest: Digest, offset: int = 0) -> BinaryIO:
        found = self._blobs.get(digest)
        return self._folder.open(digest, offset) if found is None else _reader(found, offset)

    def read(self, digest: Digest) -> bytes:
        found = self._blobs.get(digest)
        return self._folder.read(digest) if found is None else found

    def write(self, data: bytes) -> Digest:
        digest = digest_of(data)
        with self._lock:
            fits = len(data) <= self._room
            if fits and digest not in self._blobs:
                self._blobs[digest] = bytes(data)
                self._room -= len(data)
        return digest if fits else self._folder.write(data)

    def received(self, digest: Digest, *, sender: str = "") -> int:
        arrival = self._arrivals.get((digest, sender))
        return self._folder.received(digest, sender=sender) if arrival is None else arrival.size

    def append(self, digest: Digest, offset: int, data: bytes, *, sender: str = "") -> None:
        if self.append_now(digest, offset, data, sender=sender):
            return
        with self._lock:
            arrival = self._arrivals.pop((digest, sender), _Arrival())
            self._room += arrival.size
        if arrival.size:
            self._folder.append(digest, 0, b"".join(arrival.pieces), sender=sender)
        self._folder.append(digest, offset, data, sender=sender)

    def append_now(self, digest: Digest, offset: int, data: bytes, *, sender: str = "") -> bool:
        key = (parse_digest(digest), sender)
        with self._lock:
            arrival = self._arrivals.get(key)
            if len(data) > self._room or (arrival is None and self._folder.received(digest, sender=sender)):
                return False
            _check_offset(arrival.size if arrival else 0, offset)
            arrival = self._arrivals.setdefault(key, _Arrival())
            arrival.pieces.append(bytes(data))
            arrival.size += len(data)
            self._room -= len(data)
        return True

    def finish(self, digest: Digest, *, sender: str = "") -> None:
        with self._lock:
            arrival = self._arrivals.pop((digest, sender), None)
        if arrival is None:  # in the folder, or it never began
            self._folder.finish(digest, sender=sender)
            return
        data = b"".join(arrival.pieces)
        found = digest_of(data)
        with self._lock:
            if found == digest and digest not in self._blobs:
                self._blobs[digest] = data
            else:
                self._room += len(data)
        _check_digest(digest, found)

    def delete(self, digest: Digest) -> None:
        with self._lock:
            self._room += len(self._blobs.pop(digest, b""))
        self._folder.delete(digest)

    def digests(self) -> Iterator[Digest]:
        return iter({*tuple(self._blobs), *self._folder.digests()})


class FsspecBlobs:
    """Blobs under an fsspec URL (`s3://…`, `gs://…`, `memory://…`); arrivals are staged in the local folder `staging`."""

    def __init__(self, url: str, staging: Path) -> None:
        self._filesystem, self._root = fsspec.core.url_to_fs(url)
        self._staging = FolderBlobs(staging, durable=False)

    def has(self, digest: Digest) -> bool:
        return bool(self._filesystem.isfile(self._key(digest)))

    def size(self, digest: Digest) -> int:
        try:
            return int(self._filesystem.size(self._key(digest)))
        except FileNotFoundError:
            raise _unknown(digest) from None

    def open(self, digest: Digest, offset: int = 0) -> BinaryIO:
        try:
            file: BinaryIO = self._filesystem.open(self._key(digest), "rb")
        except FileNotFoundError:
            raise _unknown(digest) from None
        file.seek(offset)
        return file

    def read(self, digest: Digest) -> bytes:
        with self.open(digest) as file:
            return file.read()

    def write(self, data: bytes) -> Digest:
        digest = digest_of(data)
        if not self.has(digest):
            self._filesystem.makedirs(f"{self._root}/{digest[:2]}", exist_ok=True)
            self._filesystem.pipe_file(self._key(digest), data)
        return digest

    def received(self, digest: Digest, *, sender: str = "") -> int:
        return self._staging.received(digest, sender=sender)

    def append(self, digest: Digest, offset: int, data: bytes, *, sender: str = "") -> None:
        self._staging.append(digest, offset, data, sender=sender)

    def append_now(self, digest: Digest, offset: int, data: bytes, *, sender: str = "") -> bool:
        return False

    def finish(self, digest: Digest, *, sender: str = "") -> None:
        self._staging.finish(digest, sender=sender)
        self.write(self._staging.read(digest))
        self._staging.delete(digest)

    def delete(self, digest: Digest) -> None:
        if self.has(digest):
            self._filesystem.rm_file(self._key(digest))

    def digests(self) -> Iterator[Digest]:
        return (Digest(path.rsplit("/", 1)[-1]) for path in self._filesystem.glob(f"{self._root}/[0-9a-f][0-9a-f]/*"))

    def _key(self, digest: Digest) -> str:
        return f"{self._root}/{digest[:2]}/{parse_digest(digest)}"


def _reader(data: bytes, offset: int) -> BinaryIO:
    file = io.BytesIO(data)
    file.seek(offset)
    return file


def _unknown(digest: Digest) -> NotFound:
    return NotFound(f"no blob {digest[:12]}…")


def _check_offset(stands_at: int, offset: int) -> None:
    if offset != stands_at:
        raise Malformed(f"the arrival stands at byte {stands_at}, not {offset}; resume there")


def _check_digest(promised: Digest, found: Digest) -> None:
    if promised != found:
        raise DigestMismatch(
            f"bytes do not match digest {promised[:12]}…; send them again", detail=f"got {found[:12]}…"
        )
