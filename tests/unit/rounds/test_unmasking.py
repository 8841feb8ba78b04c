"""Masks come out of a sum alike on however many cores."""

import numpy as np
import pytest

from coordinator.rounds.unmasking import apply_masks_on_all_cores
from shared.secagg.keys import Secret
from shared.secagg.masks import BLOCK_BYTES, Mask, apply_masks

SIZES = {
    "nothing": (0, 3),
    "short, few masks": (100, 3),
    "half a block, many masks": (BLOCK_BYTES // 2, 40),
    "a few elements, more masks than cores": (17, 64),
    "two blocks": (2 * BLOCK_BYTES, 3),
    "five blocks and a bit": (5 * BLOCK_BYTES + 13, 4),
}


@pytest.mark.parametrize(("size", "count"), SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("cores", [1, 2, 3, 5])
def test_every_way_to_share_the_work_gives_the_same_sum(size: int, count: int, cores: int) -> None:
    words = np.arange(size // 8, dtype="<u8")
    masks = [Mask(Secret(bytes([place]) * 32), negative=place % 3 == 0) for place in range(count)]
    expected = words.copy()
    apply_masks(expected, masks)
    apply_masks_on_all_cores(words, masks, cores=cores)
    np.testing.assert_array_equal(words, expected)
