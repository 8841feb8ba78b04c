"""Blobs cut once for many devices, in bounded memory, whoever hangs up."""

import asyncio
import threading
from typing import BinaryIO

import pytest

from coordinator.rpc.pieces import CutBlobs
from shared.blobs import MemoryBlobs
from shared.errors import NotFound, Unavailable
from shared.ids import Digest
from shared.transfer import PIECE_BYTES


class Watched(MemoryBlobs):
    """Counts how often a blob is opened; `gate` holds readers back."""

    def __init__(self) -> None:
        super().__init__()
        self.opened = 0
        self.gate = threading.Event()
        self.gate.set()
        self.broken = False

    def open(self, digest: Digest, offset: int = 0) -> BinaryIO:
        self.opened += 1
        assert self.gate.wait(20.0)
        if self.broken:
            raise OSError("connection reset by peer")
        return super().open(digest, offset)


def blob(number: int, size: int = 2 * PIECE_BYTES + 5) -> bytes:
    return bytes([number]) * size


async def fetched(cut: CutBlobs, digest: Digest, total: int, offset: int = 0) -> bytes:
    return b"".join([chunk.message.data async for chunk in cut.chunks(digest, total, offset, compress=False)])


def held(cut: CutBlobs) -> int:
    return sum(chunk.size for chunks in cut._remembered.values() for chunk in chunks)


async def test_many_that_fetch_at_once_have_the_blob_read_once() -> None:
    blobs = Watched()
    digest = blobs.write(blob(1))
    cut = CutBlobs(blobs)
    found = await asyncio.gather(*(fetched(cut, digest, len(blob(1))) for _ in range(20)))
    assert set(found) == {blob(1)}
    assert blobs.opened == 1


@pytest.mark.parametrize("offset", [0, 1, PIECE_BYTES, 2 * PIECE_BYTES + 4, 2 * PIECE_BYTES + 5])
@pytest.mark.parametrize("room", [0, 1 << 20, 64 << 20])
async def test_whatever_the_offset_and_the_room_the_bytes_are_the_same(offset: int, room: int) -> None:
    blobs = Watched()
    digest = blobs.write(blob(1))
    assert await fetched(CutBlobs(blobs, max_bytes=room), digest, len(blob(1)), offset) == blob(1)[offset:]


async def test_a_slow_device_keeps_nothing_in_memory_and_still_gets_its_bytes() -> None:
    blobs = Watched()
    digests = [blobs.write(blob(number)) for number in range(5)]
    cut = CutBlobs(blobs, max_bytes=2 * len(blob(0)))
    slow = cut.chunks(digests[0], len(blob(0)), 0, compress=False)
    got = [(await anext(slow)).message.data]
    for digest in digests[1:]:
        await fetched(cut, digest, len(blob(0)))
    assert (digests[0], False) not in cut._remembered
    assert held(cut) <= 2 * len(blob(0))
    got += [chunk.message.data async for chunk in slow]
    assert b"".join(got) == blob(0)


async def test_devices_that_hang_up_while_a_blob_is_cut_leave_no_more_than_the_bound() -> None:
    blobs = Watched()
    digests = [blobs.write(blob(number)) for number in range(6)]
    cut = CutBlobs(blobs, max_bytes=2 * len(blob(0)))
    blobs.gate.clear()
    fetches = [asyncio.create_task(fetched(cut, digest, len(blob(0)))) for digest in digests]
    await asyncio.sleep(0)
    for fetch in fetches:
        fetch.cancel()
    await asyncio.gather(*fetches, return_exceptions=True)
    under_way = list(cut._under_way.values())
    assert len(under_way) == 6
    blobs.gate.set()
    await asyncio.gather(*under_way)
    assert held(cut) <= 2 * len(blob(0))
    assert cut._under_way == {}


async def test_one_that_hangs_up_does_not_stop_the_others() -> None:
    blobs = Watched()
    digest = blobs.write(blob(1))
    cut = CutBlobs(blobs)
    blobs.gate.clear()
    one, other = (asyncio.create_task(fetched(cut, digest, len(blob(1)))) for _ in range(2))
    await asyncio.sleep(0)
    one.cancel()
    blobs.gate.set()
    assert await other == blob(1)


async def test_a_failure_nobody_waited_for_is_not_served_to_the_next() -> None:
    blobs = Watched()
    digest = blobs.write(blob(1))
    cut = CutBlobs(blobs)
    blobs.broken = True
    blobs.gate.clear()
    gone = asyncio.create_task(fetched(cut, digest, len(blob(1))))
    await asyncio.sleep(0)
    gone.cancel()
    (under_way,) = cut._under_way.values()
    blobs.gate.set()
    await asyncio.wait({under_way})
    blobs.broken = False
    assert await fetched(cut, digest, len(blob(1))) == blob(1)


@pytest.mark.parametrize("room", [0, 64 << 20])
async def test_a_store_that_fails_is_unavailable_and_a_lost_blob_not_found(room: int) -> None:
    blobs = Watched()
    digest = blobs.write(blob(1))
    cut = CutBlobs(blobs, max_bytes=room)
    with pytest.raises(NotFound):
        await fetched(cut, Digest("0" * 64), 5)
    blobs.broken = True
    with pytest.raises(Unavailable):
        await fetched(cut, digest, len(blob(1)))
