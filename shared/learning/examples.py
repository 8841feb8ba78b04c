"""Labelled examples as files and arrays, and the split into training and held-out. No torch here.

Whether an example is held out is decided by a hash of its own bytes: the split stays as it is however the set grows, and
copies of one example are all on one side.
"""

import hashlib
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load

from shared.errors import Malformed, NotFound

X = NDArray[np.float32]
Y = NDArray[np.int64]
HELD_OUT_SHARE = 0.2
MAX_LABEL = 1_000_000
_WRITE = "write it with numpy.savez(file, x=x, y=y) from arrays of numbers"
_THRESHOLD = int(HELD_OUT_SHARE * 2**64)
# The last is for encryption and for compressions that are not known.
_BAD_ARCHIVE = (zipfile.BadZipFile, zlib.error, RuntimeError)  # the last: encrypted, or a compression unknown here


@dataclass(frozen=True)
class Split:
    """Training and held-out examples, in the order they came."""

    train_x: X = field(repr=False)
    train_y: Y = field(repr=False)
    held_x: X = field(repr=False)
    held_y: Y = field(repr=False)


def split_examples(x: X, y: Y) -> Split:
    """In the order they came. At least one is left to train on."""
    held = is_held_out(x)
    if held.all():
        held[0] = False
    return Split(x[~held], y[~held], x[held], y[held])


def is_held_out(x: X) -> NDArray[np.bool_]:
    """About `HELD_OUT_SHARE` of examples, by a hash of each one's own values."""
    rows = np.ascontiguousarray(x)
    drawn = (int.from_bytes(hashlib.blake2b(row.tobytes(), digest_size=8).digest(), "big") for row in rows)
    return np.fromiter((value < _THRESHOLD for value in drawn), dtype=np.bool_, count=len(rows))


def check_examples(x: NDArray[Any], y: NDArray[Any]) -> tuple[X, Y]:
    """As float32 and int64. Raises `Malformed`."""
    if y.ndim != 1 or y.dtype.kind not in "iu":
        raise Malformed(f"y holds one integer label an example, not {y.dtype} {list(y.shape)}")
    if x.dtype.kind in "iub":
        raise Malformed(
            f"x is {x.dtype}: make it floats in the units that the model takes, for images most often"
            " x.astype(numpy.float32) / 255"
        )
    if x.ndim < 2 or x.dtype.kind != "f" or len(x) != len(y):
        raise Malformed(f"x holds one float array for each of the {len(y)} labels, not {x.dtype} {list(x.shape)}")
    if not len(y) or not x[0].size:
        raise Malformed("the file holds no examples")
    images = np.ascontiguousarray(x, dtype=np.float32)
    if not np.isfinite(images).all():
        raise Malformed("x holds NaN or infinite values")
    if int(y.min()) < 0 or int(y.max()) > MAX_LABEL:
        raise Malformed(f"labels are numbers from 0 to {MAX_LABEL}")
    return images, np.ascontiguousarray(y, dtype=np.int64)


def load_file(path: Path) -> tuple[X, Y]:
    """Examples from `.npz` or `.safetensors` with arrays `x` and `y`. Never unpickles.

    Raises `NotFound` for no file, `Malformed` for anything but such examples.
    """
    if not path.is_file():
        raise NotFound(f"no file {path}")
    try:
        if path.suffix == ".npz":
            x, y = _from_archive(path)
        elif path.suffix == ".safetensors":
            arrays = load(path.read_bytes())
            x, y = arrays["x"], arrays["y"]
        else:
            raise Malformed(f"{path.name} is neither .npz nor .safetensors: {_WRITE}")
    except (ValueError, KeyError, EOFError, OSError, SafetensorError, *_BAD_ARCHIVE) as error:
        raise Malformed(f"{path.name} holds no arrays x and y that can be read", detail=str(error)[:200]) from error
    try:
        return check_examples(x, y)
    except Malformed as error:
        raise Malformed(f"{path.name}: {error.message}") from error


def _from_archive(path: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    """Raises `Malformed` in words of our own where NumPy's advise to load what may run code."""
    if not zipfile.is_zipfile(path):
        raise Malformed(f"{path.name} is no .npz archive: {_WRITE}")
    try:
        with np.load(path, allow_pickle=False) as archive:
            return archive["x"], archive["y"]
    except ValueError as error:
        raise Malformed(
            f"{path.name} holds pickled objects, which are never loaded, or broken arrays: {_WRITE}"
        ) from error
