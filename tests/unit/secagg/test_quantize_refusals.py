"""What an update may not hold is refused: the field is named, the value never."""

import math
import os
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from shared.errors import RoundAborted, UpdateRejected
from shared.secagg.packing import Words
from shared.secagg.quantize import Update, decode, encode
from shared.secagg.schema import ArrayField, Schema
from tests.unit.secagg.vectors import LOSS, ROTATION, Values, plain, schema_of

BAD_WEIGHTS = {"above max_weight": 1234, "negative": -1234, "a fraction": 12.34, "NaN": math.nan, "infinite": math.inf}


@pytest.mark.parametrize("weight", BAD_WEIGHTS.values(), ids=BAD_WEIGHTS)
def test_a_weight_that_is_not_a_count_up_to_the_maximum_is_refused(weight: float) -> None:
    with pytest.raises(UpdateRejected, match="weight") as caught:
        plain(Schema(3, 8, 100), {}, weight)
    assert "12" not in str(caught.value)


BAD_ARRAYS = {
    "NaN": (np.array([0, np.nan], "f4"), "not finite"),
    "infinite": (np.array([0, -np.inf], "f4"), "not finite"),
    "too large to square": (np.array([0, 8.125e30], "f4"), "too large"),
    "too large for float32": (np.array([0, 8.125e300], "f8"), "too large"),
    "another shape": (np.zeros(3, "f4"), "shape"),
    "another rank": (np.zeros((2, 1), "f4"), "shape"),
    "integers for floats": (np.zeros(2, "i4"), "int32"),
    "longer floats than can be read": (np.zeros(2, "longdouble"), "float"),
    "complex": (np.zeros(2, "c8"), "complex64"),
    "text": (np.array(["a", "b"]), "<U1"),
    "objects": (np.array([None, None]), "object"),
}


@pytest.mark.parametrize(("array", "reason"), BAD_ARRAYS.values(), ids=BAD_ARRAYS)
@pytest.mark.parametrize("rotation", ["", ROTATION], ids=["as it is", "rotated"])
def test_an_array_outside_its_schema_is_refused_named_and_its_values_are_not_told(
    array: NDArray[Any], reason: str, rotation: str
) -> None:
    schema = schema_of(3, 8, 2, rotation)
    with pytest.raises(UpdateRejected, match=reason) as caught:
        encode(schema, Update(1, {}, {"w": array}, {"w": np.zeros(2, "f4")}), os.urandom, feedback=True)
    assert "'w'" in str(caught.value)
    assert "8.125" not in str(caught.value)


@pytest.mark.parametrize("base", [np.nan, np.inf, -3e38])
def test_a_base_that_makes_the_change_infinite_is_refused(base: float) -> None:
    update = Update(1000, {}, {"w": np.array([3e38], "f4")}, {"w": np.array([base], "f4")})
    with pytest.raises(UpdateRejected, match="'w'"):
        encode(schema_of(3, 8, 1), update, os.urandom, feedback=False)


def test_a_bad_value_at_the_end_of_a_long_array_is_found() -> None:
    array = np.zeros(300_007, "f4")
    array[-1] = np.nan
    with pytest.raises(UpdateRejected):
        plain(schema_of(3, 8, array.size), {"w": array})


@pytest.mark.parametrize(
    "arrays",
    [{}, {"v": np.zeros(2, "f4")}, {"w": np.zeros(2, "f4"), "v": np.zeros(2, "f4")}],
    ids=["none", "other", "more"],
)
def test_an_update_with_other_arrays_is_refused(arrays: Values) -> None:
    with pytest.raises(UpdateRejected, match="exactly the arrays"):
        plain(schema_of(3, 8, 2), arrays)


@pytest.mark.parametrize(
    "metrics", [{}, {"loss": math.nan}, {"loss": 20.0625}, {"loss": -0.0625}, {"loss": math.inf}], ids=str
)
def test_a_metric_that_is_missing_or_outside_its_range_is_refused(metrics: dict[str, float]) -> None:
    with pytest.raises(UpdateRejected, match="loss") as caught:
        plain(Schema(3, 8, 10, (LOSS,)), {}, 1, metrics)
    assert "0625" not in str(caught.value)


def changed(schema: Schema, vector: Words, place: int, value: int) -> Words:
    elements = schema.layout.split(vector)
    elements[place] = value
    return schema.layout.join(elements)


def test_a_sum_with_another_count_weight_or_size_is_not_decoded() -> None:
    schema = schema_of(4, 8, 3, "", max_weight=10)
    vector = plain(schema, {"w": np.ones(3, "f4")})
    zero = -(1 << (schema.bits - 1))  # of a digit
    heavy, nothing, large = (
        changed(schema, vector, place, value)
        for place, value in ((schema.digits, zero + 11), (schema.digits, zero), (-1, schema.levels + 1))
    )
    noise = np.random.default_rng(0).integers(0, 1 << 64, vector.size, dtype=np.uint64)
    for total, count in ((vector, 2), (vector[:-1], 1), (noise, 1), (heavy, 1), (nothing, 1), (large, 1)):
        with pytest.raises(RoundAborted):
            decode(schema, total, count)
    assert decode(schema, vector, 1).count == 1


def test_whole_numbers_beyond_what_devices_can_send_are_not_decoded() -> None:
    """At 12 bits three digits have room for more than the 32 bits of an exact value."""
    schema = Schema(5, 12, 100, (), (ArrayField("n", (2,), "int32", 9.0),))
    total = plain(schema, {"n": np.array([3, -4], "i4")}, 100)
    assert decode(schema, total, 1).changes["n"] == pytest.approx([3, -4])
    zero = -(1 << (schema.bits - 1))  # of a digit
    with pytest.raises(RoundAborted, match="whole numbers"):
        decode(schema, changed(schema, total, schema.exact * schema.digits - 1, zero + 4095), 1)


@pytest.mark.parametrize("place", range(12))
@pytest.mark.parametrize("beyond", ["below", "above"])
def test_a_digit_that_no_devices_could_add_up_to_is_not_decoded(place: int, beyond: str) -> None:
    """A device that lies would make the weight negative, or a metric one that nobody may claim."""
    schema = replace(schema_of(5, 8, 3), metrics=(LOSS,))
    vectors = [plain(schema, {"w": np.ones(3, "f4")}, 100, {"loss": 1.0}) for _ in range(3)]
    total = vectors[0] + vectors[1] + vectors[2]
    assert decode(schema, total, 3).weight == 300
    lowest = -3 << (schema.bits - 1)
    worst = changed(schema, total, place, lowest - 1 if beyond == "below" else lowest + 3 * 255 + 1)
    with pytest.raises(RoundAborted, match="masked something else"):
        decode(schema, worst, 3)
