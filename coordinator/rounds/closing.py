"""When to stop waiting for answers: a pure rule."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Closing:
    """Once `quantile` of the asked have answered or failed, the others get `grace_s` seconds more."""

    quantile: float = 1.0
    grace_s: float = 10.0

    def until(self, *, asked: int, finished_at: tuple[float, ...], deadline: float) -> float:
        """The moment to stop waiting, given when each answer (or failure) so far came: -inf when all have.

        Never later than `deadline`. Seconds on one clock; `finished_at` in any order.
        """
        if len(finished_at) >= asked:
            return -math.inf
        enough = math.ceil(self.quantile * asked - 1e-9)
        if len(finished_at) < enough:
            return deadline
        reached = sorted(finished_at)[enough - 1] if enough else -math.inf
        return min(deadline, reached + self.grace_s)
