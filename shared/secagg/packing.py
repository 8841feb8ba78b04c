"""Residues modulo 2^m as bytes: m bits each and no more, with m from 1 to 32.

The vector is laid out in 32 rows; a column of 32 residues is m words of 32 bits, so both sides work on whole rows and a row's bits
lie at one place in every column. The last column is filled up with zeros: at most 4m bytes more than the bits need.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from shared.errors import Malformed

ROWS = 32
WORD_BITS = 32
Residues = NDArray[np.unsignedinteger]


def lane(bits: int) -> np.dtype[np.unsignedinteger]:
    """The narrowest little-endian word that holds residues modulo 2^bits. Raises `ValueError` unless 1 ≤ bits ≤ 32."""
    if not 1 <= bits <= WORD_BITS:
        raise ValueError(f"residues have 1 to {WORD_BITS} bits, not {bits}")
    return np.dtype("u1" if bits <= 8 else "<u2" if bits <= 16 else "<u4")


def packed_size(length: int, bits: int) -> int:
    """Bytes of `length` packed residues."""
    return -(-length // ROWS) * bits * (WORD_BITS // 8)


def pack(residues: Residues, bits: int) -> bytes:
    """The low `bits` bits of each of `residues`, shape (length,), in order."""
    if residues.dtype.itemsize * 8 == bits:
        columns = -(-residues.size // ROWS)
        return residues.tobytes().ljust(columns * bits * 4, b"\0")
    rows = _rows(residues, bits)
    words = np.zeros((bits, rows.shape[1]), dtype="<u4")
    moved = np.empty(rows.shape[1], dtype="<u4")
    for row, place in zip(rows, _places(bits), strict=True):
        words[place.word] |= np.left_shift(row, place.shift, out=moved)
        if place.spills:
            words[place.word + 1] |= np.right_shift(row, place.rest, out=moved)
    return words.tobytes()


def unpack(data: bytes, length: int, bits: int) -> Residues:
    """The inverse of `pack`, in the narrowest lane. Raises `Malformed` for bytes that it did not write."""
    if len(data) != packed_size(length, bits):
        raise Malformed(f"{length} residues of {bits} bits are {packed_size(length, bits)} bytes, not {len(data)}")
    kind = lane(bits)
    if kind.itemsize * 8 == bits:
        return _whole(np.frombuffer(data, dtype=kind), length)
    words = np.frombuffer(data, dtype="<u4").reshape(bits, -1)
    rows = np.empty((ROWS, words.shape[1]), dtype=kind)
    value, spilt = np.empty((2, words.shape[1]), dtype="<u4")
    for row, place in zip(rows, _places(bits), strict=True):
        np.right_shift(words[place.word], place.shift, out=value)
        if place.spills:
            value |= np.left_shift(words[place.word + 1], place.rest, out=spilt)
        row[:] = value
    rows &= kind.type((1 << bits) - 1)
    return _whole(rows.reshape(-1), length)


def _whole(residues: Residues, length: int) -> Residues:
    if residues[length:].any():
        raise Malformed(f"there is something after the last of {length} residues")
    return residues[:length]


@dataclass(frozen=True)
class _Place:
    """Of a row: its first word, the shift there, and whether it spills into the next word, and how many of its bits do not."""

    word: int
    shift: np.uint32
    spills: bool
    rest: np.uint32


@cache
def _places(bits: int) -> tuple[_Place, ...]:
    places = []
    for row in range(ROWS):
        word, shift = divmod(row * bits, WORD_BITS)
        rest = WORD_BITS - shift
        places.append(_Place(word, np.uint32(shift), rest < bits, np.uint32(min(rest, bits))))
    return tuple(places)


def _rows(residues: Residues, bits: int) -> NDArray[np.uint32]:
    columns = -(-residues.size // ROWS)
    rows = np.zeros(ROWS * columns, dtype="<u4")
    np.bitwise_and(
        residues, residues.dtype.type(min((1 << bits) - 1, np.iinfo(residues.dtype).max)), out=rows[: residues.size]
    )
    return rows.reshape(ROWS, columns)
