"""What every source can be asked, and the sources that read page files.

live, live:proc     this machine's /proc
tree:DIR            a copy of another machine's /proc (DIR/proc/kpageflags ...)
FILE                a raw kpageflags file: one 64-bit word per frame
DIR                 a capture (`memdesc.sources.capture`)
bundled:NAME        a capture that ships with memdesc
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from memdesc.errors import NotReadableError, QuestionError
from memdesc.kernels.release import UNKNOWN_RELEASE, KernelRelease
from memdesc.map.describe import MapDescriber
from memdesc.map.extents import MemoryMap, ScanStats, Totals
from memdesc.map.facts import FactTable
from memdesc.map.machine import Counters, Machine
from memdesc.map.sinks import Columns
from memdesc.sources.kpage import PageFile
from memdesc.sources.pages import PageScan, Progress, open_page_files
from memdesc.sources.procfs import read_counters, read_machine
from memdesc.types import PAGE_SHIFT, Pid, VirtAddr

if TYPE_CHECKING:
    from memdesc.descriptors import DescriptorLookup
    from memdesc.kernels.pagemap import PagemapEntry
    from memdesc.sources.processes import Attribution

__all__ = ["ProcSource", "RawSource", "Scan", "Source", "pagemap_entry"]


class Scan(Protocol):
    """One pass over a source's frames, streamed in frame order, for a capture."""

    machine: Machine
    frames: int
    unseen: dict[str, str]
    """Column or file -> why it is not visible."""
    progress: Progress | None

    @property
    def has_mapcounts(self) -> bool:
        """Whether the columns carry map counts."""

    @property
    def has_cgroups(self) -> bool:
        """Whether the columns carry cgroups."""

    def columns(self) -> Iterator[Columns]:
        """The extents chunk by chunk."""

    def facts(self) -> FactTable:
        """The facts met so far, by the codes of the columns."""

    def cgroup_inodes(self) -> NDArray[np.uint64]:
        """uint64[m]: inodes by the codes of the columns."""

    def stats(self, started: float) -> ScanStats:
        """What was read since `started` (`time.perf_counter`)."""


class Source(Protocol):
    """A way of seeing a machine's memory. Reading may take a while; each call reads anew."""

    @property
    def name(self) -> str:
        """How the user named it."""

    @property
    def machine(self) -> Machine:
        """The machine, without the counters that are read after a scan."""

    def totals(self, progress: Progress | None = None, *, references: bool = False) -> Totals:
        """Frames per region and fact, in bounded memory; with `references`, also by who holds
        them where the source sees that (`Totals.held`)."""

    def map(
        self, progress: Progress | None = None, *, owners: bool = False, references: bool = False
    ) -> MemoryMap:
        """The whole map; with `owners`, its extents tell caches, callers and file systems
        where the source sees them (`MemoryMap.owners`), with `references` who is held beyond
        mappings and caches (`MemoryMap.references`)."""

    def summary(self, progress: Progress | None = None) -> MemoryMap | Totals:
        """What an overview needs: the map, or its totals where the map could be huge."""

    def window(self, pfn: int) -> MemoryMap:
        """A map of at least `pfn` and its whole folio. Raises QuestionError outside."""

    def describer(self, result: MemoryMap) -> DescriptorLookup:
        """The typed descriptors of a map that this source read."""

    def pagemap(self, pid: Pid, address: VirtAddr) -> PagemapEntry:
        """What the page at `address` of process `pid` holds.

        Raises QuestionError where there is no such process or the source has no pagemap.
        """

    def attribution(self, progress: Progress | None = None) -> Attribution:
        """Who maps what. Raises QuestionError where the source does not show it."""


class ProcSource:
    """A live machine, or a copied tree of its /proc and /sys below `root`."""

    def __init__(self, root: Path = Path("/"), *, name: str = "live", threads: int = 0) -> None:
        """Open the page files. Raises NotReadableError with a hint where they are closed."""
        self.name = name
        self.root = root
        self.threads = threads
        self.is_live = root == Path("/")
        self._unseen: dict[str, str] = {}
        self._flags, (self._mapcounts, self._cgroups) = open_page_files(root / "proc", self._unseen)
        self.machine = read_machine(root)

    def scan(self, progress: Progress | None = None) -> PageScan:
        """The page files as one scan, for a caller that streams it."""
        return PageScan(
            self.machine,
            self._flags,
            self._mapcounts,
            self._cgroups,
            {**self.machine.unseen, **self._unseen},
            threads=self.threads,
            progress=progress,
        )

    def totals(self, progress: Progress | None = None, *, references: bool = False) -> Totals:
        result = self.scan(progress).totals()
        return dataclasses.replace(result, machine=self._after())

    def map(
        self, progress: Progress | None = None, *, owners: bool = False, references: bool = False
    ) -> MemoryMap:
        scan = self.scan(progress)
        result = scan.map()
        stats = scan.reread(result) if self.is_live else result.stats
        return dataclasses.replace(result, machine=self._after(), stats=stats)

    def summary(self, progress: Progress | None = None) -> MemoryMap | Totals:
        return self.map(progress)

    def window(self, pfn: int) -> MemoryMap:
        return self.scan().window(pfn)

    def describer(self, result: MemoryMap) -> DescriptorLookup:
        return MapDescriber(result)

    def pagemap(self, pid: Pid, address: VirtAddr) -> PagemapEntry:
        return pagemap_entry(self.root, pid, address, self.machine.release)

    def attribution(self, progress: Progress | None = None) -> Attribution:
        from memdesc.sources.processes import read_processes

        return read_processes(self.root, progress=progress)

    def counters(self) -> Counters:
        """The counters as they are now; of a copied tree, as they were copied."""
        return read_counters(self.root) if self.is_live else self.machine.before

    def _after(self) -> Machine:
        """The machine with its counters after the scan."""
        return dataclasses.replace(self.machine, after=self.counters())


class RawSource:
    """A bare kpageflags file, with a kpagecount file beside it where the user gives one."""

    def __init__(
        self,
        path: Path,
        *,
        mapcounts: Path | None = None,
        release: str | None = None,
        threads: int = 0,
    ) -> None:
        """Open the files.

        Raises NotReadableError, TruncatedError (no whole number of words, or a kpagecount
        file of another length) and FormatError (for `release`).
        """
        self.name = str(path)
        self.threads = threads
        self._flags = PageFile(path)
        self._mapcounts = PageFile(mapcounts) if mapcounts is not None else None
        frames = self._flags.frames()
        if self._mapcounts is not None and self._mapcounts.frames() != frames:
            raise NotReadableError(
                f"{mapcounts} holds {self._mapcounts.frames()} frames and {path} holds {frames}",
                path=str(mapcounts),
                hint="record both files on the same machine, without a reboot between them",
            )
        known = KernelRelease.parse(release) if release else UNKNOWN_RELEASE
        unseen = {"zones, counters, names": "a raw file holds page flags only"}
        if not release:
            unseen["kernel release"] = (
                "not given (--kernel RELEASE); types that depend on it are unions"
            )
        self.machine = Machine(release=known, unseen=unseen)

    def scan(self, progress: Progress | None = None) -> PageScan:
        """The files as one scan."""
        unseen = dict(self.machine.unseen)
        if self._mapcounts is None:
            unseen["mapcounts"] = "no kpagecount file was given (--kpagecount FILE)"
        unseen["cgroups"] = "a raw file holds no cgroups"
        return PageScan(
            self.machine,
            self._flags,
            self._mapcounts,
            None,
            unseen,
            threads=self.threads,
            progress=progress,
        )

    def totals(self, progress: Progress | None = None, *, references: bool = False) -> Totals:
        return self.scan(progress).totals()

    def map(
        self, progress: Progress | None = None, *, owners: bool = False, references: bool = False
    ) -> MemoryMap:
        return self.scan(progress).map()

    def summary(self, progress: Progress | None = None) -> MemoryMap | Totals:
        return self.totals(progress)

    def window(self, pfn: int) -> MemoryMap:
        return self.scan().window(pfn)

    def describer(self, result: MemoryMap) -> DescriptorLookup:
        return MapDescriber(result)

    def pagemap(self, pid: Pid, address: VirtAddr) -> PagemapEntry:
        raise QuestionError(
            "a raw kpageflags file does not know processes",
            hint=f"name a frame (0x...) or a physical address (phys:0x...), not {pid}:{address:#x}",
        )

    def attribution(self, progress: Progress | None = None) -> Attribution:
        raise QuestionError(
            "a raw kpageflags file does not say who maps its frames",
            hint="ask the live machine, or a capture of one",
        )


def pagemap_entry(root: Path, pid: Pid, address: VirtAddr, release: KernelRelease) -> PagemapEntry:
    """One entry of /proc/PID/pagemap below `root`.

    Raises QuestionError where there is no such process or address, NotReadableError where
    the file is closed to the caller.
    """
    from memdesc.kernels.pagemap import decode_entry

    path = root / f"proc/{pid}/pagemap"
    try:
        with path.open("rb", buffering=0) as file:
            word = os.pread(file.fileno(), 8, (address >> PAGE_SHIFT) * 8)
    except FileNotFoundError:
        raise QuestionError(
            f"there is no process {pid}", hint="`ps` lists them; it may have exited"
        ) from None
    except OSError as error:
        raise NotReadableError(
            f"cannot read {path}: {error.strerror}",
            path=path,
            hint="run as root (CAP_SYS_ADMIN and permission to ptrace the process)",
        ) from error
    if len(word) < 8:
        raise QuestionError(f"{address:#x} is no user address of process {pid}")
    return decode_entry(int.from_bytes(word, "little"), release)
