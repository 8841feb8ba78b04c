"""Training is a function of its arguments."""

import numpy as np
import pytest

from shared.errors import Conflict, UpdateRejected
from shared.learning.hyperparameters import TrainSettings
from shared.learning.models import initial_state
from shared.learning.spec import new_spec
from shared.learning.state import State
from shared.learning.train import FloatLearner, batches, evaluate, fit, learning_rate, refresh_statistics
from tests.unit.learning.pictures import pictures

SPEC = new_spec("cnn-small", {"shape": "1x12x12", "width": 8})
LEARNER = FloatLearner(SPEC)
START = initial_state(SPEC, np.random.default_rng(0))
X, Y = pictures(320)
RUINOUS = TrainSettings(lr=10, weight_decay=1, epochs=8)


def trained(**settings: float) -> State:
    choice = TrainSettings(**{"lr": 0.02, **settings})  # type: ignore[arg-type]
    return fit(LEARNER, START, X, Y, settings=choice, rng=np.random.default_rng(1)).state


def distance(one: State, other: State) -> float:
    return float(sum(np.square(one[name] - other[name]).sum() for name in one if "running" not in name))


def test_it_learns() -> None:
    fitted = fit(LEARNER, START, X, Y, settings=TrainSettings(lr=0.02, epochs=4), rng=np.random.default_rng(1))
    LEARNER.load(fitted.state)
    found = evaluate(LEARNER.module, *pictures(200, seed=5))
    assert found.accuracy > 0.95
    assert found.loss < 0.5
    assert 0 < found.confidence.min() <= found.confidence.max() <= 1
    assert fitted.examples == 320


def test_the_same_arguments_give_the_same_state_whatever_was_trained_before() -> None:
    first = trained()
    trained(epochs=2)
    again = trained()
    assert all(np.array_equal(first[name], again[name]) for name in first)


def test_training_leaves_the_start_as_it_was() -> None:
    before = {name: array.copy() for name, array in START.items()}
    trained()
    assert all(np.array_equal(before[name], START[name]) for name in START)


def test_the_proximal_term_holds_the_state_near_its_start() -> None:
    assert distance(trained(proximal_mu=10.0), START) < 0.5 * distance(trained(), START)


def test_answers_outside_the_label_set_are_not_unlearned() -> None:
    few = Y < 2
    settings = TrainSettings(lr=0.02, epochs=3)
    held = TrainSettings(lr=0.02, epochs=3, label_set=(0, 1))
    free = fit(LEARNER, START, X[few], Y[few], settings=settings, rng=np.random.default_rng(1)).state
    kept = fit(LEARNER, START, X[few], Y[few], settings=held, rng=np.random.default_rng(1)).state
    bias = max(name for name in START if name.endswith("bias"))
    assert free[bias][2:].max() < -1e-4
    assert np.abs(kept[bias][2:]).max() < 1e-4


def test_divergence_is_told_and_not_sent() -> None:
    with pytest.raises(UpdateRejected, match="lower lr"):
        fit(LEARNER, START, X, Y, settings=RUINOUS, rng=np.random.default_rng(1))


def test_one_example_is_not_enough() -> None:
    with pytest.raises(Conflict):
        fit(LEARNER, START, X[:1], Y[:1], settings=TrainSettings(), rng=np.random.default_rng(1))


@pytest.mark.parametrize("count", [2, 31, 32, 33, 64, 65])
def test_every_example_is_used_once_an_epoch_and_no_batch_has_one(count: int) -> None:
    settings = TrainSettings(batch_size=32)
    x = np.arange(count, dtype=np.float32).reshape(-1, 1, 1, 1)
    found = list(batches(x, Y[:count], settings, np.random.default_rng(0), None))
    assert sorted(np.concatenate([images.numpy().ravel() for images, _ in found])) == list(range(count))
    assert min(len(labels) for _, labels in found) > 1


@pytest.mark.parametrize(
    "values",
    [{"lr": 0}, {"epochs": 0}, {"batch_size": 1}, {"momentum": 1.0}, {"proximal_mu": -1}, {"lr": float("nan")}],
)
def test_impossible_settings_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        TrainSettings(**values)  # type: ignore[arg-type]


def test_the_learning_rate_climbs_then_falls() -> None:
    rates = [learning_rate(1.0, epoch, 10) for epoch in range(10)]
    assert max(rates) in rates[1:4]
    assert 0 < rates[-1] < rates[4] < max(rates) <= 1


def test_statistics_are_measured_again_and_weights_stay() -> None:
    spoiled = {name: array + (5 if "running" in name else 0) for name, array in trained().items()}
    better = refresh_statistics(LEARNER, spoiled, X[:256], batch_size=16)
    assert all(np.array_equal(better[name], spoiled[name]) for name in spoiled if "running" not in name)
    assert abs(better["0.1.running_mean"]).max() < abs(spoiled["0.1.running_mean"]).max()
