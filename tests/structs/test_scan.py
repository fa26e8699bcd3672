"""A map made from struct pages: the same facts on every layout, and none that damage can break."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from struct_worlds import ANON, FILE, KSM, RELEASES, VMEMMAP, ArrayMemory, World

from memdesc.errors import QuestionError
from memdesc.kernels.kpageflags import flag_names
from memdesc.map.extents import MemoryMap
from memdesc.map.machine import Machine, Zone
from memdesc.structs.owned import OwnedFrames, OwnedRanges
from memdesc.structs.scan import StructScan
from memdesc.types import MemoryType

T = MemoryType
SERIES = list(RELEASES)
SECTION = 32768


def scan_of(world: World, **options: object) -> StructScan:
    machine = Machine(release=world.kernel.release)
    defaults: dict[str, object] = {"threads": 1, "chunk_pages": 1024}
    return StructScan(world.kernel, world.memmap, machine, **(defaults | options))  # type: ignore[arg-type]


def walked(rows: list[OwnedFrames], *, torn: dict[str, int] | None = None) -> OwnedRanges:
    """What the walks hand over, each done unless it is `torn`."""
    done = {"vmalloc", "stacks", "percpu", "pcp"} - (torn or {}).keys()
    return replace(OwnedRanges.of(rows, torn=torn), done=frozenset(done))


def met(kind: MemoryType, pfns: range, owner: str) -> OwnedFrames:
    """Frames that a walk met."""
    return OwnedFrames.of_one(kind, np.array(pfns, np.int64), owner)


def types_by_frame(result: MemoryMap) -> list[str]:
    names = [" ".join(result.table[code].types.names) for code in range(len(result.table))]
    return [names[code] for code in np.repeat(result.facts, result.nr_pages).tolist()]


def some_of_everything(series: str) -> World:
    """One of each kind that a struct page can name alone."""
    world = World(series, nr_pages=4096)
    world.free_block(0, order=10)
    world.page(1024, "uptodate", "lru", "swapbacked", mapping=ANON, mapcount=1)
    world.page(1025, "uptodate", "lru", mapping=FILE, mapcount=2)
    world.page(1026, "uptodate", "lru", "swapbacked", mapping=KSM, mapcount=3)
    world.page(1027, "uptodate", "dirty", "swapbacked", "lru", mapping=FILE)
    world.page(1028, kind="table")
    world.page(1029, "reserved")
    world.page(1030, "hwpoison")
    world.compound(1032, order=3, kind="slab")
    world.compound(
        1536, "lru", "swapbacked", "uptodate", order=9, rmappable=True, mapping=ANON, mappings=1
    )
    world.compound(2048, order=9, kind="hugetlb")
    world.free_block(2560, order=2)
    world.pages[3072:] = 0
    return world


@pytest.mark.parametrize("series", SERIES)
def test_everything_that_a_struct_page_names(series: str) -> None:
    result = scan_of(some_of_everything(series)).map()
    result.check()
    kinds = types_by_frame(result)
    assert kinds[:1024] == ["free"] * 1024
    assert kinds[1024:1031] == [
        "anon",
        "file",
        "ksm",
        "shmem",
        "page_table",
        "reserved",
        "poisoned",
    ]
    assert kinds[1032:1040] == ["slab"] * 8
    assert kinds[1536:2048] == ["anon"] * 512
    assert kinds[2048:2560] == ["hugetlb"] * 512
    assert kinds[2560:2564] == ["free"] * 4
    assert kinds[3072:] == ["deferred"] * 1024
    assert "vmalloc" in kinds[1031]
    assert "driver" in kinds[1031]


@pytest.mark.parametrize("series", SERIES)
def test_map_counts_are_those_that_kpagecount_would_show(series: str) -> None:
    result = scan_of(some_of_everything(series)).map()
    assert result.mapcounts is not None
    counts = np.repeat(result.mapcounts, result.nr_pages)
    assert counts[[1024, 1025, 1026, 1027, 1028]].tolist() == [1, 2, 3, 0, 0]
    assert counts[1536:2048].tolist() == [1] * 512
    assert not counts[:1024].any()
    assert not counts[3072:].any()


@pytest.mark.parametrize("series", SERIES)
def test_words_are_those_that_kpageflags_would_show(series: str) -> None:
    words = scan_of(some_of_everything(series)).map().words(0, 4096)
    names = [set(flag_names(int(words[pfn]))) for pfn in (0, 1023, 1025, 1037, 1536, 1537, 2049)]
    free_head, free_last, file, slab_tail, huge, huge_tail, hugetlb_tail = names
    assert free_head == free_last == {"BUDDY"}
    assert file == {"UPTODATE", "LRU", "MMAP"}
    assert slab_tail == {"SLAB", "COMPOUND_TAIL"}
    assert {"ANON", "THP", "MMAP", "COMPOUND_HEAD"} <= huge
    assert {"ANON", "THP", "MMAP", "COMPOUND_TAIL"} <= huge_tail
    assert ("LRU" in huge_tail) == (series != "6.1")
    assert hugetlb_tail == {"HUGE", "COMPOUND_TAIL"}


def test_threads_and_chunks_change_nothing() -> None:
    world = some_of_everything("7.2")
    alone = scan_of(world).map()
    for threads, chunk in ((3, 1024), (2, 4096)):
        other = scan_of(world, threads=threads, chunk_pages=chunk).map()
        assert other.pfn_starts.tolist() == alone.pfn_starts.tolist()
        assert other.facts.tolist() == alone.facts.tolist()
        assert (other.words(0, 4096) == alone.words(0, 4096)).all()


def test_totals_are_those_of_the_map_without_its_extents() -> None:
    scan = scan_of(some_of_everything("6.12"), threads=2)
    by_rule: Counter[str] = Counter()
    for totals in (scan.map().totals, scan.totals()):
        assert totals.frames == 4096
        for code, pages in enumerate(totals.pages.sum(axis=0).tolist()):
            by_rule[totals.table.rules[code]] += pages
    assert all(pages % 2 == 0 for pages in by_rule.values())


class TestTails:
    @pytest.mark.parametrize("series", SERIES)
    def test_a_head_may_lie_in_a_chunk_before(self, series: str) -> None:
        world = World(series, nr_pages=4096)
        world.compound(2048, "uptodate", order=11, kind="hugetlb", mappings=2)
        result = scan_of(world).map()
        assert result.stats.frames_torn == 0
        assert types_by_frame(result)[2048:] == ["hugetlb"] * 2048
        assert result.mapcounts is not None
        assert np.repeat(result.mapcounts, result.nr_pages)[2048:].tolist() == [2] * 2048

    def test_a_head_that_cannot_be_is_torn_and_counted(self) -> None:
        world = World("6.12", nr_pages=1024)
        world.compound(512, order=2, kind="slab")
        for pfn, word in (
            (100, VMEMMAP + 512 * 64 + 1),  # a head after the tail
            (101, VMEMMAP + 100 * 64 + 1),  # another tail
            (600, VMEMMAP + 512 * 64 + 1),  # too small to have this tail
            (601, VMEMMAP + 512 * 64 + 9),  # no struct page's address
            (602, 0x1),
            (603, 0xFFFFFFFFFFFFFFFF),
        ):
            world.put(pfn, "compound", word)
        result = scan_of(world).map()
        assert result.stats.frames_torn == 6
        rules = [result.table.rules[code] for code in np.repeat(result.facts, result.nr_pages)]
        assert {rules[pfn] for pfn in (100, 101, 600, 601, 602, 603)} == {"struct-torn"}
        assert types_by_frame(result)[512:516] == ["slab"] * 4

    def test_poison_is_each_frame_s_own(self) -> None:
        for series in SERIES:
            world = World(series, nr_pages=1024)
            world.compound(0, "lru", "swapbacked", order=3, rmappable=True, mapping=ANON)
            world.words[5, 0] |= np.uint64(world.layout.flag("hwpoison"))
            kinds = types_by_frame(scan_of(world).map())
            assert kinds[:8] == ["anon"] * 5 + ["poisoned"] + ["anon"] * 2


def test_free_blocks_that_cannot_be_cover_nothing() -> None:
    world = World("6.12", nr_pages=1024)
    world.page(3, kind="buddy", refcount=0, private=4)  # not aligned
    world.page(64, kind="buddy", refcount=0, private=1 << 40)  # no order
    world.page(65, refcount=0)
    kinds = types_by_frame(scan_of(world).map())
    assert kinds[3] == kinds[64] == "free"
    assert "free " not in kinds[65] + " "
    assert "free_pcp" in kinds[65]


def test_struct_pages_that_cannot_be_read_are_counted_and_spoil_no_others() -> None:
    world = World("6.12", nr_pages=2048)
    world.page(0, "lru", mapping=FILE)
    flat = world.pages.reshape(-1)
    gap = slice(512 * 64, 1024 * 64)
    world.memory = world.kernel.memory = ArrayMemory(
        {VMEMMAP: flat[: gap.start], VMEMMAP + gap.stop: flat[gap.stop :]}
    )
    result = scan_of(world).map()
    assert result.stats.frames_unreadable == 512
    kinds = types_by_frame(result)
    assert kinds[0] == "file"
    assert result.table[int(result.facts[result.index_of(512)])].rule.name == "struct-unreadable"
    assert "vmalloc" in kinds[1024]


def test_sections_without_a_memory_map_are_holes_and_offline_ones_of_a_device_device() -> None:
    world = World("6.12", nr_pages=SECTION)
    memmap = replace(world.memmap, sections=((0, SECTION),), offline=((3 * SECTION, 4 * SECTION),))
    zone = Zone(0, "Device", 3 * SECTION, SECTION, SECTION, 0, 0, 0)
    machine = Machine(release=world.kernel.release, zones=(zone,))
    result = StructScan(world.kernel, memmap, machine, threads=1).map()
    result.check()
    assert result.pfn_end == 4 * SECTION
    assert result.extent(result.index_of(2 * SECTION)).fact.types.only is T.HOLE
    assert T.FS_DAX in result.extent(result.index_of(3 * SECTION)).fact.types


def test_walks_name_frames_and_owners() -> None:
    world = World("7.2", nr_pages=2048)
    world.page(70, refcount=0)
    owned = walked(
        [
            met(T.KERNEL_STACK, range(10, 14), "stack of task 1 (init)"),
            met(T.FREE_PCP, range(70, 71), "cpu 0"),
            met(T.VMALLOC, range(20, 2020), "load_module"),
        ]
    )
    result = scan_of(world, owned=owned, owners=True).map()
    kinds = types_by_frame(result)
    assert kinds[10:14] == ["kernel_stack"] * 4
    assert kinds[20:72] == ["vmalloc"] * 50 + ["free_pcp", "vmalloc"]
    assert not {"vmalloc", "kernel_stack"} & set(kinds[0].split())
    assert result.owners is not None
    names = [result.owner_names[code] for code in np.repeat(result.owners, result.nr_pages)]
    assert names[10] == "stack of task 1 (init)"
    assert names[2019] == "load_module"
    assert names[0] == ""


def test_a_walk_that_met_broken_links_rules_nothing_out() -> None:
    world = World("7.2", nr_pages=1024)
    row = met(T.VMALLOC, range(10, 14), "load_module")
    whole = scan_of(world, owned=walked([row])).map()
    torn = scan_of(world, owned=walked([row], torn={"vmalloc": 1})).map()
    assert "vmalloc" not in types_by_frame(whole)[0]
    assert "vmalloc" in types_by_frame(torn)[0]


def test_a_window_is_a_section_and_a_part_of_the_map() -> None:
    world = World("6.12", nr_pages=2 * SECTION)
    world.page(SECTION + 5, "lru", mapping=FILE)
    scan = scan_of(world, chunk_pages=4096)
    window = scan.window(SECTION + 5)
    window.check()
    assert (window.pfn_start, window.pfn_end) == (SECTION, 2 * SECTION)
    assert window.extent(window.index_of(SECTION + 5)).fact.types.only is T.FILE
    with pytest.raises(QuestionError, match="outside"):
        scan.window(2 * SECTION)


def test_memory_blocks_that_are_offline_are_holes_though_their_struct_pages_can_be_read() -> None:
    world = World("6.18", nr_pages=3 * SECTION)
    machine = Machine(release=world.kernel.release, offline=((SECTION, 2 * SECTION),))
    result = StructScan(world.kernel, world.memmap, machine, threads=1).map()
    result.check()
    holes = result.extent(result.index_of(SECTION))
    assert holes.fact.types.only is T.HOLE
    assert holes.pages.nr_pages == SECTION
    assert result.words(SECTION, SECTION + 1).tolist() == [0]


def test_device_memory_in_an_online_section_is_told_by_its_zone() -> None:
    world = World("6.12", nr_pages=1024)
    world.page(7, "reserved")
    assert world.layout.zone_field is not None
    low, _ = world.layout.zone_field
    world.words[7, 0] &= np.uint64((1 << low) - 1)
    world.words[7, 0] |= np.uint64(4 << low)
    kinds = types_by_frame(scan_of(world).map())
    assert "fs_dax" in kinds[7]
    assert "reserved" not in kinds[7]


def test_a_second_look_counts_what_changed() -> None:
    world = World("6.12", nr_pages=4096)
    scan = scan_of(world)
    result = scan.map()
    still = scan.reread(result, samples=8)
    assert (still.frames_reread, still.frames_changed) == (8 * 1024, 0)
    for pfn in range(0, 4096, 2):
        world.page(pfn, "dirty")
    assert scan.reread(result, samples=8).frames_changed == 8 * 512


@pytest.mark.parametrize("chunk", [1000, 512, 1 << 19])
def test_a_chunk_must_hold_whole_free_blocks(chunk: int) -> None:
    with pytest.raises(QuestionError, match="chunk"):
        scan_of(World("6.12", nr_pages=1024), chunk_pages=chunk)


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(
    seed=st.integers(0, 2**32 - 1),
    series=st.sampled_from(SERIES),
    damaged=st.sampled_from([1, 50, 2048]),
    sparse=st.booleans(),
)
def test_random_bytes_in_struct_pages_break_nothing(
    seed: int, series: str, damaged: int, sparse: bool
) -> None:
    world = some_of_everything(series)
    random = np.random.default_rng(seed)
    frames = random.choice(4096, damaged, replace=False)
    noise: NDArray[np.uint8] = random.integers(0, 256, (damaged, 64), np.uint8)
    if sparse:  # single words, so that the rest of a struct page still makes sense
        words = np.zeros((damaged, 8), np.bool_)
        words[np.arange(damaged), random.integers(0, 8, damaged)] = True
        noise = np.where(words.repeat(8, axis=1), noise, world.pages[frames])
    world.pages[frames] = noise
    owned = walked([met(T.VMALLOC, range(900, 3400), "somebody")])
    scan = scan_of(world, owned=owned, owners=True, threads=2)
    result = scan.map()
    result.check()
    assert scan.totals().frames == 4096
    untouched = np.setdiff1d(np.arange(1024), frames)
    kinds = types_by_frame(result)
    if 0 in untouched:
        assert kinds[0] == "free"


def test_more_states_than_a_kernel_has_are_damaged_struct_pages() -> None:
    world = World("7.2", nr_pages=SECTION)
    world.pages[:] = np.random.default_rng(5).integers(0, 256, world.pages.shape, np.uint8)
    world.page(SECTION - 1, "lru", mapping=FILE)
    result = scan_of(world, chunk_pages=4096).map()
    result.check()
    assert "struct-damaged" in result.table.rules
