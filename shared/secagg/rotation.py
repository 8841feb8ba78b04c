"""A seeded randomised Hadamard transform: every coordinate of the result is about as large as every other.

Suresh et al., "Distributed Mean Estimation with Limited Communication" (ICML 2017): after random signs and a Hadamard matrix the
largest coordinate of a vector of length d is at most O(sqrt(log d / d)) of its norm, so few bits a coordinate lose little. The
transform is orthogonal, hence linear and its own inverse up to the signs: a sum is turned back once, for all.

Vectors are rotated in blocks of one power of two, 1024 at most. The blocks take every k-th coordinate, so that each sees all of the
vector; what they leave over at the end is rotated together with its neighbours before it, under signs of its own, or the second
transform would undo the first. Nothing is padded.
"""

from dataclasses import dataclass
from functools import cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from shared.secagg.keys import Secret, digest
from shared.secagg.masks import keystream

_LONGEST = 1024

Floats = NDArray[np.floating]


class Turn(Protocol):
    """A linear map of vectors and the way back. Both may overwrite what they are given."""

    def forward(self, values: Floats) -> Floats: ...

    def backward(self, values: Floats) -> Floats: ...


def turn(seed: bytes, length: int, kind: str = "f4", *, kept: int | None = None, whole: int = 0) -> Turn:
    """The rotation of vectors of `length` coordinates of which `kept` stay; of the first `whole`, turned by themselves, all."""
    kept = length if kept is None else kept
    if not whole:
        return Rotation(seed, length, kind, kept=kept)
    rest = Rotation(seed, length - whole, kind, kept=kept - whole)
    return _Parts(whole, Rotation(digest("whole", seed), whole, kind), rest)


@dataclass(frozen=True)
class _Parts:
    """Two rotations side by side. `whole` is where the second one begins."""

    whole: int
    first: Turn
    second: Turn

    def forward(self, values: Floats) -> Floats:
        return np.concatenate([self.first.forward(values[: self.whole]), self.second.forward(values[self.whole :])])

    def backward(self, values: Floats) -> Floats:
        return np.concatenate([self.first.backward(values[: self.whole]), self.second.backward(values[self.whole :])])


class Rotation:
    """Of vectors of `length` coordinates, of which `kept` stay (all by default); `seed` is 32 bytes, public, the same for all who
    are summed.
    """

    def __init__(self, seed: bytes, length: int, kind: str = "f4", *, kept: int | None = None) -> None:
        self._length, self._kept = length, length if kept is None else kept
        self._start = int.from_bytes(digest("window", seed)[:8], "big") % length if self._kept < length else 0
        self._block = min(_LONGEST, 1 << (length.bit_length() - 1)) if length else 1
        self._whole = length - length % self._block
        bits = np.unpackbits(keystream(Secret(seed), -(-(length + self._block) // 8)), count=length + self._block)
        signs = (1 - 2 * bits.view(np.int8)).astype(kind)
        self._signs, self._last_signs = signs[:length], signs[length:]

    def forward(self, values: Floats) -> Floats:
        """Shape (kept,), of this rotation's kind. Overwrites `values`, shape (length,)."""
        values *= self._signs
        self._blocks(values)
        if self._whole < values.size:
            values[-self._block :] *= self._last_signs
            self._last(values)
        if self._kept == self._length:
            return values
        end = self._start + self._kept
        return np.concatenate([values[self._start : end], values[: max(0, end - self._length)]])

    def backward(self, values: Floats) -> Floats:
        """Shape (length,): the inverse of `forward`, zero in all directions that it dropped. Overwrites `values`, shape (kept,)."""
        values = self._spread(values)
        if self._whole < values.size:
            self._last(values)
            values[-self._block :] *= self._last_signs
        self._blocks(values)
        values *= self._signs
        return values

    def _spread(self, values: Floats) -> Floats:
        if self._kept == self._length:
            return values
        whole = np.zeros(self._length, dtype=values.dtype)
        first = whole[self._start : self._start + self._kept]
        first[:] = values[: first.size]
        whole[: self._kept - first.size] = values[first.size :]
        return whole

    def _blocks(self, values: Floats) -> None:
        _columns(values[: self._whole], self._block)

    def _last(self, values: Floats) -> None:
        _columns(values[-self._block :], self._block)


def _columns(values: Floats, size: int) -> None:
    """H x / sqrt(size) of each column of a matrix of `size` rows, in place: two small products, since H(ab) = H(a) ⊗ H(b)."""
    outer = 1 << (size.bit_length() // 2)
    inner = size // outer
    half = _matrix(outer, values.dtype.str) @ values.reshape(outer, -1)
    np.matmul(_matrix(inner, values.dtype.str), half.reshape(outer, inner, -1), out=values.reshape(outer, inner, -1))


@cache
def _matrix(size: int, kind: str) -> Floats:
    """Sylvester's Hadamard matrix over sqrt(size): symmetric, orthogonal."""
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    unit: Floats = (matrix / np.sqrt(size)).astype(kind)
    return unit
