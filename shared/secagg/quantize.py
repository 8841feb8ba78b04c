"""Weighted changes as whole numbers whose sum over all clients cannot wrap, and back. The layout is `schema`'s.

A device's change of each float array is weighed, added to what earlier roundings left over (error feedback: Seide et al., 2014;
Karimireddy et al., ICML 2019), divided by the array's scale, rotated (`rotation`), clipped, and rounded stochastically to b
bits, so that the rounding's mean is the value itself (Suresh et al., ICML 2017). What clipping, rounding and subsampling took away
is returned, to be added the next time.

With W the total weight, L the largest level and d elements, rounding moves the mean by at most `clip / L * unit_weight * n / W
* sqrt(d)` scales in Euclidean norm; where nothing is rotated the bound holds for each element, without the square root. A value
that is not finite raises; nothing wraps.

Under differential privacy (`private`) the change of each device counts once, whatever its weight, and the order is: clipped as a
whole, rotated, rounded within a norm, noised.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.errors import RoundAborted, Unsupported, UpdateRejected
from shared.privacy.clip import clip
from shared.secagg.keys import KEY_BYTES, Secret
from shared.secagg.masks import keystream
from shared.secagg.packing import Words
from shared.secagg.private import noised
from shared.secagg.rotation import Floats, Turn, turn
from shared.secagg.schema import EXACT_BITS, ArrayField, Arrays, MetricField, Schema

WIDEST_MEAN_SQUARE = 64.0  # the largest root mean square that is told, in scales
_GARBAGE = "the masks did not cancel, or a device masked something else: run the round again with fresh keys"
_FULL = (1 << EXACT_BITS) - 1
_HALF = (1 << (EXACT_BITS - 1)) - 1
_FLOAT32_BITS = 16  # more bits an element, and float32 would round before we do


@dataclass(frozen=True)
class Update:
    """What one client sends: `arrays` against `base`, their weight, its metrics, and what earlier roundings `owed`, by array:
    in weight times the array's unit.
    """

    weight: float
    metrics: Mapping[str, float]
    arrays: Arrays
    base: Arrays
    owed: Arrays = field(default_factory=dict)


@dataclass(frozen=True)
class Total:
    """What a sum says: how many, how much they weigh together, weighted means (arrays as changes, in float32 or float64), the share
    of elements clipped, and the mean size of what a device had to send, by float array, in weight times the array's unit. Of a
    private sum: how many, each of weight 1, and means.
    """

    count: int
    weight: int
    metrics: Mapping[str, float]
    changes: Arrays
    clipped: float = 0.0
    sizes: Mapping[str, float] = field(default_factory=dict)


def encode(schema: Schema, update: Update, entropy: Callable[[int], bytes], *, feedback: bool) -> tuple[Words, Arrays]:
    """One client's unmasked vector, and what it owes then (nothing without `feedback`).

    Raises `UpdateRejected` for whatever the schema does not allow; messages name the field, never the value.
    """
    weight = _checked_weight(schema, update.weight)
    if set(update.arrays) != {item.name for item in schema.arrays}:
        raise UpdateRejected("the update does not hold exactly the arrays that were sent out")
    for item in schema.arrays:
        _check_array(item, update.arrays[item.name])
    values, sizes = _weighted(schema, update, weight)
    if schema.private:
        if feedback or update.owed:
            raise Unsupported("a private vector carries nothing over from one exchange to the next")
        return _with_exact(schema, np.array([1], dtype=np.uint64), _private(schema, values, entropy)), {}
    wanted = values.copy() if feedback else values
    rotation = _rotation(schema)
    levels, clipped = _rounded(schema, rotation.forward(values) if rotation else values, entropy)
    exact = _exact(schema, update, weight, clipped / max(1, schema.kept), sizes)
    words = _with_exact(schema, exact, levels)
    if not feedback:
        return words, {}
    levels *= schema.clip / schema.levels
    wanted -= rotation.backward(levels) if rotation else levels
    return words, _by_array(schema, wanted, schema.unit_weight)


def _private(schema: Schema, values: Floats, entropy: Callable[[int], bytes]) -> NDArray[np.int64]:
    clip(values, schema.norm)
    rotation = _rotation(schema)
    turned = rotation.forward(values) if rotation else values
    return noised(schema, lambda: _rounded(schema, turned.copy(), entropy)[0], entropy)


def _with_exact(schema: Schema, exact: NDArray[np.uint64], levels: NDArray[Any]) -> Words:
    elements = np.empty(schema.length, dtype="<i4")
    start = schema.exact * schema.digits
    elements[:start] = _to_digits(schema, exact)
    elements[start:] = levels
    return schema.layout.join(elements)


def _checked_weight(schema: Schema, weight: float) -> int:
    if weight > schema.max_weight:
        raise UpdateRejected(f"the weight is above max_weight {schema.max_weight}: raise it in the job's settings")
    if not (weight >= 0 and weight == int(weight)):  # also false for NaN
        raise UpdateRejected("the weight is not a whole number of examples")
    return int(weight)


def _check_array(item: ArrayField, array: NDArray[Any]) -> None:
    if array.shape != item.shape:
        raise UpdateRejected(f"array {item.name!r} has shape {array.shape}, not {item.shape}")
    expected = np.dtype(item.dtype)
    same_kind = expected.kind == "f" and array.dtype.kind == "f" and array.dtype.itemsize <= 8
    if array.dtype != expected and not same_kind:
        raise UpdateRejected(f"array {item.name!r} is {array.dtype}, not {item.dtype}")


def _weighted(schema: Schema, update: Update, weight: int) -> tuple[Floats, list[float]]:
    """All float changes in scales, weighed against `unit_weight`, with what is owed; and each array's root mean square."""
    values: Floats = np.empty(schema.elements, dtype="f4" if schema.bits <= _FLOAT32_BITS else "f8")
    sizes, start = [], 0
    for item in schema.floats:
        block = values[start : start + item.size]
        new, old = update.arrays[item.name].reshape(-1), update.base[item.name].reshape(-1)
        with np.errstate(all="ignore"):  # infinities and overflow are judged below
            np.subtract(new, old, out=block, casting="same_kind")
            block *= weight / (schema.unit_weight * item.scale)
            if item.name in update.owed:
                block += update.owed[item.name].reshape(-1) / (schema.unit_weight * item.scale)
            square = float(np.dot(block, block))
        if not math.isfinite(square):
            raise UpdateRejected(f"array {item.name!r} holds a value that is not finite, or far too large")
        sizes.append(math.sqrt(square / max(1, item.size)))
        start += item.size
    return values, sizes


def _rotation(schema: Schema, kind: str = "") -> Turn | None:
    if not schema.rotation:
        return None
    kind = kind or ("f4" if schema.bits <= _FLOAT32_BITS else "f8")
    return turn(bytes.fromhex(schema.rotation), schema.elements, kind, kept=schema.kept, whole=schema.whole)


def _rounded(schema: Schema, values: Floats, entropy: Callable[[int], bytes]) -> tuple[Floats, int]:
    """Whole levels in place of `values`, each up or down by chance; and how many had to be clipped."""
    values *= schema.levels / schema.clip
    chance = keystream(Secret(entropy(KEY_BYTES)), 2 * values.size).view("<u2")
    values += np.multiply(chance, 2.0**-16, dtype=values.dtype)
    np.floor(values, out=values)
    clipped = int(np.count_nonzero(np.abs(values) > schema.levels))
    np.clip(values, -schema.levels, schema.levels, out=values)
    return values, clipped


def _by_array(schema: Schema, values: Floats, unit: float) -> dict[str, NDArray[Any]]:
    """The float elements, times `unit` and their array's scale. They lie in `values`, which is overwritten."""
    start, arrays = 0, {}
    for item in schema.floats:
        block = values[start : start + item.size]
        block *= unit * item.scale
        arrays[item.name] = block.reshape(item.shape)
        start += item.size
    return arrays


def _exact(schema: Schema, update: Update, weight: int, clipped: float, sizes: list[float]) -> NDArray[np.uint64]:
    share = weight / schema.max_weight
    roots = [min(1.0, size / WIDEST_MEAN_SQUARE) ** 0.5 for size in sizes]  # small ones must not vanish
    told = [round(value * _FULL) for value in (clipped, *roots)]
    metrics = [round(share * _unit(metric, update.metrics) * _FULL) for metric in schema.metrics]
    integers = [_integers(item, update, share) for item in schema.integers]
    return np.concatenate([np.array([1, weight, *told, *metrics], dtype=np.uint64), *integers])


def _unit(metric: MetricField, metrics: Mapping[str, float]) -> float:
    if metric.name not in metrics:
        raise UpdateRejected(f"the reply lacks the declared metric {metric.name!r}")
    value = metrics[metric.name]
    if not metric.low <= value <= metric.high:  # also false for NaN
        raise UpdateRejected(f"metric {metric.name!r} is outside its declared range {metric.low:g} to {metric.high:g}")
    return (value - metric.low) / (metric.high - metric.low)


def _integers(item: ArrayField, update: Update, share: float) -> NDArray[np.uint64]:
    new = update.arrays[item.name].reshape(-1).astype(np.int64)
    old = update.base[item.name].reshape(-1).astype(np.int64)
    change = new - old
    wrapped = (((new ^ old) & (new ^ change)) < 0).any()
    if wrapped or (item.size and np.abs(change.astype(np.float64)).max() > item.scale):
        raise UpdateRejected(
            f"array {item.name!r} holds a change outside its range (±{item.scale:g}): raise it in the job's settings"
        )
    steps: NDArray[np.int64] = np.rint(change * (share / item.scale * _HALF)).astype(np.int64)
    return (steps + _HALF + 1).astype(np.uint64)


def _to_digits(schema: Schema, values: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Shape (values * digits,), lowest digit of each first."""
    shifts = np.arange(schema.digits, dtype=np.uint64) * np.uint64(schema.bits)
    digits = (values[:, None] >> shifts) & np.uint64((1 << schema.bits) - 1)
    return digits.reshape(-1).view(np.int64) - (1 << (schema.bits - 1))


def _from_digits(schema: Schema, sums: NDArray[np.int32], count: int) -> list[int]:
    """The sums of exact values, of any size. Raises `RoundAborted` for a digit that so many clients cannot have."""
    digits = sums + np.int64(count << (schema.bits - 1))
    if digits.min() < 0 or digits.max() > count * ((1 << schema.bits) - 1):
        raise RoundAborted(_GARBAGE)
    rows = digits.reshape(-1, schema.digits).tolist()
    return [sum(digit << (place * schema.bits) for place, digit in enumerate(row)) for row in rows]


def decode(schema: Schema, total: Words, count: int, noise: NDArray[np.int64] | None = None) -> Total:
    """The means in an unmasked sum of `count` clients. `noise`, whole levels, shape (elements,), is added to it before anything
    else reads it. Raises `RoundAborted` if it cannot be such a sum.
    """
    if total.shape != (schema.layout.words,):
        raise RoundAborted(f"the sum has {total.size} words, the schema {schema.layout.words}")
    sums = schema.layout.split(total)
    start = schema.exact * schema.digits
    exact = _from_digits(schema, sums[:start], count)
    weight = exact[0] if schema.private else exact[1]
    if exact[0] != count or weight > count * schema.max_weight:
        raise RoundAborted(_GARBAGE)
    if weight == 0:
        raise RoundAborted("no device of this round had examples")
    changes = _float_changes(schema, sums[start:], count, weight, noise)
    if schema.private:
        return Total(count, weight, {}, {item.name: changes[item.name] for item in schema.arrays})
    if max(exact[2:]) > count * _FULL:
        raise RoundAborted(
            f"the sum says more of sizes, metrics or whole numbers than {count} devices can: run the round again"
        )
    clipped, *roots = (value / _FULL / count for value in exact[2 : 3 + len(schema.floats)])
    metrics, integers = (
        exact[3 + len(schema.floats) :][: len(schema.metrics)],
        exact[schema.exact - _integer_size(schema) :],
    )
    scale = schema.max_weight / weight
    sizes = {
        item.name: WIDEST_MEAN_SQUARE * root**2 * schema.unit_weight * item.scale
        for item, root in zip(schema.floats, roots, strict=True)
    }
    means = {
        item.name: item.low + value * scale * (item.high - item.low) / _FULL
        for item, value in zip(schema.metrics, metrics, strict=True)
    }
    changes |= _integer_changes(schema, integers, count, scale)
    return Total(count, weight, means, {item.name: changes[item.name] for item in schema.arrays}, clipped, sizes)


def _integer_size(schema: Schema) -> int:
    return sum(item.size for item in schema.integers)


def _integer_changes(schema: Schema, sums: list[int], count: int, scale: float) -> dict[str, NDArray[Any]]:
    start, changes = 0, {}
    for item in schema.integers:
        block = [
            (value - count * (_HALF + 1)) * (scale * item.scale / _HALF) for value in sums[start : start + item.size]
        ]
        changes[item.name] = np.array(block, dtype=np.float64).reshape(item.shape)
        start += item.size
    return changes


def _float_changes(
    schema: Schema, sums: NDArray[np.int32], count: int, weight: int, noise: NDArray[np.int64] | None
) -> dict[str, NDArray[Any]]:
    limit = schema.peak(count)
    if sums.size and (sums.min() < -limit or sums.max() > limit):
        raise RoundAborted(f"the sum is larger than {count} devices can make it")
    # Sums of up to 512 devices and 16 bits are exact in float32, of more they are rounded far below a level; noise is wider.
    kind = "f4" if schema.bits <= _FLOAT32_BITS and not schema.private else "f8"
    values: Floats = (sums if noise is None else sums + noise).astype(kind)
    values *= schema.clip / schema.levels
    rotation = _rotation(schema, values.dtype.str)
    return _by_array(schema, rotation.backward(values) if rotation else values, schema.unit_weight / weight)


def add_change(kind: str, base: NDArray[Any], change: NDArray[Any]) -> NDArray[Any]:
    """`base + change` as the dtype that `kind` names; integers to the nearest, within the dtype."""
    dtype = np.dtype(kind)
    if dtype.kind == "f":
        return np.asarray(base + change, dtype=dtype)
    info = np.iinfo(dtype)
    moved = base.astype(np.int64) + np.rint(change).astype(np.int64)
    return np.asarray(np.clip(moved, info.min, info.max), dtype=dtype)
