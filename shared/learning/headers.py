"""Arrays in `.npz` and `.safetensors` files by their headers, then in pieces: a few bytes of a file may unpack to gigabytes."""

import contextlib
import json
import math
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from shared.errors import Malformed

MAX_HEADER = 8 << 20  # bytes, of a safetensors file: about a hundred for each array
_PIECE = 1 << 20  # values
_DTYPES = {  # those that NumPy has; https://github.com/huggingface/safetensors has the format
    **{"BOOL": "?", "F16": "<f2", "F32": "<f4", "F64": "<f8"},
    **{f"{kind}{8 * size}": f"<{kind.lower()}{size}" for kind in "IU" for size in (1, 2, 4, 8)},
}


@dataclass(frozen=True)
class ArrayOnFile:
    """What an array's header says, and its values, which are read while the file is open."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    _file: IO[bytes] = field(repr=False)

    def __post_init__(self) -> None:
        if any(length < 0 for length in self.shape):
            raise Malformed("an array has a negative length")

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def pieces(self) -> Iterator[np.ndarray[Any, Any]]:
        """All values, flat, in the order of the file. Raises `Malformed` if there are fewer than the header says."""
        left = self.size_bytes
        while left:
            data = self._file.read(min(left, _PIECE * self.dtype.itemsize))
            if not data or len(data) % self.dtype.itemsize:
                raise Malformed("an array ends before its header says")
            left -= len(data)
            yield np.frombuffer(data, self.dtype)


@contextlib.contextmanager
def in_archive(path: Path, name: str) -> Iterator[ArrayOnFile]:
    """One array of an `.npz` file. Raises `Malformed`, `KeyError` if there is none, and what `zipfile` raises."""
    with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as file:
        read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(npy.read_magic(file))
        if read_header is None:
            raise Malformed(f"{name} is no array of plain numbers")
        shape, _, dtype = read_header(file)
        if dtype.hasobject:
            raise Malformed(f"{name} holds pickled objects, which are never loaded")
        yield ArrayOnFile(dtype, shape, file)


@contextlib.contextmanager
def in_safetensors(path: Path, name: str) -> Iterator[ArrayOnFile]:
    """One array of a `.safetensors` file. Raises `Malformed`, and `KeyError` if there is none."""
    with path.open("rb") as file:
        header, start = _safetensors_header(file, path.stat().st_size)
        dtype, shape, begin = header[name]
        file.seek(start + begin)
        yield ArrayOnFile(np.dtype(_DTYPES[dtype]), shape, file)


def check_safetensors(path: Path) -> None:
    """Whether the file's size is what its header says; none of its arrays is read. Raises `Malformed`."""
    with path.open("rb") as file:
        _safetensors_header(file, path.stat().st_size)


def _safetensors_header(file: IO[bytes], size: int) -> tuple[dict[str, tuple[str, tuple[int, ...], int]], int]:
    """Of each array its dtype, its shape and where it begins, counted from the second value."""
    length = int.from_bytes(file.read(8), "little")
    if not 2 <= length <= min(MAX_HEADER, size - 8):
        raise Malformed("not a safetensors file")
    try:
        header = json.loads(file.read(length))
        arrays = {name: value for name, value in header.items() if name != "__metadata__"}
        ends = [value["data_offsets"][1] for value in arrays.values()]
        found = {
            name: (str(value["dtype"]), tuple(map(int, value["shape"])), int(value["data_offsets"][0]))
            for name, value in arrays.items()
        }
    except (ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
        raise Malformed("not a safetensors file") from error
    if max(ends, default=0) != size - 8 - length:
        raise Malformed("the safetensors file is longer or shorter than its header says: it was cut, say")
    return found, 8 + length
