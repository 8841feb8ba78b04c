"""Channels are really removed, and the removal can be repeated bit for bit from data."""

import numpy as np
import pytest

from shared.errors import ConfigError, UpdateRejected
from shared.learning.models import build, example_batch, initial_state, load_state, state_of
from shared.learning.prune import prune, size_of
from shared.learning.spec import ModelSpec, new_spec
from shared.learning.train import predict

SPEC = new_spec("cnn-small", {"shape": "1x12x12"})
STATE = initial_state(SPEC, np.random.default_rng(0))


def answers(spec: ModelSpec, state: dict[str, np.ndarray]) -> np.ndarray:
    module = build(spec)
    load_state(module, state)
    module.eval()
    x = np.random.default_rng(5).random((4, *spec.schema.shape), dtype=np.float32)
    return predict(module, x)


def widths(spec: ModelSpec) -> list[int]:
    return [len(array) for array in state_of(build(spec)).values() if array.ndim == 4]


@pytest.mark.parametrize(
    ("ratio", "round_to", "left"),
    [(0.4, 8, [8, 16, 40]), (0.5, 8, [8, 16, 32]), (0.3, 4, [12, 24, 44]), (0.9, 8, [8, 8, 8])],
)
def test_so_many_channels_are_left(ratio: float, round_to: int, left: list[int]) -> None:
    spec, _ = prune(SPEC, STATE, ratio, round_to=round_to)
    assert widths(spec) == left


def test_the_history_rebuilds_the_same_network_on_another_machine() -> None:
    spec, state = prune(SPEC, STATE, 0.4)
    again = ModelSpec.from_json(spec.to_json())
    assert np.array_equal(answers(spec, state), answers(again, state))
    assert len(state["0.0.weight"]) < len(STATE["0.0.weight"])


def test_kept_channels_keep_their_weights_bit_for_bit() -> None:
    spec, state = prune(SPEC, STATE, 0.4)
    gone = {step.layer: step.channels for step in spec.history}
    kept = np.setdiff1d(np.arange(16), gone["0.0"])
    assert np.array_equal(state["0.0.weight"], STATE["0.0.weight"][kept])
    assert np.array_equal(state["0.1.running_var"], STATE["0.1.running_var"][kept])


def test_channels_that_do_nothing_go_first_and_nothing_changes() -> None:
    state = {name: array.copy() for name, array in STATE.items()}
    for name in ("0.0.weight", "0.1.weight", "0.1.bias"):
        state[name][4:12] = 0
    for name in ("1.0.weight",):
        state[name][:, 4:12] = 0
    spec, smaller = prune(SPEC, state, 0.4)
    first = next(step for step in spec.history if step.layer == "0.0")
    assert set(first.channels) == set(range(4, 12))
    assert smaller["0.0.weight"].shape[0] == 8


def test_pruning_twice_extends_the_history() -> None:
    once, state = prune(SPEC, STATE, 0.3)
    twice, smaller = prune(once, state, 0.4)
    assert twice.history[: len(once.history)] == once.history
    assert len(twice.history) > len(once.history)
    assert answers(twice, smaller).shape == (4, 10)
    assert size_of(SPEC).macs > size_of(once).macs > size_of(twice).macs
    assert size_of(SPEC).parameters > size_of(once).parameters > size_of(twice).parameters


def test_pruning_is_deterministic() -> None:
    assert prune(SPEC, STATE, 0.4)[0] == prune(SPEC, STATE, 0.4)[0]


def test_the_number_of_answers_stays() -> None:
    spec, _ = prune(SPEC, STATE, 0.9)
    assert build(spec)(example_batch(spec.schema)).shape == (2, 10)


@pytest.mark.parametrize("ratio", [0.0, 1.0, -1.0, float("nan"), 0.01])
def test_a_ratio_that_removes_nothing_or_everything_is_refused(ratio: float) -> None:
    with pytest.raises(ConfigError):
        prune(SPEC, STATE, ratio)


def test_weights_of_another_model_are_rejected() -> None:
    with pytest.raises(UpdateRejected):
        prune(SPEC, {"a": np.zeros(1, np.float32)}, 0.4)
