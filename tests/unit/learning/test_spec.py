"""model.json: the same spec comes back, and nothing else is taken."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import ConfigError, Malformed
from shared.learning.spec import InputSchema, ModelSpec, PruneStep, Recipe, new_spec

SPEC = new_spec("cnn-small", {"width": 8}).pruned((PruneStep("1.0", True, (0, 3)),))

steps = st.builds(
    PruneStep,
    st.text("abc.0123", min_size=1, max_size=12),
    st.booleans(),
    st.lists(st.integers(0, 500), min_size=1, max_size=9, unique=True).map(tuple),
)
specs = st.builds(
    ModelSpec,
    st.just("cnn-small"),
    st.builds(
        InputSchema,
        st.lists(st.integers(1, 30), min_size=1, max_size=4).map(tuple),
        st.lists(st.text(max_size=5), min_size=2, max_size=5, unique=True).map(tuple),
        mean=st.floats(-9, 9),
        std=st.floats(0.1, 9),
    ),
    st.dictionaries(st.text(max_size=5), st.booleans() | st.integers() | st.text(max_size=5)),
    st.lists(steps, max_size=3).map(tuple),
    st.builds(Recipe, st.sampled_from([7, 8])),
)


@given(specs)
def test_a_spec_comes_back_from_its_json(spec: ModelSpec) -> None:
    assert ModelSpec.from_json(spec.to_json()) == spec


def test_equal_specs_give_equal_text() -> None:
    one = ModelSpec("f", SPEC.schema, {"a": 1, "b": 2})
    other = ModelSpec("f", SPEC.schema, {"b": 2, "a": 1})
    assert one.to_json() == other.to_json()


WRITTEN = {  # as earlier versions wrote them: specs are compared as text, in jobs and on devices
    "the default": (
        new_spec("cnn-small", {}),
        '{"arguments":{},"factory":"cnn-small","format":1,"history":[],"recipe":{"weight_bits":7},"schema":{"classes":["0","1","2",'
        '"3","4","5","6","7","8","9"],"dtype":"float32","mean":0.0,"shape":[1,28,28],"std":1.0}}',
    ),
    "a pruned one": (
        new_spec("cnn-small", {"shape": "3x8x9", "classes": "cat, dog", "width": 24}).pruned(
            (PruneStep("0.0", True, (1,)),)
        ),
        '{"arguments":{"width":24},"factory":"cnn-small","format":1,"history":[{"channels":[1],"layer":"0.0","outputs":true}],'
        '"recipe":{"weight_bits":7},"schema":{"classes":["cat","dog"],"dtype":"float32","mean":0.0,"shape":[3,8,9],"std":1.0}}',
    ),
}


@pytest.mark.parametrize(("spec", "text"), WRITTEN.values(), ids=WRITTEN.keys())
def test_the_text_of_a_spec_stays_what_it_was_byte_for_byte(spec: ModelSpec, text: str) -> None:
    assert spec.to_json() == text
    assert ModelSpec.from_json(text) == spec


def test_mean_and_std_may_be_one_for_each_channel() -> None:
    spec = new_spec("cnn-small", {"shape": "3x8x9", "mean": "0.485, 0.456, 0.406", "std": 0.25})
    assert (spec.schema.mean, spec.schema.std) == ((0.485, 0.456, 0.406), 0.25)
    assert '"mean":[0.485,0.456,0.406]' in spec.to_json()
    assert ModelSpec.from_json(spec.to_json()) == spec
    hash(spec.schema)


def schema_with(**changes: Any) -> str:
    return changed(schema={"shape": [3, 4, 4], "classes": ["a", "b"], **changes})


def changed(**changes: Any) -> str:
    return json.dumps({**json.loads(SPEC.to_json()), **changes})


REFUSED = {
    "not JSON": "{",
    "a list": "[]",
    "nothing": "{}",
    "an unknown key": changed(code="import os"),
    "another format": changed(format=2),
    "a factory with a path in it": changed(factory="../evil"),
    "a list as an argument": changed(arguments={"width": [8]}),
    "NaN as an argument": '{"factory":"f","schema":{"shape":[1],"classes":["a","b"]},"arguments":{"w":NaN}}',
    "a negative axis": changed(schema={"shape": [1, -28], "classes": ["a", "b"]}),
    "an enormous shape": changed(schema={"shape": [1 << 20, 1 << 20], "classes": ["a", "b"]}),
    "one class": changed(schema={"shape": [1], "classes": ["a"]}),
    "a class twice": changed(schema={"shape": [1], "classes": ["a", "a"]}),
    "another dtype": changed(schema={"shape": [1], "classes": ["a", "b"], "dtype": "float64"}),
    "means for other channels": schema_with(mean=[0.1, 0.2]),
    "no means": schema_with(mean=[]),
    "a mean that is a word": schema_with(mean="grey"),
    "a mean that is a truth value": schema_with(mean=[True, False, True]),
    "nested means": schema_with(mean=[[0.1], [0.2], [0.3]]),
    "a channel without spread": schema_with(std=[1, 0, 1]),
    "a negative spread": schema_with(std=-1),
    "a channel removed twice": changed(history=[{"layer": "0", "outputs": True, "channels": [1, 1]}]),
    "a negative channel": changed(history=[{"layer": "0", "outputs": True, "channels": [-1]}]),
    "a number for a flag": changed(history=[{"layer": "0", "outputs": 1, "channels": [1]}]),
    "five-bit weights": changed(recipe={"weight_bits": 5}),
    "a deep nest": "[" * 100_000,
}


@pytest.mark.parametrize("text", REFUSED.values(), ids=REFUSED.keys())
def test_model_json_is_refused_for(text: str) -> None:
    with pytest.raises(Malformed):
        ModelSpec.from_json(text)


def test_a_job_files_arguments_make_schema_and_factory_arguments() -> None:
    spec = new_spec("cnn-small", {"shape": "3x8x9", "classes": "cat, dog", "width": 24})
    assert spec.schema == InputSchema((3, 8, 9), ("cat", "dog"))
    assert spec.arguments == {"width": 24}


IMPOSSIBLE = [
    {"shape": "28by28"},
    {"classes": 1},
    {"classes": True},
    {"shape": "0x3"},
    {"mean": "grey"},
    {"mean": True},
    {"std": "1,2"},
    {"mean": 10**400},
    {"std": 0},
]


@pytest.mark.parametrize("arguments", IMPOSSIBLE)
def test_impossible_arguments_are_named(arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        new_spec("cnn-small", arguments)
