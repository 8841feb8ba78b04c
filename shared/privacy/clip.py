"""How far one device can move a sum: its vector's norm, bounded before it is rounded and checked after.

A real vector is clipped to a Euclidean norm, rotated (which keeps the norm), and rounded stochastically to whole levels, which can
lengthen it. Rounding is therefore conditional (Kairouz, Liu, Steinke, "The Distributed Discrete Gaussian Mechanism", ICML 2021,
Proposition 22): it is done again until the whole vector is within `rounded_bound`. The check is exact, on integers, so the
sensitivity holds whatever floats did before it. The price: a mean off by at most beta / (1 - beta) sqrt(d) levels in norm, where
beta is the chance of one more try.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.errors import Unsupported, UpdateRejected

MAX_TRIES = 64
_LIMIT = 2.0**31


def clip(values: NDArray[np.floating], norm: float) -> float:
    """Scale `values`, shape (d,), in place to Euclidean norm `norm` at most, in their unit; the factor, 1 where they were within.

    Raises `UpdateRejected` for values that are not finite.
    """
    if not 0 < norm < math.inf:
        raise Unsupported("vectors are clipped to a positive, finite norm")
    with np.errstate(over="ignore", invalid="ignore"):
        length = float(np.linalg.norm(values.astype(np.float64, copy=False)))
    if not math.isfinite(length):
        raise UpdateRejected("the update holds a value that is not finite, or far too large")
    if length <= norm:
        return 1.0
    values *= norm / length
    return norm / length


def rounded_bound(norm: float, dimension: int, beta: float) -> int:
    """The squared norm, in levels, that a vector of `dimension` elements and norm `norm`, rounded stochastically, keeps within with
    a chance of at least 1 - `beta`.

    Kairouz et al., 2021, Theorem 1: the smaller of (c + sqrt d)^2, which always holds, and
    c^2 + d / 4 + sqrt(2 ln(1 / beta)) (c + sqrt(d) / 2). Raises `Unsupported` unless 0 <= beta < 1.
    """
    if not (0 < norm < math.inf and dimension >= 1 and 0 <= beta < 1):
        raise Unsupported("a rounded norm needs a positive norm and dimension, and beta from 0 to below 1")
    root = math.sqrt(dimension)
    always = (norm + root) ** 2
    if beta == 0:
        return math.ceil(always)
    likely = norm**2 + dimension / 4 + math.sqrt(-2 * math.log(beta)) * (norm + root / 2)
    return math.ceil(min(always, likely))


def round_within(attempt: Callable[[], NDArray[Any]], squared_norm: int) -> NDArray[Any]:
    """The first vector of whole levels that `attempt`, a stochastic rounding with fresh randomness, gives within `squared_norm`.

    Raises `UpdateRejected` if none of `MAX_TRIES` is: fail closed, nothing leaves.
    """
    for _ in range(MAX_TRIES):
        levels = attempt()
        if squared(levels) <= squared_norm:
            return levels
    raise UpdateRejected(
        "the rounded update stays longer than its bound: was it clipped to the norm that the bound is for?"
    )


def squared(levels: NDArray[Any]) -> int:
    """The exact squared norm of whole levels, in any dtype. Raises `UpdateRejected` for what is not whole, or not below 2^31."""
    with np.errstate(invalid="ignore"):
        whole = levels.astype(np.int64, copy=False)
    peak = max(float(levels.max(initial=0)), -float(levels.min(initial=0)))
    if not peak < _LIMIT or not np.array_equal(whole, levels):  # also true for NaN
        raise UpdateRejected("the rounded update holds a value that is not whole, or far too large")
    block = ((1 << 63) - 1) // max(1, int(peak)) ** 2  # so many squares add up without wrapping
    return sum(int(np.dot(part, part)) for part in (whole[at : at + block] for at in range(0, whole.size, block)))


def absolute(squared_norm: int, dimension: int) -> float:
    """The largest sum of absolute values of `dimension` whole levels within `squared_norm`: min(sqrt(d) Delta_2, Delta_2^2)."""
    return min(math.sqrt(dimension * squared_norm), float(squared_norm))
