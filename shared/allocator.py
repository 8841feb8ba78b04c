"""malloc, told to keep what is freed.

A round moves the same megabytes through fresh buffers again and again. glibc hands a large one back to the kernel as soon as it is
freed, and the next one is made of new, zeroed pages: half of the processor time of a 4 MB transfer went there. The price is
memory: a process stays up to `mib` above what it holds.
"""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_LARGEST_KEPT = 32 << 20  # bytes of one buffer; glibc allows no more (mallopt(3))


def keep_freed_memory(mib: int) -> None:
    """For the life of this process. Nothing happens where malloc is not glibc's."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, mib << 20)
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT)
