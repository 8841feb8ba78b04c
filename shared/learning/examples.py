"""Labelled examples as files and arrays, and the split into training and held-out. No torch here.

Whether an example is held out is decided by a hash of its own bytes: the split stays as it is however the set grows, and
copies of one example are all on one side.
"""

import contextlib
import hashlib
import math
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load

from shared.errors import Malformed, NotFound
from shared.learning import headers
from shared.learning.headers import ArrayOnFile

X = NDArray[np.float32]
Y = NDArray[np.int64]
HELD_OUT_SHARE = 0.2
MAX_LABEL = 1_000_000
_WRITE = "write it with numpy.savez(file, x=x, y=y) from arrays of numbers"
_THRESHOLD = int(HELD_OUT_SHARE * 2**64)
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


@dataclass(frozen=True)
class Outline:
    """What decides whether a model takes some examples: the shape of one, and the highest label."""

    shape: tuple[int, ...]
    highest: int


def check_examples(x: NDArray[Any], y: NDArray[Any]) -> tuple[X, Y]:
    """As float32 and int64. Raises `Malformed`."""
    _check_kinds(x, y)
    images = np.ascontiguousarray(x, dtype=np.float32)
    _check_values(images, y)
    return images, np.ascontiguousarray(y, dtype=np.int64)


def _check_kinds(x: NDArray[Any] | ArrayOnFile, y: NDArray[Any] | ArrayOnFile) -> None:
    if len(y.shape) != 1 or y.dtype.kind not in "iu":
        raise Malformed(f"y holds one integer label an example, not {y.dtype} {list(y.shape)}")
    if x.dtype.kind in "iub":
        raise Malformed(
            f"x is {x.dtype}: make it floats in the units that the model takes, for images most often"
            " x.astype(numpy.float32) / 255"
        )
    if len(x.shape) < 2 or x.dtype.kind != "f" or x.shape[0] != y.shape[0]:
        raise Malformed(f"x holds one float array for each of the {y.shape[0]} labels, not {x.dtype} {list(x.shape)}")
    if not math.prod(x.shape):
        raise Malformed("the file holds no examples")


def _check_values(images: X, y: NDArray[Any]) -> None:
    if not np.isfinite(images).all():
        raise Malformed("x holds NaN or infinite values")
    if y.size and (int(y.min()) < 0 or int(y.max()) > MAX_LABEL):
        raise Malformed(f"labels are numbers from 0 to {MAX_LABEL}")


def load_file(path: Path) -> tuple[X, Y]:
    """Examples from `.npz` or `.safetensors` with arrays `x` and `y`. Never unpickles.

    Raises `NotFound` for no file, `Malformed` for anything but such examples.
    """
    in_archive = _is_archive(path)
    with _unreadable(path):
        if in_archive:
            x, y = _from_archive(path)
        else:
            arrays = load(path.read_bytes())
            x, y = arrays["x"], arrays["y"]
    with _named(path):
        return check_examples(x, y)


def outline_of_file(path: Path, *, max_bytes: int) -> Outline:
    """All that `load_file` checks, in a few megabytes of memory. Raises what it raises, and `Malformed` for examples that take
    more than `max_bytes` unpacked.
    """
    opened = headers.in_archive if _is_archive(path) else headers.in_safetensors
    none, highest = np.empty(0, np.float32), 0
    with _named(path), _unreadable(path), opened(path, "x") as x, opened(path, "y") as y:
        _check_kinds(x, y)
        if x.size_bytes + y.size_bytes > max_bytes:
            raise Malformed(
                f"its examples take {(x.size_bytes + y.size_bytes) / 1e9:.1f} GB unpacked: at most {max_bytes / 1e9:.1f} GB"
            )
        for labels in y.pieces():
            _check_values(none, labels)
            highest = max(highest, int(labels.max()))
        with np.errstate(over="ignore"):  # it becomes infinite, which is refused
            for images in x.pieces():
                _check_values(images.astype(np.float32), none)
        return Outline(x.shape[1:], highest)


def _is_archive(path: Path) -> bool:
    """Else it is a safetensors file. Raises `NotFound`, and `Malformed` for what is neither."""
    if not path.is_file():
        raise NotFound(f"no file {path}")
    if path.suffix not in (".npz", ".safetensors"):
        raise Malformed(f"{path.name} is neither .npz nor .safetensors: {_WRITE}")
    if not path.stat().st_size:  # as the files of /proc are, which may wait for ever
        raise Malformed(f"{path.name} is empty")
    if path.suffix == ".npz" and not zipfile.is_zipfile(path):
        raise Malformed(f"{path.name} is no .npz archive: {_WRITE}")
    return path.suffix == ".npz"


@contextlib.contextmanager
def _unreadable(path: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, KeyError, EOFError, OSError, SafetensorError, *_BAD_ARCHIVE) as error:
        raise Malformed(f"{path.name} holds no arrays x and y that can be read", detail=str(error)[:200]) from error


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except Malformed as error:
        known = error.message.startswith(path.name)
        raise Malformed(error.message if known else f"{path.name}: {error.message}", detail=error.detail) from error


def _from_archive(path: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    """Raises `Malformed` in words of our own where NumPy's advise to load what may run code."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return archive["x"], archive["y"]
    except ValueError as error:
        raise Malformed(
            f"{path.name} holds pickled objects, which are never loaded, or broken arrays: {_WRITE}"
        ) from error
