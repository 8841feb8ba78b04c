"""Blobs under any fsspec URL (`s3://…`, `gs://…`, `memory://…`). A folder named so, `file://…`, is kept like any folder.

Whatever a cloud's library raises comes out as `shared.blobs` says. An object store shows an object whole or not at all; where a
filesystem (`sftp://…`) shows half of one whose writer was killed, the next write of the same blob replaces it.
"""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
import structlog
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from shared.blobs import READ_SIZE, Blobs, FolderBlobs, store_errors, unknown
from shared.errors import ConfigError, ShoalError, Unavailable
from shared.ids import Digest, digest_of, parse_digest

_log = structlog.get_logger()


def open_blobs(url: str, staging: Path, *, where: str = "") -> Blobs:
    """The store at `url`. A store in memory warns. `where` the URL was read is named in what is raised: `ConfigError` for one
    that no installed library can open, `Unavailable` when what it names does not answer.
    """
    scheme, separator, _ = url.partition("://")
    if not separator:
        raise ConfigError("write it as a URL, such as s3://bucket/folder or file:///srv/blobs", path=where)
    try:
        filesystem, root = fsspec.core.url_to_fs(url)
    except OSError as error:
        named = f"{where}: " if where else ""
        raise Unavailable(f"{named}the store at {scheme}:// does not answer", detail=_reason(error, url)) from error
    except Exception as error:  # each library has errors of its own, for a login that fails too
        raise ConfigError(f"no blobs at a URL of {scheme}://", path=where, detail=_reason(error, url)) from error
    if isinstance(filesystem, MemoryFileSystem):
        _log.warning("blobs are kept in memory alone: a restart loses them all", setting=where)
    if isinstance(filesystem, LocalFileSystem):  # fsspec writes in place: a writer that is killed leaves half a blob
        return FolderBlobs(Path(root))
    return FsspecBlobs(filesystem, root, staging)


def _reason(error: Exception, url: str) -> str:
    """What the library says, unless it may quote a secret of the URL."""
    return type(error).__name__ if {"@", "?"} & set(url) else f"{type(error).__name__}: {error}"[:200]


class FsspecBlobs:
    """Implements `shared.blobs.Blobs` under `root` of an fsspec filesystem. Arrivals are staged in the local folder `staging`."""

    def __init__(self, filesystem: Any, root: str, staging: Path) -> None:
        self._filesystem = filesystem
        self._root = root
        self._staging = FolderBlobs(staging, durable=False)

    def has(self, digest: Digest) -> bool:
        with _errors():
            return bool(self._filesystem.isfile(self._key(digest)))

    def size(self, digest: Digest) -> int:
        with _reading(digest):
            return int(self._filesystem.size(self._key(digest)))

    def open(self, digest: Digest, offset: int = 0) -> BinaryIO:
        with _reading(digest):
            file: BinaryIO = self._filesystem.open(self._key(digest), "rb")
            file.seek(offset)
        return io.BufferedReader(_RemoteFile(file, digest), READ_SIZE)

    def read(self, digest: Digest) -> bytes:
        with self.open(digest) as file:
            return file.read()

    def write(self, data: bytes) -> Digest:
        digest = digest_of(data)
        with _errors():
            if not (self.has(digest) and self.size(digest) == len(data)):
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
        with _errors():
            if self.has(digest):
                self._filesystem.rm_file(self._key(digest))

    def digests(self) -> Iterator[Digest]:
        with _errors():
            found = self._filesystem.glob(f"{self._root}/[0-9a-f][0-9a-f]/*")
        return (Digest(path.rsplit("/", 1)[-1]) for path in found)

    def _key(self, digest: Digest) -> str:
        return f"{self._root}/{digest[:2]}/{parse_digest(digest)}"


class _RemoteFile(io.RawIOBase):
    """An open file of fsspec whose failures are ours: it may fail at any read."""

    def __init__(self, file: BinaryIO, digest: Digest) -> None:
        super().__init__()
        self._file = file
        self._digest = digest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with _reading(self._digest):
            data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    """The libraries behind fsspec (botocore, aiohttp, Azure's, …) raise errors of their own that share no base class."""
    with store_errors("blobs"):
        try:
            yield
        except (ShoalError, OSError):
            raise
        except Exception as error:  # as said above
            raise OSError(f"{type(error).__name__}: {error}") from error


@contextlib.contextmanager
def _reading(digest: Digest) -> Iterator[None]:
    with _errors():
        try:
            yield
        except FileNotFoundError:
            raise unknown(digest) from None
