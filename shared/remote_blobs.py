"""Blobs under any fsspec URL (`s3://…`, `gs://…`, `memory://…`). A library's own errors that are no `OSError` pass as they are."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import fsspec

from shared.blobs import FolderBlobs, store_errors, unknown
from shared.ids import Digest, digest_of, parse_digest


class FsspecBlobs:
    """Implements `shared.blobs.Blobs`. Arrivals are staged in the local folder `staging`."""

    def __init__(self, url: str, staging: Path) -> None:
        self._filesystem, self._root = fsspec.core.url_to_fs(url)
        self._staging = FolderBlobs(staging, durable=False)

    def has(self, digest: Digest) -> bool:
        with _errors(digest):
            return bool(self._filesystem.isfile(self._key(digest)))

    def size(self, digest: Digest) -> int:
        with _errors(digest):
            return int(self._filesystem.size(self._key(digest)))

    def open(self, digest: Digest, offset: int = 0) -> BinaryIO:
        with _errors(digest):
            file: BinaryIO = self._filesystem.open(self._key(digest), "rb")
            file.seek(offset)
        return file

    def read(self, digest: Digest) -> bytes:
        with _errors(digest), self.open(digest) as file:
            return file.read()

    def write(self, data: bytes) -> Digest:
        digest = digest_of(data)
        with _errors(digest):
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

    def discard(self, digest: Digest, *, sender: str = "") -> None:
        self._staging.discard(digest, sender=sender)

    def delete(self, digest: Digest) -> None:
        with _errors(digest):
            if self.has(digest):
                self._filesystem.rm_file(self._key(digest))

    def digests(self) -> Iterator[Digest]:
        with store_errors("blobs"):
            found = self._filesystem.glob(f"{self._root}/[0-9a-f][0-9a-f]/*")
        return (Digest(path.rsplit("/", 1)[-1]) for path in found)

    def _key(self, digest: Digest) -> str:
        return f"{self._root}/{digest[:2]}/{parse_digest(digest)}"


@contextlib.contextmanager
def _errors(digest: Digest) -> Iterator[None]:
    with store_errors("blobs"):
        try:
            yield
        except FileNotFoundError:
            raise unknown(digest) from None
