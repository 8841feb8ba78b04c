"""Quantization-aware fine-tuning of any registered network on the device's own examples.

What is kept between rounds: the prepared network of the last model description (making one costs a second), and the replay
buffer in the node's state folder. A round's result depends on the message, the examples and the buffer alone.
"""

from collections.abc import Sequence

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
from shared.client_apps import MAX_LOSS, ImageClassifierConfig
from shared.errors import Malformed, UpdateRejected
from shared.learning.continual import ReplayBuffer
from shared.learning.measure import Evaluation
from shared.learning.models import load_state
from shared.learning.qat import QatLearner
from shared.learning.spec import ModelSpec
from shared.learning.train import FloatLearner, Learner, evaluate, fit


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
        """Of the float master on the held-out examples, or on all where so few are stored that none is held out.

        Raises `Malformed` for a state that is not the network's: the coordinator sent both.
        """
        try:
            load_state(self.plain.module, state)
        except UpdateRejected as error:
            raise Malformed(f"the arrays are not those of the model: {error.message}") from error
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
        config = read_config(message.content, ImageClassifierConfig)
        bench = _cache.bench(read_model_json(message.content))
        state = read_arrays(message.content)
        store = DataStore(folder(context, DATA_DIR))
        split = _split(store, bench.spec)
        before, _ = bench.evaluate(state, split)
        rng = np.random.default_rng((config.seed, config.server_round, context.node_id))
        memory = _memory(store, context, bench.spec, config.replay_size, rng)
        newest = slice(-config.recent_examples if config.recent_examples else None, None)
        x, y = split.train_x[newest], split.train_y[newest]
        settings = config.settings(tuple(np.unique(split.train_y).tolist()))
        fitted = fit(bench.learner(qat=config.qat), state, x, y, settings=settings, rng=rng, memory=memory)
        metrics = {
            "num-examples": fitted.examples,
            "train_loss": min(fitted.loss, MAX_LOSS),
            "eval_acc_before": before.accuracy,
            "eval_loss_before": min(before.loss, MAX_LOSS),
            "confidence": float(before.confidence.mean()),
            "drift": drift_of(store),
        }
        return answer(message, metrics, fitted.state)

    @app.evaluate()
    def evaluate_(message: Message, context: Context) -> Message:
        bench = _cache.bench(read_model_json(message.content))
        split = _split(DataStore(folder(context, DATA_DIR)), bench.spec)
        found, examples = bench.evaluate(read_arrays(message.content), split)
        metrics = {"num-examples": examples, "eval_acc": found.accuracy, "eval_loss": min(found.loss, MAX_LOSS)}
        return answer(message, metrics)

    return app


def _split(store: DataStore, spec: ModelSpec) -> Split:
    return store.split(shape=spec.schema.shape, classes=len(spec.schema.classes))


def _memory(
    store: DataStore, context: Context, spec: ModelSpec, size: int, rng: np.random.Generator
) -> ReplayBuffer | None:
    """The replay buffer, for a job that wants one."""
    if not size:
        return None
    schema = spec.schema
    return absorb(store, folder(context, STATE_DIR), size, rng, shape=schema.shape, classes=len(schema.classes))
