"""Small seeded pictures that a network can learn in a second: a coarse pattern for each class, shifted and with noise."""

import numpy as np
from numpy.typing import NDArray

SIDE = 12


def pictures(
    count: int, *, classes: int = 10, side: int = SIDE, seed: int = 0, noise: float = 0.15
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """`x` (count, 1, side, side) between 0 and 1, `y` (count,) in turn. The classes are the same for every seed."""
    patterns = np.random.default_rng(99).random((classes, 1, side // 3, side // 3)) > 0.5
    templates = np.kron(patterns, np.ones((1, 1, 3, 3)))
    rng = np.random.default_rng(seed)
    y = (np.arange(count) % classes).astype(np.int64)
    shifts = rng.integers(-1, 2, size=(count, 2))
    x = np.stack([np.roll(templates[label], tuple(shift), axis=(1, 2)) for label, shift in zip(y, shifts, strict=True)])
    x = np.clip(0.8 * x + rng.normal(0.1, noise, x.shape), 0, 1)
    return x.astype(np.float32), y
