"""Masks taken out of a sum on every core: the one place of secure aggregation that is worth threads."""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from shared.secagg.masks import BLOCK_BYTES, Mask, apply_masks
from shared.secagg.packing import Residues

_AES_BLOCK = 16
WORTH_BLOCKS = 8  # of keystream a core: less is done before a thread has begun


def apply_masks_on_all_cores(residues: Residues, masks: list[Mask], *, cores: int | None = None) -> None:
    """As `apply_masks`. Each core takes a part of a long vector, since a cipher can start anywhere; of a short one, a part of the
    masks, if they are many. The cipher lets go of the interpreter lock.
    """
    cores = cores or len(os.sched_getaffinity(0))
    parts = min(cores, residues.nbytes // BLOCK_BYTES)
    if parts >= 2:
        _by_part(residues, masks, parts)
        return
    shares = min(cores, len(masks) * residues.nbytes // (WORTH_BLOCKS * BLOCK_BYTES))
    if shares >= 2:
        _by_mask(residues, masks, shares)
    else:
        apply_masks(residues, masks)


def _by_part(residues: Residues, masks: list[Mask], parts: int) -> None:
    step = -(-residues.size // parts)
    step += -step % (_AES_BLOCK // residues.itemsize)
    with ThreadPoolExecutor(parts, thread_name_prefix="unmask") as pool:
        jobs = [
            pool.submit(apply_masks, residues[start : start + step], masks, counter=_counter(start * residues.itemsize))
            for start in range(0, residues.size, step)
        ]
        for job in jobs:
            job.result()


def _by_mask(residues: Residues, masks: list[Mask], shares: int) -> None:
    sums = [residues, *(np.zeros_like(residues) for _ in range(shares - 1))]
    with ThreadPoolExecutor(shares, thread_name_prefix="unmask") as pool:
        jobs = [pool.submit(apply_masks, part, masks[place::shares]) for place, part in enumerate(sums)]
        for job in jobs:
            job.result()
    for part in sums[1:]:
        residues += part


def _counter(offset: int) -> bytes:
    """Of the keystream block that begins `offset` bytes in."""
    return (offset // _AES_BLOCK).to_bytes(_AES_BLOCK, "big")
