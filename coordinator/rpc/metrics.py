"""`fleet.v1.Metrics`: store, then acknowledge."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from coordinator.fleet.ports import MetricStore
from coordinator.rpc.interceptors import calling_device
from protos.fleet.v1 import metrics_pb2, metrics_pb2_grpc
from shared.clock import Clock
from shared.errors import Malformed
from shared.session import MetricBatch
from shared.wire import batch_from_proto

MAX_BATCHES = 1000  # in one call
MAX_BYTES = 4 << 20  # in one call: what is held in memory before it is stored


class MetricsServicer(metrics_pb2_grpc.MetricsServicer):
    def __init__(self, store: MetricStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def Report(self, request_iterator: AsyncIterator[metrics_pb2.Batch], context: Any) -> metrics_pb2.ReportAck:
        """Reads no further than the limits: what comes behind them is not acknowledged, so it is sent again."""
        device = calling_device()
        batches: list[MetricBatch] = []
        room = MAX_BYTES
        async for batch in request_iterator:
            room -= batch.ByteSize()
            if room < 0 and not batches:
                raise Malformed(f"a metric batch has at most {MAX_BYTES} bytes")
            if room < 0 or len(batches) == MAX_BATCHES:
                break
            batches.append(batch_from_proto(batch))
        if len({batch.spool for batch in batches}) != 1:
            raise Malformed("a report holds batches, all of one spool")
        stored = await asyncio.to_thread(self._store.add, device.id, batches, self._clock.now())
        return metrics_pb2.ReportAck(acknowledged=stored)
