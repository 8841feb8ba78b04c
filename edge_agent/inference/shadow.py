"""Shadowing: a candidate answers copies of live requests, one at a time, and is compared with what the caller got.

Live answers are never delayed: a copy is taken after its answer went out, the candidate runs in its own background
thread, and requests that arrive while it is busy are simply not sampled.

A candidate that fails, or answers what no caller could use, has erred, and one error is enough to refuse it. How often it agrees
is told and decides nothing: where the live version is wrong a better one differs. Accuracy on held-out examples decides.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from edge_agent.inference.generation import Job, Output, Reply
from edge_agent.inference.ports import ShadowReport
from shared.errors import ShoalError


@dataclass(frozen=True)
class Comparison:
    rows: int
    agreeing: int
    max_abs_diff: float
    broken: bool = False


def compare(live: Reply, candidate: Reply) -> Comparison:
    """Row by row over the first output for the largest value, over all outputs for the difference.

    An answer of another shape than the live one, or with values that are not numbers where the live one has some, is broken.
    """
    first, other = live.outputs[0], candidate.outputs[0]
    rows = first.shape[0] if first.shape else 1
    pairs = tuple(zip(live.outputs, candidate.outputs, strict=True))
    if any(one.shape != two.shape for one, two in pairs):
        return Comparison(rows, 0, float("inf"), broken=True)
    difference = max(_difference(one, two) for one, two in pairs)
    top = [output.array().reshape(rows, -1) for output in (first, other)]
    same = top[0].argmax(axis=1) == top[1].argmax(axis=1)
    finite = np.isfinite(top[1].astype(np.float64)).all(axis=1)
    return Comparison(rows, int((same & finite).sum()), difference, broken=any(_spoiled(*pair) for pair in pairs))


def _spoiled(live: Output, candidate: Output) -> bool:
    was, found = (np.isfinite(output.array().astype(np.float64)) for output in (live, candidate))
    return bool((was & ~found).any())


def _difference(live: Output, candidate: Output) -> float:
    gap = np.abs(live.array().astype(np.float64) - candidate.array().astype(np.float64))
    return float("inf") if np.isnan(gap).any() else float(gap.max(initial=0.0))


@dataclass(eq=False)
class Shadow:
    """Collects `wanted` comparisons of `version` with `live_version`. `ask` queues a job for the candidate."""

    live_version: int
    version: int
    wanted: int
    ask: Callable[[Job], None]
    done: asyncio.Event = field(default_factory=asyncio.Event)
    _busy: bool = False
    _results: list[Comparison] = field(default_factory=list)
    _times: list[tuple[float, float]] = field(default_factory=list)
    _errors: int = 0

    def see(self, job: Job, reply: Reply) -> None:
        """Called with every live answer."""
        if self._busy or self.done.is_set() or reply.version != self.live_version:
            return
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        future.add_done_callback(lambda answered: self._compared(reply, answered))
        self._busy = True
        copy = Job(job.inputs, job.rows, job.key, time.monotonic(), float("inf"), future)
        try:
            self.ask(copy)
        except ShoalError as error:
            future.set_exception(error)

    def _compared(self, live: Reply, answered: "asyncio.Future[Reply]") -> None:
        self._busy = False
        if answered.cancelled() or answered.exception() is not None:
            self._errors += 1
        else:
            self._take(live, answered.result())
        if len(self._results) + self._errors >= self.wanted:
            self.done.set()

    def _take(self, live: Reply, candidate: Reply) -> None:
        comparison = compare(live, candidate)
        if comparison.broken:  # no caller could have used it
            self._errors += 1
            return
        self._results.append(comparison)
        self._times.append((live.run_ms, candidate.run_ms))

    def report(self) -> ShadowReport:
        rows = sum(result.rows for result in self._results)
        agreeing = sum(result.agreeing for result in self._results)
        live_ms, candidate_ms = np.median(self._times, axis=0) if self._times else (0.0, 0.0)
        return ShadowReport(
            live_version=self.live_version,
            version=self.version,
            requests=len(self._results),
            rows=rows,
            agreement=agreeing / rows if rows else 0.0,
            max_abs_diff=max((result.max_abs_diff for result in self._results), default=0.0),
            live_p50_ms=float(live_ms),
            candidate_p50_ms=float(candidate_ms),
            errors=self._errors,
        )
