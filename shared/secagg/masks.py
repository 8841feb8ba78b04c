"""Masks: the AES-256-CTR keystream (NIST SP 800-38A) of a full 32-byte key, as words of 64 bits, added to a vector of such.

A key is used for one mask only, so the counter starts at zero. Words wrap modulo 2^64, a multiple of the modulus that is used of
them, so what is above are uniform bits that packing cuts off. Work goes in blocks of 256 KiB: the block stays in the core's
cache while all masks are added to it, and the cipher lets go of the interpreter lock meanwhile.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from numpy.typing import NDArray

from shared.secagg.keys import Secret
from shared.secagg.packing import WORD_BITS, Words

BLOCK_BYTES = 1 << 18
_ZEROS = memoryview(bytes(BLOCK_BYTES))
_START = bytes(16)


@dataclass(frozen=True)
class Mask:
    """`negative` masks are subtracted."""

    key: Secret
    negative: bool = False


def apply_masks(words: Words, masks: Iterable[Mask], *, counter: bytes = _START) -> None:
    """Add every mask to `words`, in place. Raises `ValueError` unless they are a writable vector of unsigned words of 64 bits."""
    if words.dtype.str != "<u8" or words.ndim != 1 or not words.flags.writeable:
        raise ValueError("masks are added to a writable vector of little-endian unsigned words of 64 bits")
    start_at = CTR(counter)
    streams = [(Cipher(AES(mask.key.reveal()), start_at).encryptor(), mask.negative) for mask in masks]
    per_block = BLOCK_BYTES * 8 // WORD_BITS
    stream = np.empty(min(per_block, words.size), dtype="<u8")
    raw = stream.data.cast("B") if stream.size else memoryview(b"")
    for start in range(0, words.size, per_block):
        block = words[start : start + per_block]
        for cipher, negative in streams:
            cipher.update_into(_ZEROS[: block.nbytes], raw[: block.nbytes])
            combine = np.subtract if negative else np.add
            combine(block, stream[: block.size], out=block)


def keystream(key: Secret, size: int, *, counter: bytes = _START) -> NDArray[np.uint8]:
    """The first `size` bytes under one key."""
    out = bytearray(size)
    Cipher(AES(key.reveal()), CTR(counter)).encryptor().update_into(bytes(size), out)
    return np.frombuffer(out, dtype=np.uint8)
