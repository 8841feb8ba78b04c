"""A schema is the same at both ends, no wider than it must be, and refuses what could wrap."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import Unsupported
from shared.secagg.packing import Layout
from shared.secagg.schema import BITS, EXACT_BITS, MAX_CLIENTS, ArrayField, MetricField, Schema, array_fields, sum_bits

LOSS = MetricField("loss", 0.0, 20.0)
W, N = ArrayField("w", (2, 3), "float32", 1.0), ArrayField("n", (4,), "int32", 9.0)
SCHEMA = Schema(5, 8, 100, (LOSS,), (W, N), 10.0, 6.0, "ab" * 32)


@given(st.integers(1, MAX_CLIENTS), st.sampled_from([4, 6, 8, 12]))
def test_the_modulus_holds_every_sum_and_is_not_a_bit_wider(clients: int, bits: int) -> None:
    schema = Schema(clients, bits, 1)
    assert clients * schema.levels < 1 << (schema.modulus_bits - 1), "of elements, either way"
    assert clients * ((1 << bits) - 1) < 1 << schema.modulus_bits, "of digits"
    assert schema.modulus_bits == bits + math.ceil(math.log2(clients))


@pytest.mark.parametrize(("clients", "bits"), [(1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (1024, 10), (1025, 11)])
def test_a_sum_needs_the_logarithm_of_the_clients_on_top(clients: int, bits: int) -> None:
    assert sum_bits(clients) == bits


def test_a_layout() -> None:
    """count, weight, clipped, w's size, loss, n's four: nine exact values of four digits each; then w's six elements."""
    assert (SCHEMA.exact, SCHEMA.digits, SCHEMA.elements) == (9, 4, 6)
    assert SCHEMA.length == 9 * 4 + 6
    assert SCHEMA.modulus_bits == 11
    assert SCHEMA.layout == Layout(42, 11)
    assert SCHEMA.bytes_on_the_wire == -(-9 * 5 * 11 // 8), "nine words of five elements each"
    assert [field.name for field in (*SCHEMA.floats, *SCHEMA.integers)] == ["w", "n"]


@pytest.mark.parametrize("bits", BITS)
def test_digits_hold_an_exact_value(bits: int) -> None:
    assert Schema(3, bits, 1).digits * bits >= EXACT_BITS


CHANGES: dict[str, dict[str, Any]] = {
    "clients": {"clients": 6},
    "bits": {"bits": 6},
    "weight": {"max_weight": 101},
    "a metric's name": {"metrics": (MetricField("lost", 0.0, 20.0),)},
    "a metric's bound": {"metrics": (MetricField("loss", 0.0, 21.0),)},
    "no metrics": {"metrics": ()},
    "an array's name": {"arrays": (replace(W, name="v"), N)},
    "an array's shape": {"arrays": (replace(W, shape=(3, 2)), N)},
    "an array's dtype": {"arrays": (replace(W, dtype="float64"), N)},
    "an array's scale": {"arrays": (replace(W, scale=1.5), N)},
    "the order of arrays": {"arrays": (N, W)},
    "the unit of weight": {"unit_weight": 11.0},
    "the clip": {"clip": 5.0},
    "the rotation": {"rotation": "cd" * 32},
    "no rotation": {"rotation": ""},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_any_difference_changes_the_digest(change: dict[str, Any]) -> None:
    assert replace(SCHEMA).digest == SCHEMA.digest
    assert replace(SCHEMA, **change).digest != SCHEMA.digest


IMPOSSIBLE: dict[str, Any] = {
    "no clients": lambda: Schema(0, 8, 1),
    "too many clients": lambda: Schema(MAX_CLIENTS + 1, 8, 1),
    "one bit": lambda: Schema(3, 1, 1),
    "more bits than a word holds": lambda: Schema(3, 31, 1),
    "weight zero": lambda: Schema(3, 8, 0),
    "a weight of 32 bits": lambda: Schema(3, 8, 1 << 31),
    "no unit of weight": lambda: Schema(3, 8, 1, unit_weight=0.0),
    "an infinite unit": lambda: Schema(3, 8, 1, unit_weight=math.inf),
    "a clip of NaN": lambda: Schema(3, 8, 1, clip=math.nan),
    "bool arrays": lambda: ArrayField("w", (1,), "bool", 1.0),
    "complex arrays": lambda: ArrayField("w", (1,), "complex64", 1.0),
    "64-bit unsigned arrays": lambda: ArrayField("w", (1,), "uint64", 1.0),
    "range zero": lambda: ArrayField("w", (1,), "float32", 0.0),
    "infinite range": lambda: ArrayField("w", (1,), "float32", math.inf),
    "metric bounds reversed": lambda: MetricField("m", 1.0, 0.0),
    "metric bounds NaN": lambda: MetricField("m", math.nan, 1.0),
    "a metric twice": lambda: Schema(3, 8, 1, (LOSS, LOSS)),
    "an array twice": lambda: Schema(3, 8, 1, (), (W, W)),
}


@pytest.mark.parametrize("build", IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_a_schema_that_could_go_wrong_is_refused_when_it_is_made(build: Any) -> None:
    with pytest.raises(Unsupported):
        build()


def test_fields_follow_the_arrays_in_order() -> None:
    fields = array_fields({"b": np.zeros((2, 1), "f8"), "a": np.zeros(3, "i4")}, [0.5, 7.0])
    assert fields == (ArrayField("b", (2, 1), "float64", 0.5), ArrayField("a", (3,), "int32", 7.0))


def test_of_a_sampled_vector_arrays_of_one_dimension_are_sent_whole_and_come_first() -> None:
    shapes = {"weight": (20, 30), "bias": (20,), "steps": (3,), "kernel": (4, 5, 2), "gain": ()}
    arrays = tuple(
        ArrayField(name, shape, "int64" if name == "steps" else "float32", 1.0) for name, shape in shapes.items()
    )
    schema = Schema(10, 8, 100, arrays=arrays, rotation="ab" * 32, subsample=0.25)
    assert [item.name for item in schema.floats] == ["bias", "gain", "weight", "kernel"]
    assert (schema.whole, schema.kept) == (21, 21 + 160)
    assert replace(schema, subsample=1.0).floats == tuple(item for item in arrays if item.name != "steps")
    assert replace(schema, subsample=1.0).whole == 0


@pytest.mark.parametrize("kernel", [(), (3, 3)], ids=["all", "most"])
def test_where_more_than_a_tenth_lies_in_arrays_of_one_dimension_all_are_sampled(kernel: tuple[int, ...]) -> None:
    arrays = (ArrayField("w", (100,), "float32", 1.0), ArrayField("b", kernel, "float32", 1.0))
    schema = Schema(10, 8, 100, arrays=arrays, rotation="ab" * 32, subsample=0.25)
    assert (schema.whole, schema.kept) == (0, math.ceil(0.25 * schema.elements))
    assert schema.floats == arrays
