"""Signals that end a program, turned into the exception that cleans up.

Python unwinds for Ctrl-C only: SIGTERM (`kill`, a service manager, a batch system) and
SIGHUP (a terminal that closes) end the process where it stands, and what it was writing
stays behind.  `unwinding` makes them KeyboardInterrupt while something is half-written,
and ends the process by the signal itself afterwards, as whoever sent it expects.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["held", "unwinding"]

_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


class _Hold:
    """Whether signals wait, and whether one does."""

    depth = 0
    waits = False


@contextmanager
def unwinding() -> Iterator[None]:
    """Raise KeyboardInterrupt within the block where SIGTERM or SIGHUP would end the process.

    When the block has unwound, the signal is sent again and does what it did before. Only a
    signal that nobody handles or ignores is touched, and only in the main thread: Python
    runs no handler elsewhere.
    """
    caught: list[int] = []

    def handle(number: int, _frame: FrameType | None) -> None:
        caught.append(number)
        if len(caught) > 1:  # a second one must not disturb the cleaning up
            return
        if _Hold.depth:
            _Hold.waits = True
            return
        raise KeyboardInterrupt

    ours = []
    if threading.current_thread() is threading.main_thread():
        ours = [number for number in _SIGNALS if signal.getsignal(number) is signal.SIG_DFL]
    try:
        for number in ours:
            signal.signal(number, handle)
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)
        _Hold.waits = False
        if caught:
            os.kill(os.getpid(), caught[0])


@contextmanager
def held() -> Iterator[None]:
    """Let signals that `unwinding` turns into exceptions wait until the end of the block.

    For short calls into compiled code that prints exceptions and goes on.
    """
    _Hold.depth += 1
    try:
        yield
    finally:
        _Hold.depth -= 1
    if _Hold.waits and not _Hold.depth:
        _Hold.waits = False
        raise KeyboardInterrupt
