"""A process that takes no new pages: so nothing but steps fills the CPU's LRU batches."""

from __future__ import annotations

import ctypes
from pathlib import Path

from . import calls

__all__ = ["be_quiet"]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_RESERVE = 16 << 20
_MADV_POPULATE_WRITE = 23


def be_quiet(arena: tuple[int, int]) -> None:
    """Touch all private memory outside of `arena`, with some room to spare, and keep it."""
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_MMAP_THRESHOLD, 2 * _RESERVE)
    libc.mallopt(_M_TRIM_THRESHOLD, 4 * _RESERVE)
    libc.malloc.restype = ctypes.c_void_p
    libc.free(ctypes.c_void_p(libc.malloc(ctypes.c_size_t(_RESERVE))))
    for line in Path("/proc/self/maps").read_text().splitlines():
        place, permissions, *_ = line.split()
        start, end = (int(word, 16) for word in place.split("-"))
        if permissions == "rw-p" and not arena[0] <= start < arena[1]:
            try:
                calls.madvise(start, end - start, _MADV_POPULATE_WRITE)
            except OSError:
                continue  # an area of the kernel's own
