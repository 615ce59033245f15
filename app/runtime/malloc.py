"""Settings of the C library's allocator: give back what a burst of large bodies and pictures took.

glibc's own rules fit programs of few threads and small blocks. Each thread that finds the heaps busy gets one more, up to eight
for each core, and each keeps what its largest burst needed; and once a block of some megabytes was freed, blocks of that size come
from those heaps too and no longer straight from the kernel, which alone would get them back (mallopt(3)).
"""

from __future__ import annotations

import ctypes

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8

#: Python's own lock lets one thread at a time allocate most of what there is to allocate.
_HEAPS = 2
#: Blocks from this size on come from the kernel and go back to it, bytes. It clears each page of them, about a millisecond for
#: 4 MB, so the picture of a usual size stays below.
_STRAIGHT_FROM_KERNEL = 4 * 2**20
#: So much free memory at its end a heap may keep.
_KEPT = 16 * 2**20


def give_memory_back() -> None:
    """Ask for it, for the whole process; where the C library is another one, nothing happens."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    mallopt(_M_ARENA_MAX, _HEAPS)
    mallopt(_M_MMAP_THRESHOLD, _STRAIGHT_FROM_KERNEL)
    mallopt(_M_TRIM_THRESHOLD, _KEPT)
