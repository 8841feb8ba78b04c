"""Linear regression on examples that stay on the device; what leaves it leaves masked.

`build` is also what a fleet's agents take as a client app (entry-point group `shoal.client_apps`): they bring the mod.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from edge_agent.flower_node import secure_mod_of_node
from shared.flower import record_to_numpy, reply_with

FEATURES, OUTPUTS = 31, 8
STEPS, RATE = 5, 0.05


def build(mods: Sequence[Any]) -> ClientApp:
    app = ClientApp(mods=list(mods))
    app.train()(train)
    return app


def train(message: Message, context: Context) -> Message:
    arrays = record_to_numpy(message.content.array_records["arrays"])
    weight, bias = arrays["weight"].astype(np.float64), arrays["bias"].astype(np.float64)
    x, y = examples(context)
    for _ in range(STEPS):
        error = x @ weight + bias - y
        weight -= RATE * x.T @ error / len(x)
        bias -= RATE * error.mean(axis=0)
    new = {"weight": weight, "bias": bias}
    trained = {
        name: Array(new[name].astype(old.dtype)) for name, old in arrays.items()
    }  # FedAvgM pairs them by their order
    metrics = MetricRecord({"num-examples": len(x), "loss": float(np.square(x @ weight + bias - y).mean())})
    return reply_with(message, RecordDict({"arrays": ArrayRecord(trained), "metrics": metrics}))


def examples(context: Context) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """This device's own, made up here: x (n, FEATURES), y (n, OUTPUTS). Some devices have more than others."""
    partition = int(context.node_config.get("partition-id", context.node_id))
    truth = np.random.default_rng(0).standard_normal((FEATURES, OUTPUTS))
    rng = np.random.default_rng(1 + partition)
    x = rng.standard_normal((20 + 3 * (partition % 7), FEATURES))
    return x, x @ (truth + 0.3 * rng.standard_normal(truth.shape)) + 1.0


app = build([secure_mod_of_node()])
