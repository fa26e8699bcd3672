"""The files of one process that a read goes through, and a pagemap that several threads share."""

from __future__ import annotations

import os
import re
import stat
import threading
from pathlib import Path

__all__ = ["ProcessFiles", "Target"]

_PID = re.compile(r"[1-9][0-9]{0,9}")
_TEXT_BYTES = 1 << 16


class ProcessFiles:
    """Access to the files of /proc/PID below a root. Tests replace it to make calls fail."""

    def __init__(self, root: Path) -> None:
        self.proc = root / "proc"
        self._prefix = f"{self.proc}/"

    def pids(self) -> list[int]:
        """Process ids, rising. Raises OSError when there is no such folder."""
        names = os.listdir(self.proc)  # noqa: PTH208 (a Path for each costs 20 us per process)
        return sorted(int(name) for name in names if _PID.fullmatch(name))

    def read(self, pid: int, name: str) -> bytes:
        """The whole of a text file. Raises OSError."""
        fd = os.open(f"{self._prefix}{pid}/{name}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            pieces = []
            while piece := os.read(fd, _TEXT_BYTES):
                pieces.append(piece)
            return b"".join(pieces)
        finally:
            os.close(fd)

    def open(self, pid: int) -> int:
        """A descriptor of the pagemap. Raises OSError."""
        return os.open(f"{self._prefix}{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)

    def preadv(self, fd: int, view: memoryview, offset: int) -> int:
        """Fill the start of `view` and return how many bytes. Raises OSError."""
        return os.preadv(fd, [view], offset)

    def statm(self, pid: int) -> bytes:
        """Sizes of the process, to see whether it changed; empty where not visible."""
        try:
            return self.read(pid, "statm")
        except OSError:
            return b""


class Target:
    """One process whose pagemap is open. Batches share it; the last one closes it."""

    def __init__(self, files: ProcessFiles, pid: int, index: int, fd: int) -> None:
        self.files = files
        self.pid = pid
        self.index = index
        self.fd = fd
        self.statm = files.statm(pid)
        mode = os.fstat(fd).st_mode
        self.is_copy = stat.S_ISREG(mode) and os.fstat(fd).st_size > 0
        self.can_scan = not self.is_copy
        self.failure = ""
        """Why reading stopped early; "" while all is well."""
        self.vanished = False
        self.changed = False
        self._users = 1
        self._lock = threading.Lock()

    def hold(self) -> None:
        """Another batch will read from it."""
        with self._lock:
            self._users += 1

    def release(self) -> None:
        """One reader less; the last one looks whether the process changed, and closes."""
        with self._lock:
            self._users -= 1
            if self._users:
                return
        self.changed = self.files.statm(self.pid) != self.statm
        self.close()

    def close(self) -> None:
        """Close the file, whoever still holds it."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
