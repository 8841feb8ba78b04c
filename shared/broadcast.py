"""A model for those that hold an earlier one: what changed, at a few bits an element, the same on every machine.

The sender keeps what receivers hold and encodes the difference to that, so what rounding took from one broadcast is in the next
(as in DoubleSqueeze: Tang et al., ICML 2019). A float element is sent as a whole number of steps, each its array's root mean square
change, 8 bits before compression and about 2 after it; other arrays are sent as they are. Only exact or correctly rounded
operations are used, so that all who apply a delta hold the same bytes.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

from shared.errors import Malformed

DELTA_RECORD = "shoal.delta"  # the record of a Flower message that holds a delta's data, in place of the model's arrays
DELTA_TYPE = "shoal.delta.steps"  # how that data is serialized: as below
Arrays = Mapping[str, NDArray[Any]]
STEP = 1.0  # of an array's root mean square change
_MOST = 127  # steps; what is more waits for the next broadcast
_MATCH_LITTLE = {
    "min_match": 7,
    "hash_log": 6,
    "strategy": zstandard.STRATEGY_FAST,
}  # noise has no matches, and looking costs bits


class Form(StrEnum):
    """What a message holds of a model."""

    WHOLE = "whole"
    CHANGED = "changed"  # a delta to the one that the receiver was given before
    HELD = "held"  # nothing: it is the one that the receiver was given before


@dataclass(frozen=True)
class Delta:
    """`steps` by float array, in order and in the array's unit; `data` is compressed: a byte a float element, other arrays raw."""

    steps: tuple[float, ...]
    data: bytes


def difference(new: Arrays, held: Arrays) -> Delta | None:
    """From `held` to (nearly) `new`; None where the whole must be sent: other arrays, or a value that is not finite."""
    if _layout(new) != _layout(held):
        return None
    steps, parts = [], []
    for name, array in new.items():
        if array.dtype.kind != "f":
            parts.append(array.tobytes())
            continue
        with np.errstate(all="ignore"):
            change = array.astype(np.float64) - held[name]
            step = STEP * math.sqrt(float(np.mean(np.square(change)))) if change.size else 0.0
        if not math.isfinite(step):
            return None
        steps.append(step)
        whole = np.rint(change / step) if step else np.zeros(change.shape)
        parts.append(np.clip(whole, -_MOST, _MOST).astype(np.int8).tobytes())
    parameters = zstandard.ZstdCompressionParameters.from_level(1, **_MATCH_LITTLE)
    return Delta(tuple(steps), zstandard.ZstdCompressor(compression_params=parameters).compress(b"".join(parts)))


def apply(held: Arrays, delta: Delta) -> dict[str, NDArray[Any]]:
    """What a receiver that has `held` has then. Raises `Malformed` for a delta of other arrays."""
    floats = sum(array.dtype.kind == "f" for array in held.values())
    size = sum(array.size if array.dtype.kind == "f" else array.nbytes for array in held.values())
    if len(delta.steps) != floats or not all(0 <= step < math.inf for step in delta.steps):
        raise Malformed("a model's delta is of other arrays than this device holds")
    raw, steps, start, moved = _decompress(delta.data, size), iter(delta.steps), 0, {}
    for name, array in held.items():
        if array.dtype.kind == "f":
            moved[name] = _moved(array, raw[start : start + array.size], next(steps))
            start += array.size
        else:
            moved[name] = np.frombuffer(raw[start : start + array.nbytes], array.dtype).reshape(array.shape)
            start += array.nbytes
    return moved


def _moved(array: NDArray[Any], raw: bytes, step: float) -> NDArray[Any]:
    whole = np.frombuffer(raw, np.int8).reshape(array.shape)
    with np.errstate(over="ignore"):
        return np.asarray(array.astype(np.float64) + whole * step, dtype=array.dtype)


def _decompress(data: bytes, size: int) -> bytes:
    """Exactly `size` bytes; a frame that says or holds another size is not unpacked."""
    try:
        if zstandard.frame_content_size(data) != size:
            raise Malformed("a model's delta is not as long as the arrays that this device holds")
        return zstandard.ZstdDecompressor().decompress(data, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise Malformed("a model's delta is damaged") from error


def _layout(arrays: Arrays) -> list[tuple[str, tuple[int, ...], str]]:
    return [(name, array.shape, array.dtype.str) for name, array in arrays.items()]
