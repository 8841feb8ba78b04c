"""Reused arrays for the inputs and outputs of batches, so that a steady load allocates nothing large.

Arrays are kept per shape bucket: rows are rounded up to a power of two and the caller gets a view of the first `rows`
(contiguous, because rows come first). Not thread-safe: each lane owns a pool and uses it from its worker thread only.
"""

from collections import OrderedDict

import numpy as np

from edge_agent.runtimes.port import Array

_KEPT = 64  # buckets; the least recently used one goes


def bucket_of(rows: int) -> int:
    """The smallest power of two that holds `rows`."""
    return 1 << max(0, rows - 1).bit_length()


class BufferPool:
    """`take` may hand out the same memory again as soon as it is called again for the same `role` and shape."""

    def __init__(self, kept: int = _KEPT) -> None:
        self._kept = kept
        self._arrays: OrderedDict[tuple[str, int, tuple[int, ...], str], Array] = OrderedDict()
        self.allocated = 0

    def take(self, role: str, rows: int, rest: tuple[int, ...], dtype: str) -> Array:
        """An array of shape `(rows, *rest)` with undefined contents. `role` keeps inputs and outputs apart."""
        key = (role, bucket_of(rows), rest, dtype)
        array = self._arrays.get(key)
        if array is None:
            array = self._arrays[key] = np.empty((key[1], *rest), dtype)
            self.allocated += 1
            if len(self._arrays) > self._kept:
                self._arrays.popitem(last=False)
        self._arrays.move_to_end(key)
        return array[:rows]
