"""Weighted floats as uint32 words whose sum over all clients cannot wrap, and back.

A vector is laid out by a public `Schema`, the same at both ends (they compare its digest):

    [count] [weight] [one word a metric …] [one word an array element …]

For n clients at most, b = 32 - ceil(log2 n) bits a word are one client's share of the modulus 2^32:

- count: 1. The sum must equal the number of clients counted, or something else was masked.
- weight w: the number of examples, exact; n * max_weight < 2^32 is part of the schema.
- metric v in [low, high]: round(w / max_weight * (v - low) / (high - low) * (2^b - 1)).
- element x with |x| <= C: round(w / max_weight * x / C * (2^(b-1) - 1)), two's complement.

Rounding moves each client's term by at most half a step, so with W the total weight the weighted mean is off by at most
n / 2 * (max_weight / W) * C / (2^(b-1) - 1) an element (`Schema.element_error`), and for a metric by
n / 2 * (max_weight / W) * (high - low) / (2^b - 1) (`Schema.metric_error`); float64 arithmetic adds a relative 2^-50.
Integer arrays travel the same way and their mean is rounded to the nearest integer.
A value that is not finite or lies outside its range raises: nothing is clipped in silence, nothing wraps.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.errors import RoundAborted, Unsupported, UpdateRejected
from shared.ids import digest_of
from shared.secagg.masks import BLOCK_WORDS, Words

MODULUS_BITS = 32
HEADER_WORDS = 2
DTYPES = frozenset({"float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32"})

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class MetricField:
    name: str
    low: float
    high: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise Unsupported(f"metric {self.name!r} needs finite bounds, the lower one first")


@dataclass(frozen=True)
class ArrayField:
    """`bound` is C: the largest change of an element that a client may send."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    bound: float

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise Unsupported(
                f"array {self.name!r} is {self.dtype}: secure aggregation sums {', '.join(sorted(DTYPES))}"
            )
        if not (math.isfinite(self.bound) and self.bound > 0):
            raise Unsupported(f"array {self.name!r} needs a positive, finite range")

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Schema:
    """`clients` is n, the most that may be summed. Raises `Unsupported` for a schema whose sum could wrap."""

    clients: int
    max_weight: int
    metrics: tuple[MetricField, ...] = ()
    arrays: tuple[ArrayField, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.clients <= 1 << 20:
            raise Unsupported("secure aggregation sums 1 to 1,048,576 clients")
        if self.max_weight < 1 or self.clients * self.max_weight >= 1 << MODULUS_BITS:
            raise Unsupported(
                f"max_weight must be from 1 to {((1 << MODULUS_BITS) - 1) // self.clients} for {self.clients} clients"
            )
        for fields in (self.metrics, self.arrays):
            if len({item.name for item in fields}) != len(fields):
                raise Unsupported("two fields of a schema have the same name")

    @property
    def bits(self) -> int:
        return MODULUS_BITS - (self.clients - 1).bit_length()

    @property
    def length(self) -> int:
        return HEADER_WORDS + len(self.metrics) + sum(item.size for item in self.arrays)

    @property
    def digest(self) -> str:
        return digest_of(json.dumps(asdict(self), sort_keys=True, separators=(",", ":")).encode())

    def element_error(self, bound: float, total_weight: int) -> float:
        """The most by which rounding moves an element of the mean (see the module)."""
        return self.clients / 2 * self.max_weight / total_weight * bound / self._half

    def metric_error(self, metric: MetricField, total_weight: int) -> float:
        return self.clients / 2 * self.max_weight / total_weight * (metric.high - metric.low) / self._full

    @property
    def _half(self) -> int:
        return (1 << (self.bits - 1)) - 1

    @property
    def _full(self) -> int:
        return (1 << self.bits) - 1


@dataclass(frozen=True)
class Total:
    """What a sum says: how many, how much they weigh together, and their weighted means (arrays as float64 changes)."""

    count: int
    weight: int
    metrics: Mapping[str, float]
    changes: Arrays


def encode(schema: Schema, weight: float, metrics: Mapping[str, float], arrays: Arrays, base: Arrays) -> Words:
    """One client's unmasked vector of `arrays - base`. Raises `UpdateRejected` for whatever the schema does not allow.

    Messages name the field, never the value.
    """
    examples = _checked_weight(schema, weight)
    share = examples / schema.max_weight
    words = np.empty(schema.length, dtype="<u4")
    words[:HEADER_WORDS] = (1, examples)
    for place, metric in enumerate(schema.metrics, start=HEADER_WORDS):
        words[place] = round(share * _unit(metric, metrics) * schema._full)
    if set(arrays) != {item.name for item in schema.arrays}:
        raise UpdateRejected("the update does not hold exactly the arrays that were sent out")
    start = HEADER_WORDS + len(schema.metrics)
    for item in schema.arrays:
        array, origin = arrays[item.name], base[item.name]
        _check_array(item, array)
        target = words[start : start + item.size].view("<i4")
        _quantize(item, array.reshape(-1), origin.reshape(-1), share / item.bound * schema._half, target)
        start += item.size
    return words


def _checked_weight(schema: Schema, weight: float) -> int:
    if weight > schema.max_weight:
        raise UpdateRejected(f"the weight is above max_weight {schema.max_weight}: raise it in the job's settings")
    if not (weight >= 0 and weight == int(weight)):  # also false for NaN
        raise UpdateRejected("the weight is not a whole number of examples")
    return int(weight)


def _unit(metric: MetricField, metrics: Mapping[str, float]) -> float:
    if metric.name not in metrics:
        raise UpdateRejected(f"the reply lacks the declared metric {metric.name!r}")
    value = metrics[metric.name]
    if not metric.low <= value <= metric.high:  # also false for NaN
        raise UpdateRejected(f"metric {metric.name!r} is outside its declared range {metric.low:g} to {metric.high:g}")
    return (value - metric.low) / (metric.high - metric.low)


def _check_array(item: ArrayField, array: NDArray[Any]) -> None:
    if array.shape != item.shape:
        raise UpdateRejected(f"array {item.name!r} has shape {array.shape}, not {item.shape}")
    expected = np.dtype(item.dtype)
    same_kind = expected.kind == "f" and array.dtype.kind == "f" and array.dtype.itemsize <= 8
    if array.dtype != expected and not same_kind:
        raise UpdateRejected(f"array {item.name!r} is {array.dtype}, not {item.dtype}")


def _quantize(item: ArrayField, new: NDArray[Any], old: NDArray[Any], factor: float, target: NDArray[np.int32]) -> None:
    """`target = round((new - old) * factor)`, a block at a time in float64."""
    scratch = np.empty(min(BLOCK_WORDS, new.size))
    for start in range(0, new.size, BLOCK_WORDS):
        stop = min(start + BLOCK_WORDS, new.size)
        block = scratch[: stop - start]
        if new.dtype.kind == "f":
            with np.errstate(all="ignore"):  # infinities and overflow are judged below
                np.subtract(new[start:stop], old[start:stop], out=block, dtype=np.float64)
        else:
            block[:] = _integer_change(item, new[start:stop].astype(np.int64), old[start:stop].astype(np.int64))
        low, high = block.min(), block.max()
        if not (-item.bound <= low and high <= item.bound):  # also false for NaN, which min and max hand on
            if np.isfinite(low) and np.isfinite(high):
                change = (
                    f"change outside its range (±{item.bound:g}): raise secure.clip_range, or lower the learning rate"
                )
                raise UpdateRejected(f"array {item.name!r} holds a {change}")
            raise UpdateRejected(f"array {item.name!r} holds a value that is not finite")
        block *= factor
        np.rint(block, out=block)
        target[start:stop] = block


def _integer_change(item: ArrayField, new: NDArray[np.int64], old: NDArray[np.int64]) -> NDArray[np.int64]:
    change = new - old
    if (((new ^ old) & (new ^ change)) < 0).any():
        raise UpdateRejected(f"array {item.name!r} changes by more than 64 bits hold")
    return change


def decode(schema: Schema, total: Words, count: int) -> Total:
    """The means in an unmasked sum of `count` clients. Raises `RoundAborted` if it cannot be such a sum."""
    if total.shape != (schema.length,):
        raise RoundAborted(f"the sum has {total.size} words, the schema {schema.length}")
    weight = int(total[1])
    if int(total[0]) != count or weight > count * schema.max_weight:
        raise RoundAborted(
            "the masks did not cancel, or a device masked something else: run the round again with fresh keys"
        )
    if weight == 0:
        raise RoundAborted("no device of this round had examples")
    scale = schema.max_weight / weight
    metrics = {
        item.name: item.low + float(total[place]) * scale * (item.high - item.low) / schema._full
        for place, item in enumerate(schema.metrics, start=HEADER_WORDS)
    }
    return Total(count, weight, metrics, _changes(schema, total, count, scale))


def _changes(schema: Schema, total: Words, count: int, scale: float) -> dict[str, NDArray[Any]]:
    signed = total.view("<i4")
    start, changes = HEADER_WORDS + len(schema.metrics), {}
    for item in schema.arrays:
        block = signed[start : start + item.size]
        limit = count * schema._half
        if item.size and (block.min() < -limit or block.max() > limit):
            raise RoundAborted(f"the sum of {item.name!r} is larger than {count} devices can make it")
        changes[item.name] = (block * (scale * item.bound / schema._half)).reshape(item.shape)
        start += item.size
    return changes


def add_change(item: ArrayField, base: NDArray[Any], change: NDArray[Any]) -> NDArray[Any]:
    """`base + change` in the array's own dtype; integers to the nearest, within the dtype."""
    dtype = np.dtype(item.dtype)
    if dtype.kind == "f":
        return np.asarray(base.astype(np.float64) + change, dtype=dtype)
    info = np.iinfo(dtype)
    moved = base.astype(np.int64) + np.rint(change).astype(np.int64)
    return np.asarray(np.clip(moved, info.min, info.max), dtype=dtype)


def array_fields(arrays: Arrays, bounds: Sequence[float]) -> tuple[ArrayField, ...]:
    """Fields for `arrays`, one bound each, in order."""
    return tuple(
        ArrayField(name, tuple(array.shape), str(array.dtype), bound)
        for (name, array), bound in zip(arrays.items(), bounds, strict=True)
    )
