"""m bits an element and no more: exact bytes, beside a packer of plain integers that says where each bit goes."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from shared.errors import Malformed
from shared.secagg.packing import MOST_BITS, Layout, Words

EVERY = list(range(1, MOST_BITS + 1))
LENGTHS = [0, 1, 7, 63, 64, 65, 200, 1000, 6000, 200_000]
FIELDS = {1: 64, 2: 32, 3: 21, 4: 16, 8: 8, 11: 5, 12: 5, 13: 4, 16: 4, 17: 3, 21: 3, 22: 2, 32: 2}
KNOWN = {
    (1, 5): ([-1, 0, -1, 0, 0], 1, "fbffffffffffffff"),
    (8, 3): ([1, 2, 3], 1, "0102030000000000"),
    (16, 5): ([1, 2, 3, 4, -1], 2, "01000300ffffffff0200040000000000"),
    (17, 3): ([1, 2, 3], 1, "010004000c0000"),
}


def elements(layout: Layout, seed: int) -> NDArray[np.int64]:
    half = 1 << (layout.bits - 1)
    return np.random.default_rng(seed).integers(-half, half, layout.length)


def noisy(layout: Layout, words: Words) -> Words:
    """With the unused bits of each word set, as masks set them."""
    return words | np.uint64((1 << 64) - (1 << layout.used))


def plainly(layout: Layout, words: Words) -> bytes:
    """Row r of column c is word r * columns + c, in bits r * used of the column; 64-bit words of the columns, word by word; then
    what is left.
    """
    low = [int(word) & ((1 << layout.used) - 1) for word in words]
    rows = 64 // math.gcd(layout.used, 64)
    columns, left = divmod(len(low), rows)
    sums = [sum(low[r * columns + c] << (r * layout.used) for r in range(rows)) for c in range(columns)]
    whole = b"".join(
        ((total >> (64 * word)) & (2**64 - 1)).to_bytes(8, "little")
        for word in range(rows * layout.used // 64)
        for total in sums
    )
    rest = sum(value << (place * layout.used) for place, value in enumerate(low[len(low) - left :]))
    return whole + rest.to_bytes(-(-left * layout.used // 8), "little")


@pytest.mark.parametrize("bits", EVERY)
@settings(max_examples=25, deadline=None)
@given(length=st.integers(0, 400), seed=st.integers(0, 2**32 - 1))
def test_elements_come_back_from_bytes_of_their_bits(bits: int, length: int, seed: int) -> None:
    layout = Layout(length, bits)
    sent = elements(layout, seed)
    words = layout.join(sent)
    packed = layout.pack(noisy(layout, words))
    assert length * bits / 8 <= len(packed) == layout.size < length * bits / 8 + 64 / 8 + 1
    assert np.array_equal(layout.unpack(packed), layout.low(words))
    assert np.array_equal(layout.split(noisy(layout, layout.unpack(packed))), sent)


@pytest.mark.parametrize("bits", EVERY)
@pytest.mark.parametrize("length", LENGTHS[:-1])
def test_the_bytes_are_those_of_a_packer_of_plain_integers(bits: int, length: int) -> None:
    layout = Layout(length, bits)
    words = layout.join(elements(layout, bits))
    assert layout.pack(noisy(layout, words)) == plainly(layout, words)


@pytest.mark.parametrize("bits", [4, 15, 17, 18, 19])
def test_long_vectors_are_packed_as_short_ones_are(bits: int) -> None:
    layout = Layout(LENGTHS[-1], bits)
    words = layout.join(elements(layout, bits))
    packed = layout.pack(noisy(layout, words))
    assert packed == plainly(layout, words)
    assert np.array_equal(layout.unpack(packed), layout.low(words))


@pytest.mark.parametrize(("bits", "length"), KNOWN, ids=str)
def test_known_answers(bits: int, length: int) -> None:
    layout, (sent, words, packed) = Layout(length, bits), KNOWN[bits, length]
    assert layout.words == words
    assert layout.pack(layout.join(np.array(sent))).hex() == packed


@pytest.mark.parametrize(("bits", "fields"), FIELDS.items())
def test_as_many_elements_as_fit_lie_in_a_word(bits: int, fields: int) -> None:
    assert Layout(1, bits).fields == fields


@pytest.mark.parametrize("bits", EVERY)
@pytest.mark.parametrize("end", ["lowest", "highest", "alternating"])
def test_sums_at_either_end_leave_their_neighbours_alone(bits: int, end: str) -> None:
    """The sum of a word's elements is its word's, whatever their signs."""
    layout, half = Layout(100, bits), 1 << (bits - 1)
    lowest, highest = np.full(100, -half), np.full(100, half - 1)
    wanted = {"lowest": lowest, "highest": highest, "alternating": np.where(np.arange(100) % 2, lowest, highest)}[end]
    one = wanted // 3
    parts = [one, one, wanted - 2 * one]
    total = layout.zeros()
    for part in parts:
        total += layout.join(part)
    assert np.array_equal(layout.split(noisy(layout, layout.low(total))), wanted)


@pytest.mark.parametrize("bits", [4, 8, 11, 16, 17, 20, 32])
@pytest.mark.parametrize("off", [-1, 1, 8])
def test_another_number_of_bytes_is_malformed(bits: int, off: int) -> None:
    layout = Layout(70, bits)
    with pytest.raises(Malformed):
        layout.unpack(bytes(layout.size + off))


@pytest.mark.parametrize("bits", [0, MOST_BITS + 1, -1])
def test_there_is_no_layout_for_other_bits(bits: int) -> None:
    with pytest.raises(ValueError):
        Layout(3, bits)


@pytest.mark.parametrize("bits", [11, 13, 15, 17, 20])
def test_something_after_the_last_word_is_malformed(bits: int) -> None:
    """Two strings of bytes would otherwise be one vector."""
    layout = next(found for found in (Layout(size, bits) for size in range(1, 99)) if found.words * found.used % 8)
    data = bytearray(layout.pack(layout.join(np.ones(layout.length))))
    data[-1] |= 0x80
    with pytest.raises(Malformed, match="after the last"):
        layout.unpack(bytes(data))
