"""The sum of encoded vectors decodes to the weighted mean of the rounded ones, bit for bit; it is near the true one, and never
wraps.
"""

import math
import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from shared.errors import RoundAborted, UpdateRejected
from shared.secagg.packing import Words
from shared.secagg.quantize import WIDEST_MEAN_SQUARE, Total, Update, add_change, decode, encode
from shared.secagg.rotation import Rotation
from shared.secagg.schema import BITS, ArrayField, Schema
from shared.secagg.terms import CLIPS, Settings
from tests.unit.secagg.vectors import LOSS, ROTATION, Values, plain, schema_of, zeros_like


def add(schema: Schema, vectors: Iterable[Words]) -> Words:
    """As the server does: packed on the way, with noise in the bits that are not used."""
    total = schema.layout.zeros()
    total += np.uint64((0xA5A5A5A5A5A5A5A5 << schema.layout.used) & (2**64 - 1))
    for vector in vectors:
        total += schema.layout.unpack(schema.layout.pack(vector))
    return total


def levels(schema: Schema, vector: Words) -> NDArray[np.int64]:
    """The rounded elements of one vector, as integers."""
    return schema.layout.split(vector)[schema.exact * schema.digits :].astype(np.int64)


def meant(schema: Schema, elements: NDArray[np.int64], weight: int) -> NDArray[Any]:
    """What a sum of levels stands for, one array of scale 1; of few devices float32 holds it exactly."""
    kind = "f4" if schema.bits <= 16 else "f8"
    values = elements.astype(kind)
    values *= schema.clip / schema.levels
    if schema.rotation:
        values = Rotation(bytes.fromhex(schema.rotation), len(values), kind).backward(values)
    values *= schema.unit_weight / weight * schema.arrays[0].scale
    return values


# ---- exactness


@settings(max_examples=50, deadline=None)
@given(
    clients=st.integers(1, 20),
    bits=st.sampled_from([*BITS, 26]),
    size=st.integers(1, 300),
    rotation=st.sampled_from(["", ROTATION]),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_sum_decodes_to_the_weighted_mean_of_the_rounded_vectors_bit_for_bit(
    clients: int, bits: int, size: int, rotation: str, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    schema = schema_of(clients, bits, size, rotation)
    weights = rng.integers(1, 1000, clients, endpoint=True)
    vectors = [plain(schema, {"w": rng.standard_normal(size).astype("f4")}, int(weight)) for weight in weights]
    result = decode(schema, add(schema, vectors), clients)
    exact = sum(levels(schema, vector) for vector in vectors)
    assert isinstance(exact, np.ndarray)
    assert abs(exact).max() < 1 << (schema.modulus_bits - 1)
    assert (result.count, result.weight) == (clients, int(weights.sum()))
    assert np.array_equal(result.changes["w"], meant(schema, exact, int(weights.sum())))


@pytest.mark.parametrize("bits", [*BITS, 22])
@pytest.mark.parametrize("clients", [1, 2, 3, 4, 5, 16, 17, 100, 1000])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_extreme_sum_does_not_wrap(bits: int, clients: int, sign: int) -> None:
    """Everybody at the largest level, of the largest weight, with every metric and integer at its end."""
    fields = (ArrayField("w", (3,), "float32", 1.0), ArrayField("n", (2,), "int32", 7.0))
    schema = Schema(clients, bits, (1 << 31) - 1, (LOSS,), fields)
    arrays = {"w": np.full(3, sign * 1e6, "f4"), "n": np.full(2, sign * 7, "i4")}
    vector = plain(schema, arrays, schema.max_weight, {"loss": 20.0 if sign > 0 else 0.0})
    assert (levels(schema, vector) == sign * schema.levels).all()
    sent = schema.layout.unpack(schema.layout.pack(vector))
    total = decode(schema, sent * np.uint64(clients), clients)
    assert total.weight == clients * schema.max_weight
    assert np.allclose(total.changes["w"], sign * schema.unit_weight / schema.max_weight, rtol=1e-6)
    assert total.changes["n"] == pytest.approx(sign * 7.0)
    assert total.metrics["loss"] == pytest.approx(20.0 if sign > 0 else 0.0)
    assert total.clipped == pytest.approx(1.0)
    assert total.sizes["w"] == pytest.approx(WIDEST_MEAN_SQUARE)


# ---- how near


@settings(max_examples=50, deadline=None)
@given(
    clients=st.integers(1, 15),
    bits=st.sampled_from(BITS),
    size=st.sampled_from([1, 2, 50, 300]),
    rotation=st.sampled_from(["", ROTATION]),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_mean_is_within_the_stated_bound(clients: int, bits: int, size: int, rotation: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    schema = schema_of(clients, bits, size, rotation, clip=1000.0)  # nothing is clipped
    weights, values = rng.integers(1, 20, clients), rng.standard_normal((clients, size)).astype("f4")
    vectors = [plain(schema, {"w": row}, int(weight)) for row, weight in zip(values, weights, strict=True)]
    total = decode(schema, add(schema, vectors), clients)
    error = total.changes["w"] - np.average(values.astype("f8"), axis=0, weights=weights)
    bound = schema.clip / schema.levels * schema.unit_weight * clients / weights.sum()
    slack = 1.001 if bits < 16 else 1.05  # float32 rounds as well
    if rotation:
        assert np.linalg.norm(error) <= slack * bound * math.sqrt(size)
    else:
        assert abs(error).max() <= slack * bound


def test_the_first_exchange_takes_all_bits_and_is_as_good_as_float32() -> None:
    base = {"w": np.zeros(1000, "f4")}
    schema = Settings(max_weight=100).schema(10, base, bytes(32))
    values = np.random.default_rng(0).uniform(-1, 1, (10, 1000)).astype("f4")
    total = decode(schema, add(schema, [plain(schema, {"w": row}, 100) for row in values]), 10)
    assert abs(total.changes["w"] - values.astype("f8").mean(axis=0)).max() < 2 * 8.0 / schema.levels


def test_rounding_is_right_on_average() -> None:
    """An element of 0.3 levels is rounded to 1 in three cases of ten."""
    schema = schema_of(1, 8, 100_000, "", clip=127.0, unit_weight=1.0)
    drawn = levels(schema, plain(schema, {"w": np.full(100_000, 0.3, "f4")}))
    assert set(drawn.tolist()) == {0, 1}
    assert drawn.mean() == pytest.approx(0.3, abs=6 * math.sqrt(0.21 / 100_000))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("rotation", ["", ROTATION], ids=["as it is", "rotated"])
def test_with_error_feedback_the_mean_over_many_exchanges_converges(bits: int, rotation: str) -> None:
    """What one exchange rounds away the next ones bring: the mean of t exchanges is off by a step over t, not over its root."""
    schema, times = schema_of(1, bits, 200, rotation, unit_weight=1.0), 50
    change = np.random.default_rng(1).standard_normal(200).astype("f4")
    told = np.zeros(200)
    owed: Values = {}
    for _ in range(times):
        update = Update(1, {}, {"w": change}, {"w": np.zeros(200, "f4")}, owed)
        vector, owed = encode(schema, update, os.urandom, feedback=True)
        told += decode(schema, vector, 1).changes["w"]
    step = schema.clip / schema.levels
    assert np.linalg.norm(told / times - change) <= 1.01 * step * math.sqrt(200) / times + 1e-5
    assert np.allclose(times * change.astype("f8"), told + owed["w"], atol=1e-3), "nothing is lost"


def test_what_was_clipped_is_owed_and_comes_later() -> None:
    schema = schema_of(1, 8, 4, "", clip=1.0, unit_weight=1.0)
    base, told = {"w": np.zeros(4, "f4")}, np.zeros(4)
    owed: Values = {}
    for change in ([3.0, -3.0, 0.0, 0.5], *[[0.0] * 4] * 3):
        vector, owed = encode(
            schema, Update(1, {}, {"w": np.array(change, "f4")}, base, owed), os.urandom, feedback=True
        )
        told += decode(schema, vector, 1).changes["w"]
    assert told == pytest.approx([3.0, -3.0, 0.0, 0.5], abs=1 / 127)


def test_what_is_owed_is_in_weight_times_the_arrays_unit() -> None:
    """So that it is worth the same when the next exchange has other scales and another unit of weight."""
    first, second = (
        schema_of(1, 4, 50, "", unit_weight=5.0, scale=0.5),
        schema_of(1, 16, 50, ROTATION, unit_weight=2.0, scale=3.0),
    )
    change = np.random.default_rng(2).standard_normal(50).astype("f4")
    base, nothing = {"w": np.zeros(50, "f4")}, {"w": np.zeros(50, "f4")}
    one, owed = encode(first, Update(4, {}, {"w": change}, base), os.urandom, feedback=True)
    two, _ = encode(second, Update(4, {}, nothing, base, owed), os.urandom, feedback=True)
    sent = 4 * (decode(first, one, 1).changes["w"] + decode(second, two, 1).changes["w"])
    assert sent == pytest.approx(4 * change, abs=0.01)


def test_without_feedback_nothing_is_owed() -> None:
    schema = schema_of(1, 4, 5)
    arrays = {"w": np.ones(5, "f4")}
    assert encode(schema, Update(1, {}, arrays, zeros_like(arrays)), os.urandom, feedback=False)[1] == {}


def test_an_update_is_not_changed_by_encoding_it() -> None:
    arrays, base, owed = ({"w": np.full(9, fill, "f4")} for fill in (3.0, 1.0, 0.5))
    encode(schema_of(1, 8, 9), Update(1, {}, arrays, base, owed), os.urandom, feedback=True)
    assert [set(item["w"].tolist()) for item in (arrays, base, owed)] == [{3.0}, {1.0}, {0.5}]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1000), st.floats(0, 20)), min_size=1, max_size=20))
def test_metrics_are_weighted_means_to_the_precision_of_32_bits(rows: list[tuple[int, float]]) -> None:
    schema, weight = Schema(20, 6, 1000, (LOSS,)), sum(weight for weight, _ in rows)
    total = add(schema, [plain(schema, {}, weight, {"loss": loss}) for weight, loss in rows])
    if weight == 0:
        with pytest.raises(RoundAborted, match="examples"):
            decode(schema, total, len(rows))
        return
    mean = sum(weight * loss for weight, loss in rows) / weight
    assert decode(schema, total, len(rows)).metrics["loss"] == pytest.approx(
        mean, abs=20 * len(rows) * 1000 / weight / 2**31
    )


# ---- what is told besides


def test_a_sum_tells_how_large_changes_were_and_how_much_was_clipped() -> None:
    schema = schema_of(4, 8, 1000, clip=6.0, unit_weight=10.0, scale=0.5)
    rows = np.random.default_rng(3).normal(0, 0.7, (4, 1000)).astype("f4")
    total = decode(schema, add(schema, [plain(schema, {"w": row}, 10) for row in rows]), 4)
    assert total.sizes["w"] == pytest.approx(10 * 0.7, rel=0.05), "weight times the array's unit"
    assert total.clipped < 1e-3
    tight = schema_of(4, 8, 1000, clip=0.5, unit_weight=10.0, scale=0.7)
    clipped = decode(tight, add(tight, [plain(tight, {"w": row}, 10) for row in rows]), 4).clipped
    assert clipped == pytest.approx(0.617, abs=0.03), "the share of a normal distribution beyond half a deviation"


@pytest.mark.parametrize("size", [1e-9, 1e-4, 1.0, 7.0])
def test_sizes_small_and_large_are_told(size: float) -> None:
    schema = schema_of(3, 4, 10, unit_weight=1.0)
    total = decode(schema, add(schema, [plain(schema, {"w": np.full(10, size, "f4")})] * 3), 3)
    assert total.sizes["w"] == pytest.approx(size, rel=1e-2)


# ---- integers


def integer_total(schema: Schema, base: Values, sent: Sequence[tuple[int, Values]]) -> Total:
    vectors = [encode(schema, Update(w, {}, arrays, base), os.urandom, feedback=False)[0] for w, arrays in sent]
    return decode(schema, add(schema, vectors), len(sent))


@pytest.mark.parametrize("bits", BITS)
def test_integers_come_back_as_the_nearest_integer_of_their_mean(bits: int) -> None:
    base = {"n": np.array([2**40, 5], "i8"), "b": np.array([250, 3], "u1")}
    schema = Schema(2, bits, 10, arrays=(ArrayField("n", (2,), "int64", 50.0), ArrayField("b", (2,), "uint8", 255.0)))
    sent = [
        (3, {"n": base["n"] + 40, "b": np.array([255, 0], "u1")}),
        (1, {"n": base["n"] + 20, "b": np.array([255, 3], "u1")}),
    ]
    changes = integer_total(schema, base, sent).changes
    back = {field.name: add_change(field.dtype, base[field.name], changes[field.name]) for field in schema.arrays}
    assert back["n"].tolist() == [2**40 + 35, 40]
    assert back["b"].tolist() == [255, 1]
    assert [str(array.dtype) for array in back.values()] == ["int64", "uint8"]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 50), st.integers(-1000, 1000)), min_size=1, max_size=9))
def test_the_mean_of_integers_is_exact_to_a_millionth_of_their_range(rows: list[tuple[int, int]]) -> None:
    schema = Schema(9, 8, 50, arrays=(ArrayField("n", (1,), "int32", 1000.0),))
    sent: list[tuple[int, Values]] = [(weight, {"n": np.array([value], "i4")}) for weight, value in rows]
    change = integer_total(schema, {"n": np.zeros(1, "i4")}, sent).changes["n"][0]
    mean = sum(weight * value for weight, value in rows) / sum(weight for weight, _ in rows)
    assert change == pytest.approx(mean, abs=1e-3)


@pytest.mark.parametrize(("base", "new"), [(-(2**63), 2**63 - 1), (2**63 - 1, -(2**63)), (0, 101), (0, -101)])
def test_an_integer_change_outside_its_range_or_64_bits_is_refused(base: int, new: int) -> None:
    schema = Schema(3, 8, 1, arrays=(ArrayField("n", (1,), "int64", 100.0),))
    update = Update(1, {}, {"n": np.array([new], "i8")}, {"n": np.array([base], "i8")})
    with pytest.raises(UpdateRejected, match="'n'") as caught:
        encode(schema, update, os.urandom, feedback=False)
    assert "101" not in str(caught.value)


def test_floats_in_place_of_integers_are_refused() -> None:
    schema = Schema(3, 8, 1, arrays=(ArrayField("n", (1,), "int64", 100.0),))
    with pytest.raises(UpdateRejected, match="float32"):
        plain(schema, {"n": np.zeros(1, "f4")})


# ---- shapes


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int32"])
def test_a_new_array_keeps_the_dtype_and_shape_of_the_old_one(dtype: str) -> None:
    base = np.ones((2, 1), dtype)
    moved = add_change(dtype, base, np.full((2, 1), 0.25))
    assert (moved.dtype, moved.shape) == (base.dtype, base.shape)


def test_floats_of_any_width_are_taken_for_one_another() -> None:
    schema = Schema(1, 16, 1, arrays=(ArrayField("w", (2,), "float32", 1.0),))
    for kind in ("f2", "f4", "f8"):
        update = Update(1, {}, {"w": np.array([0.5, -0.5], kind)}, {"w": np.zeros(2, "f4")})
        total = decode(schema, encode(schema, update, os.urandom, feedback=False)[0], 1)
        assert total.changes["w"] == pytest.approx([0.5, -0.5], abs=1e-4)


@pytest.mark.parametrize("rotation", ["", ROTATION], ids=["as it is", "rotated"])
def test_scalars_and_empty_arrays_have_a_place(rotation: str) -> None:
    arrays = {"s": np.array(2.5), "e": np.zeros((0, 4), "f4"), "m": np.ones((2, 3), "f2")}
    fields = tuple(ArrayField(name, array.shape, str(array.dtype), 1.0) for name, array in arrays.items())
    schema = Schema(1, 16, 1, arrays=fields, clip=24.0, rotation=rotation)
    changes = decode(schema, plain(schema, arrays), 1).changes
    assert [change.shape for change in changes.values()] == [(), (0, 4), (2, 3)]
    assert changes["s"] == pytest.approx(2.5, abs=0.01)
    assert changes["m"] == pytest.approx(np.ones((2, 3)), abs=0.01)


def test_nothing_at_all_can_be_summed() -> None:
    schema = Schema(3, 4, 10, rotation=ROTATION)
    total = decode(schema, add(schema, [plain(schema, {}, 2), plain(schema, {}, 3)]), 2)
    assert (total.count, total.weight, total.changes, total.sizes) == (2, 5, {}, {})


def test_rotated_and_clipped_as_the_settings_have_it_little_is_clipped() -> None:
    """Even of a change that is all in one element."""
    spike = np.zeros(5000, "f4")
    spike[123] = math.sqrt(5000)
    for bits, clip in CLIPS.items():
        schema = schema_of(1, bits, 5000, clip=clip, unit_weight=1.0)
        assert decode(schema, plain(schema, {"w": spike}), 1).clipped < (0.02 if bits == 4 else 0.001)


def test_of_a_sampled_vector_biases_come_whole_each_round_and_weights_in_part() -> None:
    rng = np.random.default_rng(5)
    arrays = {"w": rng.standard_normal((40, 25)).astype("f4"), "b": rng.standard_normal(12).astype("f4")}
    fields = (ArrayField("w", (40, 25), "float32", 1.0), ArrayField("b", (12,), "float32", 1.0))
    schema = Schema(3, 16, 10, arrays=fields, clip=12.0, rotation=ROTATION, subsample=0.2)
    update = Update(1, {}, arrays, zeros_like(arrays))
    words, left = encode(schema, update, os.urandom, feedback=True)
    assert schema.length == schema.exact * schema.digits + 12 + 200
    total = decode(schema, add(schema, [words]), 1)
    assert list(total.changes) == ["w", "b"]
    np.testing.assert_allclose(total.changes["b"], arrays["b"], atol=0.01)
    assert np.linalg.norm(left["w"]) > 0.7 * np.linalg.norm(arrays["w"])
    for name, array in arrays.items():
        np.testing.assert_allclose(total.changes[name] + left[name], array, atol=1e-5)
