"""Masks are AES-256-CTR and nothing less: known answers, cancellation, uniform words."""

import os
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.secagg.keys import Secret
from shared.secagg.masks import BLOCK_WORDS, Mask, apply_masks, expand

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


def test_a_mask_is_the_keystream_of_nist_sp_800_38a_f_5_5() -> None:
    mask = expand(Secret(bytes.fromhex(NIST_KEY)), 16, counter=bytes.fromhex(NIST_COUNTER))
    plain = np.frombuffer(bytes.fromhex(NIST_PLAIN), dtype="<u4")
    assert (mask ^ plain).tobytes().hex() == NIST_CIPHER


@given(st.integers(0, 3 * BLOCK_WORDS + 5))
def test_the_length_of_a_mask_does_not_change_its_words(length: int) -> None:
    key = Secret(bytes(range(32)))
    assert np.array_equal(expand(key, length), expand(key, 3 * BLOCK_WORDS + 5)[:length])


@given(st.integers(0, 300), st.lists(st.binary(min_size=32, max_size=32), max_size=4), st.integers(0, 2**32 - 1))
def test_masks_added_and_subtracted_leave_the_words(length: int, keys: list[bytes], fill: int) -> None:
    words = np.full(length, fill, dtype="<u4")
    apply_masks(words, [Mask(Secret(key)) for key in keys])
    apply_masks(words, [Mask(Secret(key), negative=True) for key in keys])
    assert (words == fill).all()


@pytest.mark.parametrize("bit", range(0, 256, 15))
def test_flower_weakness_seeds_of_28_bits_here_every_bit_of_a_seed_counts(bit: int) -> None:
    key = bytearray(range(32))
    key[bit // 8] ^= 1 << bit % 8
    differ = expand(Secret(bytes(key)), 4096) != expand(Secret(bytes(range(32))), 4096)
    assert differ.mean() > 0.99


def test_masked_words_look_uniform() -> None:
    """A constant vector under one mask: byte counts within five standard deviations, and no bit leans."""
    words = np.full(1 << 18, 12345, dtype="<u4")
    apply_masks(words, [Mask(Secret(os.urandom(32)))])
    counts = np.bincount(words.view(np.uint8), minlength=256)
    expected = words.nbytes / 256
    assert abs(counts - expected).max() < 5.5 * np.sqrt(expected)
    ones = np.unpackbits(words.view(np.uint8).reshape(-1, 4), axis=1).mean(axis=0)
    assert abs(ones - 0.5).max() < 5.5 * 0.5 / np.sqrt(words.size)


@pytest.mark.parametrize(
    "words",
    [np.zeros(4, dtype=np.int64), np.zeros((2, 2), dtype="<u4"), np.frombuffer(bytes(16), dtype="<u4")],
    ids=["another type", "a matrix", "read-only"],
)
def test_only_a_writable_vector_of_words_is_masked(words: Any) -> None:
    with pytest.raises(ValueError):
        apply_masks(words, [Mask(Secret(bytes(32)))])
