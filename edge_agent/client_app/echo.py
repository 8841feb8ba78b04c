"""Sends back what came: the cost of a round with no learning in it."""

from collections.abc import Sequence

from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from edge_agent.client_app import Mod
from shared.flower import reply_with

_METRICS = "metrics"


def build(mods: Sequence[Mod]) -> ClientApp:
    app = ClientApp(mods=list(mods))

    @app.train()
    def train(message: Message, context: Context) -> Message:
        records = RecordDict(dict(message.content.array_records))
        records[_METRICS] = MetricRecord({"num-examples": 1})
        return reply_with(message, records)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return reply_with(message, RecordDict({_METRICS: MetricRecord({"num-examples": 1})}))

    return app
