"""Blobs as the messages that carry them. What many devices fetch at once, a round's global weights, is read and compressed once."""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from protos.fleet.v1 import blobs_pb2
from shared.blobs import Blobs
from shared.ids import Digest
from shared.transfer import pieces

REMEMBERED_BYTES = 64 << 20
_MOST_BYTES = REMEMBERED_BYTES // 2  # of one blob; a larger one is read anew each time, piece by piece


@dataclass(frozen=True)
class Chunk:
    """`size` is what counts as traffic: the payload as sent."""

    message: blobs_pb2.FetchChunk
    size: int


class CutBlobs:
    """Whatever touches the store runs in a thread: it may be remote, and compressing takes longer than others want to wait."""

    def __init__(self, blobs: Blobs, *, max_bytes: int = REMEMBERED_BYTES) -> None:
        self._blobs = blobs
        self._max_bytes = max_bytes
        self._remembered: OrderedDict[tuple[Digest, bool], asyncio.Task[list[Chunk]]] = OrderedDict()

    async def chunks(self, digest: Digest, total: int, offset: int, *, compress: bool) -> AsyncGenerator[Chunk, None]:
        """From `offset` on. Raises `NotFound`."""
        if offset == 0 and total <= min(_MOST_BYTES, self._max_bytes // 2):
            for chunk in await self._whole(digest, total, compress):
                yield chunk
            return
        with await asyncio.to_thread(self._blobs.open, digest, offset) as file:
            cut = pieces(file, compress=compress)
            while (piece := await asyncio.to_thread(next, cut, None)) is not None:
                yield _chunk(total, *piece)

    async def _whole(self, digest: Digest, total: int, compress: bool) -> list[Chunk]:
        key = (digest, compress)
        task = self._remembered.get(key)
        if task is None:
            task = asyncio.create_task(asyncio.to_thread(self._cut, digest, total, compress), name=f"cut {digest[:12]}")
            self._remembered[key] = task
        self._remembered.move_to_end(key)
        try:
            found = await asyncio.shield(task)  # one device that hangs up does not stop the others
        except Exception:
            self._remembered.pop(key, None)
            raise
        self._forget()
        return found

    def _cut(self, digest: Digest, total: int, compress: bool) -> list[Chunk]:
        with self._blobs.open(digest) as file:
            return [_chunk(total, *piece) for piece in pieces(file, compress=compress)]

    def _forget(self) -> None:
        """The least recently fetched, until the rest fits."""
        held = {
            key: sum(chunk.size for chunk in task.result())
            for key, task in self._remembered.items()
            if task.done() and not task.cancelled() and task.exception() is None
        }
        left = sum(held.values())
        for key, size in held.items():
            if left <= self._max_bytes:
                return
            del self._remembered[key]
            left -= size


def _chunk(total: int, data: bytes, is_frame: bool) -> Chunk:
    encoding = blobs_pb2.ZSTD if is_frame else blobs_pb2.IDENTITY
    return Chunk(blobs_pb2.FetchChunk(total_size=total, encoding=encoding, data=data), len(data))
