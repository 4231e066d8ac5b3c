"""Freed memory is kept, not given back to the system for the next picture to ask for it again.

glibc maps every block of more than 128 kB anew and trims the end of its heap. A loop over pictures or training steps
then meets fresh, zeroed pages in every round, and each first touch is a page fault: 270 of them, two fifths of the
time, for decoding one 450 x 450 JPEG, and 2,000 to 25,000 for a training step of the demo's networks.
"""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
LARGEST_KEPT = 32 << 20  # the largest value that glibc takes: larger blocks are still mapped one by one
MOST_KEPT = 512 << 20  # of freed memory at the end of the heap; what lies between blocks in use was always kept


def keep_freed_memory() -> bool:
    """For this process from now on; whether its C library is glibc. Elsewhere nothing happens."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT) and mallopt(M_TRIM_THRESHOLD, MOST_KEPT))
