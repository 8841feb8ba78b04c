"""Asking a version of a model, through the door that applications use: accuracy, latency, proof that it answers."""

import asyncio
import time
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from edge_agent.inference.probe import Answer, Probe
from shared.errors import DeadlineExceeded, NotFound, Overloaded, ShoalError, Unavailable
from shared.learning.examples import X, Y
from shared.learning.measure import judge

MAX_EXAMPLES = 512
_BATCH = 16
_SINGLES = 20
_BUSY_TRIES = 50
_BUSY_S = 0.02


@dataclass(frozen=True)
class Questions:
    """`y` is None where the answers are not known: then a version can be asked, not marked."""

    x: X
    y: Y | None


@dataclass(frozen=True)
class Marks:
    """What a version made of the questions. Latency: median of single requests, ms."""

    accuracy: float | None
    loss: float | None
    latency_ms: float | None
    errors: int


@dataclass(frozen=True)
class Proof:
    answers: int
    errors: int
    latency_ms: float | None
    reason: str = ""  # empty: proven


async def mark(probe: Probe, model: str, version: str, questions: Questions, max_batch: int) -> Marks:
    """Ask in batches small enough to leave room for applications. An empty `version` is the live one."""
    size = min(_BATCH, max_batch)
    logits: list[Any] = []
    errors = 0
    for begin in range(0, len(questions.x), size):
        try:
            logits.append((await _patiently(probe, model, questions.x[begin : begin + size], version)).logits)
        except ShoalError as error:
            _raise_if_gone(error)
            errors += 1
    accuracy = loss = None
    if questions.y is not None and len(questions.y) and not errors:
        evaluation = judge(np.concatenate(logits).astype(np.float32), questions.y)
        accuracy, loss = evaluation.accuracy, evaluation.loss
    times = [] if errors else await _times(probe, model, version, questions.x[:_SINGLES])
    errors += times.count(None)
    latency = median(found) if (found := [one for one in times if one is not None]) else None
    return Marks(accuracy, loss, latency, errors)


async def _times(probe: Probe, model: str, version: str, x: X) -> list[float | None]:
    """What each example takes when it is asked alone, ms; None for one that was not answered."""
    times: list[float | None] = []
    for place in range(len(x)):
        begun = time.perf_counter()
        try:
            await _patiently(probe, model, x[place : place + 1], version)
        except ShoalError as error:
            _raise_if_gone(error)
            times.append(None)
        else:
            times.append((time.perf_counter() - begun) * 1e3)
    return times


async def prove(probe: Probe, model: str, digest: str, questions: Questions, wanted: int) -> Proof:
    """Ask the live version until `wanted` requests were answered by `digest`. The first other answer, or failure, ends it."""
    answers, times = 0, []
    while answers < wanted:
        place = answers % len(questions.x)
        begun = time.perf_counter()
        try:
            answer = await _patiently(probe, model, questions.x[place : place + 1], "")
        except ShoalError as error:
            _raise_if_gone(error)
            return Proof(answers, 1, None, f"it did not answer a request: {error.message}")
        times.append((time.perf_counter() - begun) * 1e3)
        if answer.digest != digest:
            return Proof(answers, 0, None, f"requests are answered by {answer.digest[:12]}…, not by {digest[:12]}…")
        if not np.isfinite(answer.logits).all():
            return Proof(answers, 1, None, "it answers with values that are not numbers")
        answers += 1
    return Proof(answers, 0, median(times))


def _raise_if_gone(error: ShoalError) -> None:
    """A version that is not loaded, or a service that is away, says nothing about how good the version is."""
    if isinstance(error, NotFound | Unavailable) and not isinstance(error, DeadlineExceeded | Overloaded):
        raise error


async def _patiently(probe: Probe, model: str, x: X, version: str) -> Answer:
    """A full queue means that applications are served first."""
    for _ in range(_BUSY_TRIES):
        try:
            return await probe.infer(model, x, version)
        except Overloaded:
            await asyncio.sleep(_BUSY_S)
    return await probe.infer(model, x, version)
