"""m bits a residue and no more: exact bytes, beside a packer of plain integers that says where each bit goes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import Malformed
from shared.secagg.packing import ROWS, Residues, lane, pack, packed_size, unpack

EVERY = list(range(1, 33))
KNOWN = {
    (1, 5): "15000000",
    (3, 5): "050000000000000000000000",
    (8, 3): "f0e1d2" + "00" * 29,
    (16, 2): "f0e1d2c3" + "00" * 60,
}


def residues(bits: int, length: int, seed: int = 0) -> Residues:
    """Of the whole lane: bits above `bits` are noise, as after masking."""
    kind = lane(bits)
    drawn: Residues = (
        np.random.default_rng(seed).integers(0, 1 << (8 * kind.itemsize), length, dtype=np.uint64).astype(kind)
    )
    return drawn


def low(values: Residues, bits: int) -> list[int]:
    return [int(value) & ((1 << bits) - 1) for value in values]


def plainly(values: Residues, bits: int) -> bytes:
    """Row r, column c holds residue r * columns + c, in bits r * m to r * m + m of the column; words of 32 bits, word by word."""
    columns = -(-len(values) // ROWS)
    padded = low(values, bits) + [0] * (ROWS * columns - len(values))
    if bits in (8, 16, 32):
        return b"".join(value.to_bytes(bits // 8, "little") for value in padded)
    sums = [sum(padded[row * columns + column] << (row * bits) for row in range(ROWS)) for column in range(columns)]
    return b"".join(
        ((total >> (32 * word)) & 0xFFFFFFFF).to_bytes(4, "little") for word in range(bits) for total in sums
    )


@pytest.mark.parametrize("bits", EVERY)
@settings(max_examples=25, deadline=None)
@given(length=st.integers(0, 200), seed=st.integers(0, 2**32 - 1))
def test_the_low_bits_come_back_in_exactly_so_many_bytes(bits: int, length: int, seed: int) -> None:
    values = residues(bits, length, seed)
    packed = pack(values, bits)
    assert len(packed) == packed_size(length, bits) <= length * bits / 8 + 4 * bits
    back = unpack(packed, length, bits)
    assert back.dtype == lane(bits)
    assert back.tolist() == low(values, bits)


@pytest.mark.parametrize("bits", EVERY)
@pytest.mark.parametrize("length", [0, 1, 31, 32, 33, 100])
def test_the_bytes_are_those_of_a_packer_of_plain_integers(bits: int, length: int) -> None:
    values = residues(bits, length, bits)
    assert pack(values, bits) == plainly(values, bits)


@pytest.mark.parametrize(("bits", "length"), KNOWN, ids=str)
def test_known_answers(bits: int, length: int) -> None:
    values = {1: [1, 0, 1, 0, 1], 3: [5, 0, 0, 0, 0], 8: [0xF0, 0xE1, 0xD2], 16: [0xE1F0, 0xC3D2]}[bits]
    assert pack(np.array(values, dtype=lane(bits)), bits).hex() == KNOWN[bits, length]


def test_residues_that_straddle_two_words_are_whole() -> None:
    """Of 11 bits, the third begins at bit 22 and ends in the next word."""
    values = np.array([0, 0, 0x7FF] + [0] * 29, dtype="<u2")
    words = np.frombuffer(pack(values, 11), dtype="<u4")
    assert words.tolist() == [0xFFC00000, 0x1, *[0] * 9]


@pytest.mark.parametrize("bits", [4, 8, 11, 16, 20, 32])
@pytest.mark.parametrize("off", [-1, 1, 4])
def test_another_number_of_bytes_is_malformed(bits: int, off: int) -> None:
    data = bytes(packed_size(70, bits) + off)
    with pytest.raises(Malformed):
        unpack(data, 70, bits)


@pytest.mark.parametrize("bits", [0, 33, -1])
def test_there_is_no_lane_for_other_bits(bits: int) -> None:
    with pytest.raises(ValueError):
        lane(bits)


@pytest.mark.parametrize(("bits", "kind"), [(1, "u1"), (8, "u1"), (9, "<u2"), (16, "<u2"), (17, "<u4"), (32, "<u4")])
def test_residues_lie_in_the_narrowest_lane(bits: int, kind: str) -> None:
    assert lane(bits) == np.dtype(kind)


@pytest.mark.parametrize("bits", [4, 8, 11, 16, 20, 32])
def test_something_after_the_last_residue_is_malformed(bits: int) -> None:
    """Two strings of bytes would otherwise be one vector."""
    data = bytearray(pack(np.ones(70, lane(bits)), bits))
    data[-1] |= 0x80
    with pytest.raises(Malformed, match="after the last"):
        unpack(bytes(data), 70, bits)
    assert (unpack(pack(np.ones(64, lane(bits)), bits), 64, bits) == 1).all()
