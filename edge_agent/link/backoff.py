"""How long to wait before the next try: exponential, with full jitter, so that a fleet does not return as one."""

import secrets
from collections.abc import Callable
from dataclasses import dataclass

_random = secrets.SystemRandom()


@dataclass
class Backoff:
    """`draw(low, high)` is uniform."""

    min_s: float
    max_s: float
    draw: Callable[[float, float], float] = _random.uniform
    tries: int = 0

    def next(self) -> float:
        """Seconds to wait now."""
        ceiling = min(self.max_s, self.min_s * 2.0 ** min(self.tries, 30))
        self.tries += 1
        return self.draw(0.0, ceiling)

    def reset(self) -> None:
        self.tries = 0
