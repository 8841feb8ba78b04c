"""Masks: the AES-256-CTR keystream (NIST SP 800-38A) of a full 32-byte key, as little-endian uint32, added modulo 2^32.

A key is used for one mask only, so the counter starts at zero. Work goes in blocks of 256 KiB: the block stays in the
core's cache while all masks are added to it, and the cipher lets go of the interpreter lock meanwhile.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from numpy.typing import NDArray

from shared.secagg.keys import Secret

BLOCK_WORDS = 65_536
WORD_BYTES = 4
_ZEROS = memoryview(bytes(BLOCK_WORDS * WORD_BYTES))

Words = NDArray[np.uint32]


@dataclass(frozen=True)
class Mask:
    """`negative` masks are subtracted."""

    key: Secret
    negative: bool = False


def apply_masks(words: Words, masks: Iterable[Mask], *, counter: bytes = bytes(16)) -> None:
    """Add every mask to `words`, in place. Raises `ValueError` unless it is a writable vector of uint32."""
    if words.dtype != np.dtype("<u4") or words.ndim != 1 or not words.flags.writeable:
        raise ValueError("masks are added to a writable vector of little-endian uint32")
    streams = [(Cipher(AES(mask.key.reveal()), CTR(counter)).encryptor(), mask.negative) for mask in masks]
    stream = np.empty(min(BLOCK_WORDS, words.size), dtype="<u4")
    raw = stream.data.cast("B") if stream.size else memoryview(b"")
    for start in range(0, words.size, BLOCK_WORDS):
        block = words[start : start + BLOCK_WORDS]
        size = block.size * WORD_BYTES
        for cipher, negative in streams:
            cipher.update_into(_ZEROS[:size], raw[:size])
            combine = np.subtract if negative else np.add
            combine(block, stream[: block.size], out=block)


def expand(key: Secret, length: int, *, counter: bytes = bytes(16)) -> Words:
    """One mask by itself, `length` words."""
    words = np.zeros(length, dtype="<u4")
    apply_masks(words, [Mask(key)], counter=counter)
    return words
