"""Drift is seen when it is there, and only then."""

import numpy as np

from shared.learning.drift import drift_score, input_statistics
from tests.unit.learning.pictures import pictures


def statistics(count: int, *, seed: int, dimmer: float = 1.0) -> np.ndarray:
    return input_statistics(pictures(count, seed=seed)[0] * np.float32(dimmer))


def test_the_same_distribution_scores_nothing() -> None:
    assert drift_score(statistics(400, seed=1), statistics(300, seed=2)) == 0


def test_a_dimmer_camera_is_noticed_and_the_darker_the_more() -> None:
    reference = statistics(400, seed=1)
    dim, dark = (drift_score(reference, statistics(300, seed=2, dimmer=share)) for share in (0.6, 0.3))
    assert 0.5 < dim < dark


def test_too_little_is_not_judged() -> None:
    assert drift_score(statistics(400, seed=1), statistics(10, seed=2, dimmer=0.1)) == 0


def test_a_constant_reference_does_not_divide_by_zero() -> None:
    reference, recent = np.zeros((200, 1)), np.ones((200, 1))
    assert np.isfinite(drift_score(reference, recent))
    assert drift_score(reference, recent) > 0
