"""`fleet.v1.Blobs`: content-addressed, resumable, digest checked at the end.

Lasting blobs (models, global weights) and a round's updates live in two stores: updates go to an inbox that need not survive a
crash, since a round that did not commit is run again.
"""

from collections.abc import AsyncIterator
from typing import Any

from coordinator.rpc.interceptors import calling_device
from coordinator.rpc.traffic import TrafficMeter
from protos.fleet.v1 import blobs_pb2, blobs_pb2_grpc
from shared.blobs import Blobs
from shared.errors import Malformed
from shared.ids import parse_digest
from shared.transfer import open_piece, pieces


class BlobsServicer(blobs_pb2_grpc.BlobsServicer):
    """Devices read `lasting` and write `inbox`. Local disk is read and written in the event loop: a piece of 1 MiB costs
    less there than the hop to a thread and back."""

    def __init__(self, lasting: Blobs, inbox: Blobs, traffic: TrafficMeter, *, max_bytes: int) -> None:
        self._lasting = lasting
        self._inbox = inbox
        self._traffic = traffic
        self._max_bytes = max_bytes

    async def Stat(self, request: blobs_pb2.StatRequest, context: Any) -> blobs_pb2.StatResponse:
        digest = parse_digest(request.digest)
        for store in (self._lasting, self._inbox):
            if store.has(digest):
                return blobs_pb2.StatResponse(complete=True, size=store.size(digest))
        return blobs_pb2.StatResponse(complete=False, size=self._inbox.received(digest))

    async def Fetch(self, request: blobs_pb2.FetchRequest, context: Any) -> AsyncIterator[blobs_pb2.FetchChunk]:
        digest, device = parse_digest(request.digest), calling_device().id
        total = self._lasting.size(digest)
        if request.offset > total:
            raise Malformed(f"the blob ends at byte {total}")
        with self._lasting.open(digest, request.offset) as file:
            for data, is_frame in pieces(file, compress=blobs_pb2.ZSTD in request.accept):
                self._traffic.sent(device, len(data))
                encoding = blobs_pb2.ZSTD if is_frame else blobs_pb2.IDENTITY
                yield blobs_pb2.FetchChunk(total_size=total, encoding=encoding, data=data)

    async def Put(self, request_iterator: AsyncIterator[blobs_pb2.PutChunk], context: Any) -> blobs_pb2.PutResponse:
        device = calling_device().id
        digest, size, offset = None, 0, 0
        async for chunk in request_iterator:
            if digest is None:
                digest, size, offset = parse_digest(chunk.digest), chunk.size, chunk.offset
                if size > self._max_bytes:
                    raise Malformed(f"a blob of {size} bytes; {self._max_bytes} are allowed")
                if self._inbox.has(digest):
                    return blobs_pb2.PutResponse(size=size)
            data = open_piece(chunk.data, is_frame=chunk.encoding == blobs_pb2.ZSTD)
            self._traffic.received(device, len(chunk.data))
            if offset + len(data) > size:
                raise Malformed(f"more bytes than the {size} that were announced")
            self._inbox.append(digest, offset, data)
            offset += len(data)
        if digest is None:
            raise Malformed("a Put without a chunk")
        if offset == size:
            self._inbox.finish(digest)
        return blobs_pb2.PutResponse(size=offset)
