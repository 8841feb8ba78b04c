"""Masks are AES-256-CTR and nothing less: known answers, cancellation, uniform words."""

import os
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.secagg.keys import Secret
from shared.secagg.masks import BLOCK_BYTES, Mask, apply_masks, keystream
from shared.secagg.packing import Layout

NIST_KEY = "603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4"
NIST_COUNTER = "f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff"
NIST_PLAIN = (
    "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51"
    "30c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710"
)
NIST_CIPHER = (
    "601ec313775789a5b7a7f504bbf3d228f443e3ca4d62b59aca84e990cacaf5c5"
    "2b0930daa23de94ce87017ba2d84988ddfc9c58db67aada613c2dd08457941a6"
)
KEY = Secret(bytes(range(32)))


def test_a_mask_is_the_keystream_of_nist_sp_800_38a_f_5_5() -> None:
    stream = keystream(Secret(bytes.fromhex(NIST_KEY)), 64, counter=bytes.fromhex(NIST_COUNTER))
    plain = np.frombuffer(bytes.fromhex(NIST_PLAIN), dtype="u1")
    assert (stream ^ plain).tobytes().hex() == NIST_CIPHER


def test_a_mask_is_the_keystream_read_as_little_endian_words() -> None:
    words = np.zeros(1000, dtype="<u8")
    apply_masks(words, [Mask(KEY)])
    assert words.tobytes() == keystream(KEY, words.nbytes).tobytes()


@given(st.integers(0, 3 * BLOCK_BYTES + 5))
def test_the_length_of_a_mask_does_not_change_its_bytes(length: int) -> None:
    assert np.array_equal(keystream(KEY, length), keystream(KEY, 3 * BLOCK_BYTES + 5)[:length])


@given(st.integers(0, 300), st.lists(st.binary(min_size=32, max_size=32), max_size=4), st.integers(0, 2**64 - 1))
def test_masks_added_and_subtracted_leave_the_words(length: int, keys: list[bytes], fill: int) -> None:
    words = np.full(length, fill, dtype="<u8")
    apply_masks(words, [Mask(Secret(key)) for key in keys])
    apply_masks(words, [Mask(Secret(key), negative=True) for key in keys])
    assert (words == np.uint64(fill)).all()


@pytest.mark.parametrize("bits", [6, 8, 11, 16, 19, 32])
def test_masks_cancel_though_packing_cuts_off_the_upper_bits_of_words(bits: int) -> None:
    layout, values = Layout(100, bits), np.arange(100) % (1 << min(bits - 1, 7)) - 3
    masked = layout.join(values)
    apply_masks(masked, [Mask(KEY)])
    total = layout.unpack(layout.pack(masked)).copy()
    apply_masks(total, [Mask(KEY, negative=True)])
    assert (layout.split(total) == values).all()


def test_masked_words_look_uniform() -> None:
    """A constant vector under one mask: byte counts within five standard deviations, and no bit leans."""
    words = np.full(1 << 17, 12345, dtype="<u8")
    apply_masks(words, [Mask(Secret(os.urandom(32)))])
    counts = np.bincount(words.view(np.uint8), minlength=256)
    expected = words.nbytes / 256
    assert abs(counts - expected).max() < 6.5 * np.sqrt(expected)
    ones = np.unpackbits(words.view(np.uint8).reshape(-1, 8), axis=1).mean(axis=0)
    assert abs(ones - 0.5).max() < 6.5 * 0.5 / np.sqrt(words.size)


@pytest.mark.parametrize(
    "words",
    [
        np.zeros(4, dtype=np.int64),
        np.zeros(4, dtype=">u8"),
        np.zeros((2, 2), dtype="<u8"),
        np.frombuffer(bytes(16), dtype="<u8"),
    ],
    ids=["another type", "big-endian", "a matrix", "read-only"],
)
def test_only_a_writable_vector_of_words_is_masked(words: Any) -> None:
    with pytest.raises(ValueError):
        apply_masks(words, [Mask(KEY)])
