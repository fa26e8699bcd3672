"""Lists, trees and tables of a kernel's memory, and what damage does to a walk over them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structs.walk.fakes import DIRECT_MAP, NR_PAGES, VMEMMAP, Memory, Types, fake_view

from memdesc.structs.owned import OwnedFrames, OwnedRanges
from memdesc.structs.walk.freelists import FreeCount, free_blocks_in
from memdesc.structs.walk.pagetables import frames_at, kernel_tables
from memdesc.structs.walk.vmap import VmFlag, areas_in, vmap_frames
from memdesc.structs.walk.xarray import xarray_entries
from memdesc.types import MemoryType

HEAP = DIRECT_MAP + 0x100000

# --- red-black trees of vmalloc areas ------------------------------------------------------

VMAP_TYPES = """
rb_node: u64 __rb_parent_color, u64 rb_right, u64 rb_left
vmap_area: u64 va_start, u64 va_end, rb_node rb_node, u64 vm
vm_struct: u64 addr, u64 flags, u64 pages, u32 nr_pages, u64 caller, u64 phys_addr
"""
VMALLOC = 0xFFFFC90000000000
CALLER = 0xFFFFFFFF81000010


class Vmalloc:
    """A tree of areas; area i is at HEAP + i * 0x200 and holds frames 16 i, 16 i + 1."""

    def __init__(self, count: int) -> None:
        self.memory = Memory()
        self.symbols = {"vmap_area_root": 0xFFFFFFFF83000000, "kernel_clone": CALLER & ~0xFFF}
        for index in range(count):
            self.area(index, parent=(index - 1) // 2 if index else None)
            for side, child in ((16, 2 * index + 1), (8, 2 * index + 2)):
                if child < count:
                    self.memory.write(self.node(index) + side, self.node(child))
        self.memory.write(0xFFFFFFFF83000000, self.node(0))

    @staticmethod
    def node(index: int) -> int:
        return HEAP + index * 0x200 + 16

    def area(self, index: int, parent: int | None) -> None:
        at, start = HEAP + index * 0x200, VMALLOC + index * 0x4000
        up = 1 if parent is None else self.node(parent)
        vm, pages = at + 0x80, at + 0x100
        self.memory.write(at, start, start + 0x3000, up, 0, 0, vm)
        self.memory.write(vm, start, VmFlag.ALLOC, pages, 2, CALLER, 0)
        self.memory.write(pages, *(VMEMMAP + (16 * index + page) * 64 for page in (0, 1)))

    def walk(self):
        view = fake_view(Types(VMAP_TYPES), self.memory, self.symbols)
        areas = areas_in(view)
        return areas, vmap_frames(view, areas)


def test_a_vmalloc_area_gives_its_frames_and_who_asked_for_them():
    areas, walked = Vmalloc(10).walk()
    assert areas.va_start.tolist() == [VMALLOC + index * 0x4000 for index in range(10)]
    frames = walked.frames[0]
    assert sorted(frames.pfns.tolist()) == sorted(
        16 * index + page for index in range(10) for page in (0, 1)
    )
    assert frames.names == ("kernel_clone",)
    assert walked.torn == 0


@pytest.mark.parametrize(
    ("area", "word", "value", "left"),
    [
        (1, 32, Vmalloc.node(0), 10),  # A child that is its own grandparent: one link is torn.
        (1, 16, 0x1234, 6),  # A parent that is another's: the whole branch is not believed.
        (1, 32, 0xDEAD0000, 10),  # A link to nowhere.
        (4, 0, VMALLOC + 0x9000_0000, 9),  # An area that ends before it begins.
    ],
)
def test_a_damaged_tree_ends_and_is_counted(area, word, value, left):
    tree = Vmalloc(10)
    tree.memory.write(HEAP + area * 0x200 + word, value)
    areas, walked = tree.walk()
    assert walked.torn >= 1
    assert left - 5 <= len(areas) <= left


def test_an_area_that_claims_more_pages_than_it_has_room_for_is_torn():
    tree = Vmalloc(3)
    tree.memory.write(HEAP + 0x200 + 0x80 + 24, 1 << 30)
    _, walked = tree.walk()
    assert walked.torn == 1
    assert walked.frames[0].nr_pages == 4


# --- lists of free blocks ------------------------------------------------------------------

FREE_TYPES = """
list_head: u64 next, u64 prev
page: u64 flags, list_head lru
free_area: list_head[3] free_list, u64 nr_free
zone: u64 present_pages, u64 name, free_area[2] free_area
pglist_data: zone[1] node_zones
"""
NODE = DIRECT_MAP + 0x200000
TYPES = {"MIGRATE_UNMOVABLE": 0, "MIGRATE_MOVABLE": 1, "MIGRATE_PCPTYPES": 2, "MIGRATE_CMA": 2}


def free_lists(lists: dict[tuple[int, int], list[int]]) -> Memory:
    """(order, migratetype) -> frames."""
    memory = Memory()
    memory.write(NODE, NR_PAGES, NODE + 0x800)
    memory.write_bytes(NODE + 0x800, b"DMA\0")
    for order in (0, 1):
        area = NODE + 16 + order * 56
        for migratetype in range(3):
            head = area + migratetype * 16
            links = [VMEMMAP + pfn * 64 + 8 for pfn in lists.get((order, migratetype), [])]
            ring = [head, *links, head]
            for before, after in itertools.pairwise(ring):
                memory.write(before, after)
                memory.write(after + 8, before)
        memory.write(area + 48, sum(len(found) for key, found in lists.items() if key[0] == order))
    return memory


def free_view(memory: Memory):
    types = Types(FREE_TYPES, enums={"migratetype": TYPES})
    return fake_view(types, memory, {"contig_page_data": NODE})


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 1), st.integers(0, 2), st.integers(0, 9000)),
        unique_by=lambda row: row[2],
        max_size=40,
    )
)
def test_every_block_comes_back_with_the_list_that_it_is_on(rows):
    lists: dict[tuple[int, int], list[int]] = {}
    for order, migratetype, pfn in rows:
        lists.setdefault((order, migratetype), []).append(pfn)
    blocks = free_blocks_in(free_view(free_lists(lists)))
    found = zip(blocks.order, blocks.migratetype, blocks.pfn, strict=True)
    assert {tuple(map(int, row)) for row in found} == set(rows)
    assert all(count.nr_walked == count.nr_free for count in blocks.counts)
    assert blocks.names == ("Unmovable", "Movable", "CMA")


def test_what_lies_behind_a_torn_link_is_found_from_the_end():
    memory = free_lists({(0, 1): [10, 11, 12, 13, 14]})
    memory.write(VMEMMAP + 12 * 64 + 8, 0xDEAD000000000100)  # LIST_POISON1
    blocks = free_blocks_in(free_view(memory))
    assert blocks.pfn.tolist() == [10, 11, 12, 13, 14]
    assert blocks.torn == 1


def test_a_list_that_loops_ends():
    memory = free_lists({(1, 0): [20, 22, 24]})
    # 24 leads back to 20, and 20 knows it: a ring without its head.
    memory.write(VMEMMAP + 24 * 64 + 8, VMEMMAP + 20 * 64 + 8)
    memory.write(VMEMMAP + 20 * 64 + 16, VMEMMAP + 24 * 64 + 8)
    blocks = free_blocks_in(free_view(memory))
    assert blocks.torn == 1
    assert blocks.counts[1] == FreeCount(0, "DMA", 1, int((blocks.order == 1).sum()), 3)


# --- XArrays -------------------------------------------------------------------------------

XARRAY_TYPES = """
xarray: u64 xa_lock, u64 xa_head
xa_node: u8 shift, u8 offset, u8 count, u64 parent, u64[64] slots
"""


def xarray(entries: dict[int, int]) -> Memory:
    """An XArray of two levels: indices below 4096."""
    memory = Memory()
    root = HEAP + 0x10000
    memory.write(HEAP, 0, root + 2)
    memory.write(root, 6)
    memory.write(root + 16 + 63 * 8, 0)
    for index, value in entries.items():
        leaf = HEAP + 0x20000 + (index >> 6) * 0x400
        memory.write(root + 16 + (index >> 6) * 8, leaf + 2)
        memory.write(leaf, 0)
        memory.write(leaf + 16 + (index & 63) * 8, value)
        memory.write(leaf + 16 + 63 * 8, entries.get(index | 63, 0))
    return memory


@settings(deadline=None)
@given(st.dictionaries(st.integers(0, 4095), st.integers(0x1000, 1 << 40).map(lambda n: n * 8)))
def test_an_xarray_gives_back_what_it_holds(entries):
    view = fake_view(Types(XARRAY_TYPES), xarray(entries), {})
    found, torn = xarray_entries(view, HEAP)
    assert dict(zip(found.indices.tolist(), found.values.tolist(), strict=True)) == entries
    assert torn == 0


def test_an_xarray_node_that_leads_to_itself_is_torn():
    memory = xarray({5: 0x8000})
    root = HEAP + 0x10000
    memory.write(root + 16 + 7 * 8, root + 2)
    found, torn = xarray_entries(fake_view(Types(XARRAY_TYPES), memory, {}), HEAP)
    assert found.values.tolist() == [0x8000]
    assert torn == 1


# --- page tables ---------------------------------------------------------------------------


def test_addresses_are_translated_through_tables_and_huge_leaves():
    memory = Memory()
    root, pud, pmd, pte = (DIRECT_MAP + (pfn << 12) for pfn in (1, 2, 3, 4))
    for table in (root, pud, pmd, pte):
        memory.write(table, 0)
    base = VMALLOC
    memory.write(root + (base >> 39 & 511) * 8, 0x2003)
    memory.write(pud, 0x3003, 0x40000083)  # A table; a leaf of 1 GiB with NX, at 1 GiB.
    memory.write(pmd, 0x4003, 0x0020_0083 | 1 << 63)  # A table; a leaf of 2 MiB.
    memory.write(pte, 0x9003, 0)
    view = fake_view(Types(""), memory, {"init_top_pgt": root})
    asked = [0, 0x1000, 0x20_3000, 0x4000_5000, 0x8000_0000]
    found = frames_at(view, kernel_tables(view), np.array(asked, np.uint64) + np.uint64(base))
    assert found.tolist() == [9, -1, 0x203, 0x40005, -1]


# --- ranges --------------------------------------------------------------------------------


def test_the_first_walk_to_name_a_frame_keeps_it():
    stack = OwnedFrames.of_one(MemoryType.KERNEL_STACK, np.array([6, 5]), "task 1", 0x10)
    area = OwnedFrames.of_one(MemoryType.VMALLOC, np.arange(4, 9), "kernel_clone", 0x20)
    ranges = OwnedRanges.of([stack, area])
    assert ranges.pfn_start.tolist() == [4, 5, 7]
    assert ranges.nr_pages.tolist() == [1, 2, 2]
    owner = ranges.at(6)
    assert owner is not None
    assert (owner.kind, owner.owner, owner.address) == (MemoryType.KERNEL_STACK, "task 1", 0x10)
    assert ranges.at(9) is None


def test_no_frames_are_no_ranges():
    assert len(OwnedRanges.of([])) == 0
    assert OwnedRanges.of([]).at(0) is None
