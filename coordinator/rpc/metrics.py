"""`fleet.v1.Metrics`: store, then acknowledge."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from coordinator.fleet.ports import MetricStore
from coordinator.rpc.interceptors import calling_device
from protos.fleet.v1 import metrics_pb2, metrics_pb2_grpc
from shared.clock import Clock
from shared.errors import Malformed
from shared.wire import batch_from_proto

MAX_BATCHES = 1000  # in one call


class MetricsServicer(metrics_pb2_grpc.MetricsServicer):
    def __init__(self, store: MetricStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def Report(self, request_iterator: AsyncIterator[metrics_pb2.Batch], context: Any) -> metrics_pb2.ReportAck:
        device = calling_device()
        batches = []
        async for batch in request_iterator:
            batches.append(batch_from_proto(batch))
            if len(batches) > MAX_BATCHES:
                raise Malformed(f"send at most {MAX_BATCHES} batches in one call")
        if len({batch.spool for batch in batches}) != 1:
            raise Malformed("a report holds batches, all of one spool")
        stored = await asyncio.to_thread(self._store.add, device.id, batches, self._clock.now())
        return metrics_pb2.ReportAck(acknowledged=stored)
