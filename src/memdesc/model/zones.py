"""The layout of memory at boot: zones and nodes, watermarks, reserves, sizes of per-CPU lists.

Plain Python, run once. `mm/page_alloc.c:calculate_min_free_kbytes, __setup_per_zone_wmarks,
setup_per_zone_lowmem_reserve, zone_batchsize, zone_highsize`,
`mm/khugepaged.c:set_recommended_min_free_kbytes` @6.1, @6.12, @7.2.

>>> layout = Layout.pc(1 << 30)
>>> [(zone.name, zone.pfn_start, zone.spanned) for zone in layout.zones]
[('DMA', 1, 4095), ('DMA32', 4096, 258048)]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Self, TypeAlias

from memdesc.errors import QuestionError
from memdesc.kernels.allocator import AllocatorRules
from memdesc.model.state import ZONE_DMA, ZONE_DMA32, ZONE_MOVABLE, ZONE_NORMAL, ZONE_TYPES
from memdesc.types import PAGE_SHIFT

__all__ = ["ZONE_NAMES", "Layout", "PerCpuSizes", "Ranges", "ZoneLayout", "ZoneMarks", "marks_of"]

ZONE_NAMES = ("DMA", "DMA32", "Normal", "Movable")
"""By zone type."""

_THP_LEAST_FRAMES = (512 << 20) >> PAGE_SHIFT
"""Below 512 MiB huge pages are off at boot (`mm/huge_memory.c:hugepage_init`)."""


Ranges: TypeAlias = tuple[tuple[int, int], ...]
"""Frames [start, end), rising and not touching."""


@dataclass(frozen=True, slots=True)
class ZoneLayout:
    """One zone. Counts are in frames."""

    name: str
    """DMA, DMA32, Normal or Movable."""
    node: int
    pfn_start: int
    spanned: int
    present: Ranges = ()
    """Frames [start, end) that exist; () stands for all that the zone spans."""
    reserved: Ranges = ()
    """Frames [start, end) of `present` that the allocator never gets."""
    managed_frames: int | None = None
    """`managed` as read from a machine; None: present less reserved."""

    @property
    def pfn_end(self) -> int:
        return self.pfn_start + self.spanned

    @property
    def type(self) -> int:
        """Zone type, 0 to 3."""
        return ZONE_NAMES.index(self.name)

    @property
    def ranges(self) -> Ranges:
        """`present`, spelt out."""
        return self.present or ((self.pfn_start, self.pfn_end),)

    @property
    def free_ranges(self) -> Ranges:
        """Frames that the allocator gets at boot."""
        free: list[tuple[int, int]] = []
        for start, end in self.ranges:
            for low, high in self.reserved:
                if low >= end or high <= start:
                    continue
                if start < low:
                    free.append((start, low))
                start = high
            if start < end:
                free.append((start, end))
        return tuple(free)

    @property
    def frames_present(self) -> int:
        return sum(end - start for start, end in self.ranges)

    @property
    def managed(self) -> int:
        """Frames that the allocator hands out."""
        if self.managed_frames is not None:
            return self.managed_frames
        return self.frames_present - sum(end - start for start, end in self.reserved)


@dataclass(frozen=True, slots=True)
class ZoneMarks:
    """Watermarks of a zone in frames, and what it keeps from requests that could go higher."""

    min: int
    low: int
    high: int
    promo: int
    lowmem_reserve: tuple[int, ...]
    """By highest zone type of the request."""


@dataclass(frozen=True, slots=True)
class PerCpuSizes:
    """Limits of a zone's per-CPU lists, in frames."""

    batch: int
    high_min: int
    high_max: int


@dataclass(frozen=True)
class Layout:
    """Zones in the order of their frames, and the settings that size things.

    Raises QuestionError where zones overlap, share a pageblock, or have unknown names.
    """

    zones: tuple[ZoneLayout, ...]
    min_free_kbytes: int | None = None
    """vm.min_free_kbytes as somebody set it; None: as the kernel computes it."""
    watermark_scale_factor: int = 10
    watermark_boost_factor: int = 15000
    percpu_high_fraction: int = 0
    """vm.percpu_pagelist_high_fraction; 0: not set."""
    thp: bool | None = None
    """Whether khugepaged runs and raises min_free_kbytes; None: as at boot."""
    grouping: bool | None = None
    """Whether frames are grouped by mobility; None: as the kernel decides by size."""
    marks: tuple[ZoneMarks, ...] = field(default=())
    """Watermarks as read from a machine, one per zone; (): computed."""

    def __post_init__(self) -> None:
        _check(self.zones)

    @classmethod
    def pc(cls, memory_bytes: int, *, nodes: int = 1, reserved_frames: int = 0) -> Self:
        """A PC with `memory_bytes` of memory and no hole but that below 4 GiB.

        Frame 0 is the firmware's; 1 GiB below 4 GiB belongs to devices where memory reaches
        that far, as in a QEMU q35 machine with more than 2.75 GiB. Nodes share the memory
        evenly, in whole memory blocks of 128 MiB. The first `reserved_frames` frames of the
        largest zone are the kernel's (memory map, image).
        """
        frames = memory_bytes >> PAGE_SHIFT
        if frames < 4096 + 512:
            raise QuestionError("a PC has at least 18 MiB", hint="make a Layout of your own zones")
        below = min(frames, 3 << (30 - PAGE_SHIFT))
        zones = [ZoneLayout("DMA", 0, 1, 4095)]
        border, top = 4096, 1 << (32 - PAGE_SHIFT)
        end = below if frames <= below else top + frames - below
        share = -(-(end // nodes) // 32768) * 32768
        for node in range(nodes):
            first, last = node * share, end if node == nodes - 1 else (node + 1) * share
            for name, low, high in (("DMA32", border, top), ("Normal", top, end)):
                start, stop = max(first, low), min(last, high)
                ram = _without((start, stop), (below, top)) if start < stop else ()
                if ram:
                    zones.append(ZoneLayout(name, node, start, ram[-1][1] - start, ram))
        if reserved_frames:
            largest = max(range(len(zones)), key=lambda i: zones[i].frames_present)
            zones[largest] = replace(
                zones[largest], reserved=_first(zones[largest].ranges, reserved_frames)
            )
        return cls(tuple(zones))

    @property
    def nodes(self) -> int:
        return 1 + max(zone.node for zone in self.zones)

    @property
    def pfn_end(self) -> int:
        return max(zone.pfn_end for zone in self.zones)

    @property
    def managed(self) -> int:
        return sum(zone.managed for zone in self.zones)


# --- watermarks --------------------------------------------------------------------------


def marks_of(
    layout: Layout, rules: AllocatorRules, managed: Sequence[int]
) -> tuple[ZoneMarks, ...]:
    """Watermarks and reserves of every zone; `managed`: frames of each zone at that moment."""
    reserves = _lowmem_reserves(layout, managed)
    if layout.marks:
        return layout.marks
    kbytes = layout.min_free_kbytes or min_free_kbytes(layout, rules, managed)
    pages_min = kbytes >> (PAGE_SHIFT - 10)
    apart = [rules.movable_zone_apart and zone.type == ZONE_MOVABLE for zone in layout.zones]
    total = sum(m for m, alone in zip(managed, apart, strict=True) if not alone) or 1
    found: list[ZoneMarks] = []
    for zone_managed, alone, reserve in zip(managed, apart, reserves, strict=True):
        share = pages_min * zone_managed // total
        least = min(max(zone_managed // 1024, 32), 128) if alone else share
        gap = max(share >> 2, zone_managed * layout.watermark_scale_factor // 10000)
        low = least + gap
        found.append(ZoneMarks(least, low, low + gap, low + 2 * gap, reserve))
    return tuple(found)


def min_free_kbytes(layout: Layout, rules: AllocatorRules, managed: Sequence[int]) -> int:
    """vm.min_free_kbytes: by memory's size, and raised for huge pages.

    When the kernel computes the former, no zone has marks yet, so all frames count.
    """
    ordinary = [zone.type <= ZONE_NORMAL for zone in layout.zones]
    low = sum(m for m, counts in zip(managed, ordinary, strict=True) if counts)
    kbytes = rules.min_free_kbytes(low << (PAGE_SHIFT - 10))
    thp = sum(managed) >= _THP_LEAST_FRAMES if layout.thp is None else layout.thp
    if not thp:
        return kbytes
    # Two pageblocks per zone, and for migration one per pair of types, at most a twentieth
    # of what is above the high marks.
    zones = sum(1 for m, counts in zip(managed, ordinary, strict=True) if counts and m)
    marks = marks_of(replace(layout, min_free_kbytes=kbytes, marks=()), rules, managed)
    high = sum(mark.high for mark, counts in zip(marks, ordinary, strict=True) if counts)
    frames = min((zones * (2 + 9)) << rules.pageblock_order, (low - high) // 20)
    return max(kbytes, frames << (PAGE_SHIFT - 10))


def sizes_of(
    layout: Layout,
    rules: AllocatorRules,
    managed: Sequence[int],
    marks: Sequence[ZoneMarks],
    cpus_of_node: Sequence[int],
) -> tuple[PerCpuSizes, ...]:
    """Limits of the per-CPU lists of every zone (`zone_batchsize, zone_highsize`)."""
    found: list[PerCpuSizes] = []
    for zone, frames, mark in zip(layout.zones, managed, marks, strict=True):
        batch = rules.pcp_batch(frames)
        cpus = cpus_of_node[zone.node] or sum(cpus_of_node)
        fraction = layout.percpu_high_fraction
        low, top = mark.low, frames // 8
        if fraction:
            low = top = frames // fraction
        high_min, high_max = (max(total // cpus, batch << 2) for total in (low, top))
        found.append(PerCpuSizes(batch, high_min, high_max if rules.pcp_tuned else high_min))
    return tuple(found)


def grouping_off(layout: Layout, rules: AllocatorRules, managed: Sequence[int]) -> bool:
    """Whether memory is too small to be grouped by mobility (`build_all_zonelists`)."""
    if layout.grouping is not None:
        return not layout.grouping
    return sum(managed) < rules.migratetypes << rules.pageblock_order


def zonelist(layout: Layout, node: int, highest: int, only_node: bool) -> list[int]:
    """Indices of the zones that a request tries: its own node first, higher zones first.

    Other nodes follow in the order of their numbers, beginning after `node`; the kernel goes by
    distance, which is the same where all distances are equal.
    """
    nodes = [node] if only_node else [(node + n) % layout.nodes for n in range(layout.nodes)]
    return [
        index
        for each in nodes
        for kind in range(highest, -1, -1)
        for index, zone in enumerate(layout.zones)
        if zone.node == each and zone.type == kind and zone.managed
    ]


# --- helpers -----------------------------------------------------------------------------

_RATIO = {ZONE_DMA: 256, ZONE_DMA32: 256, ZONE_NORMAL: 32, ZONE_MOVABLE: 0}
"""vm.lowmem_reserve_ratio."""


def _lowmem_reserves(layout: Layout, managed: Sequence[int]) -> list[tuple[int, ...]]:
    found: list[tuple[int, ...]] = []
    for zone in layout.zones:
        reserve = [0] * ZONE_TYPES
        above = 0
        for kind in range(zone.type + 1, ZONE_TYPES):
            above += sum(
                m
                for other, m in zip(layout.zones, managed, strict=True)
                if other.node == zone.node and other.type == kind
            )
            ratio = _RATIO[zone.type]
            reserve[kind] = above // ratio if ratio else 0
        found.append(tuple(reserve))
    return found


def _without(whole: tuple[int, int], gap: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    start, end = whole
    parts = ((start, min(end, gap[0])), (max(start, gap[1]), end))
    return tuple(part for part in parts if part[0] < part[1])


def _first(ranges: Sequence[tuple[int, int]], frames: int) -> tuple[tuple[int, int], ...]:
    found = []
    for start, end in ranges:
        take = min(end - start, frames)
        if take:
            found.append((start, start + take))
        frames -= take
    return tuple(found)


def _check(zones: Sequence[ZoneLayout]) -> None:
    if not zones:
        raise QuestionError("a machine has at least one zone")
    for zone in zones:
        if zone.name not in ZONE_NAMES:
            raise QuestionError(f"no zone is called {zone.name}", hint=", ".join(ZONE_NAMES))
        borders = [pfn for pair in zone.ranges for pfn in pair]
        if borders != sorted(borders) or borders[0] < zone.pfn_start or borders[-1] > zone.pfn_end:
            raise QuestionError(f"present ranges of zone {zone.name} are not sorted within it")
    ordered = sorted(zones, key=lambda zone: zone.pfn_start)
    for one, other in pairwise(ordered):
        if one.pfn_end > other.pfn_start:
            raise QuestionError(f"zones {one.name} and {other.name} overlap")
