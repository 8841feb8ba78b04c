"""`fleet.v1.Blobs`: content-addressed, resumable, digest checked at the end.

Lasting blobs (models, global weights) and a round's updates live in two stores: updates go to an inbox, in memory while there is
room, that need not survive a crash, since a round that did not commit is run again.
"""

import asyncio
import shutil
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from contextlib import aclosing
from pathlib import Path
from typing import Any

from coordinator.rpc.inbox import Ledger
from coordinator.rpc.interceptors import calling_device
from coordinator.rpc.pieces import CutBlobs
from coordinator.rpc.traffic import TrafficMeter
from protos.fleet.v1 import blobs_pb2, blobs_pb2_grpc
from shared.blobs import Blobs, FolderBlobs
from shared.errors import Malformed
from shared.ids import DeviceId, Digest, parse_digest
from shared.spilling import SpillingBlobs
from shared.transfer import open_piece

INBOX_MEMORY_BYTES = 256 << 20  # of updates that wait to be summed; what is more goes to disk


def fresh_inbox(folder: Path, *, memory_bytes: int = INBOX_MEMORY_BYTES) -> SpillingBlobs:
    """An empty inbox: what a former process left there belongs to rounds that are run again."""
    shutil.rmtree(folder, ignore_errors=True)
    return SpillingBlobs(FolderBlobs(folder, durable=False), memory_bytes=memory_bytes)


class BlobsServicer(blobs_pb2_grpc.BlobsServicer):
    """Devices read `lasting` and write `inbox`. Whatever may have to wait for a store, compress or hash runs in a thread.

    `max_bytes` is of one blob; twice that much may one device have in the inbox.
    """

    def __init__(
        self,
        lasting: Blobs,
        inbox: Blobs,
        traffic: TrafficMeter,
        *,
        max_bytes: int,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._lasting = lasting
        self._cut = CutBlobs(lasting)
        self._inbox = inbox
        self._traffic = traffic
        self._max_bytes = max_bytes
        self._ledger = Ledger(max_bytes=2 * max_bytes)
        self._monotonic = monotonic

    async def Stat(self, request: blobs_pb2.StatRequest, context: Any) -> blobs_pb2.StatResponse:
        return await asyncio.to_thread(self._stat, parse_digest(request.digest), calling_device().id)

    def _stat(self, digest: Digest, device: DeviceId) -> blobs_pb2.StatResponse:
        received = self._inbox.received(digest, sender=device)
        if not received:  # else its upload has to go on there, even if we have the same bytes from elsewhere
            for store in (self._lasting, self._inbox):
                if store.has(digest):
                    return blobs_pb2.StatResponse(complete=True, size=store.size(digest))
        return blobs_pb2.StatResponse(complete=False, size=received)

    async def Fetch(self, request: blobs_pb2.FetchRequest, context: Any) -> AsyncGenerator[blobs_pb2.FetchChunk, None]:
        digest, device = parse_digest(request.digest), calling_device().id
        total = await asyncio.to_thread(self._lasting.size, digest)
        if request.offset > total:
            raise Malformed(f"the blob ends at byte {total}")
        compress = blobs_pb2.ZSTD in request.accept
        async with aclosing(self._cut.chunks(digest, total, request.offset, compress=compress)) as chunks:
            async for chunk in chunks:
                self._traffic.sent(device, chunk.size)
                yield chunk.message

    async def Put(self, request_iterator: AsyncIterator[blobs_pb2.PutChunk], context: Any) -> blobs_pb2.PutResponse:
        device = calling_device().id
        digest, size, offset = None, 0, 0
        async for chunk in request_iterator:
            data = chunk.data  # once: each look makes a copy
            self._traffic.received(device, len(data))
            if digest is None:
                digest, size, offset = parse_digest(chunk.digest), chunk.size, chunk.offset
                if size > self._max_bytes:
                    raise Malformed(f"a blob of {size} bytes; {self._max_bytes} are allowed")
                if self._inbox.has(digest):
                    return blobs_pb2.PutResponse(size=size)
                await self._admit(device, digest, size)
            if chunk.encoding == blobs_pb2.ZSTD:
                data = await asyncio.to_thread(open_piece, data, is_frame=True)
            if offset + len(data) > size:
                raise Malformed(f"more bytes than the {size} that were announced")
            if not self._inbox.append_now(digest, offset, data, sender=device):
                await asyncio.to_thread(self._inbox.append, digest, offset, data, sender=device)
            offset += len(data)
            self._ledger.grew(device, digest, self._monotonic())
        if digest is None:
            raise Malformed("a Put without a chunk")
        if offset < size:
            raise Malformed(f"the Put ended at byte {offset} of {size}; resume there")
        await asyncio.to_thread(self._inbox.finish, digest, sender=device)
        self._ledger.grew(device, digest, self._monotonic())
        return blobs_pb2.PutResponse(size=size)

    async def _admit(self, device: DeviceId, digest: Digest, size: int) -> None:
        """Raises `Overloaded`. Makes room first, of what devices sent and died before they said so."""
        now = self._monotonic()
        arrivals, blobs = self._ledger.stale(now)
        self._ledger.admit(device, digest, size, now, self._is_here)
        if arrivals:
            await asyncio.to_thread(self._sweep, arrivals, blobs)

    def _is_here(self, device: DeviceId, digest: Digest) -> bool:
        return self._inbox.has(digest) or self._inbox.received(digest, sender=device) > 0

    def _sweep(self, arrivals: Iterable[tuple[DeviceId, Digest]], blobs: Iterable[Digest]) -> None:
        for device, digest in arrivals:
            self._inbox.discard(digest, sender=device)
        for digest in blobs:
            self._inbox.delete(digest)
