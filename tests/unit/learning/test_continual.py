"""Replay: a fair sample of the past, and what it is for."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import Corrupt
from shared.learning.continual import ReplayBuffer
from shared.learning.hyperparameters import TrainSettings
from shared.learning.models import initial_state
from shared.learning.spec import new_spec
from shared.learning.train import FloatLearner, evaluate, fit
from tests.unit.learning.pictures import pictures


def numbered(count: int, start: int = 0) -> tuple[np.ndarray, np.ndarray]:
    values = np.arange(start, start + count)
    return values.astype(np.float32).reshape(-1, 1), values.astype(np.int64)


@given(st.integers(1, 20), st.lists(st.integers(0, 30), max_size=5), st.integers(0, 2**32 - 1))
def test_it_never_outgrows_its_capacity_and_holds_only_what_it_saw(capacity: int, sizes: list[int], seed: int) -> None:
    rng, buffer, total = np.random.default_rng(seed), ReplayBuffer.empty(capacity, (1,)), 0
    for size in sizes:
        buffer = buffer.add(*numbered(size, total), rng)
        total += size
    assert len(buffer) == min(capacity, total)
    assert len(set(buffer.y.tolist())) == len(buffer)
    assert all(0 <= label < total for label in buffer.y)
    assert np.array_equal(buffer.x[:, 0], buffer.y)


def test_early_and_late_examples_are_kept_alike() -> None:
    rng, early = np.random.default_rng(0), 0
    for _ in range(400):
        buffer = ReplayBuffer.empty(10, (1,)).add(*numbered(50), rng).add(*numbered(50, 50), rng)
        early += int((buffer.y < 50).sum())
    assert 0.45 < early / 4000 < 0.55


def test_adding_makes_a_new_buffer() -> None:
    empty = ReplayBuffer.empty(4, (1,))
    full = empty.add(*numbered(9), np.random.default_rng(0))
    kept = full.x.copy()
    full.add(*numbered(50, 100), np.random.default_rng(1))
    assert len(empty) == 0
    assert np.array_equal(full.x, kept)


def test_a_source_is_absorbed_once() -> None:
    rng = np.random.default_rng(0)
    once = ReplayBuffer.empty(5, (1,)).add(*numbered(20), rng, source="a")
    assert once.add(*numbered(20), rng, source="a") is once
    assert once.add(*numbered(20), rng, source="b").seen == 40


def test_it_comes_back_from_its_bytes() -> None:
    buffer = ReplayBuffer.empty(5, (1,)).add(*numbered(20), np.random.default_rng(0), source="a")
    again = ReplayBuffer.from_bytes(buffer.to_bytes())
    assert (again.capacity, again.seen, again.sources) == (5, 20, ("a",))
    assert np.array_equal(again.x, buffer.x)
    assert np.array_equal(again.y, buffer.y)


@pytest.mark.parametrize("cut", [0, 4, 60, -1])
def test_damaged_bytes_are_told(cut: int) -> None:
    data = ReplayBuffer.empty(5, (1,)).add(*numbered(20), np.random.default_rng(0)).to_bytes()
    with pytest.raises(Corrupt):
        ReplayBuffer.from_bytes(data[:cut])


@pytest.mark.slow
def test_naive_fine_tuning_forgets_and_replay_does_not() -> None:
    spec = new_spec("cnn-small", {"shape": "1x12x12", "width": 8})
    learner, rng = FloatLearner(spec), np.random.default_rng(0)
    x, y = pictures(600)
    old, new = y < 5, y >= 5
    settings = TrainSettings(lr=0.02, epochs=4)
    start = fit(learner, initial_state(spec, rng), x[old], y[old], settings=settings, rng=rng).state
    test_x, test_y = pictures(300, seed=7)
    past = test_y < 5

    def skill(memory: ReplayBuffer | None) -> tuple[float, float]:
        learner.load(fit(learner, start, x[new], y[new], settings=settings, rng=rng, memory=memory).state)
        return (
            evaluate(learner.module, test_x[past], test_y[past]).accuracy,
            evaluate(learner.module, test_x[~past], test_y[~past]).accuracy,
        )

    naive_old, naive_new = skill(None)
    memory = ReplayBuffer.empty(60, x.shape[1:]).add(x[old], y[old], rng)
    replay_old, replay_new = skill(memory)
    assert naive_new > 0.9
    assert naive_old < 0.3
    assert replay_old > 0.85
    assert replay_new > 0.85
