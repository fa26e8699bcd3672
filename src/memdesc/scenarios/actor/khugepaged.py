"""khugepaged, which is to look when a scenario says so and never by itself.

It sleeps for as long as is set, but it also looks when it is started, and it wakes when the first
process that may have huge pages comes to its list (`mm/khugepaged.c:start_stop_khugepaged,
__khugepaged_enter`).  On a loaded machine it would do so while a scenario is some steps ahead, and
collapse what it finds.  So a process with areas that nobody touches is on that list before all
others, and stays; and the steps go on when khugepaged sleeps.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import time
from pathlib import Path
from typing import NoReturn

from . import calls
from .access import PAGE

__all__ = ["FOLDER", "Khugepaged"]

FOLDER = "/sys/kernel/mm/transparent_hugepage/khugepaged/"
_HUGE = 2 << 20
_MADV_HUGEPAGE, _MADV_NOHUGEPAGE = 14, 15
_MAP_NORESERVE = 0x4000
_PR_SET_PDEATHSIG = 1
_PATIENCE = 20.0


class Khugepaged:
    """The thread, and the process that keeps it from waking."""

    def __init__(self) -> None:
        self._connection, theirs = socket.socketpair()
        parent = os.getpid()
        if os.fork() == 0:
            self._connection.close()
            _stay(theirs, parent)
        theirs.close()

    def settle(self) -> None:
        """After a change of what may be huge: it has looked, and sleeps, or there is none."""
        self._connection.sendall(b"?")
        if self._connection.recv(1) != b"!":
            raise RuntimeError("the process that keeps khugepaged from waking has ended")
        thread, before = _thread(), ""
        end = time.monotonic() + _PATIENCE
        while thread is not None:
            try:
                now = (thread / "status").read_text()  # also how often it went to sleep
            except OSError:
                return  # it has just ended: nothing may be huge any more
            if now == before and "\nState:\tS" in now:
                return
            if time.monotonic() > end:
                raise TimeoutError("khugepaged does not go to sleep")
            before = now
            time.sleep(0.02)

    def scan(self, passes: int) -> None:
        """One wake with room for all pages ends the pass it is in and makes a whole one
        (`mm/khugepaged.c:khugepaged_do_scan`); a change of the time to sleep wakes it."""
        _write("pages_to_scan", "10000000")
        for _ in range(passes):
            before = scans = _full_scans()
            end = time.monotonic() + _PATIENCE
            woken = changed = 0.0
            while scans == before or time.monotonic() < changed + 0.3:
                now = time.monotonic()
                if now > end:
                    raise TimeoutError("khugepaged finishes no pass: may anybody have huge pages?")
                if scans == before and now > woken + 1:
                    # Again after a while: it forgets a wake that comes just before it sleeps.
                    _write("scan_sleep_millisecs", "4000000")
                    woken = now
                time.sleep(0.01)
                if _full_scans() != scans:
                    scans, changed = _full_scans(), time.monotonic()
        _write("pages_to_scan", "1")


# --- helpers -----------------------------------------------------------------------------


def _stay(connection: socket.socket, parent: int) -> NoReturn:
    """The process: its areas come to the list as often as it is asked to see to it."""
    try:
        calls.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == parent:
            _want_nothing_huge()
            areas = [_area(calls.MAP_PRIVATE), _area(calls.MAP_SHARED)]
            while connection.recv(1):
                for area in areas:
                    calls.madvise(area, PAGE + _HUGE, _MADV_HUGEPAGE)
                connection.sendall(b"!")
    except BaseException:  # whatever it is, this process must not go on as the other
        os._exit(1)
    os._exit(0)


def _area(sharing: int) -> int:
    """A page, and room for a huge one behind it. Only the page is touched: without its anon_vma
    the area could not be huge (`thp_vma_allowable_order`)."""
    length = PAGE + 2 * _HUGE
    base = calls.mmap(length, flags=sharing | calls.MAP_ANONYMOUS | _MAP_NORESERVE)
    start = -(-(base + PAGE) // _HUGE) * _HUGE
    for low, high in ((base, start - PAGE), (start + _HUGE, base + length)):
        if low < high:
            calls.munmap(low, high - low)
    ctypes.memset(start - PAGE, 1, 1)
    return start - PAGE


def _want_nothing_huge() -> None:
    """What Python has is not to be collapsed, so that it is not counted."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, _, end = line.split()[0].partition("-")
        try:
            calls.madvise(int(start, 16), int(end, 16) - int(start, 16), _MADV_NOHUGEPAGE)
        except OSError:
            continue  # [vvar] and [vsyscall], which never are


def _thread() -> Path | None:
    """Its folder in /proc; None where nothing may be huge, and there is none."""
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdecimal() and (folder / "comm").read_text() == "khugepaged\n":
                return folder
        except OSError:
            continue  # a process that has just ended
    return None


def _full_scans() -> int:
    return int(Path(FOLDER, "full_scans").read_text())


def _write(name: str, value: str) -> None:
    with Path(FOLDER, name).open("w") as file:
        file.write(value)
