"""The borders that a map must respect: zones, and what backs each range.

A region is the largest range with one zone and one backing.  The encoder starts a new
extent at every border, so an extent lies in exactly one region.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from memdesc.map.machine import Machine, Zone
from memdesc.rules.classify import Backing
from memdesc.types import PAGE_SHIFT, PAGE_SIZE_BYTES

__all__ = ["Region", "Regions", "regions_of"]


@dataclass(frozen=True, slots=True)
class Region:
    """Frames [pfn_start, pfn_end) of one zone (None: of no zone) and one backing."""

    pfn_start: int
    pfn_end: int
    zone: Zone | None
    backing: Backing
    deferred_ok: bool = False
    """A whole section that reads 0 here is memmap that is not initialised yet: the zone has
    present frames above managed ones, and MemFree counts frames that no free list holds."""


class Regions:
    """A gap-free, sorted sequence of regions from frame 0 to infinity."""

    def __init__(self, regions: Sequence[Region]) -> None:
        self.all: tuple[Region, ...] = tuple(regions)
        self.starts: list[int] = [region.pfn_start for region in self.all]

    def index_of(self, pfn: int) -> int:
        """Index of the region that holds `pfn`."""
        return bisect.bisect_right(self.starts, pfn) - 1

    def of(self, pfn: int) -> Region:
        return self.all[self.index_of(pfn)]

    def borders_within(self, pfn_start: int, pfn_end: int) -> list[int]:
        """Region starts strictly inside (pfn_start, pfn_end)."""
        low = bisect.bisect_right(self.starts, pfn_start)
        high = bisect.bisect_left(self.starts, pfn_end)
        return self.starts[low:high]

    def __len__(self) -> int:
        return len(self.all)


_END = 1 << 52


def regions_of(machine: Machine) -> Regions:
    """Cut the frame space at every border that `machine` knows of.

    A range that several zones span belongs to none: which of them holds a frame is not
    visible then (nodes may interleave, Normal and Movable overlap on hotplugged memory).
    """
    backings = _backings(machine)
    offline = machine.offline
    cuts = {0, _END}
    for start, end, *_rest in (*backings, *offline):
        cuts |= {start, end}
    for each in machine.zones:
        cuts |= {each.pfn_start, each.pfn_end}
    lazy = _counts_uninitialised(machine)
    regions: list[Region] = []
    for start, end in itertools.pairwise(sorted(cuts)):
        zones = [z for z in machine.zones if z.pfn_start <= start < z.pfn_end]
        zone = zones[0] if len(zones) == 1 else None
        backing = Backing.HOLE if machine.iomem else Backing.UNKNOWN
        for low, high, kind in backings:
            if low <= start < high:
                backing = kind
        if any(low <= start < high for low, high in offline):
            backing = Backing.HOLE
        gap = zone.present - zone.managed if zone else 0
        deferred_ok = backing is Backing.RAM and gap >= machine.section_pages and lazy
        regions.append(Region(start, end, zone, backing, deferred_ok))
    return Regions(regions)


def _backings(machine: Machine) -> list[tuple[int, int, Backing]]:
    """Frames of every range of /proc/iomem that holds memory; a later one says more.

    System RAM is rounded inwards to whole frames, as the kernel does: a frame that is only
    partly RAM is not present (mm/memblock.c, arch/x86/kernel/e820.c).
    """
    found: list[tuple[int, int, Backing]] = []
    for entry in machine.iomem:
        inner = (entry.phys_start + PAGE_SIZE_BYTES - 1) >> PAGE_SHIFT
        outer = (entry.phys_end + PAGE_SIZE_BYTES - 1) >> PAGE_SHIFT
        name = entry.name
        if name.startswith("System RAM"):
            # With a suffix it is device memory that a driver onlined: "(kmem)", "(virtio_mem)".
            found.append((inner, max(inner, entry.phys_end >> PAGE_SHIFT), Backing.RAM))
        elif name.startswith(("Persistent Memory", "CXL Window", "Soft Reserved", "dax")):
            found.append((entry.phys_start >> PAGE_SHIFT, outer, Backing.DEVICE))
    return found


def _counts_uninitialised(machine: Machine) -> bool:
    """Whether MemFree exceeds the free lists by a good part of a memory section.

    A kernel that initialises its memmap lazily counts those frames in MemFree and not in
    nr_free_pages; every other kernel counts the same in both (mm/show_mem.c @7.2). Half a
    section is the least, because the two files are read one after the other.
    """
    free = machine.before.meminfo.get("MemFree")
    listed = machine.before.vmstat.get("nr_free_pages")
    if free is None or listed is None:
        return False
    return free // PAGE_SIZE_BYTES - listed >= machine.section_pages // 2
