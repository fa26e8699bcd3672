"""Sources that read struct pages themselves: this machine through BPF, and crash dumps.

Both are a `Kernel` (memory, types, symbols) and the same scan; they differ in where the
rest comes from.  A live machine's zones, counters and processes are those of its /proc; a
dump's are read from its memory.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from memdesc.errors import FaultError, LayoutError
from memdesc.kernels.pagemap import PagemapEntry, decode_entry
from memdesc.map.extents import MemoryMap, Totals
from memdesc.map.machine import Counters, IomemRange, Machine
from memdesc.sources.procfs import read_counters, read_machine
from memdesc.structs.kernel import Kernel
from memdesc.structs.machine import machine_of
from memdesc.structs.memmap import MemMap
from memdesc.structs.owned import OwnedRanges
from memdesc.structs.scan import StructScan
from memdesc.structs.walk import walk_owned
from memdesc.types import Pid, VirtAddr

if TYPE_CHECKING:
    from memdesc.descriptors import DescriptorLookup
    from memdesc.sources.pages import Progress
    from memdesc.sources.processes import Attribution

__all__ = ["DumpSource", "LiveStructSource"]


_FRESH_SECONDS = 1.0
"""A live walk is used again for so long: one question about a page asks several times."""


class _StructSource:
    """What both share: the scan over a kernel's memory map, and the walks beside it."""

    def __init__(self, name: str, kernel: Kernel, *, threads: int) -> None:
        self.name = name
        self.kernel = kernel
        self.threads = threads
        self.memmap = MemMap.find(kernel)
        self._walks_tables = False
        self._walked: OwnedRanges | None = None
        self._walked_at = 0.0

    @property
    def machine(self) -> Machine:
        raise NotImplementedError

    def scan(
        self, progress: Progress | None = None, *, owners: bool = False, references: bool = False
    ) -> StructScan:
        """The struct pages as one scan, for a caller that streams it."""
        return StructScan(
            self.kernel,
            self.memmap,
            self.machine,
            owned=self.owned(),
            threads=self.threads,
            owners=owners,
            references=references,
            progress=progress,
        )

    def owned(self) -> OwnedRanges:
        """What the walks over the kernel's structures find, as it is now.

        Page tables are walked in a dump only: on a live machine that takes longer than all the
        rest together. A dump is walked once.
        """
        now = time.monotonic()
        if self._walked is None or (self.kernel.is_live and now - self._walked_at > _FRESH_SECONDS):
            self._walked = walk_owned(self.kernel, self.memmap, tables=self._walks_tables)
            self._walked_at = now
        return self._walked

    def totals(self, progress: Progress | None = None, *, references: bool = False) -> Totals:
        result = self.scan(progress, references=references).totals()
        return dataclasses.replace(result, machine=self.after())

    def map(
        self, progress: Progress | None = None, *, owners: bool = False, references: bool = False
    ) -> MemoryMap:
        """The whole map; with `owners`, extents also tell caches, callers, file systems, with
        `references` also who is held beyond mappings and caches."""
        result = self.scan(progress, owners=owners, references=references).map()
        return dataclasses.replace(result, machine=self.after(), read_from="structs")

    def summary(self, progress: Progress | None = None) -> MemoryMap | Totals:
        return self.map(progress)

    def window(self, pfn: int) -> MemoryMap:
        near = self.scan(owners=True, references=True).window(pfn)
        return dataclasses.replace(near, read_from="structs")

    def describer(self, result: MemoryMap) -> DescriptorLookup:
        """Descriptors with everything that the kernel's memory tells of a frame."""
        from memdesc.structs.describe import KernelDescriber

        return KernelDescriber(self.kernel, self.memmap, result, self.owned())

    def after(self) -> Machine:
        """The machine with its counters as they are after a scan."""
        return self.machine


class LiveStructSource(_StructSource):
    """This machine, through BPF. Raises NotReadableError where that is not permitted."""

    def __init__(self, *, name: str = "live:struct", threads: int = 0) -> None:
        from memdesc.structs.live import open_live_kernel

        super().__init__(name, open_live_kernel(), threads=threads)
        self._machine = read_machine(Path("/"))

    @property
    def machine(self) -> Machine:
        return self._machine

    def after(self) -> Machine:
        return dataclasses.replace(self._machine, after=self.counters())

    def counters(self) -> Counters:
        """The counters as they are now."""
        return read_counters(Path("/"))

    def pagemap(self, pid: Pid, address: VirtAddr) -> PagemapEntry:
        from memdesc.sources.source import pagemap_entry

        return pagemap_entry(Path("/"), pid, address, self.machine.release)

    def attribution(self, progress: Progress | None = None) -> Attribution:
        from memdesc.sources.processes import read_processes

        return read_processes(Path("/"), progress=progress)


class DumpSource(_StructSource):
    """A crash dump. Raises what `memdesc.structs.dump.open_dump` raises."""

    def __init__(
        self,
        path: Path,
        *,
        vmlinux: Path | None = None,
        threads: int = 0,
        progress: Callable[[str], None] | None = None,
    ) -> None:
        from memdesc.structs.dump import open_dump

        super().__init__(str(path), open_dump(path, vmlinux, progress), threads=threads)
        self._walks_tables = True

    @cached_property
    def _machine(self) -> Machine:
        from memdesc.structs.describe_owner import Cgroups
        from memdesc.structs.iomem import iomem_of

        machine = machine_of(self.kernel, self.memmap)
        unseen = dict(machine.unseen)
        cgroups: dict[int, str] = {}
        iomem: tuple[IomemRange, ...] = ()
        try:
            iomem = iomem_of(self.kernel)
            cgroups = Cgroups(self.kernel).all()
        except (FaultError, LayoutError) as error:
            unseen["names of cgroups" if iomem else "iomem"] = str(error)
        for number, note in enumerate(self.kernel.notes, 1):
            unseen[f"crash dump ({number})"] = note
        return dataclasses.replace(machine, cgroups=cgroups, iomem=iomem, unseen=unseen)

    @property
    def machine(self) -> Machine:
        return self._machine

    def pagemap(self, pid: Pid, address: VirtAddr) -> PagemapEntry:
        from memdesc.sources.dump_processes import pagemap_entry
        from memdesc.structs.user_pages import swap_config

        word = pagemap_entry(self.kernel, self.memmap, pid, address)
        return decode_entry(word, self.kernel.release, swap_config(self.kernel))

    def attribution(self, progress: Progress | None = None) -> Attribution:
        from memdesc.sources.dump_processes import attribution_of

        return attribution_of(self.kernel, self.memmap, progress)
