"""Factories by name, and states in and out of networks."""

from collections.abc import Callable

import numpy as np
import pytest
from torch import nn

from shared.errors import Malformed, NotFound, UpdateRejected
from shared.learning.models import build, initial_state, load_state, state_of
from shared.learning.spec import ModelSpec, PruneStep, new_spec
from shared.learning.state import State, pack_state, unpack_state

SPEC = new_spec("cnn-small", {"shape": "1x12x12", "width": 8})


def test_the_default_network_has_the_size_it_says() -> None:
    module = build(new_spec("cnn-small", {}))
    assert sum(value.numel() for value in module.parameters()) == 29_434


@pytest.mark.parametrize("shape", ["1x28x28", "3x5x7", "6x1x128", "1x1x1"])
def test_it_takes_images_and_sequences(shape: str) -> None:
    spec = new_spec("cnn-small", {"shape": shape, "classes": 3, "width": 8})
    assert build(spec).eval()(np_zeros(spec)).shape == (2, 3)


def np_zeros(spec: ModelSpec):  # type: ignore[no-untyped-def]  # torch stays out of the test's imports
    from shared.learning.models import example_batch

    return example_batch(spec.schema)


def test_an_unknown_factory_lists_what_there_is() -> None:
    with pytest.raises(NotFound, match="cnn-small"):
        build(new_spec("resnet-9000", {}))


@pytest.mark.parametrize("arguments", [{"width": 12}, {"width": 1 << 20}, {"depth": 3}, {"shape": "28"}])
def test_a_factory_refuses_arguments_that_do_not_fit(arguments: dict[str, int | str]) -> None:
    with pytest.raises(Malformed):
        build(new_spec("cnn-small", arguments))


HISTORIES = {
    "a layer that is not there": PruneStep("9.9", True, (0,)),
    "something that is no layer": PruneStep("0", True, (0,)),
    "a channel beyond the layer": PruneStep("0.0", True, (8,)),
    "every channel": PruneStep("0.0", True, tuple(range(8))),
}


@pytest.mark.parametrize("step", HISTORIES.values(), ids=HISTORIES.keys())
def test_a_history_is_refused_that_removes(step: PruneStep) -> None:
    with pytest.raises(Malformed):
        build(SPEC.pruned((step,)))


def test_the_state_is_float_arrays_and_comes_back_bit_for_bit() -> None:
    module = build(SPEC)
    state = initial_state(SPEC, np.random.default_rng(3))
    load_state(module, state)
    again = state_of(module)
    assert not any("num_batches_tracked" in name for name in again)
    assert all(np.array_equal(again[name], state[name]) for name in state)
    assert unpack_state(pack_state(state)).keys() == state.keys()


def test_a_state_is_a_copy_that_later_training_does_not_touch() -> None:
    module = build(SPEC)
    state = state_of(module)
    name = next(iter(state))
    state[name][...] = 7
    assert not (state_of(module)[name] == 7).all()


def test_fresh_weights_depend_on_the_generator_alone() -> None:
    one, same, other = (initial_state(SPEC, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert all(np.array_equal(one[name], same[name]) for name in one)
    assert any(not np.array_equal(one[name], other[name]) for name in one)


def without_one(state: State) -> None:
    state.pop("0.0.weight")


def with_another(state: State) -> None:
    state["extra"] = np.zeros(1, np.float32)


def reshaped(state: State) -> None:
    state["0.0.weight"] = state["0.0.weight"].reshape(-1)


def poisoned(state: State) -> None:
    state["0.0.weight"][0] = np.nan


def doubled(state: State) -> None:
    state["0.0.weight"] = state["0.0.weight"].astype(np.float64)


@pytest.mark.parametrize("harm", [without_one, with_another, reshaped, poisoned, doubled])
def test_a_bad_state_is_rejected_and_changes_nothing(harm: Callable[[State], None]) -> None:
    module: nn.Module = build(SPEC)
    before = state_of(module)
    state = initial_state(SPEC, np.random.default_rng(0))
    harm(state)
    with pytest.raises(UpdateRejected):
        load_state(module, state)
    after = state_of(module)
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_a_variance_that_rounding_left_below_zero_is_taken_as_zero() -> None:
    module = build(SPEC)
    state = state_of(module)
    state["0.1.running_var"][0] = -1e-7
    load_state(module, state)
    assert state_of(module)["0.1.running_var"][0] == 0


@pytest.mark.parametrize("data", [b"", b"junk", pack_state({"a": np.ones(3, np.float32)})[:-1]])
def test_truncated_or_foreign_weights_are_rejected(data: bytes) -> None:
    with pytest.raises(UpdateRejected):
        unpack_state(data)
