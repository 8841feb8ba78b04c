"""The sum of encoded vectors decodes to the weighted mean within the stated bound, and never wraps."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from shared.errors import RoundAborted, Unsupported, UpdateRejected
from shared.secagg.masks import BLOCK_WORDS, Words
from shared.secagg.quantize import ArrayField, MetricField, Schema, add_change, decode, encode
from shared.secagg.terms import Settings

LOSS = MetricField("loss", 0.0, 20.0)


def zeros_like(arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {name: np.zeros_like(array) for name, array in arrays.items()}


def add(vectors: Iterable[Words]) -> Words:
    """Modulo 2^32, as the server does."""
    total: Words = np.add.reduce(list(vectors), dtype=np.dtype("<u4"))
    return total


@given(
    clients=st.integers(1, 40),
    bound=st.sampled_from([1e-3, 1.0, 8.0, 1e6]),
    max_weight=st.sampled_from([1, 7, 1000, 1_000_000]),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_mean_comes_back_within_the_stated_bound(clients: int, bound: float, max_weight: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    schema = Schema(clients, max_weight, (LOSS,), (ArrayField("w", (3, 5), "float64", bound),))
    weights = rng.integers(1, max_weight, size=clients, endpoint=True)
    values = rng.uniform(-bound, bound, size=(clients, 3, 5))
    values[:, 0, 0] = bound  # everybody at the edge: the case that would wrap
    values[:, 0, 1] = -bound
    losses = rng.uniform(0, 20, size=clients)
    base = {"w": np.zeros((3, 5))}
    total = add(
        encode(schema, weight, {"loss": loss}, {"w": value}, base)
        for weight, loss, value in zip(weights, losses, values, strict=True)
    )
    result = decode(schema, total, clients)
    weight = int(weights.sum())
    assert result.weight == weight
    mean = np.average(values, axis=0, weights=weights)
    slack = 1e-12
    assert abs(result.changes["w"] - mean).max() <= schema.element_error(bound, weight) + slack * bound
    assert (
        abs(result.metrics["loss"] - np.average(losses, weights=weights))
        <= schema.metric_error(LOSS, weight) + slack * 20
    )


@given(st.integers(1, 1 << 20))
def test_the_extreme_sum_stays_inside_the_modulus(clients: int) -> None:
    schema = Schema(clients, 1, (MetricField("m", 0, 1),), (ArrayField("w", (2,), "float32", 1.0),))
    words = encode(schema, 1, {"m": 1.0}, {"w": np.array([1, -1], "f4")}, {"w": np.zeros(2, "f4")})
    assert int(words[2]) * clients < 2**32
    largest, smallest = (int(value) for value in words[3:].view("<i4"))
    assert largest == -smallest
    assert largest * clients < 2**31


def test_a_sum_that_fits_its_schema_is_exact_for_one_client_at_full_weight() -> None:
    schema = Schema(1, 10, (), (ArrayField("w", (3,), "float32", 4.0),))
    array = np.array([4.0, -4.0, 0.0], "f4")
    result = decode(schema, encode(schema, 10, {}, {"w": array}, {"w": np.zeros(3, "f4")}), 1)
    assert np.array_equal(result.changes["w"], array)


BAD_WEIGHTS = {"above max_weight": 101, "negative": -1, "a fraction": 1.5, "NaN": math.nan, "infinite": math.inf}


@pytest.mark.parametrize("weight", BAD_WEIGHTS.values(), ids=BAD_WEIGHTS)
def test_a_weight_that_is_not_a_count_up_to_the_maximum_is_refused(weight: float) -> None:
    with pytest.raises(UpdateRejected, match="weight"):
        encode(Schema(3, 100), weight, {}, {}, {})


def test_flower_weakness_examples_above_the_maximum_give_a_wrong_sum_here_they_are_refused() -> None:
    schema = Schema(3, 10, (), (ArrayField("w", (1,), "float32", 20.0),))
    with pytest.raises(UpdateRejected, match="max_weight 10"):
        encode(schema, 11, {}, {"w": np.array([12], "f4")}, {"w": np.zeros(1, "f4")})


BAD_ARRAYS = {
    "NaN": (np.array([0, np.nan], "f4"), "not finite"),
    "infinite": (np.array([0, -np.inf], "f4"), "not finite"),
    "out of range": (np.array([0, 8.001], "f4"), "outside its range"),
    "another shape": (np.zeros(3, "f4"), "shape"),
    "another rank": (np.zeros((2, 1), "f4"), "shape"),
    "integers for floats": (np.zeros(2, "i4"), "int32"),
    "complex": (np.zeros(2, "c8"), "complex64"),
    "text": (np.array(["a", "b"]), "<U1"),
}


@pytest.mark.parametrize(("array", "reason"), BAD_ARRAYS.values(), ids=BAD_ARRAYS)
def test_an_array_outside_its_schema_is_refused_and_its_values_are_not_told(array: NDArray[Any], reason: str) -> None:
    schema = Schema(3, 10, (), (ArrayField("w", (2,), "float32", 8.0),))
    with pytest.raises(UpdateRejected, match=reason) as caught:
        encode(schema, 1, {}, {"w": array}, {"w": np.zeros(2, "f4")})
    assert "8.001" not in str(caught.value)


def test_a_bad_value_in_the_last_block_is_found() -> None:
    size = 2 * BLOCK_WORDS + 7
    schema = Schema(3, 10, (), (ArrayField("w", (size,), "float32", 8.0),))
    array = np.zeros(size, "f4")
    array[-1] = np.nan
    with pytest.raises(UpdateRejected):
        encode(schema, 1, {}, {"w": array}, {"w": np.zeros(size, "f4")})


@pytest.mark.parametrize(
    "arrays",
    [{}, {"v": np.zeros(2, "f4")}, {"w": np.zeros(2, "f4"), "v": np.zeros(2, "f4")}],
    ids=["none", "other", "more"],
)
def test_an_update_with_other_arrays_is_refused(arrays: dict[str, NDArray[Any]]) -> None:
    schema = Schema(3, 10, (), (ArrayField("w", (2,), "float32", 8.0),))
    with pytest.raises(UpdateRejected, match="exactly the arrays"):
        encode(schema, 1, {}, arrays, {"w": np.zeros(2, "f4")})


@pytest.mark.parametrize(
    "metrics", [{}, {"loss": math.nan}, {"loss": 20.01}, {"loss": -0.1}, {"loss": math.inf}], ids=str
)
def test_a_metric_that_is_missing_or_outside_its_range_is_refused(metrics: dict[str, float]) -> None:
    with pytest.raises(UpdateRejected, match="loss"):
        encode(Schema(3, 10, (LOSS,)), 1, metrics, {}, {})


IMPOSSIBLE = {
    "a weight whose sum wraps": lambda: Schema(3, 2**32 // 3 + 1),
    "no clients": lambda: Schema(0, 1),
    "weight zero": lambda: Schema(3, 0),
    "bool arrays": lambda: ArrayField("w", (1,), "bool", 1.0),
    "64-bit unsigned arrays": lambda: ArrayField("w", (1,), "uint64", 1.0),
    "range zero": lambda: ArrayField("w", (1,), "float32", 0.0),
    "infinite range": lambda: ArrayField("w", (1,), "float32", math.inf),
    "metric bounds reversed": lambda: MetricField("m", 1.0, 0.0),
    "metric bounds NaN": lambda: MetricField("m", math.nan, 1.0),
    "one name twice": lambda: Schema(3, 1, (LOSS, LOSS)),
    "a setting whose range is NaN": lambda: Settings(float_range=math.nan),
    "the weight as a metric": lambda: Settings(metrics=(MetricField("num-examples", 0, 1),)),
}


@pytest.mark.parametrize("build", IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_a_schema_that_could_go_wrong_is_refused_when_it_is_made(build: Any) -> None:
    with pytest.raises(Unsupported):
        build()


def test_a_sum_with_another_count_weight_or_size_is_not_decoded() -> None:
    schema = Schema(4, 10, (), (ArrayField("w", (1,), "float32", 1.0),))
    words = encode(schema, 1, {}, {"w": np.ones(1, "f4")}, {"w": np.zeros(1, "f4")})
    noise = np.array([1, 1, 2**30], "<u4")
    heavy = np.array([1, 11, 0], "<u4")
    nothing = np.array([1, 0, 0], "<u4")
    for sum_, count in ((words, 2), (words[:2], 1), (noise, 1), (heavy, 1), (nothing, 1)):
        with pytest.raises(RoundAborted):
            decode(schema, sum_, count)


def test_integers_come_back_as_the_nearest_integer_of_their_mean() -> None:
    settings = Settings(max_weight=10)
    base = {"n": np.array([2**40, 5], "i8"), "b": np.array([250, 3], "u1")}
    schema = settings.schema(2, base)
    sent = [{"n": base["n"] + 40, "b": np.array([255, 0], "u1")}, {"n": base["n"] + 20, "b": np.array([255, 3], "u1")}]
    total = add(encode(schema, w, {}, arrays, base) for w, arrays in zip((3, 1), sent, strict=True))
    changes = decode(schema, total, 2).changes
    back = {field.name: add_change(field, base[field.name], changes[field.name]) for field in schema.arrays}
    assert back["n"].tolist() == [2**40 + 35, 40]
    assert back["b"].tolist() == [255, 1]
    assert [str(array.dtype) for array in back.values()] == ["int64", "uint8"]


def test_an_integer_change_that_would_overflow_64_bits_is_refused() -> None:
    base = {"n": np.array([-(2**63)], "i8")}
    with pytest.raises(UpdateRejected):
        encode(Settings().schema(3, base), 1, {}, {"n": np.array([2**63 - 1], "i8")}, base)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int32"])
def test_a_new_array_keeps_the_dtype_and_shape_of_the_old_one(dtype: str) -> None:
    base = np.ones((2, 1), dtype)
    moved = add_change(ArrayField("w", (2, 1), dtype, 1.0), base, np.full((2, 1), 0.25))
    assert (moved.dtype, moved.shape) == (base.dtype, base.shape)


def test_scalars_and_empty_arrays_have_a_place() -> None:
    base = {"s": np.array(1.5), "e": np.zeros((0, 4), "f4")}
    schema = Settings(max_weight=1).schema(1, base)
    changes = decode(schema, encode(schema, 1, {}, {"s": np.array(2.5), "e": base["e"]}, base), 1).changes
    assert changes["s"].shape == ()
    assert changes["s"] == pytest.approx(1.0, abs=1e-8)
    assert changes["e"].shape == (0, 4)


def test_ranges_follow_the_first_pattern_that_matches() -> None:
    settings = Settings(float_range=2.0, integer_range=9.0, ranges={"*.running_*": 1000.0, "*": 5.0})
    base = {"bn.running_var": np.zeros(1, "f4"), "w": np.zeros(1, "f4")}
    assert [field.bound for field in settings.schema(3, base).arrays] == [1000.0, 5.0]
    plain = Settings(float_range=2.0, integer_range=9.0).schema(3, {"w": np.zeros(1), "n": np.zeros(1, "i8")})
    assert [field.bound for field in plain.arrays] == [2.0, 9.0]


def test_both_ends_build_one_digest_and_any_difference_changes_it() -> None:
    base = {"w": np.zeros(2, "f4")}
    settings = Settings(metrics=(LOSS,), ranges={"w": 3.0})
    again = Settings.from_fields(settings.to_fields())
    digest = settings.schema(3, base).digest
    assert again.schema(3, base).digest == digest
    others = [
        settings.schema(4, base),
        settings.schema(3, {"w": np.zeros(2, "f8")}),
        settings.schema(3, {"w": np.zeros(3, "f4")}),
        settings.schema(3, {"v": np.zeros(2, "f4")}),
        Settings(metrics=(LOSS,)).schema(3, base),
        Settings(metrics=(LOSS,), ranges={"w": 3.0}, max_weight=9).schema(3, base),
    ]
    assert digest not in {other.digest for other in others}


def test_flower_weakness_eight_bytes_a_parameter_here_four() -> None:
    base = {"w": np.zeros(1000, "f4")}
    schema = Settings().schema(3, base)
    assert encode(schema, 1, {}, base, zeros_like(base)).nbytes == 4 * 1000 + 8
