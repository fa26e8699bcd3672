"""The inner loop of a scan, against a loop over frames that is too simple to be wrong."""

from __future__ import annotations

import dataclasses
from collections import Counter
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import write_words

from memdesc.kernels.kpageflags import KPF, word_of
from memdesc.kernels.release import UNKNOWN_RELEASE, KernelRelease
from memdesc.map.encode import zero_sections
from memdesc.map.extents import Totals
from memdesc.map.machine import Counters, IomemRange, Machine, Zone
from memdesc.map.regions import Regions, regions_of
from memdesc.rules.classify import Backing, classify
from memdesc.sources.kpage import PageFile
from memdesc.sources.pages import PageScan
from memdesc.types import PAGE_SIZE_BYTES

SECTION = 16
"""Frames per memory section of these worlds; a chunk is a multiple of it."""

HEAD, TAIL = word_of(["HEAD"]), word_of(["TAIL"])
WORDS = [
    0,
    word_of(["BUDDY"]),
    word_of(["SLAB"]),
    word_of(["NOPAGE"]),
    word_of(["RESERVED"]),
    word_of(["UPTODATE", "LRU", "MMAP", "ANON", "SWAPBACKED", "OWNER_2"]),
    word_of(["UPTODATE", "LRU", "MMAP", "THP", "ANON", "SWAPBACKED", "HEAD"]),
    word_of(["UPTODATE", "LRU", "MMAP", "THP", "ANON", "SWAPBACKED", "TAIL"]),
    word_of(["UPTODATE", "LRU", "REFERENCED"]),
    word_of(["SLAB", "HEAD"]),
    word_of(["SLAB", "TAIL"]),
    word_of(["PGTABLE", "HEAD"]),
    word_of(["OFFLINE", "HEAD"]),
    word_of(["HUGE", "HEAD"]),
    word_of(["HWPOISON", "TAIL"]),
    HEAD,
    TAIL,
    TAIL,
    HEAD | TAIL,
    1 << 60,
]
RELEASES = ["6.1.192", "6.12.117", "6.18.1", "7.2.13", ""]

Judged = tuple[int, int, int, str]
"""What a map says of a frame: (region, flags, types, rule)."""


@dataclasses.dataclass(frozen=True)
class World:
    """A machine and its page files."""

    machine: Machine
    words: list[int]
    mapcounts: list[int]
    cgroups: list[int]

    def scan(self, folder: Path, *, threads: int, chunk_pages: int, counts: bool) -> PageScan:
        files = [
            PageFile(write_words(folder / name, values))
            for name, values in (
                ("flags", self.words),
                ("counts", self.mapcounts),
                ("cgroups", self.cgroups),
            )
        ]
        return PageScan(
            self.machine,
            files[0],
            files[1] if counts else None,
            files[2] if counts else None,
            threads=threads,
            chunk_pages=chunk_pages,
        )


def repeated(draw: st.DrawFn, choices: list[int], longest: int) -> list[int]:
    """A list of runs of `choices`."""
    runs = draw(
        st.lists(
            st.tuples(st.sampled_from(choices), st.integers(1, longest)), min_size=1, max_size=25
        )
    )
    return [value for value, length in runs for _ in range(length)]


@st.composite
def machines(draw: st.DrawFn, frames: int) -> Machine:
    """A machine whose RAM and zones begin and end anywhere."""
    cuts = sorted(draw(st.lists(st.integers(0, frames + 8), max_size=5, unique=True)))
    name = st.sampled_from(["System RAM", "Reserved", "Persistent Memory"])
    iomem = [
        IomemRange(low * PAGE_SIZE_BYTES, high * PAGE_SIZE_BYTES, draw(name))
        for low, high in pairwise(cuts)
    ]
    zones = []
    if draw(st.booleans()):
        middle = draw(st.integers(1, frames))
        for low, high in ((0, middle), (middle, frames)):
            gap = draw(st.sampled_from([0, 1, SECTION, 3 * SECTION]))
            spanned = high - low
            zones.append(Zone(0, f"Z{low}", low, spanned, spanned, spanned - gap, 0, 0))
    text = draw(st.sampled_from(RELEASES))
    lazy = Counters({"MemFree": 99 * SECTION * PAGE_SIZE_BYTES}, {"nr_free_pages": 0})
    return Machine(
        release=KernelRelease.parse(text) if text else UNKNOWN_RELEASE,
        iomem=tuple(iomem),
        zones=tuple(zones),
        before=draw(st.sampled_from([lazy, Counters()])),
        section_pages=SECTION,
    )


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """A small world; counts and cgroups only where a kernel shows some."""
    words = repeated(draw, WORDS, 2 * SECTION + 3)
    size = len(words)
    machine = draw(machines(size))
    mapcounts = (repeated(draw, [0, 1, 2, 1 << 40], 9) * size)[:size]
    cgroups = (repeated(draw, [0, 0, 77, 1 << 33], 30) * size)[:size]
    never = KPF.BUDDY | KPF.SLAB | KPF.RESERVED | KPF.NOPAGE | KPF.OFFLINE | KPF.ZERO_PAGE
    empty = set(empty_frames(words))
    for pfn, word in enumerate(words):
        if not word & KPF.MMAP:
            mapcounts[pfn] = 0
        if word & never or pfn in empty:
            cgroups[pfn] = 0
    return World(machine, words, mapcounts, cgroups)


def empty_frames(words: list[int]) -> list[int]:
    """Frames of whole memory sections that read 0."""
    found: list[int] = []
    for low in range(0, len(words) - SECTION + 1, SECTION):
        if not any(words[low : low + SECTION]):
            found += range(low, low + SECTION)
    return found


def judged(world: World) -> list[Judged]:
    """Every frame by itself."""
    regions = regions_of(world.machine)
    empty = set(empty_frames(world.words))
    result: list[Judged] = []
    head: int | None = None
    for pfn, word in enumerate(world.words):
        index = max(i for i, region in enumerate(regions.all) if region.pfn_start <= pfn)
        region = regions.all[index]
        if region.pfn_start == pfn or not word & (HEAD | TAIL):
            head = None
        if word & HEAD:
            head = word
        backing = region.backing
        if pfn in empty and backing is Backing.UNKNOWN:
            backing = Backing.ZERO_SECTION
        elif pfn in empty and region.deferred_ok:
            backing = Backing.ZERO_SECTION_RAM
        verdict = classify(
            word,
            world.machine.context,
            backing=backing,
            head_flags=head if word & TAIL and not word & HEAD else None,
        )
        result.append((index, word, verdict.types.mask, verdict.rule.name))
    return result


def with_heads_cgroups(world: World) -> list[int]:
    """The cgroups as a map shows them: on some kernels a tail has its head's."""
    if not world.machine.behaviour.cgroup_on_head_only:
        return world.cgroups
    result: list[int] = []
    of_head = 0
    for word, cgroup in zip(world.words, world.cgroups, strict=True):
        if word & HEAD:
            of_head = cgroup
        elif not word & TAIL:
            of_head = 0
        result.append(cgroup or (of_head if word & TAIL else 0))
    return result


def counted(totals: Totals) -> Counter[Judged]:
    """Frames by what totals say of them."""
    found = Counter[Judged]()
    for region, code in zip(*np.nonzero(totals.pages), strict=True):
        fact = totals.table[int(code)]
        key = (int(region), fact.flags, fact.types.mask, fact.rule.name)
        found[key] += int(totals.pages[region, code])
    return found


scans = {"threads": st.sampled_from([1, 2]), "chunks": st.sampled_from([1, 2, 3, 64])}


@given(world=worlds(), **scans)
@settings(max_examples=100, deadline=None)
def test_totals_are_the_sum_over_frames(world: World, threads: int, chunks: int) -> None:
    with TemporaryDirectory() as folder:
        scan = world.scan(Path(folder), threads=threads, chunk_pages=chunks * SECTION, counts=False)
        totals = scan.totals()
    assert totals.pfn_end == totals.frames == len(world.words)
    assert counted(totals) == Counter(judged(world))


@given(world=worlds(), **scans)
@settings(max_examples=100, deadline=None)
def test_a_map_says_the_same_of_every_frame(world: World, threads: int, chunks: int) -> None:
    pages = chunks * SECTION
    with TemporaryDirectory() as folder:
        result = world.scan(Path(folder), threads=threads, chunk_pages=pages, counts=True).map()
    result.check()
    lengths = result.nr_pages
    facts = [result.table[int(code)] for code in result.facts]
    regions = result.region_of_extent.tolist()
    per_extent = [
        (region, fact.flags, fact.types.mask, fact.rule.name)
        for region, fact in zip(regions, facts, strict=True)
    ]
    assert [row for row, n in zip(per_extent, lengths, strict=True) for _ in range(n)] == judged(
        world
    )
    assert result.mapcounts is not None
    assert result.cgroups is not None
    assert np.repeat(result.mapcounts, lengths).tolist() == [
        min(count, 0xFFFFFFFF) for count in world.mapcounts
    ]
    cgroups = result.cgroup_inodes[np.repeat(result.cgroups, lengths)].tolist()
    assert cgroups == with_heads_cgroups(world)


@given(world=worlds(), threads=scans["threads"], chunks=scans["chunks"])
@settings(max_examples=100, deadline=None)
def test_a_map_adds_up_to_its_totals(world: World, threads: int, chunks: int) -> None:
    with TemporaryDirectory() as folder:
        scan = world.scan(Path(folder), threads=threads, chunk_pages=chunks * SECTION, counts=False)
        totals, result = scan.totals(), scan.map()
    assert counted(totals) == counted(result.totals)


@pytest.mark.parametrize("release", ["6.1.192", "6.12.117", ""])
@pytest.mark.parametrize("before", [0, 1])
def test_a_tail_finds_its_head_many_chunks_back(tmp_path: Path, release: str, before: int) -> None:
    """A 1 GiB page is larger than a chunk: 4096 frames in chunks of 16."""
    head = word_of(["PGTABLE", "HEAD"])
    words = [TAIL] * before * 2 + [head, *[TAIL] * 4095, 0]
    known = KernelRelease.parse(release) if release else UNKNOWN_RELEASE
    flags = PageFile(write_words(tmp_path / "flags", words))
    scan = PageScan(
        Machine(release=known, section_pages=SECTION), flags, threads=2, chunk_pages=SECTION
    )
    result = scan.map()
    at_end = result.extent(result.index_of(len(words) - 2))
    assert at_end.fact.flags == TAIL
    assert at_end.pages.nr_pages == 4095
    assert "page_table" in at_end.fact.types.names
    assert (at_end.fact.types.names == ["page_table"]) == bool(release)
    assert (result.extent(0).fact.types.names == ["page_table"]) == (not before)


def test_a_region_border_ends_a_compound_page(tmp_path: Path) -> None:
    words = [word_of(["SLAB", "HEAD"]), TAIL, TAIL, TAIL]
    machine = Machine(
        release=KernelRelease.parse("6.1"),
        iomem=(IomemRange(0, 2 * PAGE_SIZE_BYTES, "System RAM"),),
        section_pages=SECTION,
    )
    result = PageScan(machine, PageFile(write_words(tmp_path / "flags", words))).map()
    assert [extent.pages.pfn_start for extent in result.extents()] == [0, 1, 2]
    assert result.extent(1).fact.types.names == ["slab"]
    assert result.extent(2).fact.types.names != ["slab"]


@given(
    words=st.lists(st.sampled_from([0, 0, 0, 0, 0, 1]), min_size=1, max_size=80),
    pfn_start=st.integers(0, 40),
)
def test_zero_sections_are_whole_and_aligned(words: list[int], pfn_start: int) -> None:
    expected = [
        low
        for low in range(len(words))
        if (pfn_start + low) % 8 == 0 and words[low : low + 8] == [0] * 8
    ]
    assert zero_sections(pfn_start, np.array(words, np.uint64), 8) == expected


def test_an_empty_file_is_an_empty_map(tmp_path: Path) -> None:
    scan = PageScan(Machine(), PageFile(write_words(tmp_path / "flags", [])))
    assert scan.frames == 0
    assert scan.totals().frames == 0
    assert len(scan.map()) == 0


def test_regions_are_those_of_the_machine(tmp_path: Path) -> None:
    scan = PageScan(Machine(), PageFile(write_words(tmp_path / "flags", [0] * 100)))
    assert isinstance(scan.regions, Regions)
    assert scan.totals().pages.shape[0] == len(scan.regions) == 1
