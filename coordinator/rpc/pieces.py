"""Blobs as the messages that carry them. What many devices fetch at once, a round's global weights, is read and compressed once."""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from protos.fleet.v1 import blobs_pb2
from shared.blobs import Blobs, store_errors
from shared.ids import Digest
from shared.transfer import PIECE_BYTES, pieces

REMEMBERED_BYTES = 64 << 20
CUT_AT_ONCE = 2  # whole blobs; others wait
_Key = tuple[Digest, bool]


@dataclass(frozen=True)
class Chunk:
    """`size` is what counts as traffic: the payload as sent."""

    message: blobs_pb2.FetchChunk
    size: int


class CutBlobs:
    """For one event loop. Blobs of up to half of `max_bytes` are remembered, at most `max_bytes` of them, the latest fetched.

    Besides these, a blob is held while it is cut, `CUT_AT_ONCE` of them, and one piece for each device that fetches: a slow device
    keeps nothing in memory that is forgotten meanwhile. Whatever touches the store runs in a thread: it may be remote, and
    compressing takes longer than others want to wait.
    """

    def __init__(self, blobs: Blobs, *, max_bytes: int = REMEMBERED_BYTES) -> None:
        self._blobs = blobs
        self._max_bytes = max_bytes
        self._turn = asyncio.Semaphore(CUT_AT_ONCE)
        self._under_way: dict[_Key, asyncio.Task[None]] = {}
        self._remembered: OrderedDict[_Key, list[Chunk]] = OrderedDict()

    async def chunks(self, digest: Digest, total: int, offset: int, *, compress: bool) -> AsyncGenerator[Chunk, None]:
        """From `offset` on. Raises `NotFound`, `Unavailable`."""
        key = (digest, compress)
        sent = 0
        if offset == 0 and 0 < total <= self._max_bytes // 2:
            await self._whole(key, total)
            while (chunk := self._recall(key, sent)) is not None:
                yield chunk
                sent += 1
        at = offset + sent * PIECE_BYTES
        if at >= total:
            return
        with await asyncio.to_thread(self._open, digest, at) as file:
            cut = pieces(file, compress=compress)
            while (piece := await asyncio.to_thread(_next, cut)) is not None:
                yield _chunk(total, *piece)

    def _recall(self, key: _Key, place: int) -> Chunk | None:
        held = self._remembered.get(key, [])
        return held[place] if place < len(held) else None

    async def _whole(self, key: _Key, total: int) -> None:
        """Have the blob cut, unless it is remembered. One device that hangs up does not stop it for the others."""
        if key in self._remembered:
            self._remembered.move_to_end(key)
            return
        task = self._under_way.get(key)
        if task is None:
            task = asyncio.create_task(self._cut(key, total), name=f"cut {key[0][:12]}")
            self._under_way[key] = task
            task.add_done_callback(lambda done: self._ended(key, done))
        await asyncio.shield(task)

    async def _cut(self, key: _Key, total: int) -> None:
        async with self._turn:
            self._remembered[key] = await asyncio.to_thread(self._read, key, total)
        held = sum(map(_size, self._remembered.values()))
        while held > self._max_bytes:
            held -= _size(self._remembered.popitem(last=False)[1])

    def _ended(self, key: _Key, task: "asyncio.Task[None]") -> None:
        """A failure is for those who waited for it: the next one tries again."""
        del self._under_way[key]
        if not task.cancelled():
            task.exception()  # seen, even if all who waited hung up

    def _read(self, key: _Key, total: int) -> list[Chunk]:
        digest, compress = key
        with store_errors("blobs"), self._blobs.open(digest) as file:
            return [_chunk(total, *piece) for piece in pieces(file, compress=compress)]

    def _open(self, digest: Digest, offset: int) -> BinaryIO:
        with store_errors("blobs"):
            return self._blobs.open(digest, offset)


def _next(cut: Iterator[tuple[bytes, bool]]) -> tuple[bytes, bool] | None:
    with store_errors("blobs"):
        return next(cut, None)


def _size(chunks: list[Chunk]) -> int:
    return sum(chunk.size for chunk in chunks)


def _chunk(total: int, data: bytes, is_frame: bool) -> Chunk:
    encoding = blobs_pb2.ZSTD if is_frame else blobs_pb2.IDENTITY
    return Chunk(blobs_pb2.FetchChunk(total_size=total, encoding=encoding, data=data), len(data))
