"""The machine as the kernel's text files: buddyinfo, pagetypeinfo, zoneinfo.

`mm/vmstat.c:frag_show_print, pagetypeinfo_showfree_print, pagetypeinfo_showblockcount_print,
zoneinfo_show_print @6.12`.
"""

from __future__ import annotations

import numpy as np

from memdesc.kernels.allocator import MIGRATETYPES, AllocatorRules
from memdesc.model import state as s
from memdesc.model.compiled import array
from memdesc.model.state import State
from memdesc.model.zones import Layout

__all__ = ["buddyinfo", "pagetypeinfo", "zoneinfo"]

_MANY = 100_000
"""pagetypeinfo stops counting a list here."""


def buddyinfo(layout: Layout, rules: AllocatorRules, state: State) -> str:
    """/proc/buddyinfo: free blocks per order of every populated zone."""
    zones = array(state.zones).reshape(-1, 1 << s.ZONE_SHIFT)
    lines = []
    for index in _in_order(layout):
        zone = layout.zones[index]
        counts = zones[index, s.Z_NR_FREE : s.Z_NR_FREE + rules.max_order + 1].tolist()
        blocks = "".join(f"{count:6} " for count in counts)
        lines.append(f"Node {zone.node}, zone {zone.name:>8} {blocks}\n")
    return "".join(lines)


def pagetypeinfo(layout: Layout, rules: AllocatorRules, state: State) -> str:
    """/proc/pagetypeinfo: free blocks per type and order, and pageblocks per type."""
    orders = range(rules.max_order + 1)
    names = list(MIGRATETYPES)
    numbers: list[int | None] = list(range(len(MIGRATETYPES)))
    if rules.migratetypes > len(MIGRATETYPES):
        names.insert(s.ISOLATE, "CMA")
        numbers.insert(s.ISOLATE, None)
    lines = [f"Page block order: {rules.pageblock_order}\n"]
    lines.append(f"Pages per block:  {1 << rules.pageblock_order}\n\n")
    title = "Free pages count per migrate type at order"
    lines.append(f"{title:<43} " + "".join(f"{order:6} " for order in orders) + "\n")
    for index in _in_order(layout):
        zone = layout.zones[index]
        for name, number in zip(names, numbers, strict=True):
            cells = []
            for order in orders:
                slot = (index << 4 | order) << s.LIST_ORDER_SHIFT
                length = 0 if number is None else _length(state, slot + number)
                cells.append(f"{'>' if length >= _MANY else ' '}{length:6} ")
            row = f"Node {zone.node:4}, zone {zone.name:>8}, type {name:>12} "
            lines.append(row + "".join(cells) + "\n")
    lines.append(f"\n{'Number of blocks type ':<23}")
    lines.append("".join(f"{name:>12} " for name in names) + "\n")
    block, block_zone = array(state.block), array(state.block_zone)
    for index in _in_order(layout):
        zone = layout.zones[index]
        present = _pageblocks_present(layout, rules, index)
        types = block[present & (block_zone == index)]
        counts = np.bincount(types, minlength=len(MIGRATETYPES)).tolist()
        cells = [f"{0 if n is None else counts[n]:12} " for n in numbers]
        lines.append(f"Node {zone.node}, zone {zone.name:>8} " + "".join(cells) + "\n")
    return "".join(lines)


def zoneinfo(layout: Layout, state: State) -> str:
    """Those lines of /proc/zoneinfo that the model knows."""
    zones = array(state.zones).reshape(-1, 1 << s.ZONE_SHIFT)
    percpu = array(state.percpu).reshape(-1, 1 << s.PERCPU_SHIFT)
    lines: list[str] = []
    for index in _in_order(layout):
        zone, row = layout.zones[index], zones[index].tolist()
        lines.append(f"Node {zone.node}, zone {zone.name:>8}\n  pages free     {row[s.Z_FREE]}\n")
        for name, value in (
            ("boost", row[s.Z_BOOST]),
            ("min", row[s.Z_MIN]),
            ("low", row[s.Z_LOW]),
            ("high", row[s.Z_HIGH]),
            ("promo", row[s.Z_PROMO]),
            ("spanned", zone.spanned),
            ("present", row[s.Z_PRESENT]),
            ("managed", row[s.Z_MANAGED]),
        ):
            lines.append(f"        {name:<8} {value}\n")
        kept = ", ".join(str(n) for n in row[s.Z_RESERVE : s.Z_RESERVE + s.ZONE_TYPES])
        lines.append(f"        protection: ({kept})\n  pagesets\n")
        for cpu in range(state.params[s.G_CPUS]):
            p = percpu[cpu * len(layout.zones) + index].tolist()
            lines.append(f"    cpu: {cpu}\n")
            for name, value in (
                ("count:", p[s.P_COUNT]),
                ("high:", p[s.P_HIGH]),
                ("batch:", p[s.P_BATCH]),
                ("high_min:", p[s.P_HIGH_MIN]),
                ("high_max:", p[s.P_HIGH_MAX]),
            ):
                lines.append(f"              {name:<9}{value}\n")
        lines.append(f"  start_pfn:           {zone.pfn_start}\n")
    return "".join(lines)


# --- helpers -----------------------------------------------------------------------------


def _in_order(layout: Layout) -> list[int]:
    """Zones by node and type, as the files list them."""
    return sorted(
        range(len(layout.zones)), key=lambda i: (layout.zones[i].node, layout.zones[i].type)
    )


def _length(state: State, slot: int) -> int:
    links, item = array(state.next), state.params[s.G_LISTS] + slot
    pfn, length = int(links[item]), 0
    while pfn != item and length < _MANY:
        pfn, length = int(links[pfn]), length + 1
    return length


def _pageblocks_present(layout: Layout, rules: AllocatorRules, index: int) -> np.ndarray:
    """bool per pageblock: whether its first frame within the zone exists."""
    zone, size = layout.zones[index], 1 << rules.pageblock_order
    unit = 1 << max(rules.max_order, rules.pageblock_order)
    found = np.zeros(-(-layout.pfn_end // unit) * unit // size, np.bool_)
    for start, end in zone.ranges:
        first = start // size if start == zone.pfn_start else -(-start // size)
        found[first : -(-end // size)] = True
    return found
