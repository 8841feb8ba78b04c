"""The blobs that jobs put into a store which others use too: jobs delete these and no others, also after a crash."""

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from shared.blobs import Blobs, store_errors
from shared.ids import Digest, digest_of, parse_digest


class OwnedBlobs:
    """Implements `shared.blobs.Blobs` over `inner`. `digests` gives the owned ones alone, and `delete` deletes no other.

    A blob is owned if it was not there when it was written. That is noted, as an empty file in `folder`, before it is written:
    what a process leaves behind when it is killed is found by the next one. Notes are not synced: one that power loss takes away
    costs a blob's space.
    """

    def __init__(self, inner: Blobs, folder: Path) -> None:
        self._inner = inner
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.has, self.size, self.read = inner.has, inner.size, inner.read
        self.received, self.append, self.append_now = inner.received, inner.append, inner.append_now
        self.finish, self.discard = inner.finish, inner.discard

    def open(self, digest: Digest, offset: int = 0) -> BinaryIO:
        return self._inner.open(digest, offset)

    def write(self, data: bytes) -> Digest:
        digest = digest_of(data)
        if not self._inner.has(digest):
            with store_errors("notes of blobs"):
                self._note(digest).touch(mode=0o600)
            self._inner.write(data)
        return digest

    def delete(self, digest: Digest) -> None:
        note = self._note(digest)
        if note.exists():
            self._inner.delete(digest)
            note.unlink(missing_ok=True)

    def digests(self) -> Iterator[Digest]:
        return iter([Digest(path.name) for path in self._folder.iterdir()])

    def _note(self, digest: Digest) -> Path:
        return self._folder / parse_digest(digest)
