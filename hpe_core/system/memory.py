"""Keeps freed memory for the next picture instead of giving it back to the system.

glibc maps every block of more than 128 kB anew and trims the end of its heap. A loop over pictures or training steps
then meets fresh, zeroed pages in every round, and each first touch is a page fault. That takes half the time of
decoding a picture (docs/libraries.md).
"""

import ctypes
import sys
from functools import cache

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
LARGEST_KEPT = 32 << 20  # the largest value that glibc takes: larger blocks are still mapped one by one
MOST_KEPT = 512 << 20  # of freed memory at the end of the heap; what lies between blocks in use was always kept


@cache
def keep_freed_memory() -> bool:
    """Does so in this process from now on. Returns whether it could: it takes glibc."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT) and mallopt(M_TRIM_THRESHOLD, MOST_KEPT))
