"""Counts of what a model answered. Touched from the event loop only."""

from bisect import bisect_left
from collections import defaultdict
from dataclasses import dataclass, field

from edge_agent.inference.ports import Histogram

LATENCY_BOUNDS_MS = (0.25, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
BATCH_BOUNDS = (1, 2, 4, 8, 16, 32, 64, 128)


class Counter:
    """A histogram that fills up."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0

    def add(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._total += value

    def read(self) -> Histogram:
        return Histogram(self._bounds, tuple(self._counts), self._total)


@dataclass
class Duration:
    count: int = 0
    ns: int = 0

    def add(self, seconds: float, count: int = 1) -> None:
        self.count += count
        self.ns += int(seconds * 1e9) * count


@dataclass(frozen=True)
class Timing:
    """How long the parts of one batch took, in seconds."""

    gather_s: float
    run_s: float
    scatter_s: float


@dataclass
class VersionStats:
    """One version's counts, in the terms of the protocol's ModelStatistics."""

    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    gather: Duration = field(default_factory=Duration)
    run: Duration = field(default_factory=Duration)
    scatter: Duration = field(default_factory=Duration)
    batches: dict[int, Duration] = field(default_factory=lambda: defaultdict(Duration))
    rows: int = 0
    executions: int = 0
    last: float = 0.0

    def ran(self, rows: int, requests: int, timing: Timing, now: float) -> None:
        """A batch of `requests` requests with `rows` rows came back at `now` (seconds since the epoch)."""
        self.gather.add(timing.gather_s, requests)
        self.run.add(timing.run_s, requests)
        self.scatter.add(timing.scatter_s, requests)
        self.batches[rows].add(timing.run_s)
        self.rows += rows
        self.executions += 1
        self.last = now


@dataclass
class LaneStats:
    """What one lane's callers saw."""

    answered: int = 0
    failed: int = 0
    rejected: int = 0
    expired: int = 0
    latency_ms: Counter = field(default_factory=lambda: Counter(LATENCY_BOUNDS_MS))
    batch_rows: Counter = field(default_factory=lambda: Counter(tuple(float(b) for b in BATCH_BOUNDS)))
