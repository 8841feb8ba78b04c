"""Deltas of a model: what receivers hold follows what the sender has, and nothing else than a delta of their arrays is applied."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from shared.broadcast import STEP, Arrays, Delta, apply, difference
from shared.errors import Malformed

Model = dict[str, NDArray[Any]]


def model(seed: int = 0, scale: float = 1.0) -> Model:
    rng = np.random.default_rng(seed)
    return {
        "w": (scale * rng.standard_normal((60, 50))).astype(np.float32),
        "steps": np.array([seed, 7], dtype=np.int64),
        "half": (scale * rng.standard_normal(10)).astype(np.float16),
        "bias": scale * np.array(rng.standard_normal(), dtype=np.float64),
        "none": np.zeros((0, 3), dtype=np.float32),
    }


def moved(base: Arrays, seed: int, size: float = 0.01) -> Model:
    change = model(seed, size)
    return {
        name: np.asarray(array + change[name], dtype=array.dtype) if array.dtype.kind == "f" else change[name]
        for name, array in base.items()
    }


def the_delta(new: Arrays, held: Arrays) -> Delta:
    delta = difference(new, held)
    assert delta is not None
    return delta


def test_a_receiver_comes_within_half_a_step_of_the_model_and_integers_are_exact() -> None:
    held = model()
    new = moved(held, 1)
    got = apply(held, the_delta(new, held))
    step = STEP * np.sqrt(np.mean((new["w"].astype(float) - held["w"]) ** 2))
    assert np.abs(got["w"].astype(float) - new["w"]).max() <= 0.51 * step
    assert (got["steps"] == new["steps"]).all()
    assert {name: (array.dtype, array.shape) for name, array in got.items()} == {
        name: (array.dtype, array.shape) for name, array in new.items()
    }


def test_a_change_costs_about_three_bits_an_element() -> None:
    rng = np.random.default_rng(0)
    held = {"w": rng.standard_normal(200_000).astype(np.float32)}
    new = {"w": held["w"] + 0.01 * rng.standard_normal(200_000).astype(np.float32)}
    assert len(the_delta(new, held).data) * 8 < 3.2 * 200_000


def test_what_rounding_took_is_in_the_next_broadcast() -> None:
    """A model that stands still is reached; one that moves is never further off than a part of its last move."""
    held, goal = model(), moved(model(), 1, 1.0)
    for _ in range(40):
        held = apply(held, the_delta(goal, held))
    for name, array in goal.items():
        assert np.allclose(held[name], array, rtol=1e-3, atol=1e-6)
    for seed in range(2, 30):
        goal = moved(goal, seed)
        held = apply(held, the_delta(goal, held))
        assert np.linalg.norm(held["w"] - goal["w"]) < 0.35 * 0.01 * np.sqrt(3000)


def test_a_spike_far_beyond_the_steps_arrives_over_many_broadcasts() -> None:
    held = {"w": np.zeros(100_000, np.float32)}
    goal = {"w": held["w"].copy()}
    goal["w"][5] = 1000.0
    for _ in range(25):
        held = {"w": apply(held, the_delta(goal, held))["w"]}
    assert held["w"][5] == pytest.approx(1000.0, rel=1e-2)


def test_equal_models_differ_by_nothing() -> None:
    held = model()
    delta = the_delta(held, held)
    assert set(delta.steps) == {0.0}
    assert len(delta.data) < 100
    got = apply(held, delta)
    assert all((got[name] == array).all() for name, array in held.items())


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_model_that_is_not_finite_goes_whole(value: float) -> None:
    new = model(1)
    new["w"][3, 3] = value
    assert difference(new, model()) is None
    assert difference(model(), new) is None


OTHERS: dict[str, Model] = {
    "another name": {("v" if name == "w" else name): array for name, array in model().items()},
    "another order": dict(reversed(model().items())),
    "another shape": {**model(), "w": np.zeros((50, 60), np.float32)},
    "another dtype": {**model(), "w": np.zeros((60, 50), np.float64)},
    "one more": {**model(), "v": np.zeros(1)},
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_other_arrays_go_whole(other: Model) -> None:
    assert difference(other, model()) is None


DELTA = the_delta(moved(model(), 1), model())
WRONG = {
    "one step less": replace(DELTA, steps=DELTA.steps[:-1]),
    "one step more": replace(DELTA, steps=(*DELTA.steps, 1.0)),
    "a negative step": replace(DELTA, steps=(-1.0, *DELTA.steps[1:])),
    "a step that is no number": replace(DELTA, steps=(float("nan"), *DELTA.steps[1:])),
    "an infinite step": replace(DELTA, steps=(float("inf"), *DELTA.steps[1:])),
    "no data": replace(DELTA, data=b""),
    "cut data": replace(DELTA, data=DELTA.data[:-3]),
    "data behind it": replace(DELTA, data=DELTA.data + b"x"),
    "too long": replace(DELTA, data=zstandard.compress(bytes(10_000))),
    "a frame that unpacks to gigabytes": replace(DELTA, data=zstandard.compress(bytes(1 << 26)) * 64),
    "a frame of unknown size": replace(DELTA, data=zstandard.ZstdCompressor(write_content_size=False).compress(b"abc")),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_another_delta_is_not_applied(wrong: Delta) -> None:
    with pytest.raises(Malformed):
        apply(model(), wrong)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200), st.lists(st.floats(), max_size=6))
def test_whatever_arrives_is_applied_whole_or_refused(data: bytes, steps: list[float]) -> None:
    held = {"w": np.zeros(4, np.float32), "n": np.zeros(1, np.int32)}
    try:
        got = apply(held, Delta(tuple(steps), data))
    except Malformed:
        return
    assert got["w"].shape == (4,)
