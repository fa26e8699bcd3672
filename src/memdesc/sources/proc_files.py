"""The files of one process that a read goes through, and a pagemap that several threads share."""

from __future__ import annotations

import errno
import gzip
import os
import re
import stat
import threading
from pathlib import Path

from memdesc.errors import FormatError
from memdesc.kernels.pagemap import SwapConfig
from memdesc.kernels.release import UNKNOWN_RELEASE, KernelRelease

__all__ = ["ProcessFiles", "Target", "read_release", "swap_config"]

_PID = re.compile(r"[1-9][0-9]{0,9}")
_TEXT_BYTES = 1 << 16
_ENTRY_BYTES = 8
_MOST_ENTRIES = 1 << 22


class ProcessFiles:
    """Access to the files of /proc/PID below a root. Tests replace it to make calls fail."""

    def __init__(self, root: Path) -> None:
        self.root = root
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

    def close(self, fd: int) -> None:
        """Close what `open` returned."""
        os.close(fd)

    def is_copy(self, fd: int) -> bool:
        """Whether the pagemap is a file that holds still: one that was copied."""
        status = os.fstat(fd)
        return stat.S_ISREG(status.st_mode) and status.st_size > 0

    def data_ranges(self, fd: int, page: int, end: int) -> tuple[list[tuple[int, int]], int]:
        """Of a copy: (ranges of pages that may hold something, up to where that is known).

        By the holes of a sparse file; at most 64 MiB of it at a time.
        """
        position, limit = page * _ENTRY_BYTES, end * _ENTRY_BYTES
        try:
            low = os.lseek(fd, position, os.SEEK_DATA)
        except OSError as error:
            # ENXIO: a hole up to the end of the file.
            return [], end if error.errno == errno.ENXIO else page
        low &= ~(_ENTRY_BYTES - 1)
        if low >= limit:
            return [], end
        try:
            high = min(os.lseek(fd, low, os.SEEK_HOLE), limit)
        except OSError:
            high = limit
        high = min(-(-high // _ENTRY_BYTES), end, low // _ENTRY_BYTES + _MOST_ENTRIES)
        return [(max(low // _ENTRY_BYTES, page), high)], high

    def swap_numbering(self) -> tuple[KernelRelease, SwapConfig | None]:
        """The kernel's release, and the options that number its special swap entries."""
        return read_release(self.root), swap_config(self.root)

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
        self.is_copy = files.is_copy(fd)
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
            self.files.close(self.fd)
            self.fd = -1


def read_release(root: Path) -> KernelRelease:
    """What /proc/sys/kernel/osrelease says; UNKNOWN_RELEASE where it says nothing."""
    try:
        return KernelRelease.parse((root / "proc/sys/kernel/osrelease").read_text("utf-8"))
    except (OSError, FormatError, UnicodeDecodeError):
        return UNKNOWN_RELEASE


def swap_config(root: Path) -> SwapConfig | None:
    """The kernel options that number special entries; None where no configuration is found.

    From /proc/config.gz (CONFIG_IKCONFIG_PROC), a file `config` in a copied tree, or
    /boot/config-RELEASE.
    """
    for path in (
        root / "proc/config.gz",
        root / "config",
        root / f"boot/config-{read_release(root)}",
    ):
        try:
            text = path.read_bytes()
            if path.suffix == ".gz":
                text = gzip.decompress(text)
        except (OSError, EOFError, ValueError):
            continue
        options = set(text.splitlines())
        return SwapConfig(
            *(
                f"CONFIG_{name}=y".encode() in options
                for name in ("MEMORY_FAILURE", "MIGRATION", "DEVICE_PRIVATE")
            )
        )
    return None
