"""Struct pages of kernels that are built or set up otherwise than the ones that were dumped."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from struct_worlds import VMEMMAP, ArrayMemory, World

from memdesc.kernels.kpageflags import flag_names
from memdesc.map.extents import MemoryMap
from memdesc.map.machine import Machine
from memdesc.structs.scan import StructScan
from memdesc.types import DEVICE, MemoryType

T = MemoryType
SECTION = 32768


def scan_of(world: World, *, chunk_pages: int = 1024) -> MemoryMap:
    machine = Machine(release=world.kernel.release)
    scan = StructScan(world.kernel, world.memmap, machine, threads=1, chunk_pages=chunk_pages)
    result = scan.map()
    result.check()
    return result


def types_of(result: MemoryMap, low: int, high: int) -> set[str]:
    """The types of frames [low, high), each as one text."""
    codes = set(np.repeat(result.facts, result.nr_pages)[low:high].tolist())
    return {" ".join(result.table[code].types.names) for code in codes}


def without_tails(world: World, pfn: int, *, order: int) -> None:
    """Let the struct pages of a huge page show the first 4 KiB of them again and again."""
    first = world.pages[pfn : pfn + 64].copy()
    for start in range(pfn + 64, pfn + (1 << order), 64):
        world.pages[start : start + 64] = first


class TestHugetlbThatGaveBackItsStructPages:
    """hugetlb_free_vmemmap=on, up to 6.18: heads that are none, every 64 frames."""

    @pytest.mark.parametrize("series", ["6.1", "6.12", "6.18"])
    def test_a_huge_page_has_one_head(self, series: str) -> None:
        world = World(series, nr_pages=4096)
        world.compound(1024, "uptodate", order=9, kind="hugetlb", mappings=3)
        without_tails(world, 1024, order=9)
        result = scan_of(world)
        assert result.stats.frames_torn == 0
        assert types_of(result, 1024, 1536) == {"hugetlb"}
        names = [flag_names(int(word)) for word in result.words(1024, 1536)]
        assert [pfn for pfn, flags in enumerate(names) if "COMPOUND_HEAD" in flags] == [0]
        assert result.mapcounts is not None
        assert set(np.repeat(result.mapcounts, result.nr_pages)[1024:1536].tolist()) == {3}

    def test_so_has_one_larger_than_a_chunk(self) -> None:
        world = World("6.12", nr_pages=8192)
        world.compound(4096, order=12, kind="hugetlb")
        without_tails(world, 4096, order=12)
        result = scan_of(world)
        assert result.stats.frames_torn == 0
        assert types_of(result, 4096, 8192) == {"hugetlb"}
        heads = ["COMPOUND_HEAD" in flag_names(int(word)) for word in result.words(4096, 8192)]
        assert heads == [True] + [False] * 4095

    def test_real_heads_at_such_places_stay_heads(self) -> None:
        world = World("6.12", nr_pages=1024)
        for pfn in (0, 64, 128):
            world.compound(pfn, order=3, kind="slab")
        words = scan_of(world).words(0, 1024)
        heads = [pfn for pfn in range(1024) if "COMPOUND_HEAD" in flag_names(int(words[pfn]))]
        assert heads == [0, 64, 128]


class TestBlocksWhoseFirstFrameSpeaksForAll:
    def test_unaccepted_memory(self) -> None:
        """A confidential guest that accepts memory as it goes: most of it is such blocks."""
        world = World("6.12", nr_pages=4096)
        for pfn in range(1024, 3072):
            world.page(pfn, refcount=0)
        world.page(1024, kind="unaccepted", refcount=0)
        world.page(1500, "lru", mapping=0xFFFF888100001000)  # cannot be, and is not hidden
        result = scan_of(world)
        assert types_of(result, 1024, 1500) == types_of(result, 1501, 2048) == {"unaccepted"}
        assert types_of(result, 1500, 1501) == {"file"}
        assert "unaccepted" not in " ".join(types_of(result, 2048, 3072))

    def test_guards_of_debug_pagealloc(self) -> None:
        world = World("6.12", nr_pages=1024)
        for pfn in range(64, 80):
            world.page(pfn, refcount=0)
        world.page(64, kind="guard", refcount=0, private=3)
        world.page(76, kind="guard", refcount=0, private=3)  # not aligned
        result = scan_of(world)
        assert types_of(result, 64, 72) == types_of(result, 76, 77) == {"guard"}
        assert "guard" not in " ".join(types_of(result, 72, 76) | types_of(result, 77, 80))


def test_struct_pages_of_ones_are_not_initialised_and_not_poisoned_memory() -> None:
    """CONFIG_DEBUG_VM fills what nobody has initialised with ones instead of zeroes."""
    world = World("6.12", nr_pages=4096)
    world.pages[2000:] = 0xFF
    world.page(1999, "hwpoison")
    result = scan_of(world)
    assert types_of(result, 2000, 4096) == {"deferred"}
    assert types_of(result, 1999, 2000) == {"poisoned"}
    assert result.stats.frames_torn == 0


def test_a_chunk_of_which_nothing_can_be_read_has_no_counts() -> None:
    world = World("6.12", nr_pages=4096)
    world.kernel.memory = ArrayMemory({VMEMMAP: world.pages[:2048].reshape(-1)})
    result = scan_of(world)
    assert result.stats.frames_unreadable == 2048
    assert result.mapcounts is not None
    assert not np.repeat(result.mapcounts, result.nr_pages)[2048:].any()


class TestDeviceMemory:
    """/proc/zoneinfo of a live machine does not say where the zone Device is."""

    def test_its_struct_pages_name_the_zone(self) -> None:
        world = World("6.12", nr_pages=2 * SECTION)
        assert world.layout.zone_field is not None
        place, _ = world.layout.zone_field
        device = np.uint64(4 << place | world.layout.flag("reserved"))
        # Half of the section: a namespace that begins in its midst (2 MiB).
        world.pages[SECTION:] = 0
        world.words[SECTION + SECTION // 2 :, 0] = device
        world.memmap = replace(
            world.memmap, sections=((0, SECTION),), offline=((SECTION, 2 * SECTION),)
        )
        result = scan_of(world)
        half = SECTION + SECTION // 2
        assert types_of(result, SECTION, half) == {"hole"}
        assert types_of(result, half, 2 * SECTION) == {" ".join(DEVICE.names)}

    def test_what_has_no_struct_page_there_is_a_hole(self) -> None:
        world = World("6.12", nr_pages=SECTION)
        world.memmap = replace(
            world.memmap, sections=((0, SECTION),), offline=((SECTION, 2 * SECTION),)
        )
        result = scan_of(world)
        assert types_of(result, SECTION, 2 * SECTION) == {"hole"}
        assert result.stats.frames_unreadable == 0


@pytest.mark.parametrize("cgroups", [True, False])
def test_a_hole_of_many_tebibytes_is_one_run_a_region(cgroups: bool) -> None:
    """Memory of a graphics card lies at the top of what the processor can address."""
    world = World("6.12", nr_pages=SECTION)
    top = 1 << 34  # 64 TiB
    world.memmap = replace(world.memmap, offline=((top - SECTION, top),))
    machine = Machine(release=world.kernel.release)
    scan = StructScan(
        world.kernel,
        world.memmap,
        machine,
        threads=1,
        cgroups=cgroups,
        owners=True,
        references=True,
    )
    result = scan.map()
    result.check()
    assert result.pfn_end == top
    assert result.extent(result.index_of(1 << 33)).fact.types.only is T.HOLE
    assert result.extent(result.index_of(SECTION)).pages.pfn_end > top - 2 * SECTION
    counted = scan.totals()
    assert counted.frames == top
    assert counted.pages.sum() == result.totals.pages.sum() == top
