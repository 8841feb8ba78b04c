"""A model's arrays as a value: names to float32 NumPy arrays. No torch here.

The state is the float master: what devices train, what is summed, pruned and shipped. Counters are not part of it.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from shared.errors import UpdateRejected

State = dict[str, NDArray[np.float32]]


def pack_state(state: Mapping[str, NDArray[np.float32]]) -> bytes:
    """As safetensors. Equal states give equal bytes."""
    return save({name: np.ascontiguousarray(state[name], dtype=np.float32) for name in sorted(state)})


def unpack_state(data: bytes) -> State:
    """Raises `UpdateRejected` unless `data` is safetensors of finite float32 arrays."""
    try:
        arrays = load(data)
    except (SafetensorError, ValueError, TypeError, KeyError) as error:
        raise UpdateRejected("the weights are not safetensors", detail=str(error)[:200]) from error
    check_finite(arrays)
    return arrays


def check_finite(state: Mapping[str, NDArray[np.float32]]) -> None:
    """Raises `UpdateRejected` for an array that is not float32, or holds NaN or infinity."""
    if not state:
        raise UpdateRejected("the weights hold no arrays")
    for name, array in state.items():
        if array.dtype != np.float32:
            raise UpdateRejected(f"{name[:80]} is {array.dtype}, not float32")
        if not np.isfinite(array).all():
            raise UpdateRejected(f"{name[:80]} holds NaN or infinite values")


def check_like(state: Mapping[str, NDArray[np.float32]], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises `UpdateRejected` unless `state` has exactly these arrays, finite. The message names the first at fault."""
    missing, unknown = sorted(shapes.keys() - state.keys()), sorted(state.keys() - shapes.keys())
    if missing or unknown:
        what = f"lacks {missing[0]}" if missing else f"has an unknown array {unknown[0][:80]}"
        raise UpdateRejected(f"the state does not fit the model: it {what}")
    for name, shape in shapes.items():
        if state[name].shape != shape:
            raise UpdateRejected(f"{name} has shape {list(state[name].shape)}, the model has {list(shape)}")
    check_finite(state)
