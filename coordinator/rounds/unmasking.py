"""Masks taken out of a sum on every core: the one place of secure aggregation that is worth threads."""

import os
from concurrent.futures import ThreadPoolExecutor

from shared.secagg.masks import BLOCK_BYTES, Mask, apply_masks
from shared.secagg.packing import Words

_AES_BLOCK = 16


def apply_masks_on_all_cores(words: Words, masks: list[Mask], *, cores: int | None = None) -> None:
    """As `apply_masks`. A part of the vector for each core: the cipher lets go of the interpreter lock, and can start anywhere."""
    cores = cores or len(os.sched_getaffinity(0))
    parts = min(cores, words.nbytes // BLOCK_BYTES)
    if parts < 2:
        apply_masks(words, masks)
        return
    step = -(-words.size // parts)
    step += -step % (_AES_BLOCK // words.itemsize)
    with ThreadPoolExecutor(parts, thread_name_prefix="unmask") as pool:
        jobs = [
            pool.submit(apply_masks, words[start : start + step], masks, counter=_counter(start * words.itemsize))
            for start in range(0, words.size, step)
        ]
        for job in jobs:
            job.result()


def _counter(offset: int) -> bytes:
    """Of the keystream block that begins `offset` bytes in."""
    return (offset // _AES_BLOCK).to_bytes(_AES_BLOCK, "big")
