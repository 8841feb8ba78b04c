"""Fixed keystreams, and exact Skellam probabilities by another way than the library's."""

import math
from collections.abc import Iterable, Iterator
from fractions import Fraction
from functools import cache
from itertools import count

import numpy as np
from numpy.typing import NDArray

from shared.privacy.noise import Stream
from shared.secagg.keys import Secret
from shared.secagg.masks import keystream


def fixed(seed: int) -> Stream:
    """Fresh bytes at each call, the same for the same seed."""
    numbers = count()
    return lambda size: keystream(Secret(bind(seed, next(numbers))), size)


def bind(seed: int, number: int) -> bytes:
    return seed.to_bytes(16, "big") + number.to_bytes(16, "big")


def scripted(parts: Iterable[bytes]) -> Stream:
    """These bytes, in this order; asking for another number of them fails."""
    rest: Iterator[bytes] = iter(parts)

    def take(size: int) -> NDArray[np.uint8]:
        part = next(rest)
        assert len(part) == size
        return np.frombuffer(part, dtype=np.uint8)

    return take


@cache
def skellam_masses(variance: Fraction, most: int, bits: int = 400) -> list[Fraction]:
    """exp(v) P(0) … exp(v) P(most): I_k(v) by its power series, sum of (v/2)^(2j + k) / (j! (j + k)!), to `bits` bits."""
    half = variance / 2
    masses = []
    for k in range(most + 1):
        term = half**k / math.factorial(k)
        total, j = term, 0
        while term * 2**bits > 1 or j < half:
            j += 1
            term = Fraction(int(term * half * half / (j * (j + k)) * 2 ** (2 * bits)), 2 ** (2 * bits))
            total += term
        masses.append(total)
    return masses


def skellam_pmf(variance: float, most: int) -> NDArray[np.float64]:
    """P(-most) … P(most) as floats."""
    right = [float(mass) for mass in skellam_masses(Fraction(variance), most, 80)]
    both = np.array(right[:0:-1] + right)
    return np.asarray(both / both.sum())


def chi_square(seen: NDArray[np.int64], expected: NDArray[np.float64]) -> tuple[float, int]:
    """The statistic and its degrees of freedom, with cells that expect fewer than ten pooled."""
    large = expected >= 10
    seen_cells = np.append(seen[large], seen[~large].sum())
    expected_cells = np.append(expected[large], max(expected[~large].sum(), 1e-9))
    if expected_cells[-1] < 10:
        seen_cells = np.append(seen_cells[:-2], seen_cells[-2:].sum())
        expected_cells = np.append(expected_cells[:-2], expected_cells[-2:].sum())
    return float(((seen_cells - expected_cells) ** 2 / expected_cells).sum()), seen_cells.size - 1
