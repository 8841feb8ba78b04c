"""One device's vector never leaves longer than its bound, whatever it holds."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from shared.errors import Unsupported, UpdateRejected
from shared.privacy.clip import MAX_TRIES, absolute, clip, round_within, rounded_bound, squared

Floats = NDArray[np.float64]


def rounding(values: Floats, rng: np.random.Generator) -> Floats:
    return np.asarray(np.floor(values + rng.random(values.size)))


vectors = st.tuples(
    st.integers(1, 400), st.floats(0.05, 300), st.integers(0, 2**32 - 1), st.sampled_from([0.0, 1e-6, 0.01, 0.6])
)


@given(vectors)
def test_a_clipped_and_rounded_vector_is_within_the_bound_and_keeps_its_direction(
    case: tuple[int, float, int, float],
) -> None:
    dimension, norm, seed, beta = case
    rng = np.random.default_rng(seed)
    values = rng.standard_cauchy(dimension)
    before = values.copy()
    factor = clip(values, norm)
    assert np.allclose(values, before * factor)
    assert np.linalg.norm(values) <= norm * (1 + 1e-12)
    bound = rounded_bound(norm, dimension, beta)
    levels = round_within(lambda: rounding(values, rng), bound)
    exact = sum(int(level) ** 2 for level in levels)
    assert squared(levels) == squared(levels.astype(np.int32)) == exact <= bound
    assert np.abs(levels).sum() <= absolute(bound, dimension) * (1 + 1e-12)
    assert np.abs(levels - values).max() < 1


@pytest.mark.parametrize(
    ("dimension", "norm", "beta"), [(64, 3.0, 0.2), (1000, 20.0, 0.05), (4096, 500.0, 0.5), (16, 0.5, 0.3)]
)
def test_rounding_stays_within_the_bound_as_often_as_promised(dimension: int, norm: float, beta: float) -> None:
    rng = np.random.default_rng(7)
    bound, tries = rounded_bound(norm, dimension, beta), 2000
    for values in (np.full(dimension, norm / math.sqrt(dimension)), rng.normal(size=dimension)):
        clip(values, norm)
        longer = sum(squared(rounding(values, rng)) > bound for _ in range(tries))
        assert longer / tries <= beta


def test_without_a_chance_to_fail_the_bound_is_the_one_that_always_holds() -> None:
    assert rounded_bound(3.0, 16, 0.0) == 49
    assert rounded_bound(100.0, 10_000, 1e-6) < rounded_bound(100.0, 10_000, 0.0)
    assert rounded_bound(0.001, 4, 0.9) <= rounded_bound(0.001, 4, 0.0)


def test_a_vector_within_its_norm_is_left_as_it_is() -> None:
    values = np.array([3.0, -4.0], dtype="f4")
    assert clip(values, 5.0) == 1.0
    assert values.tolist() == [3.0, -4.0]
    assert clip(values, 2.5) == 0.5
    assert values.tolist() == [1.5, -2.0]


@pytest.mark.parametrize("bad", [[math.nan, 1.0], [math.inf, 0.0], [1e300, 1e300]])
def test_a_vector_that_is_not_finite_is_refused_and_left_alone(bad: list[float]) -> None:
    values = np.array(bad)
    with pytest.raises(UpdateRejected, match="not finite"):
        clip(values, 1.0)
    assert np.array_equal(values, np.array(bad), equal_nan=True)


def test_levels_that_are_not_whole_are_refused() -> None:
    for bad in ([0.5], [math.nan, 1.0], [math.inf], [2.0**31], [-(2.0**31)]):
        with pytest.raises(UpdateRejected, match="not whole"):
            squared(np.array(bad))


def test_the_squared_norm_does_not_wrap() -> None:
    largest = (1 << 31) - 1
    assert squared(np.full(5, -largest)) == 5 * largest**2
    assert squared(np.zeros(0, dtype=np.int32)) == 0


def test_a_vector_that_was_not_clipped_never_leaves() -> None:
    tries = []

    def attempt() -> Floats:
        tries.append(1)
        return np.array([3.0, 4.0])

    assert round_within(attempt, 25).tolist() == [3.0, 4.0]
    tries.clear()
    with pytest.raises(UpdateRejected, match="longer than its bound"):
        round_within(attempt, 24)
    assert len(tries) == MAX_TRIES


@pytest.mark.parametrize(
    ("norm", "dimension", "beta"), [(0, 4, 0.1), (math.nan, 4, 0.1), (1, 0, 0.1), (1, 4, 1.0), (1, 4, -0.1)]
)
def test_an_impossible_bound_is_refused(norm: float, dimension: int, beta: float) -> None:
    with pytest.raises(Unsupported):
        rounded_bound(norm, dimension, beta)


@pytest.mark.parametrize("norm", [0.0, -1.0, math.nan, math.inf])
def test_an_impossible_norm_is_refused(norm: float) -> None:
    with pytest.raises(Unsupported):
        clip(np.ones(2), norm)
