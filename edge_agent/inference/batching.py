"""When to run a batch and how large. Pure: time is an argument, in seconds on any clock that never goes back.

The limit follows the requirement's rule: after a batch slower than 1.2 x the target, halve it; after one faster than
0.8 x, double it; always between the policy's two ends. Between batches the queue itself makes them larger: whatever
arrived while one ran goes into the next, so waiting for company (`max_delay_ms`) is only worth it for a model whose
cost hardly grows with the batch.
"""

import math
from dataclasses import dataclass

from shared.errors import ConfigError

SLOW = 1.2
FAST = 0.8


@dataclass(frozen=True)
class BatchPolicy:
    """`queue_limit` counts requests; the batch sizes count rows."""

    target_ms: float = 50.0
    min_batch: int = 1
    max_batch: int = 32
    max_delay_ms: float = 0.0
    queue_limit: int = 256

    def __post_init__(self) -> None:
        if not (math.isfinite(self.target_ms) and self.target_ms > 0):
            raise ConfigError("must be a positive number", path="target_ms")
        if not 1 <= self.min_batch <= self.max_batch <= 4096:
            raise ConfigError("must satisfy 1 <= min_batch <= max_batch <= 4096", path="min_batch")
        if not (math.isfinite(self.max_delay_ms) and self.max_delay_ms >= 0):
            raise ConfigError("must be zero or a positive number", path="max_delay_ms")
        if self.queue_limit < 1:
            raise ConfigError("must be at least 1", path="queue_limit")


@dataclass(frozen=True)
class BatchState:
    limit: int


@dataclass(frozen=True)
class QueueView:
    """The waiting requests that may share the next batch, oldest first.

    rows: rows of each.  oldest: arrival of the first.  deadline: the earliest of theirs.  blocked: a request of
    another kind waits behind them, so no more can join.
    """

    rows: tuple[int, ...]
    oldest: float = 0.0
    deadline: float = math.inf
    blocked: bool = False


@dataclass(frozen=True)
class Dispatch:
    """Run the first `requests` of the view as one batch, now."""

    requests: int


@dataclass(frozen=True)
class WaitUntil:
    """Ask again at `at`, or when something arrives; `inf`: only then."""

    at: float


def initial(policy: BatchPolicy) -> BatchState:
    """Start at the top: a batch that turns out too slow halves the limit at once."""
    return BatchState(policy.max_batch)


def decide(view: QueueView, now: float, policy: BatchPolicy, state: BatchState) -> Dispatch | WaitUntil:
    """A request larger than the limit goes alone. Nothing waits past `max_delay_ms`, nor so long that a deadline
    leaves less than the target to answer in."""
    if not view.rows:
        return WaitUntil(math.inf)
    count, total = 0, 0
    for rows in view.rows:
        if count and total + rows > state.limit:
            break
        count, total = count + 1, total + rows
    full = total >= state.limit or count < len(view.rows) or view.blocked
    latest = min(view.oldest + policy.max_delay_ms / 1e3, view.deadline - policy.target_ms / 1e3)
    return Dispatch(count) if full or now >= latest else WaitUntil(latest)


def observe(policy: BatchPolicy, state: BatchState, batch_ms: float) -> BatchState:
    """The limit after a batch that took `batch_ms`."""
    if batch_ms > SLOW * policy.target_ms:
        return BatchState(max(policy.min_batch, state.limit // 2))
    if batch_ms < FAST * policy.target_ms:
        return BatchState(min(policy.max_batch, state.limit * 2))
    return state
