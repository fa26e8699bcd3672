"""Reading the page files in large chunks, with several threads, in order.

The kernel scales here (no lock in the path of /proc/kpageflags), and `preadv` lets other
Python threads run, so two threads read twice as fast as one.  Each thread reads a chunk
that fits in its cache and encodes it at once; results are handed on in frame order.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from memdesc.errors import NotReadableError, TruncatedError
from memdesc.map.threads import in_order, keep_heap, share_out, thread_count

__all__ = ["PageFile", "in_order", "keep_heap", "share_out", "thread_count"]

WORD_BYTES = 8


class PageFile:
    """A file of one little-endian u64 per frame: a page file of /proc, or a copy of one."""

    def __init__(self, path: Path, *, what: str = "") -> None:
        """Open `path`. Raises NotReadableError with a hint when that fails."""
        self.path = path
        self.what = what or str(path)
        self.fd = -1
        try:
            self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise NotReadableError(
                f"cannot open {path}: {error.strerror}",
                path=path,
                hint=_open_hint(path, error),
            ) from error
        try:
            os.pread(self.fd, WORD_BYTES, 0)
        except OSError as error:
            self.close()
            raise NotReadableError(
                f"cannot read {path}: {error.strerror}", path=path, hint=_open_hint(path, error)
            ) from error

    def __del__(self) -> None:
        self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def frames(self) -> int:
        """Number of frames in the file.

        Raises TruncatedError when a regular file ends in the middle of a word. The files
        of /proc say size 0, so their end is found by bisection.
        """
        size = os.fstat(self.fd).st_size
        if size:
            if size % WORD_BYTES:
                raise TruncatedError(
                    f"{self.path} ends in the middle of a word: {size} bytes is no multiple of 8",
                    path=self.path,
                    hint="copy it again; the file must hold one 64-bit word per frame",
                )
            return size // WORD_BYTES
        low, high = 0, 1 << 20
        while self._exists(high - 1):
            low, high = high, high * 2
        while low < high:
            middle = (low + high) // 2
            if self._exists(middle):
                low = middle + 1
            else:
                high = middle
        return low

    def read_into(self, pfn: int, words: NDArray[np.uint64]) -> None:
        """Fill `words` from frame `pfn` on. Raises TruncatedError when the file ends first."""
        view = words.data.cast("B")
        done, offset = 0, pfn * WORD_BYTES
        while done < len(view):
            try:
                count = os.preadv(self.fd, [view[done:]], offset + done)
            except OSError as error:
                raise NotReadableError(
                    f"reading {self.path} failed at frame "
                    f"{pfn + done // WORD_BYTES:#x}: {error.strerror}",
                    path=self.path,
                ) from error
            if count == 0:
                raise TruncatedError(
                    f"{self.path} ended at frame {pfn + done // WORD_BYTES:#x}, "
                    f"{(len(view) - done) // WORD_BYTES} frames early",
                    path=self.path,
                    hint="memory may have been unplugged while it was read; run it again",
                )
            done += count

    def word(self, pfn: int) -> int:
        """The word of one frame."""
        one = np.empty(1, np.uint64)
        self.read_into(pfn, one)
        return int(one[0])

    def _exists(self, pfn: int) -> bool:
        return len(os.pread(self.fd, WORD_BYTES, pfn * WORD_BYTES)) == WORD_BYTES


# --- helpers -----------------------------------------------------------------------------


def _open_hint(path: Path, error: OSError) -> str:
    if isinstance(error, PermissionError):
        return (
            "run as root (CAP_SYS_ADMIN), or look at a capture: --source FILE, "
            "or at a bundled one: --source bundled:debian-6.12"
        )
    if isinstance(error, FileNotFoundError) and str(path).startswith("/proc/kpage"):
        return "the kernel needs CONFIG_PROC_PAGE_MONITOR (and CONFIG_MEMCG for kpagecgroup)"
    if isinstance(error, FileNotFoundError):
        return "check the path; `memdesc --help` lists what --source takes"
    return ""
