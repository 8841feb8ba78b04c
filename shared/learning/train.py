"""Training as a function: a state, examples and a generator in, a new state out. The learner is a workbench, not a memory."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from shared.errors import Conflict, UpdateRejected
from shared.learning.continual import ReplayBuffer
from shared.learning.hyperparameters import TrainSettings
from shared.learning.measure import Evaluation, judge
from shared.learning.models import build, load_state, state_of
from shared.learning.spec import ModelSpec
from shared.learning.state import State

Images = NDArray[np.float32]
Labels = NDArray[np.int64]
_EVALUATION_BATCH = 256


class Learner(Protocol):
    """A network set up for training: plain, or with fake quantization. Whatever it held before `load` has no effect."""

    @property
    def module(self) -> nn.Module: ...

    def load(self, state: State) -> None:
        """Raises `UpdateRejected`."""
        ...

    def state(self) -> State: ...


class FloatLearner:
    """The network as its factory makes it."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self.module = build(spec)

    def load(self, state: State) -> None:
        load_state(self.module, state)
        self.module.train()

    def state(self) -> State:
        return state_of(self.module)


@dataclass(frozen=True)
class Fitted:
    state: State
    loss: float  # mean over the last epoch
    examples: int  # different ones seen


def fit(
    learner: Learner,
    start: State,
    x: Images,
    y: Labels,
    *,
    settings: TrainSettings,
    rng: np.random.Generator,
    memory: ReplayBuffer | None = None,
) -> Fitted:
    """Stochastic gradient descent from `start`. The same arguments give the same state, on the same machine.

    Raises `Conflict` for fewer than two examples (BatchNorm needs two), `UpdateRejected` when training diverged.
    """
    if len(y) < 2:
        raise Conflict("training needs at least two examples: add some with `edge-agent ingest`")
    learner.load(start)
    parameters = list(learner.module.parameters())
    anchor = [value.detach().clone() for value in parameters] if settings.proximal_mu else []
    optimizer = torch.optim.SGD(parameters, settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay)
    criterion = _Criterion(settings.label_set)
    losses: list[float] = []
    for _ in range(settings.epochs):
        losses = []
        for images, labels in batches(x, y, settings, rng, memory):
            loss = criterion(learner.module(images), labels)
            total = loss + _proximal(parameters, anchor, settings.proximal_mu) if anchor else loss
            optimizer.zero_grad()
            total.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(loss.item())
    state = learner.state()
    if not (np.isfinite(losses).all() and all(np.isfinite(array).all() for array in state.values())):
        raise UpdateRejected("training diverged: lower lr")
    return Fitted(state, float(np.mean(losses)), len(y))


def learning_rate(peak: float, epoch: int, epochs: int, *, warm_up: int = 4) -> float:
    """For a network that starts from nothing: up in equal steps to `peak`, and down in a line. Without the way up a few hundred
    digits ended 3 points lower, with BatchNorm statistics ten times as wide.
    """
    return peak * min(1.0, (epoch + 1) / min(warm_up, epochs)) * (1.0 - epoch / epochs)


class _Criterion:
    def __init__(self, label_set: tuple[int, ...]) -> None:
        self._allowed = torch.tensor(sorted(label_set)) if label_set else None

    def __call__(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if self._allowed is not None:
            hidden = torch.full((logits.shape[1],), -1e9).index_fill(0, self._allowed, 0.0)
            logits = logits + hidden
        return functional.cross_entropy(logits, labels)


def _proximal(parameters: list[nn.Parameter], anchor: list[torch.Tensor], mu: float) -> torch.Tensor:
    distance = torch.stack([(now - then).square().sum() for now, then in zip(parameters, anchor, strict=True)])
    return 0.5 * mu * distance.sum()


def batches(
    x: Images, y: Labels, settings: TrainSettings, rng: np.random.Generator, memory: ReplayBuffer | None
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """One epoch in random order, each batch with its share from memory. A last batch of one joins the one before."""
    order = rng.permutation(len(y))
    starts = list(range(0, len(y), settings.batch_size))
    if len(starts) > 1 and len(y) - starts[-1] < 2:
        starts.pop()
    for begin, end in zip(starts, [*starts[1:], len(y)], strict=True):
        chosen = order[begin:end]
        images, labels = x[chosen], y[chosen]
        if memory is not None and len(memory):
            old_x, old_y = memory.sample(round(len(chosen) * settings.replay_share), rng)
            images, labels = np.concatenate([images, old_x]), np.concatenate([labels, old_y])
        yield torch.from_numpy(images), torch.from_numpy(labels)


def refresh_statistics(learner: Learner, state: State, x: Images, *, batch_size: int = 64) -> State:
    """BatchNorm's running statistics measured again, everything else as it was: what pruning takes from a layer's inputs
    shifts them. A few hundred examples will do; `x` may be without labels.
    """
    learner.load(state)
    with torch.no_grad():
        for begin in range(0, len(x) - 1, batch_size):
            learner.module(torch.from_numpy(np.array(x[begin : begin + batch_size])))
    return learner.state()


def predict(module: nn.Module, x: Images) -> Images:
    """Logits, in the module's present mode, without gradients."""
    with torch.inference_mode():
        parts = [
            module(torch.from_numpy(np.array(x[begin : begin + _EVALUATION_BATCH]))).numpy()
            for begin in range(0, len(x), _EVALUATION_BATCH)
        ]
    return np.concatenate(parts)


def evaluate(module: nn.Module, x: Images, y: Labels) -> Evaluation:
    """In evaluation mode, which the module keeps. `x` holds at least one example."""
    module.eval()
    return judge(predict(module, x), y)
