"""The page allocator's state in a dump: its lists in their own order, and the zones' numbers.

`freelists` answers which frames are free; here it matters in which order they would be taken.

Sources: `include/linux/mmzone.h` (struct zone, per_cpu_pages), `mm/page_alloc.c`
(order_to_pindex) @6.12; `free_factor` is that of @6.1.
"""

from __future__ import annotations

import numpy as np

from memdesc.kernels.allocator import PAGEBLOCK_ORDER
from memdesc.structs.kernel import Kernel, Object
from memdesc.structs.memmap import MemMap
from memdesc.structs.walk.freelists import (
    follow_list,
    migratetype_names,
    order_of_list,
    pageblock_types,
    zones_in,
)
from memdesc.structs.walk.view import View
from memdesc.traces.state import AllocatorState, Blocks, CpuList, ZoneState

__all__ = ["read_allocator"]

_MARKS = 4


def read_allocator(kernel: Kernel, memmap: MemMap) -> AllocatorState:
    """Every list of every zone. Memory must hold still: a dump, or a guest that is stopped.

    Raises LayoutError where zones or lists are not to be found.
    """
    view = View.of(kernel, memmap)
    zones: list[ZoneState] = []
    free: list[tuple[int, int, int, int, int]] = []
    pcp: list[tuple[int, int, int, int, int]] = []
    for zone in zones_in(view):
        place = len(zones)
        free += _free_lists(view, zone.object, place)
        cpus = []
        for cpu, address in view.per_cpu(zone.object["per_cpu_pageset"]).items():
            cpus.append(_cpu_list(kernel, cpu, address))
            pcp += _cpu_blocks(view, address, place, cpu)
        zones.append(_zone(zone.node, zone.name, zone.object, tuple(cpus)))
    nr_blocks = -(-memmap.pfn_end >> PAGEBLOCK_ORDER)
    blocks = np.arange(nr_blocks, dtype=np.int64) << PAGEBLOCK_ORDER
    return AllocatorState(
        release=kernel.release.text,
        pfn_end=memmap.pfn_end,
        zones=tuple(zones),
        free=Blocks.of(free),
        pcp=Blocks.of(pcp),
        pageblocks=pageblock_types(view, blocks),
        migratetypes=migratetype_names(kernel),
    )


# --- helpers -----------------------------------------------------------------------------


def _free_lists(view: View, zone: Object, place: int) -> list[tuple[int, int, int, int, int]]:
    link = view.kernel.member("page", "lru").offset
    orders = view.kernel.member("zone", "free_area").type.nr_elements
    lists = view.kernel.member("free_area", "free_list").type.nr_elements
    rows = []
    for order in range(orders):
        area = zone.address_of(f"free_area[{order}]")
        for migratetype in range(lists):
            pages: list[int] = []
            follow_list(view, area + migratetype * 16, link, pages)
            pfns = view.memmap.pfn_of(np.array(pages, np.uint64))
            rows += [(pfn, order, migratetype, place, 0) for pfn in pfns.tolist()]
    return rows


def _cpu_blocks(
    view: View, address: int, place: int, cpu: int
) -> list[tuple[int, int, int, int, int]]:
    lists = view.kernel.member("per_cpu_pages", "lists")
    link = view.kernel.member("page", "lru").offset
    types = view.kernel.types.find_enumerator("MIGRATE_PCPTYPES") or 3
    rows = []
    for index in range(lists.type.nr_elements):
        pages: list[int] = []
        follow_list(view, address + lists.offset + index * 16, link, pages)
        order = order_of_list(view.kernel, index)
        pfns = view.memmap.pfn_of(np.array(pages, np.uint64))
        # Huge pages have two lists: movable ones, and others.
        is_huge = order == PAGEBLOCK_ORDER
        kind = (1 if index % types else 0) if is_huge else index % types
        rows += [(pfn, order, kind, place, cpu) for pfn in pfns.tolist()]
    return rows


def _cpu_list(kernel: Kernel, cpu: int, address: int) -> CpuList:
    pcp = kernel.load("per_cpu_pages", address)

    def number(*names: str) -> int:
        for name in names:
            value = pcp.get(name)
            if value is not None:
                return value
        return -1

    return CpuList(
        cpu=cpu,
        count=number("count"),
        high=number("high"),
        high_min=number("high_min"),
        high_max=number("high_max"),
        batch=number("batch"),
        alloc_factor=number("alloc_factor"),
        free_count=number("free_count", "free_factor"),
        flags=number("flags"),
    )


def _zone(node: int, name: str, zone: Object, cpus: tuple[CpuList, ...]) -> ZoneState:
    kernel = zone.kernel
    free = kernel.types.find_enumerator("NR_FREE_PAGES") or 0
    reserves = kernel.member("zone", "lowmem_reserve").type.nr_elements
    parent = zone["zone_pgdat"]
    first = parent + kernel.member("pglist_data", "node_zones").offset
    return ZoneState(
        node=node,
        name=name,
        index=(zone.address - first) // kernel.size_of("zone"),
        pfn_start=zone["zone_start_pfn"],
        spanned=zone["spanned_pages"],
        present=zone["present_pages"],
        managed=zone["managed_pages.counter"],
        free=zone[f"vm_stat[{free}].counter"],
        watermarks=tuple(zone[f"_watermark[{mark}]"] for mark in range(_MARKS)),
        watermark_boost=zone["watermark_boost"],
        lowmem_reserve=tuple(zone[f"lowmem_reserve[{index}]"] for index in range(reserves)),
        reserved_highatomic=zone["nr_reserved_highatomic"],
        flags=_flags(zone),
        cpus=cpus,
    )


def _flags(zone: Object) -> tuple[str, ...]:
    """The bits of `flags` by their names in enum zone_flags."""
    value = zone["flags"]
    names = zone.kernel.types.find_enum("zone_flags") or {}
    return tuple(
        sorted(name.removeprefix("ZONE_") for name, bit in names.items() if value >> bit & 1)
    )
