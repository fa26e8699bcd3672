"""Reading the page files in large chunks, with several threads, in order.

The kernel scales here (no lock in the path of /proc/kpageflags), and `preadv` lets other
Python threads run, so two threads read twice as fast as one.  Each thread reads a chunk
that fits in its cache and encodes it at once; results are handed on in frame order.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Generic, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from memdesc.errors import NotReadableError, TruncatedError

__all__ = ["PageFile", "in_order", "keep_heap", "share_out", "thread_count"]

WORD_BYTES = 8
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


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


def thread_count() -> int:
    """Threads that a scan uses: the processors we may run on, at most 16."""
    return max(1, min(16, len(os.sched_getaffinity(0))))


def keep_heap() -> None:
    """Make malloc keep what numpy frees, up to 16 MiB a thread.

    glibc gives the top of the heap back after every block of temporaries and takes it
    again for the next, which costs more page faults than all the arithmetic. Freeing one
    large allocation raises both its thresholds for good (mallopt(3), M_MMAP_THRESHOLD).
    The memory is never touched. Elsewhere this does nothing.
    """
    np.empty(8 << 20, np.uint8)


def share_out(
    items: Iterator[_Item],
    work: Callable[[Iterator[_Item]], None],
    *,
    threads: int,
    meanwhile: Callable[[], None] = lambda: None,
) -> None:
    """Call `work` in `threads` threads, all of which take `items` from one iterator.

    Quicker than `in_order`, where results need no order. `meanwhile` is called here, ten
    times a second and at the end. The first error stops all and is raised here; no thread is
    left behind.
    """
    shared = _Shared(items)
    errors: list[BaseException] = []

    def serve() -> None:
        try:
            work(shared)
        except BaseException as error:  # handed to the thread that waits
            errors.append(error)
            shared.stop()

    pool = _pool(serve, threads)
    try:
        for thread in pool:
            thread.start()
        for thread in pool:
            while thread.is_alive():
                thread.join(0.1)
                meanwhile()
    finally:
        shared.stop()
        _join(pool)
    if errors:
        raise errors[0]
    meanwhile()


def in_order(
    items: Iterator[_Item], work: Callable[[_Item], _Result], *, threads: int
) -> Iterator[_Result]:
    """Yield `work(item)` for each item in order, computed by `threads` threads.

    At most three results per thread wait, so memory stays bounded. The first error ends
    the iteration and is raised here; no thread is left behind.
    """
    if threads <= 1:
        yield from map(work, items)
        return
    tasks: SimpleQueue[_Task[_Item, _Result] | None] = SimpleQueue()
    waiting: deque[_Task[_Item, _Result]] = deque()

    def serve() -> None:
        while (task := tasks.get()) is not None:
            task.run(work)

    pool = _pool(serve, threads)
    try:
        for thread in pool:
            thread.start()
        for item in items:
            task: _Task[_Item, _Result] = _Task(item)
            tasks.put(task)
            waiting.append(task)
            if len(waiting) >= threads * 3:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for task in waiting:
            task.cancelled = True
        for _ in pool:
            tasks.put(None)
        _join(pool)


# --- helpers -----------------------------------------------------------------------------


def _pool(target: Callable[[], None], threads: int) -> list[threading.Thread]:
    return [
        threading.Thread(target=target, name=f"memdesc-scan-{number}", daemon=True)
        for number in range(threads)
    ]


def _join(pool: list[threading.Thread]) -> None:
    """Wait for those that were started: an interrupt may come between two starts."""
    for thread in pool:
        if thread.ident is not None:
            thread.join()


class _Shared(Iterator[_Item]):
    """An iterator that several threads may use, until one of them stops it."""

    def __init__(self, items: Iterator[_Item]) -> None:
        self._items = items
        self._lock = threading.Lock()
        self._stopped = False

    def __next__(self) -> _Item:
        with self._lock:
            if self._stopped:
                raise StopIteration
            return next(self._items)

    def stop(self) -> None:
        """Let there be no further items."""
        self._stopped = True


class _Task(Generic[_Item, _Result]):
    """One call that one thread makes and another waits for.

    What `concurrent.futures` has, for a tenth of its time to import.
    """

    def __init__(self, item: _Item) -> None:
        self.item = item
        self.cancelled = False
        self._done = threading.Event()
        self._results: list[_Result] = []
        self._error: BaseException | None = None

    def run(self, work: Callable[[_Item], _Result]) -> None:
        """Call `work`, unless nobody waits any more."""
        try:
            if not self.cancelled:
                self._results.append(work(self.item))
        except BaseException as error:  # handed to the thread that waits
            self._error = error
        self._done.set()

    def result(self) -> _Result:
        """Wait, and return what `work` returned or raise what it raised."""
        self._done.wait()
        if self._error is not None:
            raise self._error
        return self._results.pop()


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
