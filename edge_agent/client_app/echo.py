"""Sends back what came: the cost of a round with no learning in it."""

from collections.abc import Sequence

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from edge_agent.client_app import Mod
from edge_agent.client_app.records import read_config
from shared.client_apps import EchoConfig
from shared.flower import record_to_numpy, reply_with

_METRICS = "metrics"
_LARGE_PRIME = 1_000_003


def build(mods: Sequence[Mod]) -> ClientApp:
    """With `spread` in its config a device scales float arrays by a factor of its own, at most that far above 1: updates are then
    as different as real ones, and a blob store cannot take one for another.
    """
    app = ClientApp(mods=list(mods))

    @app.train()
    def train(message: Message, context: Context) -> Message:
        records = RecordDict(dict(message.content.array_records))
        spread = read_config(message.content, EchoConfig).spread
        if spread:
            factor = np.float32(1 + spread * (context.node_id % _LARGE_PRIME) / _LARGE_PRIME)
            for name, record in message.content.array_records.items():
                records[name] = _scaled(record, factor)
        records[_METRICS] = MetricRecord({"num-examples": 1})
        return reply_with(message, records)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return reply_with(message, RecordDict({_METRICS: MetricRecord({"num-examples": 1})}))

    return app


def _scaled(record: ArrayRecord, factor: np.float32) -> ArrayRecord:
    arrays = record_to_numpy(record)
    floats = {key: value * factor if value.dtype == np.float32 else value for key, value in arrays.items()}
    return ArrayRecord({key: Array(value) for key, value in floats.items()})
