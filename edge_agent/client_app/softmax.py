"""Softmax regression in NumPy: real learning, small enough for hundreds of simulated devices in one process. No torch.

The state is `weight` (classes, features) and `bias` (classes,), zeros to start with.
"""

from collections.abc import Sequence

import numpy as np
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from numpy.typing import NDArray

from edge_agent.client_app import Mod
from edge_agent.client_app.records import DATA_DIR, answer, folder, read_arrays, read_config
from edge_agent.storage import DataStore, Split
from shared.client_apps import SoftmaxConfig
from shared.errors import Conflict, UpdateRejected

Floats = NDArray[np.float32]
Labels = NDArray[np.int64]


def build(mods: Sequence[Mod]) -> ClientApp:
    app = ClientApp(mods=list(mods))

    @app.train()
    def train(message: Message, context: Context) -> Message:
        arrays, config = read_arrays(message.content), read_config(message.content, SoftmaxConfig)
        split = _examples(context, arrays)
        held = (split.held_x, split.held_y) if len(split.held_y) else (split.train_x, split.train_y)
        before = measure(arrays, *held)
        after = descend(arrays, split.train_x, split.train_y, config, context.node_id)
        loss = measure(after, split.train_x, split.train_y)[1]
        metrics = {"num-examples": len(split.train_y), "train_loss": loss}
        metrics |= {"eval_acc_before": before[0], "eval_loss_before": before[1]}
        return answer(message, metrics, after)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        arrays = read_arrays(message.content)
        split = _examples(context, arrays)
        held = (split.held_x, split.held_y) if len(split.held_y) else (split.train_x, split.train_y)
        accuracy, loss = measure(arrays, *held)
        return answer(message, {"num-examples": len(held[1]), "eval_acc": accuracy, "eval_loss": loss})

    return app


def _examples(context: Context, arrays: dict[str, Floats]) -> Split:
    # What is no softmax regression is refused when it is used.
    classes = arrays["bias"].size if "bias" in arrays else None
    return DataStore(folder(context, DATA_DIR)).split(classes=classes)


def measure(arrays: dict[str, Floats], x: Floats, y: Labels) -> tuple[float, float]:
    """Accuracy and mean cross-entropy. Raises `Conflict` when the state does not fit the examples."""
    shares = _softmax(_logits(arrays, x))
    picked = np.maximum(shares[np.arange(len(y)), y], 1e-12)
    return float(np.mean(shares.argmax(axis=1) == y)), float(-np.log(picked).mean())


def descend(arrays: dict[str, Floats], x: Floats, y: Labels, config: SoftmaxConfig, node: int = 0) -> dict[str, Floats]:
    """New arrays. Raises `Conflict` when the state does not fit the examples, `UpdateRejected` when training diverged."""
    rng = np.random.default_rng((config.seed, config.server_round, node))
    start = {name: array.astype(np.float32) for name, array in arrays.items()}
    now = dict(start)
    _logits(now, x[:1])
    for _ in range(config.epochs):
        order = rng.permutation(len(y))
        for begin in range(0, len(y), config.batch_size):
            chosen = order[begin : begin + config.batch_size]
            images = x[chosen].reshape(len(chosen), -1)
            error = _softmax(_logits(now, images))
            error[np.arange(len(chosen)), y[chosen]] -= 1
            slopes = {"weight": error.T @ images / len(chosen), "bias": error.mean(axis=0)}
            now = {
                name: array - config.lr * (slopes[name] + config.proximal_mu * (array - start[name]))
                for name, array in now.items()
            }
    if not all(np.isfinite(array).all() for array in now.values()):
        raise UpdateRejected("training diverged: lower lr")
    return {name: array.astype(np.float32) for name, array in now.items()}


def _logits(arrays: dict[str, Floats], x: Floats) -> Floats:
    flat = x.reshape(len(x), -1)
    if arrays.keys() != {"weight", "bias"} or arrays["weight"].shape != (len(arrays["bias"]), flat.shape[1]):
        raise Conflict(f"the job's arrays are no softmax regression over this device's {flat.shape[1]} features")
    logits: Floats = flat @ arrays["weight"].T + arrays["bias"]
    return logits


def _softmax(logits: Floats) -> Floats:
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares: Floats = raised / raised.sum(axis=1, keepdims=True)
    return shares
