"""Quantization-aware fine-tuning of any registered network on the device's own examples.

What is kept between rounds: the prepared network of the last model description (making one costs a second), and the replay
buffer in the node's state folder. A round's result depends on the message, the examples and the buffer alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from edge_agent.client_app import Mod
from edge_agent.client_app.memory import absorb, drift_of
from edge_agent.client_app.records import (
    DATA_DIR,
    STATE_DIR,
    answer,
    folder,
    read_arrays,
    read_config,
    read_model_json,
)
from edge_agent.storage import DataStore, Split
from shared.errors import Conflict
from shared.learning.measure import Evaluation
from shared.learning.models import load_state
from shared.learning.qat import QatLearner
from shared.learning.spec import InputSchema, ModelSpec
from shared.learning.train import FloatLearner, Learner, TrainSettings, evaluate, fit

ENOUGH = 100.0  # a loss above this is reported as this: one lost device must not drown the fleet's mean


@dataclass(frozen=True)
class Config:
    """What a job's `[train]` table may say, with hyphens or underscores."""

    server_round: int = 0
    lr: float = 0.02
    momentum: float = 0.9
    weight_decay: float = 1e-4
    epochs: int = 1
    batch_size: int = 32
    proximal_mu: float = 0.0
    qat: bool = True
    seed: int = 0
    recent_examples: int = 0  # train on the newest so many; 0: all
    replay_size: int = 0  # examples in the replay buffer; 0: none
    replay_share: float = 0.5  # of each batch, on top of it
    local_labels: bool = False  # leave answers for classes this device has none of out of the loss

    def __post_init__(self) -> None:
        if min(self.recent_examples, self.replay_size, self.seed) < 0:
            raise ValueError("recent_examples, replay_size and seed are not negative")
        self.settings(())

    def settings(self, labels: tuple[int, ...]) -> TrainSettings:
        return TrainSettings(
            lr=self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            epochs=self.epochs,
            batch_size=self.batch_size,
            proximal_mu=self.proximal_mu,
            replay_share=self.replay_share,
            label_set=labels if self.local_labels else (),
        )


class Workbench:
    """Prepared networks for one model description: fake-quantized to train, plain to evaluate."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self.plain = FloatLearner(spec)
        self._qat: QatLearner | None = None

    def learner(self, *, qat: bool) -> Learner:
        if not qat:
            return self.plain
        if self._qat is None:
            self._qat = QatLearner(self.spec)
        return self._qat

    def evaluate(self, state: dict[str, np.ndarray], split: Split) -> tuple[Evaluation, int]:
        """Of the float master on the held-out examples, or on all where so few are stored that none is held out."""
        load_state(self.plain.module, state)
        held = (split.held_x, split.held_y) if len(split.held_y) else (split.train_x, split.train_y)
        return evaluate(self.plain.module, *held), len(held[1])


class _Cache:
    """The last workbench. One is enough: a job's model changes only when it is pruned."""

    def __init__(self) -> None:
        self._text = ""
        self._bench: Workbench | None = None

    def bench(self, text: str) -> Workbench:
        """Raises `Malformed` and `NotFound`; the workbench kept so far then stays."""
        if self._bench is None or text != self._text:
            self._bench, self._text = Workbench(ModelSpec.from_json(text)), text
        return self._bench


_cache = _Cache()


def build(mods: Sequence[Mod]) -> ClientApp:
    app = ClientApp(mods=list(mods))

    @app.train()
    def train(message: Message, context: Context) -> Message:
        config = read_config(message.content, Config)
        bench = _cache.bench(read_model_json(message.content))
        state = read_arrays(message.content)
        store = DataStore(folder(context, DATA_DIR))
        split = store.split()
        check_fits(split, bench.spec.schema)
        before, _ = bench.evaluate(state, split)
        rng = np.random.default_rng((config.seed, config.server_round, context.node_id))
        memory = absorb(store, folder(context, STATE_DIR), config.replay_size, rng) if config.replay_size else None
        newest = slice(-config.recent_examples if config.recent_examples else None, None)
        x, y = split.train_x[newest], split.train_y[newest]
        settings = config.settings(tuple(np.unique(split.train_y).tolist()))
        fitted = fit(bench.learner(qat=config.qat), state, x, y, settings=settings, rng=rng, memory=memory)
        metrics = {
            "num-examples": fitted.examples,
            "train_loss": min(fitted.loss, ENOUGH),
            "eval_acc_before": before.accuracy,
            "eval_loss_before": min(before.loss, ENOUGH),
            "confidence": float(before.confidence.mean()),
            "drift": drift_of(store),
        }
        return answer(message, metrics, fitted.state)

    @app.evaluate()
    def evaluate_(message: Message, context: Context) -> Message:
        bench = _cache.bench(read_model_json(message.content))
        split = DataStore(folder(context, DATA_DIR)).split()
        check_fits(split, bench.spec.schema)
        found, examples = bench.evaluate(read_arrays(message.content), split)
        metrics = {"num-examples": examples, "eval_acc": found.accuracy, "eval_loss": min(found.loss, ENOUGH)}
        return answer(message, metrics)

    return app


def check_fits(split: Split, schema: InputSchema) -> None:
    """Raises `Conflict` when the device's examples are not what the model takes."""
    labels = np.concatenate([split.train_y, split.held_y])
    if split.train_x.shape[1:] != schema.shape:
        raise Conflict(
            f"this device's examples have shape {list(split.train_x.shape[1:])}, the model takes {list(schema.shape)}"
        )
    if int(labels.max()) >= len(schema.classes):
        raise Conflict(f"this device has label {int(labels.max())}, the model knows {len(schema.classes)} classes")
