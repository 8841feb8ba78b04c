"""What events cost together: epsilon at a delta, by Rényi differential privacy (Mironov, CSF 2017) of integer orders.

Of a Skellam sum with central variance v = contributors * variance, at integer order a > 1 (Agarwal, Kairouz, Liu, NeurIPS 2021,
Theorem 3.5 and Corollary 3.6; D2 and D1 the L2 and L1 sensitivities):

    a D2^2 / 2v + min(((2a - 1) D2^2 + 6 D1) / 4v^2, 3 D1 / 2v)

The first term is the Gaussian's. For central noise the `dp-accounting` library says it; it also turns sums over rounds into epsilon
(Canonne et al., 2020, Proposition 12). Noise drawn within total variation e of its distribution makes of (epsilon, delta)
(epsilon, delta + (1 + exp(epsilon)) e); the draws of all rounds add up.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from shared.errors import Unsupported
from shared.privacy.clip import absolute
from shared.privacy.events import CentralGaussian, Event
from shared.privacy.noise import MIN_VARIANCE

ORDERS: tuple[int, ...] = (*range(2, 64), *(round(64 * 2 ** (step / 8)) for step in range(65)))  # to 16384
_TOLERANCE = 1e-6  # of a calibrated variance, relative, above the least

E = TypeVar("E", bound=Event)


@dataclass(frozen=True)
class Budget:
    """`delta` is the chance that the promise fails altogether: well below 1 / devices."""

    epsilon: float
    delta: float

    def __post_init__(self) -> None:
        if not (0 < self.epsilon < math.inf and 0 < self.delta < 1):
            raise ValueError("a budget needs a positive epsilon and a delta between 0 and 1")


def renyi(event: Event) -> NDArray[np.float64]:
    """Of one round, at each of `ORDERS`."""
    if isinstance(event, CentralGaussian):
        from dp_accounting import GaussianDpEvent, rdp

        ratio = math.sqrt(event.variance / event.squared_norm)
        return np.asarray(rdp.RdpAccountant(ORDERS).compose(GaussianDpEvent(ratio)).rdp, dtype=np.float64)
    orders, central = np.array(ORDERS, dtype=np.float64), event.contributors * event.variance
    square, plain = float(event.squared_norm), absolute(event.squared_norm, event.dimension)
    close = ((2 * orders - 1) * square + 6 * plain) / (4 * central**2)
    return orders * square / (2 * central) + np.minimum(close, 3 * plain / (2 * central))


def epsilon(spent: Mapping[Event, int], delta: float) -> float:
    """Of so many rounds of each event, adaptively composed; infinite where no epsilon can be promised at this delta.

    The order of events makes no difference, not even in the last bit.
    """
    from dp_accounting import rdp

    rounds = {event: count for event, count in spent.items() if count}
    if not rounds:
        return 0.0
    costs = [count * renyi(event) for event, count in rounds.items()]
    total = [math.fsum(column) for column in zip(*costs, strict=True)]
    error, kept = math.fsum(count * event.inexactness for event, count in rounds.items()), 0.0
    while kept < delta:
        found = float(rdp.compute_epsilon(ORDERS, total, delta - kept)[0])
        needed = error * (1 + math.exp(min(found, 700.0)))
        if needed <= kept:
            return found
        kept = 2 * needed
    return math.inf


def calibrate(event: E, rounds: int, budget: Budget) -> E:
    """`event` with the least variance for which `rounds` of it stay within `budget`, found by bisection.

    Raises `Unsupported` if no variance that can be drawn is enough.
    """

    def fits(variance: float) -> bool:
        return epsilon({replace(event, variance=variance): rounds}, budget.delta) <= budget.epsilon

    low, high = MIN_VARIANCE, event.MAX_VARIANCE
    if not fits(high):
        raise Unsupported(
            f"no noise that can be drawn gives epsilon {budget.epsilon:g} at delta {budget.delta:g} for {rounds} rounds: "
            "state fewer secure.bits, a larger epsilon, more devices, or fewer rounds and spare_rounds"
        )
    if fits(low):
        return replace(event, variance=low)
    while high > low * (1 + _TOLERANCE):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if fits(middle) else (middle, high)
    return replace(event, variance=high)
