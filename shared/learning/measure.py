"""Judging answers, whoever computed them: accuracy, agreement with a reference, and the probe that travels with a bundle.

No torch here: a device that only serves judges what it serves.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from shared.learning.spec import InputSchema

Logits = NDArray[np.float32]
PROBE_CANDIDATES = 64
PROBE_SIZE = 16
_PROBE_SEED = 20_240_229


@dataclass(frozen=True)
class Evaluation:
    accuracy: float
    loss: float  # mean cross-entropy, nats
    confidence: NDArray[np.float32] = field(repr=False)  # of the answer given, for each example


@dataclass(frozen=True)
class Agreement:
    """How far two sets of answers to the same questions are apart."""

    max_logit_difference: float
    top1_agreement: float  # a share


@dataclass(frozen=True)
class Probe:
    """Questions that anyone can make again, and what the fake-quantized network answered. `indices` are of candidates."""

    indices: tuple[int, ...] = ()
    logits: tuple[tuple[float, ...], ...] = ()

    def __post_init__(self) -> None:
        if len(self.indices) != len(self.logits) or len({len(row) for row in self.logits}) > 1:
            raise ValueError("a probe has one row of answers for each question, all of one length")
        if not all(0 <= index < PROBE_CANDIDATES for index in self.indices):
            raise ValueError(f"a probe's questions are numbered from 0 to {PROBE_CANDIDATES - 1}")
        if not np.isfinite(np.array(self.logits, dtype=np.float64)).all():
            raise ValueError("a probe's answers are finite")


def judge(logits: Logits, y: NDArray[np.int64]) -> Evaluation:
    """Accuracy, loss and confidence of logits (n, classes) for labels (n,)."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    log_total = np.log(np.exp(shifted).sum(axis=1))
    loss = float(np.mean(log_total - shifted[np.arange(len(y)), y]))
    confidence = np.exp(-log_total).astype(np.float32)
    return Evaluation(float(np.mean(logits.argmax(axis=1) == y)), loss, confidence)


def agreement(reference: Logits, logits: Logits) -> Agreement:
    """A logit that is not finite counts as infinitely far off."""
    if not np.isfinite(logits).all():
        return Agreement(float("inf"), 0.0)
    same = reference.argmax(axis=1) == logits.argmax(axis=1)
    return Agreement(float(np.abs(reference - logits).max()), float(same.mean()))


def probe_candidates(schema: InputSchema) -> NDArray[np.float32]:
    """The same coarse random patterns between 0 and 1 on every machine in the model's own units, (64, *shape)."""
    generator = np.random.Generator(np.random.PCG64(_PROBE_SEED))
    coarse = tuple(max(1, -(-axis // 4)) if axis > 4 else axis for axis in schema.shape)
    pattern = generator.random((PROBE_CANDIDATES, *coarse))
    for place, (axis, few) in enumerate(zip(schema.shape, coarse, strict=True), start=1):
        if axis != few:
            pattern = np.take(np.repeat(pattern, 4, axis=place), np.arange(axis), axis=place)
    return pattern.astype(np.float32)


def choose_probe(reference: Logits) -> Probe:
    """The candidates that the network is surest about: near-ties would flip for honest rounding."""
    ordered = np.sort(reference, axis=1)
    margin = ordered[:, -1] - ordered[:, -2]
    chosen = np.sort(np.argsort(-margin, kind="stable")[:PROBE_SIZE])
    rows = tuple(tuple(round(float(value), 5) for value in reference[index]) for index in chosen)
    return Probe(tuple(int(index) for index in chosen), rows)
