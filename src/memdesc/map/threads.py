"""Work shared out to threads: chunks of a scan, their results in order.

numpy and `preadv` let other Python threads run, so two threads scan twice as fast as one.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Generic, TypeVar

import numpy as np

__all__ = ["in_order", "keep_heap", "share_out", "thread_count"]

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


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
