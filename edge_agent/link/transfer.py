"""Blobs over the link: cached by digest, resumed where they stopped, one download a digest at a time."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import structlog

from edge_agent.link.backoff import Backoff
from protos.fleet.v1 import blobs_pb2, blobs_pb2_grpc
from shared.blobs import FolderBlobs, hash_file
from shared.errors import DigestMismatch, Malformed, Unavailable
from shared.ids import Digest, TaskId, parse_digest
from shared.rpc_errors import typed_errors
from shared.transfer import open_piece, pieces

_log = structlog.get_logger()
TRIES = 6
_STALL_S = 60.0  # for one message of a transfer
_ABANDONED_S = 86_400.0  # since the last byte of a download
T = TypeVar("T")


class Cache:
    """Blobs on disk, the least recently used forgotten first.

    They are not synced, so after a crash a file may be cut short or empty: what a former process left is hashed before it is used.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.blobs = FolderBlobs(folder, durable=False)
        self._max_bytes = max_bytes
        self._checked: set[Digest] = set()

    def use(self, digest: Digest) -> Path | None:
        """Where the blob is, if it is here and whole. Blocking."""
        path = self.blobs.path(digest)
        try:
            if digest not in self._checked and hash_file(path) != digest:
                _log.warning("a damaged blob is fetched again", digest=digest)
                self.blobs.delete(digest)
                return None
            os.utime(path)
        except FileNotFoundError:
            self._checked.discard(digest)
            return None
        self._checked.add(digest)
        return path

    def finish(self, digest: Digest) -> Path:
        """End an arrival. Raises `DigestMismatch`. Blocking."""
        self.blobs.finish(digest)
        self._checked.add(digest)
        return self.blobs.path(digest)

    def prune(self, now: float) -> None:
        """Forget downloads that nobody went on with, and the oldest blobs until the rest fits. A file that is linked elsewhere, or
        open, lives on there. `now`: seconds since the epoch."""
        self.blobs.forget_arrivals(before=now - _ABANDONED_S)
        held = []
        for digest in self.blobs.digests():
            status = self.blobs.path(digest).stat()
            held.append((status.st_mtime, status.st_size, digest))
        total = sum(size for _, size, _ in held)
        for _, size, digest in sorted(held):
            if total <= self._max_bytes:
                break
            self._checked.discard(digest)
            self.blobs.delete(digest)
            total -= size


class Transfers:
    """`channel()` is the present one; it raises `Unavailable` while there is none. Counts payload bytes, as sent."""

    def __init__(self, cache: Cache, channel: Callable[[], Any], backoff: Callable[[], Backoff]) -> None:
        self.cache = cache
        self.sent_bytes = 0
        self.received_bytes = 0
        self._channel = channel
        self._backoff = backoff
        self._downloads: dict[Digest, asyncio.Task[Path]] = {}

    async def fetch(self, digest: Digest) -> Path:
        """Raises `NotFound`, `DigestMismatch` (twice in a row), `StorageFull`, `Unavailable` after several tries."""
        parse_digest(digest)
        task = self._downloads.get(digest)
        if task is None:
            task = asyncio.create_task(self._obtained(digest), name=f"fetch {digest[:12]}")
            self._downloads[digest] = task
            task.add_done_callback(lambda _: self._downloads.pop(digest, None))
        return await asyncio.shield(task)  # one caller that gives up does not stop the others

    async def put(self, path: Path, digest: Digest, task_id: TaskId) -> None:
        """Raises `Unavailable` after several tries, and what the coordinator answers."""
        offset = 0

        async def attempt() -> None:
            nonlocal offset
            begun_at, offset = offset, -1  # after a failure: ask where it stands
            try:
                await self._upload(path, digest, task_id, begun_at)
            except Malformed:
                if begun_at < 0:
                    raise
                await self._upload(path, digest, task_id, -1)  # an upload that was cut off earlier stands elsewhere

        await self._persist(attempt)

    async def _obtained(self, digest: Digest) -> Path:
        path = await asyncio.to_thread(self.cache.use, digest)
        return path if path is not None else await self._persist(lambda: self._download(digest))

    async def _persist(self, attempt: Callable[[], Awaitable[T]]) -> T:
        backoff, mismatched = self._backoff(), False
        while True:
            try:
                return await attempt()
            except DigestMismatch:
                if mismatched:
                    raise
                mismatched = True  # the arrival was dropped: once more, from the start
            except Unavailable:
                if backoff.tries >= TRIES:
                    raise
                await asyncio.sleep(backoff.next())

    async def _download(self, digest: Digest) -> Path:
        blobs = self.cache.blobs
        offset = blobs.received(digest)
        request = blobs_pb2.FetchRequest(digest=digest, offset=offset, accept=[blobs_pb2.IDENTITY, blobs_pb2.ZSTD])
        call = blobs_pb2_grpc.BlobsStub(self._channel()).Fetch(request)
        try:
            with typed_errors():
                async for chunk in _unstalled(call):
                    data = open_piece(chunk.data, is_frame=chunk.encoding == blobs_pb2.ZSTD)
                    self.received_bytes += len(chunk.data)
                    blobs.append(digest, offset, data)
                    offset += len(data)
        finally:
            call.cancel()
        return await asyncio.to_thread(self.cache.finish, digest)

    async def _upload(self, path: Path, digest: Digest, task_id: TaskId, offset: int) -> None:
        stub = blobs_pb2_grpc.BlobsStub(self._channel())
        with typed_errors():
            if offset < 0:
                found = await stub.Stat(blobs_pb2.StatRequest(digest=digest), timeout=_STALL_S)
                offset = 0 if found.complete else found.size
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if offset > size:
                    raise Malformed(f"the coordinator says that it has {offset} bytes of a blob of {size}")
                file.seek(offset)
                await stub.Put(self._chunks(file, digest, task_id, offset, size))

    async def _chunks(
        self, file: BinaryIO, digest: Digest, task_id: TaskId, offset: int, size: int
    ) -> AsyncIterator[blobs_pb2.PutChunk]:
        first = blobs_pb2.PutChunk(digest=digest, size=size, offset=offset, task_id=task_id)
        for data, is_frame in pieces(file, compress=True):
            first.data = data
            first.encoding = blobs_pb2.ZSTD if is_frame else blobs_pb2.IDENTITY
            self.sent_bytes += len(data)
            yield first
            first = blobs_pb2.PutChunk()
        if first.digest:  # nothing was left to send
            yield first


async def _unstalled(call: Any) -> AsyncIterator[Any]:
    """The call's messages; `Unavailable` when the next one does not come."""
    messages = aiter(call)
    while True:
        try:
            async with asyncio.timeout(_STALL_S):
                message = await anext(messages)
        except StopAsyncIteration:
            return
        except TimeoutError as error:
            raise Unavailable("the coordinator stopped sending; try again") from error
        yield message
