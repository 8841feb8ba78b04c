"""Blobs in memory while there is room, on disk beyond: for what need not survive a crash."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from shared.blobs import FolderBlobs, check_digest, check_offset, reader
from shared.ids import Digest, digest_of, parse_digest

_Key = tuple[Digest, str]  # of an arrival: which bytes, from whom


@dataclass
class _Arrival:
    pieces: list[bytes] = field(default_factory=list)
    size: int = 0


class SpillingBlobs:
    """Implements `shared.blobs.Blobs`, from any thread. What does not fit into `memory_bytes` goes to `folder`.

    An arrival that outgrows the room moves to the folder, whole. Finishing one, or moving it, takes its size once more for a
    moment; moves are made one at a time.
    """

    def __init__(self, folder: FolderBlobs, *, memory_bytes: int) -> None:
        self._folder = folder
        self._room = memory_bytes
        self._lock = threading.Lock()  # of everything below; held for no I/O but a look whether a file is there
        self._blobs: dict[Digest, bytes] = {}
        self._arrivals: dict[_Key, _Arrival] = {}
        self._on_disk: set[_Key] = set()  # arrivals that the folder has, or is just given
        self._disk = threading.Lock()  # held while an arrival in the folder grows; taken before the other

    def has(self, digest: Digest) -> bool:
        return digest in self._blobs or self._folder.has(digest)

    def size(self, digest: Digest) -> int:
        found = self._blobs.get(digest)
        return self._folder.size(digest) if found is None else len(found)

    def open(self, digest: Digest, offset: int = 0) -> BinaryIO:
        found = self._blobs.get(digest)
        return self._folder.open(digest, offset) if found is None else reader(found, offset)

    def read(self, digest: Digest) -> bytes:
        found = self._blobs.get(digest)
        return self._folder.read(digest) if found is None else found

    def write(self, data: bytes) -> Digest:
        digest = digest_of(data)
        with self._lock:
            if digest in self._blobs:
                return digest
            if len(data) <= self._room:
                self._blobs[digest] = bytes(data)
                self._room -= len(data)
                return digest
        return self._folder.write(data)

    def received(self, digest: Digest, *, sender: str = "") -> int:
        arrival = self._arrivals.get((digest, sender))
        return self._folder.received(digest, sender=sender) if arrival is None else arrival.size

    def append_now(self, digest: Digest, offset: int, data: bytes, *, sender: str = "") -> bool:
        key = (parse_digest(digest), sender)
        with self._lock:
            if key in self._on_disk or len(data) > self._room:
                return False
            arrival = self._arrivals.get(key, _Arrival())
            check_offset(arrival.size, offset)
            self._arrivals[key] = arrival
            arrival.pieces.append(bytes(data))
            arrival.size += len(data)
            self._room -= len(data)
        return True

    def append(self, digest: Digest, offset: int, data: bytes, *, sender: str = "") -> None:
        if self.append_now(digest, offset, data, sender=sender):
            return
        with self._disk:
            self._move((digest, sender))
            self._folder.append(digest, offset, data, sender=sender)

    def _move(self, key: _Key) -> None:
        """From now on this arrival is in the folder. A failure changes nothing."""
        digest, sender = key
        with self._lock:
            self._on_disk.add(key)
            arrival = self._arrivals.get(key)
        if arrival is None:
            return
        try:
            self._folder.append(digest, 0, b"".join(arrival.pieces), sender=sender)
        except BaseException:
            self._folder.discard(digest, sender=sender)
            with self._lock:
                self._on_disk.discard(key)
            raise
        with self._lock:
            self._take(key)

    def _take(self, key: _Key) -> None:
        """Drop an arrival from memory, with the lock held."""
        arrival = self._arrivals.pop(key, None)
        self._room += arrival.size if arrival else 0

    def finish(self, digest: Digest, *, sender: str = "") -> None:
        key = (digest, sender)
        with self._lock:
            arrival = None if key in self._on_disk else self._arrivals.pop(key, None)
        if arrival is None:  # in the folder, or it never began
            with self._disk, self._lock:
                self._on_disk.discard(key)
            self._folder.finish(digest, sender=sender)
            return
        data = b"".join(arrival.pieces)
        found = digest_of(data)
        with self._lock:
            if found == digest and digest not in self._blobs:
                self._blobs[digest] = data
            else:
                self._room += arrival.size
        check_digest(digest, found)

    def discard(self, digest: Digest, *, sender: str = "") -> None:
        with self._disk, self._lock:
            self._take((digest, sender))
            self._on_disk.discard((digest, sender))
            self._folder.discard(digest, sender=sender)

    def delete(self, digest: Digest) -> None:
        with self._lock:
            self._room += len(self._blobs.pop(digest, b""))
        self._folder.delete(digest)

    def digests(self) -> Iterator[Digest]:
        return iter({*tuple(self._blobs), *self._folder.digests()})
