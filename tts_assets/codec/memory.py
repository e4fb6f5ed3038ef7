"""How a process that works on a CPU keeps its memory."""

from __future__ import annotations

import ctypes
import platform

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def keep_freed_memory() -> None:
    """Tell glibc to keep what is freed for the next allocation.

    By itself it maps every block above 32 MB anew and gives it back, and the kernel clears its
    pages each time: batches of 40 s and more then take twice as long. Elsewhere than on glibc
    nothing is done.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
