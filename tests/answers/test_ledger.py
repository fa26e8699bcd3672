"""The ledger: every present frame exactly once, whatever it is split by."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import worlds
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memdesc.answers.ledger import BY, By, ledger, needs_extents
from memdesc.answers.reconcile import reconcile
from memdesc.errors import QuestionError
from memdesc.kernels.kpageflags import word_of
from memdesc.map.machine import Counters, IomemRange, Machine, Zone
from memdesc.sources.kpage import PageFile
from memdesc.sources.pages import PageScan
from memdesc.types import KERNEL_UNKNOWN, MemoryType, TypeSet

FREE = word_of(["BUDDY"])
ANON = word_of(["UPTODATE", "LRU", "MMAP", "ANON", "SWAPBACKED", "OWNER_2"])
SLAB_HEAD = word_of(["SLAB", "HEAD"])
SLAB_TAIL = word_of(["SLAB", "TAIL"])
NOPAGE = word_of(["NOPAGE"])


def test_a_small_machine_by_type(tmp_path: Path) -> None:
    book = ledger(worlds.raw_map(tmp_path, [FREE] * 6 + [ANON] * 2 + [0] * 4 + [SLAB_HEAD]))
    assert book.frames_present == 13
    assert book.frames_of(MemoryType.FREE) == 6
    assert book.frames_of(MemoryType.ANON) == 2
    assert [row.frames for row in book.rows] == [6, 4, 2, 1], "largest first"


def test_holes_are_not_present(tmp_path: Path) -> None:
    book = ledger(worlds.raw_map(tmp_path, [NOPAGE] * 3 + [ANON], release="6.12.1"))
    assert book.frames_present == 1
    assert sum(row.frames for row in book.not_present) == 3


def test_by_order_reads_folio_sizes_from_heads_and_tails(tmp_path: Path) -> None:
    words = [SLAB_HEAD, SLAB_TAIL, SLAB_TAIL, SLAB_TAIL, ANON, ANON, FREE, FREE]
    rows = {
        (row.types.only, row.part_key): row.frames
        for row in ledger(worlds.raw_map(tmp_path, words), "order").rows
    }
    assert rows == {
        (MemoryType.SLAB, 2): 4,
        (MemoryType.ANON, 0): 2,
        (MemoryType.FREE, None): 2,
    }


def test_torn_compounds_are_counted_and_not_repaired(tmp_path: Path) -> None:
    words = [SLAB_HEAD, SLAB_TAIL, SLAB_TAIL, ANON, SLAB_TAIL, ANON]
    book = ledger(worlds.raw_map(tmp_path, words), "order")
    assert any("1 heads and 1 tails were torn" in note for note in book.notes)
    assert book.frames_present == 6


def test_by_cgroup_names_the_charged(tmp_path: Path) -> None:
    source = worlds.tree(tmp_path, [ANON, ANON, ANON, FREE], cgroups=[7, 8, 9, 0])
    rows = {row.part: row.frames for row in ledger(source.map(), "cgroup").rows}
    assert rows == {
        "/web": 1,
        "/db": 1,
        "inode 9 (name not visible)": 1,
        "(charged to none)": 1,
    }


def test_by_zone_and_node(tmp_path: Path) -> None:
    source = worlds.tree(tmp_path, [ANON] * 4)
    assert [(row.part, row.frames) for row in ledger(source.totals(), "zone").rows] == [
        ("Normal", 4)
    ]
    assert [(row.part_key, row.frames) for row in ledger(source.totals(), "node").rows] == [(0, 4)]


def test_a_source_without_cgroups_says_so(tmp_path: Path) -> None:
    with pytest.raises(QuestionError, match="not visible"):
        ledger(worlds.raw_map(tmp_path, [ANON]), "cgroup")


@given(
    words=st.lists(st.integers(0, (1 << 43) - 1), min_size=1, max_size=64),
    by=st.sampled_from([by for by in BY if by != "owner"]),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_every_split_adds_up_to_the_same_frames(tmp_path: Path, words: list[int], by: By) -> None:
    source = worlds.tree(tmp_path, words)
    result = source.map()
    result.check()
    book = ledger(result, by)
    assert book.frames_present + sum(row.frames for row in book.not_present) == len(words)
    if not needs_extents(by):
        assert ledger(source.totals(), by) == book


# --- a real machine whose memmap is initialised lazily ------------------------------------

DATA = Path(__file__).parent.parent / "data"


@pytest.fixture(scope="module")
def lazy(tmp_path_factory: pytest.TempPathFactory) -> PageScan:
    runs = np.load(DATA / "lazy-6.18.npz")
    path = tmp_path_factory.mktemp("lazy") / "kpageflags"
    np.repeat(runs["words"][runs["codes"]], runs["lengths"]).tofile(path)
    zone = Zone(0, "Normal", 1048576, 5505024, 5505024, 622592, 62832, 42212)
    machine = dataclasses.replace(
        Machine(),
        release=Machine().release.parse("6.18.44"),
        zones=(
            Zone(0, "DMA", 1, 4095, 3998, 3840, 3840, 0),
            Zone(0, "DMA32", 4096, 1044480, 782336, 772918, 772918, 0),
            zone,
        ),
        iomem=(
            IomemRange(0x1000, 0x9FC00, "System RAM"),
            IomemRange(0x100000, 0xC0000000, "System RAM"),
            IomemRange(0xC0001000, 0xEEC00000, "PCI Bus 0000:00"),
            IomemRange(0x100000000, 0x640000000, "System RAM"),
        ),
        # MemFree minus nr_free_pages as that machine had it; the free lists as the map has them,
        # because the two files were read seconds apart on a busy machine.
        before=Counters({"MemFree": (814236 + 4706125) * 4096}, {"nr_free_pages": 814236}),
        nr_cpus=2,
    )
    return PageScan(machine, PageFile(path))


def test_uninitialised_struct_pages_are_named_and_not_taken_for_kernel_memory(
    lazy: PageScan,
) -> None:
    book = ledger(lazy.totals())
    assert book.frames_present == 3998 + 782336 + 5505024
    assert book.frames_of(MemoryType.DEFERRED) == 149 * 32768
    kernel = sum(row.frames for row in book.rows if row.types.mask & KERNEL_UNKNOWN.mask > 0)
    unknown = [row for row in book.rows if not row.types.is_certain]
    assert sum(row.frames for row in unknown) < 60_000, "kernel memory is a small part"
    assert kernel
    assert [row.types for row in book.not_present if row.frames == 262144] == [
        TypeSet.of(MemoryType.HOLE)
    ]


def test_the_uninitialised_part_reconciles_with_memfree(lazy: PageScan) -> None:
    (line,) = (line for line in reconcile(lazy.totals()).lines if line.counter == "MemFree")
    assert line.status == "agrees", line
    assert "not initialised" in line.explanation


def test_the_same_file_without_a_machine_stays_an_honest_union(lazy: PageScan) -> None:
    bare = PageScan(Machine(release=lazy.machine.release), lazy.flags)
    book = ledger(bare.totals())
    assert book.frames_of(MemoryType.DEFERRED) == 0
    whole_sections = [row for row in book.rows if MemoryType.DEFERRED in row.types]
    assert sum(row.frames for row in whole_sections) >= 149 * 32768 + 262144
