"""Has what a device sees changed? ADWIN (Bifet and Gavaldà 2007) over simple statistics of the examples."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

MINIMUM = 60  # examples on each side; ADWIN judges nothing with less


def input_statistics(x: NDArray[np.float32]) -> NDArray[np.float64]:
    """Mean and spread of each example's values: (n, 2). Independent of any model, so comparable over months."""
    flat = x.reshape(len(x), -1).astype(np.float64)
    return np.stack([flat.mean(axis=1), flat.std(axis=1)], axis=1)


def drift_score(reference: NDArray[np.float64], recent: NDArray[np.float64], *, delta: float = 0.002) -> float:
    """0 while ADWIN sees one distribution in `reference` followed by `recent` (each (n, k)); otherwise how far the mean
    moved, in standard deviations of the reference, for the statistic that moved most. `delta` is ADWIN's chance of a
    false alarm for one statistic. Also 0 with fewer than `MINIMUM` rows on a side.
    """
    if len(reference) < MINIMUM or len(recent) < MINIMUM:
        return 0.0
    moved = [_shift(reference[:, column], recent[:, column], delta) for column in range(reference.shape[1])]
    return max(moved)


def _shift(reference: NDArray[np.float64], recent: NDArray[np.float64], delta: float) -> float:
    from river.drift import ADWIN  # 2 s to import; most rounds see nothing new

    low, high = float(reference.min()), float(reference.max())
    spread = high - low if high > low else 1.0
    detector: Any = ADWIN(delta=delta)  # type: ignore[no-untyped-call]
    found = False
    for index, value in enumerate(np.concatenate([reference, recent])):
        detector.update(float(np.clip((value - low) / spread, -1.0, 2.0)))
        found = found or (index >= len(reference) and detector.drift_detected)
    if not found:
        return 0.0
    deviation = max(float(reference.std()), 1e-6)
    return min(abs(float(recent.mean() - reference.mean())) / deviation, 1e6)
