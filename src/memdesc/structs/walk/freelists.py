"""Free frames, exactly: the buddy's lists with their migratetypes, and the CPUs' own lists.

Two ways to the same answer.  `walk_free_blocks` follows every list of every zone: the truth,
as long as memory holds still.  `migratetypes_of` takes blocks that a scan of the memmap found
(PageBuddy, order in `private`) and asks the pageblock bitmap, in a handful of reads: the
quick one, which differs only for blocks that wait on another type's list.

Sources: `include/linux/mmzone.h` (struct zone, free_area, per_cpu_pages, mem_section_usage),
`mm/page_alloc.c` (order_to_pindex, get_pfnblock_flags_mask), `mm/internal.h`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memdesc.errors import FaultError, LayoutError
from memdesc.kernels.allocator import COSTLY_ORDER, PAGEBLOCK_ORDER
from memdesc.structs.kernel import Kernel, Object
from memdesc.structs.memmap import MemMap
from memdesc.structs.owned import OwnedFrames
from memdesc.structs.walk.view import View, Walked
from memdesc.types import MemoryType

__all__ = [
    "FreeBlocks",
    "FreeCount",
    "Zone",
    "follow_list",
    "migratetype_names",
    "migratetypes_of",
    "order_of_list",
    "pcp_frames",
    "walk_free_blocks",
    "walk_pcp",
    "zones_in",
]

_MOST_NODES = 1024
_MASK = (1 << 64) - 1


@dataclass(frozen=True)
class Zone:
    """A populated zone of a node."""

    node: int
    name: str
    object: Object


@dataclass(frozen=True, slots=True)
class FreeCount:
    """One order of one zone: what was walked and what the kernel counts (`nr_free`)."""

    node: int
    zone: str
    order: int
    nr_walked: int
    nr_free: int


@dataclass(frozen=True)
class FreeBlocks:
    """Free blocks of the buddy allocator, by frame."""

    pfn: NDArray[np.int64]
    order: NDArray[np.uint8]
    migratetype: NDArray[np.uint8]
    """Index into `names`: of the list that the block is on."""
    names: tuple[str, ...]
    counts: tuple[FreeCount, ...]
    torn: int = 0

    @property
    def nr_pages(self) -> int:
        """Frames in all blocks."""
        return int((1 << self.order.astype(np.int64)).sum())


def walk_free_blocks(kernel: Kernel, memmap: MemMap) -> FreeBlocks:
    """Every block on every free list. Raises LayoutError where zones are not to be found.

    Costs about a microsecond per block.
    """
    return free_blocks_in(View.of(kernel, memmap))


def free_blocks_in(view: View) -> FreeBlocks:
    """As `walk_free_blocks`, with what `view` has already read."""
    names = migratetype_names(view.kernel)
    link = view.kernel.member("page", "lru").offset
    pages: list[int] = []
    runs: list[tuple[int, int, int]] = []
    counts = []
    torn = 0
    areas = view.kernel.member("zone", "free_area").type
    lists = view.kernel.member("free_area", "free_list").type.nr_elements
    for zone in zones_in(view):
        for order in range(areas.nr_elements):
            area = zone.object.address_of(f"free_area[{order}]")
            begin = len(pages)
            for migratetype in range(lists):
                first = len(pages)
                torn += follow_list(view, area + migratetype * 16, link, pages)
                runs.append((len(pages) - first, order, migratetype))
            counts.append(
                FreeCount(
                    zone.node,
                    zone.name,
                    order,
                    len(pages) - begin,
                    zone.object[f"free_area[{order}].nr_free"],
                )
            )
    table = np.array(runs, np.int64).reshape(-1, 3)
    pfns = view.memmap.pfn_of(np.array(pages, np.uint64))
    by_frame = np.argsort(pfns, kind="stable")
    return FreeBlocks(
        pfns[by_frame],
        np.repeat(table[:, 1], table[:, 0])[by_frame].astype(np.uint8),
        np.repeat(table[:, 2], table[:, 0])[by_frame].astype(np.uint8),
        names,
        tuple(counts),
        torn,
    )


def migratetype_names(kernel: Kernel) -> tuple[str, ...]:
    """The migratetypes by number, in the words of /proc/pagetypeinfo ("Unmovable").

    Raises LayoutError where the kernel has no enum migratetype.
    """
    values = kernel.types.find_enum("migratetype")
    if not values:
        raise LayoutError(f"{kernel.release} has no enum migratetype")
    counting = ("MIGRATE_PCPTYPES", "MIGRATE_TYPES", "__MIGRATE_TYPE_END")
    by_number = {
        number: name.removeprefix("MIGRATE_")
        for name, number in values.items()
        if name not in counting
    }
    spelled = {"HIGHATOMIC": "HighAtomic", "CMA": "CMA"}
    return tuple(
        spelled.get(by_number.get(number, ""), by_number.get(number, "?").capitalize())
        for number in range(max(by_number) + 1)
    )


def migratetypes_of(kernel: Kernel, memmap: MemMap, pfns: NDArray[np.int64]) -> NDArray[np.uint8]:
    """The migratetype of the pageblock that each frame lies in: index into
    `migratetype_names`; 255 where the section has no bitmap.

    Raises LayoutError where `mem_section` or the bits are not known.
    """
    return pageblock_types(View.of(kernel, memmap), pfns)


def pageblock_types(view: View, pfns: NDArray[np.int64]) -> NDArray[np.uint8]:
    """As `migratetypes_of`, with what `view` has already read."""
    usage = _usages(view, pfns // view.memmap.section_pages)
    bits = _PageblockBits.of(view.kernel)
    flags = view.offset("mem_section_usage", "pageblock_flags")
    block = (pfns % view.memmap.section_pages) >> PAGEBLOCK_ORDER
    start = block * bits.stride
    words, readable = view.words(usage + flags + (start // 64 * 8).astype(np.uint64))
    value = words >> (start % 64).astype(np.uint64)
    types = (value & np.uint64(bits.mask)).astype(np.uint8)
    if bits.isolate_bit is not None:
        isolate = value >> np.uint64(bits.isolate_bit) & np.uint64(1) != 0
        types[isolate] = bits.isolate_type
    types[~readable | (usage == 0)] = 255
    return types


def walk_pcp(kernel: Kernel, memmap: MemMap) -> Walked:
    """The frames on the CPUs' own lists ("cpu 0"), with the per_cpu_pages' address."""
    return pcp_frames(View.of(kernel, memmap))


def pcp_frames(view: View) -> Walked:
    """As `walk_pcp`, with what `view` has already read."""
    link = view.kernel.member("page", "lru").offset
    lists = view.kernel.member("per_cpu_pages", "lists")
    # A list is a list_head; its number tells the order of its blocks.
    orders = [order_of_list(view.kernel, index) for index in range(lists.type.nr_elements)]
    groups = []
    torn = 0
    for zone in zones_in(view):
        for cpu, address in view.per_cpu(zone.object["per_cpu_pageset"]).items():
            found = []
            for index, order in enumerate(orders):
                pages: list[int] = []
                torn += follow_list(view, address + lists.offset + index * 16, link, pages)
                heads = view.memmap.pfn_of(np.array(pages, np.uint64))
                found.append((heads[:, None] + np.arange(1 << order)[None, :]).ravel())
            groups.append(
                OwnedFrames.of_one(
                    MemoryType.FREE_PCP, np.concatenate(found), f"cpu {cpu}", address
                )
            )
    return Walked(tuple(groups), torn)


def zones_in(view: View) -> Iterator[Zone]:
    """Every populated zone of every node. Raises LayoutError where nodes are not found."""
    size = view.kernel.size_of("zone")
    zones = view.kernel.member("pglist_data", "node_zones")
    for number, node in _nodes(view):
        for index in range(zones.type.nr_elements):
            zone = view.kernel.load("zone", node + zones.offset + index * size)
            if zone["present_pages"]:
                yield Zone(number, zone.string("name"), zone)


# --- helpers -----------------------------------------------------------------------------


def _nodes(view: View) -> Iterator[tuple[int, int]]:
    """(number, pglist_data) of each node; without NUMA there is one (`contig_page_data`)."""
    single = view.find_symbol("contig_page_data")
    if single is not None:
        yield 0, single
        return
    table = view.symbol("node_data")
    count = view.find_symbol("nr_node_ids")
    for number in range(_MOST_NODES if count is None else min(view.i32(count), _MOST_NODES)):
        node = view.u64(table + number * 8)
        if node:
            yield number, node
        elif count is None:
            # The length of the table is not known, and nodes are numbered from 0.
            return


def follow_list(view: View, head: int, link: int, into: list[int]) -> int:
    """Add the struct pages that hang on the list at `head`; returns 1 where it is torn.

    A list must lead back to its head, each link must know the one before it, and all links
    are struct pages: so no damaged list goes on for ever. What follows a torn link is found
    from the list's end.
    """
    pages, torn = _one_way(view, head, 0, link)
    if torn:
        seen = set(pages)
        rest, _ = _one_way(view, head, 1, link)
        pages.extend(page for page in reversed(rest) if page not in seen)
    into.extend(pages)
    return torn


def _one_way(view: View, head: int, way: int, link: int) -> tuple[list[int], int]:
    """The struct pages from `head` on, by the pointers that lead on (`way` 0) or back (1) from
    each list_head; the other one must lead where we come from. Stops at a torn link."""
    low = view.memmap.vmemmap + link
    high = view.memmap.page_address(view.memmap.pfn_end) + link
    pair = view.memory.pair
    pages: list[int] = []
    try:
        before, at = head, pair(head)[way]
        # Each round meets another page, unless the links loop.
        for _ in range(view.memmap.pfn_end):
            if at == head:
                return pages, 0
            if not low <= at < high:
                break
            pointers = pair(at)
            if pointers[1 - way] != before:
                break
            pages.append(at - link)
            before, at = at, pointers[way]
    except FaultError:
        pass
    return pages, 1


def order_of_list(kernel: Kernel, index: int) -> int:
    """`mm/page_alloc.c:pindex_to_order`: three types per order up to the costly one, then
    lists of huge pages."""
    types = kernel.types.find_enumerator("MIGRATE_PCPTYPES")
    if types is None:
        raise LayoutError(f"{kernel.release} has no MIGRATE_PCPTYPES")
    order = index // types
    return order if order <= COSTLY_ORDER else PAGEBLOCK_ORDER


def _usages(view: View, sections: NDArray[np.int64]) -> NDArray[np.uint64]:
    """The address of each section's mem_section_usage; 0 for none."""
    size = view.kernel.size_of("mem_section")
    per_root = 4096 // size
    wanted, where = np.unique(sections, return_inverse=True)
    root = view.u64(view.symbol("mem_section"))
    roots, _ = view.words(np.uint64(root) + (wanted // per_root).astype(np.uint64) * np.uint64(8))
    places = roots + (wanted % per_root * size).astype(np.uint64)
    usage = view.fields("mem_section", places, "usage")["usage"]
    usage[roots == 0] = 0
    return usage[where]


@dataclass(frozen=True)
class _PageblockBits:
    """The bits that a pageblock has in `pageblock_flags`."""

    stride: int
    mask: int
    isolate_bit: int | None
    isolate_type: int

    @classmethod
    def of(cls, kernel: Kernel) -> _PageblockBits:
        """From enum pageblock_bits. A pageblock has four bits, or eight once isolation became
        a bit of its own (roundup_pow_of_two(__NR_PAGEBLOCK_BITS))."""
        bits = kernel.types.find_enum("pageblock_bits")
        if not bits:
            raise LayoutError(f"{kernel.release} has no enum pageblock_bits")
        count = bits.get("__NR_PAGEBLOCK_BITS", bits.get("NR_PAGEBLOCK_BITS", 4))
        isolate = kernel.types.find_enumerator("MIGRATE_ISOLATE")
        return cls(
            stride=1 << (count - 1).bit_length(),
            mask=0b111,
            isolate_bit=bits.get("PB_migrate_isolate"),
            isolate_type=isolate if isolate is not None else 255,
        )
