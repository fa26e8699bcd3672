"""The `Machine` that a kernel's memory describes: zones, free blocks, counters.

What /proc would have said of a stopped kernel: zones and their free blocks from
`pglist_data`, the counters of /proc/vmstat and /proc/meminfo from the arrays that they are
printed from.  A live machine asks /proc itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, ParamSpec, TypeVar

import numpy as np

from memdesc.errors import FaultError, FormatError, LayoutError
from memdesc.map.machine import Counters, Machine, Zone
from memdesc.structs.kernel import Kernel, Object
from memdesc.structs.memmap import MemMap
from memdesc.types import PAGE_SIZE_BYTES

__all__ = ["machine_of"]

_P = ParamSpec("_P")
_T = TypeVar("_T")

_ADDRESSES: Final = (1 << 64) - 1
_MOST_NODES: Final = 1024
_MOST_CPUS: Final = 8192
_MOST_INODES: Final = 1 << 20
_MOST_HUGE_SIZES: Final = 8

_VMSTAT_NAMES: Final[Mapping[str, str]] = {
    "NR_SLAB_RECLAIMABLE_B": "nr_slab_reclaimable",
    "NR_SLAB_UNRECLAIMABLE_B": "nr_slab_unreclaimable",
    "NR_ANON_MAPPED": "nr_anon_pages",
    "NR_FILE_MAPPED": "nr_mapped",
    "NR_FILE_DIRTY": "nr_dirty",
    "NR_FREE_CMA_PAGES": "nr_free_cma",
    "NR_VMSCAN_IMMEDIATE": "nr_vmscan_immediate_reclaim",
    "NR_KERNEL_STACK_KB": "nr_kernel_stack",
    "NR_PAGETABLE": "nr_page_table_pages",
    "NR_SECONDARY_PAGETABLE": "nr_sec_page_table_pages",
    "NR_SWAPCACHE": "nr_swapcached",
}
"""Enumerators whose name in /proc/vmstat is not the same in small letters
(`mm/vmstat.c:vmstat_text` @6.12)."""

_VMSTAT_HUGE: Final[Mapping[str, str]] = {
    "NR_ANON_THPS": "nr_anon_transparent_hugepages",
    "NR_SHMEM_THPS": "nr_shmem_hugepages",
    "NR_SHMEM_PMDMAPPED": "nr_shmem_pmdmapped",
    "NR_FILE_THPS": "nr_file_hugepages",
    "NR_FILE_PMDMAPPED": "nr_file_pmdmapped",
}
"""Counted in pages, printed in huge pages (`mm/vmstat.c:vmstat_item_print_in_thp` @6.12)."""
_PER_HUGE_PAGE: Final = 512

_MEMINFO: Final[Mapping[str, tuple[str, ...]]] = {
    "MemFree": ("nr_free_pages",),
    "SwapCached": ("nr_swapcached",),
    "AnonPages": ("nr_anon_pages",),
    "Mapped": ("nr_mapped",),
    "Shmem": ("nr_shmem",),
    "Slab": ("nr_slab_reclaimable", "nr_slab_unreclaimable"),
    "SReclaimable": ("nr_slab_reclaimable",),
    "SUnreclaim": ("nr_slab_unreclaimable",),
    "PageTables": ("nr_page_table_pages",),
    "SecPageTables": ("nr_sec_page_table_pages",),
    "Mlocked": ("nr_mlock",),
    "Dirty": ("nr_dirty",),
    "Writeback": ("nr_writeback",),
    "Unaccepted": ("nr_unaccepted",),
    "Balloon": ("nr_balloon_pages",),
    "VmallocUsed": ("nr_vmalloc",),
}
"""Lines of /proc/meminfo that are sums of counters of pages (`fs/proc/meminfo.c` @6.12)."""

_PAGE_VARIABLES: Final[Mapping[str, str]] = {
    "MemTotal": "_totalram_pages",
    "HardwareCorrupted": "num_poisoned_pages",
    "VmallocUsed": "nr_vmalloc_pages",
}
"""Lines that are one atomic_long of pages."""


def machine_of(kernel: Kernel, memmap: MemMap) -> Machine:
    """What `kernel`'s memory says of its machine; `Machine.unseen` names what it does not.

    Raises nothing for what a damaged dump lacks: that part stays unseen, with the reason.
    """
    unseen: dict[str, str] = {}
    per_cpu = _attempt(unseen, "per-CPU lists", _per_cpu_offsets, kernel) or []
    zones: list[Zone] = []
    buddyinfo: list[tuple[int, str, tuple[int, ...]]] = []
    for node in _attempt(unseen, "zoneinfo", _nodes, kernel) or []:
        for zone in _attempt(unseen, "zoneinfo", _zones, node) or []:
            read = _attempt(unseen, "zoneinfo", _zone, zone, node, per_cpu)
            if read is None or not read.spanned:
                continue
            zones.append(read)
            orders = _attempt(unseen, "buddyinfo", _free_blocks, zone)
            if read.present and orders is not None:
                buddyinfo.append((read.node, read.name, orders))
    vmstat = _attempt(unseen, "vmstat", _vmstat, kernel) or {}
    counters = Counters(_meminfo(kernel, vmstat, unseen), vmstat)
    return Machine(
        release=kernel.release,
        hostname=_attempt(unseen, "hostname", _hostname, kernel) or "",
        cmdline=_attempt(unseen, "cmdline", _cmdline, kernel),
        zones=tuple(zones),
        before=counters,
        after=counters,
        buddyinfo=tuple(buddyinfo),
        section_pages=memmap.section_pages,
        offline=memmap.offline,
        ksm_pages_shared=_attempt(unseen, "ksm", _long, kernel, "ksm_pages_shared"),
        nr_cpus=max(1, len(per_cpu)),
        unseen=unseen,
    )


# --- zones -------------------------------------------------------------------------------


def _nodes(kernel: Kernel) -> list[Object]:
    """Every pglist_data: `node_data` with CONFIG_NUMA, else `contig_page_data`."""
    alone = kernel.symbols.address_of("contig_page_data")
    if alone is not None:
        return [kernel.load("pglist_data", alone)]
    table = kernel.symbol("node_data")
    count = kernel.symbols.address_of("nr_node_ids")
    nr_nodes = min(kernel.u32(count), _MOST_NODES) if count is not None else 1
    addresses = np.frombuffer(kernel.memory.read(table, nr_nodes * 8), np.uint64)
    return [kernel.load("pglist_data", address) for address in addresses.tolist() if address]


def _zones(node: Object) -> list[Object]:
    """Every zone of a node, whether it has pages or not."""
    kernel = node.kernel
    place = kernel.member("pglist_data", "node_zones")
    size = kernel.size_of("zone")
    starts = [place.offset + index * size for index in range(place.type.nr_elements)]
    return [
        Object(kernel, "zone", node.address + start, node.data[start : start + size])
        for start in starts
    ]


def _zone(zone: Object, node: Object, per_cpu: list[int]) -> Zone:
    free = zone.kernel.types.find_enumerator("NR_FREE_PAGES") or 0
    return Zone(
        node=node["node_id"],
        name=zone.string("name"),
        pfn_start=zone["zone_start_pfn"],
        spanned=zone["spanned_pages"],
        present=zone["present_pages"],
        managed=zone["managed_pages.counter"],
        free=max(0, zone[f"vm_stat[{free}].counter"]),
        pcp=_on_cpus(zone, per_cpu),
        wmark_min=zone["_watermark[0]"],
        wmark_low=zone["_watermark[1]"],
        reserve=_reserve(zone),
    )


def _reserve(zone: Object) -> int:
    """The largest of `lowmem_reserve`: that against the highest zone."""
    count = zone.kernel.member("zone", "lowmem_reserve").type.nr_elements
    return max(0, *(int(zone[f"lowmem_reserve[{index}]"]) for index in range(count)))


def _on_cpus(zone: Object, per_cpu: list[int]) -> int:
    """Frames on the zone's per-CPU lists (`pageset` was its name up to 5.13)."""
    kernel = zone.kernel
    count = kernel.member("per_cpu_pages", "count").offset
    base = zone["per_cpu_pageset"]
    total = 0
    for offset in per_cpu:
        try:
            total += kernel.u32((base + offset + count) & _ADDRESSES)
        except FaultError:
            continue
    return total


def _free_blocks(zone: Object) -> tuple[int, ...]:
    """Free blocks by order."""
    orders = zone.kernel.member("zone", "free_area").type.nr_elements
    return tuple(zone[f"free_area[{order}].nr_free"] for order in range(orders))


def _per_cpu_offsets(kernel: Kernel) -> list[int]:
    """Offsets of the per-CPU areas of the processors that were ever possible."""
    table = kernel.symbol("__per_cpu_offset")
    count = kernel.symbols.address_of("nr_cpu_ids")
    nr_cpus = min(kernel.u32(count), _MOST_CPUS) if count is not None else 1
    offsets: list[int] = np.frombuffer(kernel.memory.read(table, nr_cpus * 8), np.uint64).tolist()
    return offsets


# --- counters ----------------------------------------------------------------------------


def _vmstat(kernel: Kernel) -> dict[str, int]:
    """The counters of zones and nodes, in pages, by their names in /proc/vmstat."""
    found: dict[str, int] = {}
    for enum, symbol, last in (
        ("zone_stat_item", "vm_zone_stat", "NR_VM_ZONE_STAT_ITEMS"),
        ("node_stat_item", "vm_node_stat", "NR_VM_NODE_STAT_ITEMS"),
    ):
        items = kernel.types.find_enum(enum)
        if items is None or last not in items:
            raise LayoutError(f"enum {enum} of {kernel.release} is not known")
        raw = kernel.memory.read(kernel.symbol(symbol), items[last] * 8)
        values = np.frombuffer(raw, np.int64)
        for name, index in items.items():
            if not name.startswith("NR_") or name.endswith("_BASE") or index >= items[last]:
                continue
            value = max(0, int(values[index]))
            if name in _VMSTAT_HUGE:
                found[_VMSTAT_HUGE[name]] = value // _PER_HUGE_PAGE
            else:
                found[_VMSTAT_NAMES.get(name, name.lower())] = value
    return found


def _meminfo(kernel: Kernel, vmstat: Mapping[str, int], unseen: dict[str, str]) -> dict[str, int]:
    """Lines of /proc/meminfo, in bytes, as far as variables hold them."""
    lines: dict[str, int] = {}
    for line, names in _MEMINFO.items():
        if all(name in vmstat for name in names):
            lines[line] = sum(vmstat[name] for name in names) * PAGE_SIZE_BYTES
    for line, symbol in _PAGE_VARIABLES.items():
        if line in lines:
            continue
        pages = _attempt(unseen, line, _long, kernel, symbol)
        if pages is not None:
            lines[line] = pages * PAGE_SIZE_BYTES
    per_cpu = _attempt(unseen, "Percpu", _per_cpu_pages, kernel)
    if per_cpu is not None:
        lines["Percpu"] = per_cpu * PAGE_SIZE_BYTES
    hugetlb = _attempt(unseen, "Hugetlb", _hugetlb_bytes, kernel)
    if hugetlb is not None:
        lines["Hugetlb"] = hugetlb
    buffers = _attempt(unseen, "Buffers", _block_device_pages, kernel)
    if buffers is not None and {"nr_file_pages", "nr_swapcached"} <= vmstat.keys():
        lines["Buffers"] = buffers * PAGE_SIZE_BYTES
        cached = vmstat["nr_file_pages"] - vmstat["nr_swapcached"] - buffers
        lines["Cached"] = max(0, cached) * PAGE_SIZE_BYTES
    return lines


def _per_cpu_pages(kernel: Kernel) -> int:
    """Pages that back per-CPU chunks (`mm/percpu.c:pcpu_nr_pages` @6.12)."""
    return _long(kernel, "pcpu_nr_populated") * kernel.u32(kernel.symbol("pcpu_nr_units"))


def _hugetlb_bytes(kernel: Kernel) -> int:
    """Bytes in every hugetlb pool (`mm/hugetlb.c:hugetlb_report_meminfo` @6.12)."""
    table, size = kernel.symbol("hstates"), kernel.size_of("hstate")
    count = min(kernel.u32(kernel.symbol("hugetlb_max_hstate")), _MOST_HUGE_SIZES)
    total = 0
    for index in range(count):
        pool = kernel.load("hstate", table + index * size)
        total += pool["nr_huge_pages"] << (pool["order"] & 63) << 12
    return total


def _block_device_pages(kernel: Kernel) -> int:
    """Pages in the caches of block devices (`block/bdev.c:nr_blockdev_pages` @6.12)."""
    block = kernel.u64(kernel.symbol("blockdev_superblock"))
    head = block + kernel.member("super_block", "s_inodes").offset
    inodes = kernel.list_entries(head, "inode", "i_sb_list", limit=_MOST_INODES)
    return sum(inode["i_data.nrpages"] for inode in inodes)


def _hostname(kernel: Kernel) -> str:
    names = kernel.load("uts_namespace", kernel.symbol("init_uts_ns"))
    return names.text("name.nodename")


def _cmdline(kernel: Kernel) -> str | None:
    pointer = kernel.u64(kernel.symbol("saved_command_line"))
    return kernel.string(pointer, 4096) if pointer else None


def _long(kernel: Kernel, symbol: str) -> int:
    """A long or an atomic_long_t that is never negative."""
    value = kernel.u64(kernel.symbol(symbol))
    return 0 if value >> 63 else value


def _attempt(
    unseen: dict[str, str],
    what: str,
    read: Callable[_P, _T],
    *args: _P.args,
    **kwargs: _P.kwargs,
) -> _T | None:
    """`read(*args)`, or None with the reason in `unseen`."""
    try:
        return read(*args, **kwargs)
    except (FaultError, LayoutError, FormatError) as error:
        unseen[what] = str(error)
        return None
