"""Swap devices, and reclaim that a control group is told to do."""

from __future__ import annotations

import os
import struct
import time
from pathlib import Path

from . import calls
from .access import PAGE
from .disk import Gate

__all__ = ["Group", "SwapDevice"]

_HOT_ADD = "/sys/class/zram-control/hot_add"
_GROUPS = "/mnt/group"
_PASSES = 4
_PAUSE = 0.1


class SwapDevice:
    """A new zram with a swap area of so many pages, which is on until `off`.

    `mapped`: behind a device of device mapper, of which the kernel does not know that reads are
    done at once (`mm/swapfile.c:swapon`, SWP_SYNCHRONOUS_IO).
    """

    def __init__(self, pages: int, *, mapped: bool) -> None:
        self._gate: Gate | None = None
        number = int(Path(_HOT_ADD).read_text())
        self._path = f"/dev/zram{number}"
        size = (pages + 1) * PAGE
        Path(f"/sys/block/zram{number}/disksize").write_text(str(size))
        if mapped:
            self._gate = Gate(self._path, size, "swap")
            self._path = self._gate.path
        _make_swap(self._path, pages)
        calls.call("swapon", self._path.encode(), 0)

    def set(self, state: str) -> None:
        """What happens to reads and writes, see `Gate`."""
        assert self._gate is not None, "swap is not behind a device of device mapper"
        self._gate.set(state)

    def off(self) -> None:
        """swapoff(2). Raises OSError."""
        calls.call("swapoff", self._path.encode())


class Group:
    """A control group for the processes of a scenario."""

    def __init__(self) -> None:
        root = Path(_GROUPS)
        root.mkdir(parents=True, exist_ok=True)
        calls.call("mount", b"group", _GROUPS.encode(), b"cgroup2", 0, b"")
        (root / "cgroup.subtree_control").write_text("+memory")
        self._folder = root / "scenario"
        self._folder.mkdir()

    def join(self, pid: int) -> None:
        """What a process touches from now on counts for the group."""
        (self._folder / "cgroup.procs").write_text(str(pid))

    def shrink(self) -> None:
        """Reclaim until nothing is left that can be: what was used lately goes in a later pass, and
        what a pass gave to be written back is free after it."""
        fd = os.open(self._folder / "memory.reclaim", os.O_WRONLY)
        try:
            for _ in range(_PASSES):
                try:
                    os.write(fd, b"1G")
                except BlockingIOError:
                    pass  # EAGAIN: there was less
                time.sleep(_PAUSE)
        finally:
            os.close(fd)


def _make_swap(device: str, pages: int) -> None:
    """A swap header, as mkswap writes it (`include/linux/swap.h:union swap_header`)."""
    header = bytearray(PAGE)
    struct.pack_into("<III", header, 1024, 1, pages, 0)
    header[-10:] = b"SWAPSPACE2"
    with Path(device).open("r+b", buffering=0) as disk:
        disk.write(header)
        os.fsync(disk.fileno())
