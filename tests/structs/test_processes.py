"""Who maps what, from kernel memory: tables made by hand, guests' dumps, this machine.

The guests' /proc, copied at the moment of the dump, is the judge: every line of maps and every
word of pagemap that it holds must come out of the dump as well.
"""

from __future__ import annotations

import mmap
import os
import struct
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from small_btf import BtfWriter
from structs.real_dumps import frames_of_writers, real_dump, writers_of

from memdesc.errors import FaultError, NotReadableError, QuestionError
from memdesc.kernels.pagemap import PM, SwapConfig
from memdesc.kernels.pagemap_words import ProcRules, SwapKinds, pfns_of, swap_words
from memdesc.kernels.release import KernelRelease
from memdesc.map.attribution import Attribution
from memdesc.sources.dump_processes import KernelFiles, attribution_of, pagemap_entry
from memdesc.sources.processes import read_processes
from memdesc.sources.vmas import parse_status
from memdesc.structs.btf import BtfTypes
from memdesc.structs.dump import open_dump
from memdesc.structs.kernel import Kernel
from memdesc.structs.live import open_live_kernel
from memdesc.structs.memmap import MemMap
from memdesc.structs.torn import Torn
from memdesc.structs.user_pages import AddressSpace, UserPages
from memdesc.structs.vmas import Area, VmaFlags, maple_entries, maps_text

RELEASE = KernelRelease.parse("7.2.13")
FLAGS = VmaFlags()
PRESENT, HUGE, PROTNONE, SPECIAL = 1, 1 << 7, 1 << 8, 1 << 9
ALL_ONES = (1 << 64) - 1


def swap_entry(kind: int, offset: int) -> int:
    """An entry as `__swp_entry()` makes it: the type on top, the offset inverted."""
    return kind << 59 | (~offset & (1 << 50) - 1) << 9


# --- entries -----------------------------------------------------------------------------


def test_an_entry_that_is_not_present_holds_its_frame_inverted() -> None:
    protnone = (~(0x1234 << 12) & (1 << 52) - 1 & ~0xFFF) | PROTNONE
    entries = np.array([0x1234 << 12 | PRESENT, protnone], np.uint64)
    assert pfns_of(entries, ALL_ONES).tolist() == [0x1234, 0x1234]
    encrypted = np.array([1 << 51 | 0x1234 << 12 | PRESENT], np.uint64)
    assert pfns_of(encrypted, (1 << 51) - 1).tolist() == [0x1234]


def test_a_guard_marker_is_the_word_that_a_guest_showed() -> None:
    words, types = swap_words(np.array([swap_entry(31, 4)], np.uint64), 34)
    assert types.tolist() == [31]
    assert hex(int(words[0]) | PM.GUARD) == "0x440000000000009f"


def test_young_and_dirty_bits_of_a_migration_entry_are_not_shown() -> None:
    words, _ = swap_words(np.array([swap_entry(27, 0xABC | 3 << 34)], np.uint64), 34)
    assert int(words[0]) & PM.FRAME == 27 | 0xABC << 5


# --- tables ------------------------------------------------------------------------------


class HandMade(UserPages):
    """Tables in a dict, and frames whose use is listed."""

    def __init__(self, release: KernelRelease = RELEASE, *, nr_levels: int = 4) -> None:
        self.flags = FLAGS
        self.rules = ProcRules.of(release)
        self.kinds = SwapKinds.of(release, SwapConfig())
        self.nr_levels = nr_levels
        self.frame_mask = (1 << 52) - 1
        self.swap_pfn_bits = 34
        self.most_huge_pages = 1 << 20
        self.memory: dict[int, NDArray[np.uint64]] = {}
        self.share_tables = False
        self.once: set[int] = set()
        self.file: set[int] = set()
        self.frames = SimpleNamespace(  # type: ignore[assignment]
            look_up=lambda pfns: (
                np.array([pfn in self.file for pfn in pfns.tolist()], np.bool_),
                np.array([pfn in self.once for pfn in pfns.tolist()], np.bool_),
            ),
            shared_tables=lambda pfns: np.full(pfns.size, self.share_tables),
        )

    def root(self, pgd: int) -> int | None:
        return pgd if pgd in self.memory else None

    def tables(
        self, pfns: NDArray[np.int64], torn: Torn
    ) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
        blank = np.zeros(512, np.uint64)
        for pfn in pfns.tolist():
            if pfn not in self.memory:
                torn.add(f"page table in frame {pfn:#x} cannot be read")
        found = [self.memory.get(pfn, blank) for pfn in pfns.tolist()]
        return np.stack(found), np.array([pfn in self.memory for pfn in pfns.tolist()], np.bool_)

    def put(self, page: int, entry: int, *, level: int = 1) -> None:
        """Enter `entry` for virtual page `page` into the table of `level`, below frame 1."""
        pfn = 1
        for above in range(self.nr_levels, level, -1):
            table = self.memory.setdefault(pfn, np.zeros(512, np.uint64))
            slot = page >> 9 * (above - 1) & 511
            if not table[slot]:
                table[slot] = (len(self.memory) + 1) << 12 | 0x67
                self.memory[len(self.memory) + 1] = np.zeros(512, np.uint64)
            pfn = int(table[slot]) >> 12
        self.memory[pfn][page >> 9 * (level - 1) & 511] = entry


def area(page: int, pages: int, flags: int = 0) -> Area:
    return Area(page << 12, page + pages << 12, flags, 3, 0, 0, 0, "")


def space(shared: HandMade, *areas: Area) -> tuple[AddressSpace, Torn]:
    torn = Torn()
    return AddressSpace(shared, 1, areas, torn), torn


def test_present_pages_show_frame_file_and_exclusive() -> None:
    shared = HandMade()
    shared.once, shared.file = {0x50}, {0x51, 0x52}
    for page, pfn in enumerate((0x50, 0x51)):
        shared.put(0x1000 + page, pfn << 12 | PRESENT)
    shared.put(0x1002, 0x52 << 12 | PRESENT | SPECIAL)
    found, torn = space(shared, area(0x1000, 4))
    assert [hex(word) for word in found.words(0x1000, 4).tolist()] == [
        "0x8100000000000050",
        "0xa000000000000051",
        "0x8000000000000052",  # special: there is no page to ask
        "0x0",
    ]
    assert torn.count == 0


def test_what_lies_in_no_area_or_in_a_pfnmap_area_is_blank() -> None:
    shared = HandMade()
    for page in range(3):
        shared.put(0x1000 + page, 0x50 << 12 | PRESENT)
    found, _ = space(shared, area(0x1000, 1), area(0x1002, 1, FLAGS.pfnmap | FLAGS.soft_dirty))
    assert found.words(0x1000, 3).tolist() == [PM.PRESENT | 0x50, 0, PM.SOFT_DIRTY]
    assert found.words(0x1000, 3, area_flags=False)[2] == 0


def test_a_huge_entry_covers_512_pages_and_counts_each_on_its_own() -> None:
    shared = HandMade()
    shared.once = {0x202}
    shared.put(0x8000, 0x200 << 12 | PRESENT | HUGE, level=2)
    found, _ = space(shared, area(0x8000, 512))
    words = found.words(0x8001, 3)
    assert [int(word) & PM.FRAME for word in words] == [0x201, 0x202, 0x203]
    assert [bool(int(word) & PM.EXCLUSIVE) for word in words] == [False, True, False]
    assert found.populated(0, 1 << 36) == [(0x8000, 0x8200)]

    old = HandMade(KernelRelease.parse("6.1.192"))
    old.once, old.memory = {0x202}, shared.memory
    found, _ = space(old, area(0x8000, 512))
    assert not int(found.words(0x8002, 1)[0]) & PM.EXCLUSIVE  # all show the first page's count


def test_hugetlb_pages_are_exclusive_unless_their_table_is_shared() -> None:
    shared = HandMade()
    shared.once = {0x200}
    shared.put(0x8000, 0x200 << 12 | PRESENT | HUGE, level=2)
    shared.put(0x8200, swap_entry(24, 0x400), level=2)  # hwpoison: pagemap shows nothing of it
    own = area(0x8000, 1024, FLAGS.hugetlb)
    assert space(shared, own)[0].words(0x8000, 1).tolist() == [PM.PRESENT | PM.EXCLUSIVE | 0x200]
    assert space(shared, own)[0].words(0x8200, 1).tolist() == [0]
    shared.share_tables = True
    assert space(shared, own)[0].words(0x8000, 1).tolist() == [PM.PRESENT | 0x200]


def test_five_levels_reach_beyond_the_48th_bit() -> None:
    shared = HandMade(nr_levels=5)
    page = 3 << 37 | 0x1234
    shared.put(page, 0x50 << 12 | PRESENT)
    found, torn = space(shared, area(page, 2))
    assert found.words(page, 2).tolist() == [PM.PRESENT | 0x50, 0]
    assert torn.count == 0


def test_special_entries_show_their_type_and_their_page() -> None:
    shared = HandMade()
    shared.file = {0x77}
    shared.put(0x1000, swap_entry(3, 99) | 1 << 1 | 1 << 2)  # swapped, soft-dirty, uffd-wp
    shared.put(0x1001, swap_entry(25, 0x77))  # migration, a file's
    shared.put(0x1002, swap_entry(31, 1))  # marker: uffd-wp
    found, _ = space(shared, area(0x1000, 3))
    words = found.words(0x1000, 3).tolist()
    assert words[0] == PM.SWAP | PM.SOFT_DIRTY | PM.UFFD_WP | 3 | 99 << 5
    assert words[1] == PM.SWAP | PM.FILE | 25 | 0x77 << 5
    assert words[2] == PM.SWAP | PM.UFFD_WP | 31 | 1 << 5


@pytest.mark.parametrize("flags", [0, FLAGS.hugetlb])
def test_a_table_that_leads_to_itself_ends_and_is_said(flags: int) -> None:
    shared = HandMade()
    shared.put(0, 0x50 << 12 | PRESENT)
    shared.memory[1][1:256] = 1 << 12 | 0x67
    found, torn = space(shared, area(0, 1 << 35, flags))
    assert torn.reasons == ("page table in frame 0x1 is met twice",)
    assert found.words(0, 1).tolist() == [PM.PRESENT | 0x50]


def test_a_table_that_is_not_there_is_said_and_the_rest_is_kept() -> None:
    shared = HandMade()
    shared.put(0x1000, 0x50 << 12 | PRESENT)
    shared.put(0x1200, 0xDEAD << 12 | 0x67, level=2)
    found, torn = space(shared, area(0x1000, 0x400))
    assert found.words(0x1000, 0x400).tolist()[0] == PM.PRESENT | 0x50
    assert torn.reasons == ("page table in frame 0xdead cannot be read",)
    assert space(shared, area(0x1000, 1))[1].count == 0  # no area there: nobody looks
    torn = Torn()
    AddressSpace(shared, 12345, [area(0x1000, 1)], torn)
    assert torn.reasons == ("the top page table cannot be at 0x3039",)


def test_more_huge_entries_than_memory_can_hold_are_cut_off() -> None:
    shared = HandMade()
    shared.most_huge_pages = 1 << 18
    shared.put(0, PRESENT | HUGE, level=3)
    top = int(shared.memory[1][0]) >> 12
    shared.memory[top][:] = 0x40000 << 12 | PRESENT | HUGE
    found, torn = space(shared, area(0, 1 << 27))
    assert torn.reasons == ("its huge entries map far more than all memory",)
    assert found.populated(0, 1 << 36) == [(0, 1 << 18)]


# --- the maple tree ----------------------------------------------------------------------


@dataclass
class Nodes:
    """256-byte maple nodes at addresses; everything else cannot be read."""

    at: dict[int, bytes] = field(default_factory=dict)

    def read(self, address: int, size_bytes: int) -> bytes:
        for start, data in self.at.items():
            if start <= address and address + size_bytes <= start + len(data):
                return data[address - start :][:size_bytes]
        raise FaultError(f"kernel address {address:#x} cannot be read", address)

    def read_into(self, address: int, into: NDArray[np.uint8]) -> None:
        into[:] = np.frombuffer(self.read(address, into.size), np.uint8)

    def node(self, address: int, pivots: list[int], slots: list[int], *, wide: bool = True) -> None:
        count = 16 if wide else 10
        words = [0, *pivots, *[0] * (count - 1 - len(pivots)), *slots]
        self.at[address] = struct.pack(f"<{len(words)}Q", *words).ljust(256, b"\0")


TREE, NODE = 0xFFFF_8880_0000_1000, 0xFFFF_8880_0001_0000
LEAF, RANGE, ARANGE = (kind << 3 | 4 for kind in (1, 2, 3))


def maple(nodes: Nodes, root: int) -> tuple[list[int], Torn]:
    btf = BtfWriter()
    ulong = btf.integer("long unsigned int", 8)
    to_any = btf.pointer(0)
    wide = btf.struct(
        "maple_range_64",
        256,
        ("pivot", btf.array(ulong, 15), 64),
        ("slot", btf.array(to_any, 16), 1024),
    )
    narrow = btf.struct(
        "maple_arange_64",
        240,
        ("pivot", btf.array(ulong, 9), 64),
        ("slot", btf.array(to_any, 10), 640),
    )
    btf.struct("maple_node", 256, ("mr64", wide, 0), ("ma64", narrow, 0), union=True)
    btf.struct("maple_tree", 16, ("ma_root", to_any, 64))
    names = ("maple_dense", "maple_leaf_64", "maple_range_64", "maple_arange_64")
    btf.enum("maple_type", *((name, value) for value, name in enumerate(names)))
    nodes.at[TREE] = struct.pack("<QQ", 0, root)
    symbols: Any = SimpleNamespace(address_of=lambda name: None, name_at=lambda address: None)
    kernel = Kernel(nodes, BtfTypes(btf.data()), symbols, RELEASE, "by hand", is_live=False)
    torn = Torn()
    return list(maple_entries(kernel, TREE, torn)), torn


def test_entries_come_in_order_of_their_address_and_gaps_are_none() -> None:
    nodes = Nodes()
    nodes.node(NODE, [0xFFF, 0x2FFF], [NODE + 0x100 | LEAF, NODE + 0x200 | LEAF, 0], wide=False)
    nodes.node(NODE + 0x100, [0x4FF, 0xFFF], [0x100, 0x200])
    nodes.node(NODE + 0x200, [0x1FFF, 0x2FFF], [0, 0x300])
    found, torn = maple(nodes, NODE | ARANGE & ~4 | 2)
    assert (found, torn.count) == ([0x100, 0x200, 0x300], 0)


def test_an_empty_tree_and_a_tree_of_one_entry() -> None:
    assert maple(Nodes(), 0)[0] == []
    assert maple(Nodes(), 0xFFFF_8880_0000_5000)[0] == [0xFFFF_8880_0000_5000]


def test_loops_and_wild_links_end_and_are_said() -> None:
    nodes = Nodes()
    slots = [NODE | RANGE, 0xDEAD00 | LEAF, NODE + 0x100 | 9 << 3, NODE + 0x200 | LEAF]
    nodes.node(NODE, [0xFFF, 0x1FFF, 0x2FFF, 0x3FFF], slots)
    nodes.node(NODE + 0x200, [0x3FFF], [0x100])
    found, torn = maple(nodes, NODE | RANGE & ~4 | 2)
    assert found == [0x100]
    assert [reason.split(" at ")[0] for reason in torn.reasons] == [
        "maple node",
        "maple node: kernel address 0xdead00 cannot be read",
        "maple node",
    ]


def test_maps_lines_are_the_kernels() -> None:
    lines = maps_text(
        [
            Area(0x1000, 0x3000, 0, 1 | 4, 0x2000, 0xFE << 20, 38, "/a\nb (deleted)"),
            Area(0x7FFF_F000_0000, 0x7FFF_F000_1000, 0, 3 | 8, 0, 0, 0, ""),
        ]
    )
    assert lines == (
        b"00001000-00003000 r-xp 00002000 fe:00 38  /a\\012b (deleted)\n"
        b"7ffff0000000-7ffff0001000 rw-s 00000000 00:00 0 \n"
    )


# --- dumps -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Dumped:
    """A guest's dump, and its /proc of the same moment."""

    kernel: Kernel
    memmap: MemMap
    tree: Path

    @property
    def pids(self) -> list[int]:
        """Of all but the one that wrote the copy, and changed while it did."""
        found = sorted(int(path.name) for path in (self.tree / "proc").glob("[0-9]*"))
        return [pid for pid in found if pid not in self.writers]

    @property
    def writers(self) -> frozenset[int]:
        """The process that wrote the copy, and process 1, of which it is a fork."""
        return writers_of(self.tree)


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.vm) for name in ("6.1", "6.12", "7.2")],
)
def dumped(request: pytest.FixtureRequest) -> Dumped:
    dump = real_dump(request, request.param)
    kernel = open_dump(dump.elf, dump.vmlinux)
    return Dumped(kernel, MemMap.find(kernel), dump.elf.parent / "tree")


def fields(text: bytes) -> list[list[bytes]]:
    """Lines of maps without the padding before names."""
    return [line.split(None, 5) for line in text.splitlines()]


def test_status_cgroup_and_maps_are_those_of_proc(dumped: Dumped) -> None:
    files = KernelFiles(dumped.kernel, dumped.memmap)
    assert set(dumped.pids) < set(files.pids())
    for pid in dumped.pids:
        proc = dumped.tree / f"proc/{pid}"
        status = parse_status((proc / "status").read_bytes())
        assert parse_status(files.read(pid, "status")) == status
        assert files.read(pid, "cgroup") == (proc / "cgroup").read_bytes()
        assert fields(files.read(pid, "maps")) == fields((proc / "maps").read_bytes())


def test_every_word_of_pagemap_is_that_of_proc(dumped: Dumped) -> None:
    files = KernelFiles(dumped.kernel, dumped.memmap)
    # A page of a file is exclusive or not by who else maps it just then.
    shared = frames_of_writers(dumped.kernel, dumped.memmap, dumped.tree, 1 << 20)
    compared = 0
    for pid in dumped.pids:
        files.read(pid, "status")
        files.read(pid, "maps")
        process = files.table.process(pid)
        torn = Torn()
        areas = files.table.areas(process, torn)
        found = files.table.space(process, areas, torn)
        with (dumped.tree / f"proc/{pid}/pagemap").open("rb") as pagemap:
            for area in areas:
                page, pages = area.start >> 12, area.end - area.start >> 12
                pagemap.seek(page * 8)
                expected = np.frombuffer(pagemap.read(pages * 8), np.uint64)
                words = found.words(page, pages)
                frames = (words & np.uint64(PM.FRAME)).astype(np.int64)
                open_ = (words >> np.uint64(63) != 0) & shared[np.minimum(frames, shared.size - 1)]
                hidden = np.where(open_, np.uint64(PM.EXCLUSIVE), np.uint64(0))
                np.testing.assert_array_equal(words & ~hidden, expected & ~hidden, area.name)
                compared += pages
        assert torn.count == 0
    assert compared > 100_000


def resident(found: Attribution, but: frozenset[int]) -> dict[int, tuple[int, int]]:
    """pid -> (frames mapped, proportional share in units of 2**-20 frames), without `but`."""
    mappings = found.mappings
    lengths = mappings.nr_pages.astype(np.int64)
    frames = np.repeat(mappings.pfn_start.astype(np.int64), lengths)
    frames += np.arange(frames.size) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    owner = np.repeat(found.process_of_mapping, lengths)
    other = ~np.isin(found.processes.pid[owner], sorted(but))
    frames, owner = frames[other], owner[other]
    share = (1 << 20) / np.bincount(frames)[frames]
    return {
        int(pid): (int((owner == index).sum()), round(float(share[owner == index].sum())))
        for index, pid in enumerate(found.processes.pid)
        if pid not in but
    }


def test_every_process_has_the_pages_and_the_share_that_proc_gives_it(dumped: Dumped) -> None:
    found = attribution_of(dumped.kernel, dumped.memmap, zero=())
    found.check()
    expected = read_processes(dumped.tree, zero=())
    assert resident(found, dumped.writers) == resident(expected, dumped.writers)
    assert found.report.is_complete
    assert found.report.kernel_threads > 20
    for name in ("swapped", "guard", "hwpoison", "special"):
        mine, theirs = getattr(found.vmas, name), getattr(expected.vmas, name)
        np.testing.assert_array_equal(mine, theirs)


def test_the_zero_page_is_counted_and_not_kept(dumped: Dumped) -> None:
    kept = attribution_of(dumped.kernel, dumped.memmap, zero=())
    found = attribution_of(dumped.kernel, dumped.memmap)
    zero = int(found.vmas.zero.sum())
    assert zero > 0
    assert found.mappings.present_pages + zero == kept.mappings.present_pages


def test_one_page_can_be_asked_for(dumped: Dumped) -> None:
    kernel, memmap = dumped.kernel, dumped.memmap
    pid = dumped.pids[0]
    first = fields((dumped.tree / f"proc/{pid}/maps").read_bytes())[0]
    address = int(first[0].split(b"-")[0], 16)
    with (dumped.tree / f"proc/{pid}/pagemap").open("rb") as pagemap:
        pagemap.seek((address >> 12) * 8)
        expected = int.from_bytes(pagemap.read(8), "little")
    assert expected & PM.PRESENT
    assert pagemap_entry(kernel, memmap, pid, address + 0x123) == expected
    assert pagemap_entry(kernel, memmap, pid, 0) == 0
    with pytest.raises(QuestionError, match="no process 99999"):
        pagemap_entry(kernel, memmap, 99999, address)
    with pytest.raises(QuestionError, match="no memory"):
        pagemap_entry(kernel, memmap, 2, address)
    with pytest.raises(QuestionError, match="no user address"):
        pagemap_entry(kernel, memmap, pid, 1 << 63)


class Damaged:
    """A kernel's memory in which every eighth word of some structs is random, from a seed."""

    def __init__(self, kernel: Kernel, seed: int) -> None:
        self.inner = kernel.memory
        self.sizes = {kernel.size_of(name) for name in ("vm_area_struct", "dentry", "maple_node")}
        self.random = np.random.default_rng(seed)

    def read(self, address: int, size_bytes: int) -> bytes:
        data = self.inner.read(address, size_bytes)
        return self._spoilt(data) if size_bytes in self.sizes else data

    def read_into(self, address: int, into: NDArray[np.uint8]) -> None:
        self.inner.read_into(address, into)

    def _spoilt(self, data: bytes) -> bytes:
        words = np.frombuffer(data, np.uint64).copy()
        hit = self.random.integers(0, 8, words.size) == 0
        wild = self.random.integers(0, 1 << 63, words.size, np.uint64)
        own = self.random.permutation(words)  # pointers, but to something else
        words[hit] = np.where(self.random.integers(0, 2, words.size) == 0, wild, own)[hit]
        return words.tobytes()


@pytest.mark.parametrize("seed", range(3))
def test_damaged_structs_are_counted_and_never_raise(dumped: Dumped, seed: int) -> None:
    kernel = replace(dumped.kernel, memory=Damaged(dumped.kernel, seed))
    found = attribution_of(kernel, dumped.memmap)
    found.check()
    assert found.report.truncated > 0
    assert {pid for pid, _ in found.report.problems} & set(dumped.pids)


# --- this machine ------------------------------------------------------------------------


@pytest.mark.live
def test_this_process_looks_as_its_own_pagemap_says() -> None:
    try:
        kernel = open_live_kernel()
    except NotReadableError as error:
        pytest.skip(f"struct pages of this machine cannot be read: {error}")
    pages = 512
    with mmap.mmap(-1, pages * 4096) as memory:
        held = np.frombuffer(memory, np.uint8)
        held[: pages // 2 * 4096 : 4096] = 1
        address = int(held.__array_interface__["data"][0])
        pid = int(Path("/proc/self/status").read_text().split("NSpid:")[1].split()[0])
        files = KernelFiles(kernel, MemMap.find(kernel))
        process = files.table.process(pid)
        torn = Torn()
        areas = files.table.areas(process, torn)
        assert any(area.start <= address < area.end for area in areas)
        found = files.table.space(process, areas, torn).words(address >> 12, pages)
        with Path("/proc/self/pagemap").open("rb", buffering=0) as pagemap:
            expected = np.frombuffer(os.pread(pagemap.fileno(), pages * 8, address >> 9), np.uint64)
        np.testing.assert_array_equal(found, expected)
        assert np.count_nonzero(found & np.uint64(PM.PRESENT)) >= pages // 2
        proc = fields(Path("/proc/self/maps").read_bytes())
        del held
    mine = [line for line in fields(maps_text(areas)) if line[5:] and line[5][:1] == b"/"]
    assert mine
    assert [line for line in mine if line not in proc] == []
