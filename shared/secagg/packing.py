"""Residues modulo 2^m as bytes: m bits each and no more, with m from 1 to 32.

The vector is laid out in 32 rows; a column of 32 residues is m words of 32 bits, so both sides work on whole rows and a row's bits
lie at one place in every column. The last column is filled up with zeros: at most 4m bytes more than the bits need.
"""

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
    for row, (word, shift, spill) in enumerate(_places(bits)):
        words[word] |= rows[row] << np.uint32(shift)
        if spill:
            words[word + 1] |= rows[row] >> np.uint32(bits - spill)
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
    mask = np.uint32((1 << bits) - 1)
    for row, (word, shift, spill) in enumerate(_places(bits)):
        value = words[word] >> np.uint32(shift)
        if spill:
            value |= words[word + 1] << np.uint32(bits - spill)
        rows[row] = value & mask
    return _whole(rows.reshape(-1), length)


def _whole(residues: Residues, length: int) -> Residues:
    if residues[length:].any():
        raise Malformed(f"there is something after the last of {length} residues")
    return residues[:length]


def _places(bits: int) -> list[tuple[int, int, int]]:
    """Of each row: its first word, the shift there, and how many bits spill into the next word."""
    places = []
    for row in range(ROWS):
        word, shift = divmod(row * bits, WORD_BITS)
        places.append((word, shift, max(0, shift + bits - WORD_BITS)))
    return places


def _rows(residues: Residues, bits: int) -> NDArray[np.uint32]:
    columns = -(-residues.size // ROWS)
    rows = np.zeros(ROWS * columns, dtype="<u4")
    np.bitwise_and(
        residues, residues.dtype.type(min((1 << bits) - 1, np.iinfo(residues.dtype).max)), out=rows[: residues.size]
    )
    return rows.reshape(ROWS, columns)
