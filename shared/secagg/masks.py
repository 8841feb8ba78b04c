"""Masks: the AES-256-CTR keystream (NIST SP 800-38A) of a full 32-byte key, as residues modulo 2^m, added to a vector.

A key is used for one mask only, so the counter starts at zero. Residues lie in the narrowest word that holds them (`packing.lane`);
words wrap modulo a multiple of 2^m, so bits above m are noise that packing cuts off. Work goes in blocks of 256 KiB: the block
stays in the core's cache while all masks are added to it, and the cipher lets go of the interpreter lock meanwhile.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from numpy.typing import NDArray

from shared.secagg.keys import Secret
from shared.secagg.packing import Residues

BLOCK_BYTES = 1 << 18
_ZEROS = memoryview(bytes(BLOCK_BYTES))
_START = bytes(16)


@dataclass(frozen=True)
class Mask:
    """`negative` masks are subtracted."""

    key: Secret
    negative: bool = False


def apply_masks(residues: Residues, masks: Iterable[Mask], *, counter: bytes = _START) -> None:
    """Add every mask to `residues`, in place. Raises `ValueError` unless they are a writable vector of unsigned words."""
    if residues.dtype.str not in ("|u1", "<u2", "<u4") or residues.ndim != 1 or not residues.flags.writeable:
        raise ValueError("masks are added to a writable vector of little-endian unsigned words")
    start_at = CTR(counter)
    streams = [(Cipher(AES(mask.key.reveal()), start_at).encryptor(), mask.negative) for mask in masks]
    per_block = BLOCK_BYTES // residues.itemsize
    stream = np.empty(min(per_block, residues.size), dtype=residues.dtype)
    raw = stream.data.cast("B") if stream.size else memoryview(b"")
    for start in range(0, residues.size, per_block):
        block = residues[start : start + per_block]
        for cipher, negative in streams:
            cipher.update_into(_ZEROS[: block.nbytes], raw[: block.nbytes])
            combine = np.subtract if negative else np.add
            combine(block, stream[: block.size], out=block)


def keystream(key: Secret, size: int, *, counter: bytes = _START) -> NDArray[np.uint8]:
    """The first `size` bytes under one key."""
    out = np.zeros(size, dtype=np.uint8)
    apply_masks(out, [Mask(key)], counter=counter)
    return out
