"""Who maps what in a kernel that is read through its memory: a crash dump.

`KernelFiles` gives a kernel's processes the shape of /proc/PID/{status,cgroup,maps,pagemap},
so that `read_processes` reads, checks and counts them as it does those of a live machine.
"""

from __future__ import annotations

import dataclasses
import errno
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from memdesc.errors import FaultError, QuestionError
from memdesc.kernels.pagemap import SwapConfig
from memdesc.kernels.release import KernelRelease
from memdesc.map.attribution import Attribution, ReadReport
from memdesc.sources.proc_files import ProcessFiles
from memdesc.sources.processes import read_processes
from memdesc.structs.kernel import Kernel
from memdesc.structs.memmap import MemMap
from memdesc.structs.processes import KernelProcess, ProcessTable
from memdesc.structs.special import special_frames
from memdesc.structs.torn import Torn
from memdesc.structs.user_pages import AddressSpace, swap_config
from memdesc.structs.vmas import Area, maps_text
from memdesc.types import PAGE_SHIFT, Pfn, PfnRange

__all__ = ["KernelFiles", "attribution_of", "pagemap_entry"]

_ENTRY_BYTES = 8
_USER_PAGES = 1 << 52
_PROBLEMS = 1000


def attribution_of(
    kernel: Kernel,
    memmap: MemMap,
    progress: Callable[[int, int], None] | None = None,
    *,
    zero: Sequence[PfnRange] | None = None,
) -> Attribution:
    """Read who maps what from the kernel's memory. `progress` is called with (processes done,
    processes in all); `zero` are frames of the zero page, which are counted but not kept as
    mappings: by default this kernel's own.

    Exact for a dump; on a live machine each process is read at another moment. What damaged
    or torn memory hides is counted in the report (`truncated`) and named in its problems.
    Raises LayoutError for a kernel that is laid out as none that memdesc knows.
    """
    files = KernelFiles(kernel, memmap)
    if zero is None:
        own = special_frames(kernel, memmap).zero
        zero = [PfnRange(Pfn(own.start), Pfn(own.stop))] if own else []
    # One thread: the work is numpy on a shared cache of struct pages.
    found = read_processes(Path(kernel.name), zero=zero, progress=progress, files=files)
    return dataclasses.replace(found, report=files.reported(found.report))


def pagemap_entry(kernel: Kernel, memmap: MemMap, pid: int, address: int) -> int:
    """The word that /proc/PID/pagemap shows for the page at `address`.

    Raises QuestionError where there is no such process or address, FaultError where the
    process' memory cannot be read.
    """
    if not 0 <= address < 1 << 63:
        raise QuestionError(f"{address:#x} is no user address of process {pid}")
    table = ProcessTable(kernel, memmap)
    process = table.process(pid)
    if not process.mm:
        raise QuestionError(
            f"process {pid} ({process.comm}) has no memory",
            hint="kernel threads and zombies have none",
        )
    torn = Torn()
    space = table.space(process, table.areas(process, torn), torn)
    word = int(space.words(address >> PAGE_SHIFT, 1)[0])
    if not word and torn.reasons:
        raise FaultError(f"memory of process {pid} cannot be read: {torn.reasons[0]}", address)
    return word


class KernelFiles(ProcessFiles):
    """The files of a kernel's processes. Not safe for several threads."""

    def __init__(self, kernel: Kernel, memmap: MemMap) -> None:
        """Find the processes. Raises LayoutError."""
        super().__init__(Path(kernel.name))
        self.kernel = kernel
        self.table = ProcessTable(kernel, memmap)
        self._process: KernelProcess | None = None
        self._areas: list[Area] = []
        self._spaces: dict[int, AddressSpace] = {}
        self._torn: dict[int, Torn] = {}

    def pids(self) -> list[int]:
        return self.table.pids()

    def read(self, pid: int, name: str) -> bytes:
        """`status`, `maps` or `cgroup` of a process. Raises OSError."""
        torn = self._torn.setdefault(pid, Torn())
        try:
            if self._process is None or self._process.pid != pid:
                self._process = self.table.process(pid)
                self._areas = []
                torn.add_all(self._process.torn)
            match name:
                case "status":
                    return _status_text(self._process)
                case "maps":
                    self._areas = self.table.areas(self._process, torn)
                    return maps_text(self._areas)
                case "cgroup":
                    return self._process.cgroup.encode()
                case _:
                    raise FileNotFoundError(errno.ENOENT, f"a kernel's memory has no {name}")
        except QuestionError as error:
            raise ProcessLookupError(errno.ESRCH, str(error)) from error
        except FaultError as error:
            raise OSError(errno.EIO, str(error)) from error

    def open(self, pid: int) -> int:
        """Find the page tables; the descriptor is the pid. Raises OSError."""
        if self._process is None or self._process.pid != pid:
            raise ProcessLookupError(errno.ESRCH, f"maps of {pid} was not read")
        try:
            self._spaces[pid] = self.table.space(self._process, self._areas, self._torn[pid])
        except FaultError as error:
            raise OSError(errno.EIO, str(error)) from error
        return pid

    def close(self, fd: int) -> None:
        self._spaces.pop(fd, None)

    def is_copy(self, fd: int) -> bool:
        return True

    def data_ranges(self, fd: int, page: int, end: int) -> tuple[list[tuple[int, int]], int]:
        return self._spaces[fd].populated(page, end), end

    def preadv(self, fd: int, view: memoryview, offset: int) -> int:
        page, count = offset // _ENTRY_BYTES, len(view) // _ENTRY_BYTES
        count = max(0, min(count, _USER_PAGES - page))
        words = self._spaces[fd].words(page, count, area_flags=False)
        np.frombuffer(view, np.uint64)[:count] = words
        return count * _ENTRY_BYTES

    def statm(self, pid: int) -> bytes:
        return b""

    def swap_numbering(self) -> tuple[KernelRelease, SwapConfig | None]:
        return self.kernel.release, swap_config(self.kernel)

    def reported(self, report: ReadReport) -> ReadReport:
        """`report` with what could not be read of each process, and of the list of them."""
        problems = [(pid, why) for pid, torn in self._torn.items() for why in torn.reasons]
        if self.table.torn_tasks:
            problems.insert(0, (0, f"{self.table.torn_tasks} tasks could not be read"))
        affected = len({pid for pid, _ in problems})
        return dataclasses.replace(
            report,
            truncated=report.truncated + affected,
            problems=(*report.problems, *problems)[:_PROBLEMS],
        )


def _status_text(process: KernelProcess) -> bytes:
    """The lines of /proc/PID/status that are read (`fs/proc/array.c:proc_task_name`)."""
    name = process.comm.encode().replace(b"\\", b"\\\\").replace(b"\n", b"\\n")
    state = b"Z (zombie)" if process.is_zombie else b"S (sleeping)"
    numbers = f"PPid:\t{process.ppid}\nUid:\t{process.uid}\t0\t0\t0\n".encode()
    return b"Name:\t" + name + b"\nState:\t" + state + b"\n" + numbers
