"""Integer noise from a keystream, by inversion of exact cumulative probabilities.

- Skellam: the difference of two Poisson variables, P(k) = exp(-v) I_k(v) for variance v (Skellam, 1946). Shares add up: n devices
  that draw variance v each draw variance n v together (Agarwal, Kairouz, Liu, "The Skellam Mechanism", NeurIPS 2021).
- Discrete Gaussian: P(k) ~ exp(-k^2 / 2v) (Canonne, Kamath, Steinke, NeurIPS 2020). Its shares do not add up to one of its kind,
  so it is for a single drawer; above a variance of 2^22 it is one draw plus m times another (Micciancio, Walter, CRYPTO 2017).

No float decides an outcome: floats from a generator leak what they were added to (Mironov, CCS 2012). Weights are big integers, and
thresholds have 128 bits. A draw reads 16 bits, which settle most outcomes by a table; where a threshold falls among the values that
begin so, 48 more; and 64 more if those hit a threshold's. How many need more bits shows in the running time, summed over a vector.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Context, Decimal
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from shared.errors import Unsupported

Stream = Callable[[int], NDArray[np.uint8]]  # so many bytes of a keystream, never the same twice

MIN_VARIANCE = 2.0**-20
MAX_VARIANCE = 2.0**30  # of Skellam noise: beyond, a table takes seconds to make, and the grid is far too fine
MAX_GAUSSIAN_VARIANCE = 2.0**40
_MAX_TABLE_VARIANCE = 2.0**22  # of one Gaussian table
_TAIL_BITS = 120  # a side's tail beyond the table
_GUARD_BITS = 192
_FIRST, _WORD = 16, 64  # bits of a first look, and of a threshold's upper half


def reach(variance: float, bits: float = _TAIL_BITS) -> int:
    """An N with P(X > N) at most 2^-bits, for Skellam noise X of this `variance`, by Chernoff's bound (and as much below -N).

    It serves the discrete Gaussian too, with lighter tails: exp(-t^2 / 2v) against exp(v (sqrt(1 + (t/v)^2) - 1) - t asinh(t/v)).
    The sum of n devices' noise has variance n v. Raises `Unsupported` unless the variance is positive and finite.
    """
    if not 0 < variance < math.inf:
        raise Unsupported("noise has a positive, finite variance")
    low, high = 0, 1
    while _exponent(high + 1, variance) < bits * math.log(2):
        low, high = high, 2 * high
    while low < high:
        middle = (low + high) // 2
        if _exponent(middle + 1, variance) < bits * math.log(2):
            low = middle + 1
        else:
            high = middle
    return high


def inexactness(variance: float) -> float:
    """The total variation distance of one draw of either kind from its distribution, at most.

    With N = `reach` and t = 2^-120 a side's tail: a table's weights are off by (2N + 1) t (see `_bessel_weights`), its tails hold
    2t, and its 2N thresholds are rounded by 2^-128 each: together below 4 (N + 2) t. A pair's two narrower tables have less than
    twice that, by more than the 2^-200 that pairing them adds (see `discrete_gaussian`).
    """
    return (reach(variance) + 2) * 2.0 ** (3 - _TAIL_BITS)


@lru_cache(maxsize=4)
def skellam(variance: float) -> "Table":
    """Raises `Unsupported` for a variance out of range."""
    _check(variance, MAX_VARIANCE)
    return Table(_bessel_weights(variance))


@lru_cache(maxsize=4)
def discrete_gaussian(variance: float) -> "Table | Pair":
    """`variance` is the density's parameter; the true one is a hair below from 1 on. Raises `Unsupported` for one out of range.

    Of A + m B, both of parameter u, the probability of x is the density of parameter u (1 + m^2) at x, times a sum over all
    integers of a Gaussian of parameter u / (1 + m^2) around a point that depends on x. That sum is the same for all x but for a
    factor 1 ± 3 exp(-2 pi^2 u / (1 + m^2)) (Poisson summation), here within 1 ± 2^-200.
    """
    _check(variance, MAX_GAUSSIAN_VARIANCE)
    factor = math.ceil(math.sqrt(max(0.0, variance / _MAX_TABLE_VARIANCE - 1)))
    share = variance / (1 + factor**2)
    if not factor:
        return Table(_gaussian_weights(share))
    one = Table(_gaussian_weights(math.nextafter(share, math.inf)))  # never less noise than was asked for
    return Pair(one, factor)


@dataclass(frozen=True)
class Pair:
    """A draw of `one`, plus `factor` times another."""

    one: "Table"
    factor: int

    @property
    def reach(self) -> int:
        return self.one.reach * (1 + self.factor)

    def draw(self, size: int, stream: Stream) -> NDArray[np.int64]:
        """Shape (size,), independent."""
        fine = self.one.draw(size, stream).astype(np.int64)
        return fine + self.factor * self.one.draw(size, stream).astype(np.int64)


class Table:
    """A symmetric distribution over -N … N, N = `reach`. `weights` are proportional to the probabilities of 0 … N."""

    def __init__(self, weights: list[int]) -> None:
        self.reach = len(weights) - 1
        both = weights[:0:-1] + weights
        thresholds, total, below, most = [], sum(both), 0, (1 << 2 * _WORD) - 1
        for weight in both[:-1]:
            below += weight
            thresholds.append(min((below << 2 * _WORD) // total, most))
        self._high = np.array([item >> _WORD for item in thresholds], dtype=np.uint64)
        self._low = np.array([item & (1 << _WORD) - 1 for item in thresholds], dtype=np.uint64)
        cells = np.arange(1 << _FIRST, dtype=np.uint64) << np.uint64(_WORD - _FIRST)
        edges = np.append(np.searchsorted(self._high, cells), len(thresholds))
        self._open = self.reach + 1
        self._table = np.where(edges[1:] == edges[:-1], edges[:-1] - self.reach, self._open).astype(np.int32)

    def draw(self, size: int, stream: Stream) -> NDArray[np.int32]:
        """Shape (size,), independent."""
        first = stream(size * _FIRST // 8).view("<u2")
        out = np.take(self._table, first)
        unsettled = np.flatnonzero(out == self._open)
        if unsettled.size:
            more = stream(unsettled.size * _WORD // 8).view("<u8")
            words = (first[unsettled].astype(np.uint64) << np.uint64(_WORD - _FIRST)) | (more >> np.uint64(_FIRST))
            places = np.searchsorted(self._high, words, side="right")
            for tie in np.flatnonzero(self._high[places - 1] == words):
                places[tie] = self._settle(words[tie], stream)
            out[unsettled] = places - self.reach
        return out

    def _settle(self, word: np.uint64, stream: Stream) -> int:
        """The place of a draw whose upper half is a threshold's."""
        start, stop = np.searchsorted(self._high, word, side="left"), np.searchsorted(self._high, word, side="right")
        rest = stream(_WORD // 8).view("<u8")[0]
        return int(start + np.searchsorted(self._low[start:stop], rest, side="right"))


def _check(variance: float, most: float) -> None:
    if not MIN_VARIANCE <= variance <= most:  # also false for NaN
        raise Unsupported(
            f"noise of variance {variance:g} cannot be drawn ({MIN_VARIANCE:.3g} to {most:.3g}): choose another step of the grid"
        )


def _exponent(reached: int, variance: float) -> float:
    """-ln of Chernoff's bound on P(X >= reached)."""
    x = reached / variance
    return reached * math.asinh(x) - variance * x * x / (1 + math.sqrt(1 + x * x))


def _bessel_weights(variance: float) -> list[int]:
    """Proportional to I_0(v) … I_N(v), by Miller's backward recurrence I_(k-1) = I_(k+1) + (2k / v) I_k from a zero at N + 1.

    The zero instead of I_(N+1) adds a multiple of the other solution, (-1)^k K_k, so each weight is off by I_(N+1) K_k / K_(N+1),
    at most I_(N+1); all terms are positive, so rounding stays relative: N 2^-192.
    """
    last = reach(variance)
    numerator, denominator = variance.as_integer_ratio()
    weights, after, here = [], 0, 1 << _GUARD_BITS
    for k in range(last, 0, -1):
        weights.append(here)
        after, here = here, after + 2 * k * denominator * here // numerator
    weights.append(here)
    return weights[::-1]


def _gaussian_weights(variance: float) -> list[int]:
    """Proportional to exp(-k^2 / 2v), k = 0 … N: each the one before times q^(2k+1), q = exp(-1 / 2v), in fixed point."""
    last = reach(variance)
    numerator, denominator = variance.as_integer_ratio()
    context = Context(prec=100)
    root = context.exp(context.divide(Decimal(-denominator), Decimal(2 * numerator)))
    ratio = int(context.multiply(root, Decimal(1 << (2 * _WORD + _GUARD_BITS)))) >> 2 * _WORD
    square = ratio * ratio >> _GUARD_BITS
    weights = [1 << _GUARD_BITS]
    for _ in range(last):
        weights.append(weights[-1] * ratio >> _GUARD_BITS)
        ratio = ratio * square >> _GUARD_BITS
    return weights
