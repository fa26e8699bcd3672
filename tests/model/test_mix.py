"""From a map to allocations: the same as counting frame by frame, in any parts."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import raw_map, tree

from memdesc.errors import QuestionError
from memdesc.kernels.kpageflags import KPF, word_of
from memdesc.map import parts as parts_module
from memdesc.map.extents import MemoryMap
from memdesc.map.parts import parts_of
from memdesc.model.cost import MixRow
from memdesc.model.mix import census_of, mix_of, vmemmap_freed
from memdesc.sources.open import open_source
from memdesc.types import MemoryType, TypeSet

T = MemoryType
HEAD, TAIL = word_of(["HEAD"]), word_of(["TAIL"])
FILE = word_of(["LRU", "UPTODATE", "REFERENCED"])
ANON = word_of(["ANON", "LRU", "UPTODATE", "SWAPBACKED", "MMAP"])
SLAB, BUDDY, TABLE = word_of(["SLAB"]), word_of(["BUDDY"]), word_of(["PGTABLE", "MMAP"])
PLAIN = [FILE, ANON, SLAB, BUDDY, TABLE, 0]


def known(kind: MemoryType, order: int | None, count: int) -> MixRow:
    return MixRow(TypeSet.of(kind), order, count)


def counted(result: MemoryMap) -> Counter[tuple[int, int | None]]:
    """(types, order) -> allocations, or frames where the order is None; frame by frame."""
    found: Counter[tuple[int, int | None]] = Counter()
    words = result.words(0, result.pfn_end).tolist()
    types = [fact.types.mask for fact in _facts(result)]
    pfn = 0
    while pfn < len(words):
        word = words[pfn]
        if word & KPF.BUDDY or not word & (HEAD | TAIL):
            found[types[pfn], 0] += 1
            pfn += 1
            continue
        end = pfn + 1
        while end < len(words) and words[end] & TAIL and not words[end] & (HEAD | KPF.BUDDY):
            end += 1
        frames = end - pfn
        order = frames.bit_length() - 1
        if word & HEAD and frames == 1 << order > 1 and pfn % frames == 0:
            found[types[pfn], order] += 1
        else:
            found[types[pfn], None] += frames
        pfn = end
    return found


def _facts(result: MemoryMap) -> list:  # type: ignore[type-arg]
    return [extent.fact for extent in result.extents() for _ in range(extent.pages.nr_pages)]


_RUNS = st.lists(
    st.tuples(
        st.sampled_from([*PLAIN, *(word | HEAD for word in PLAIN), *(w | TAIL for w in PLAIN)]),
        st.sampled_from([1, 1, 1, 2, 3, 7, 15]),
    ),
    min_size=1,
    max_size=25,
)


@settings(deadline=None)
@given(_RUNS)
def test_allocations_are_those_counted_frame_by_frame(runs: list[tuple[int, int]]) -> None:
    words = [word for word, length in runs for _ in range(length)]
    with TemporaryDirectory() as folder:
        result = raw_map(Path(folder), words, release="6.12.117")
    mix = mix_of(result)
    found: Counter[tuple[int, int | None]] = Counter()
    for row in mix.rows:
        found[row.types.mask, row.order] += row.count
    assert found == counted(result)
    assert mix.frames == len(words)
    assert sum(row.count << (row.order or 0) for row in mix.rows) == mix.frames


def test_a_small_world(tmp_path: Path) -> None:
    """A slab of four, two file folios, three single frames, and free memory."""
    tail_of = {word: word | TAIL for word in (SLAB, FILE)}
    words = [
        *(SLAB | HEAD, *(tail_of[SLAB],) * 3),
        *(FILE | HEAD, tail_of[FILE]),
        *(FILE | HEAD, tail_of[FILE]),
        *(ANON, ANON, TABLE, BUDDY, BUDDY, BUDDY, BUDDY, BUDDY),
    ]
    mix = mix_of(raw_map(tmp_path, words))
    assert set(mix.rows) == {
        known(T.SLAB, 2, 1),
        known(T.FILE, 1, 2),
        known(T.ANON, 0, 2),
        known(T.PAGE_TABLE, 0, 1),
        known(T.FREE, 0, 5),
    }
    assert mix.is_exact
    assert mix.frames == 16


def test_a_bad_frame_is_a_row_beside_its_folio(tmp_path: Path) -> None:
    poison = int(KPF.HWPOISON)
    words = [ANON | HEAD, ANON | TAIL | poison, ANON | TAIL, ANON | TAIL]
    mix = mix_of(raw_map(tmp_path, words))
    assert set(mix.rows) == {known(T.ANON, 2, 1), known(T.POISONED, 0, 1)}
    assert mix.frames == 4


def test_charges_tell_kernel_memory_apart(tmp_path: Path) -> None:
    """An unmarked frame that a cgroup is charged for, and one that nobody is."""
    source = tree(tmp_path, [0, 0, FILE, BUDDY], cgroups=[7, 0, 7, 0])
    rows = [row for row in mix_of(source.map()).rows if not row.types.is_certain]
    assert [(row.count, row.charged) for row in rows] == [(1, False), (1, True)]
    # A raw file does not show charges.
    (tmp_path / "raw").mkdir()
    rows = list(mix_of(raw_map(tmp_path / "raw", [0, 0])).rows)
    assert [(row.count, row.charged) for row in rows] == [(2, None)]


@pytest.mark.parametrize("kernel", ["debian-6.1", "debian-6.12", "debian-7.2"])
@pytest.mark.parametrize("extents", [1, 5000])
def test_parts_in_any_order_are_the_map(
    kernel: str, extents: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts_module, "PART_FRAMES", 1 << 13)
    result = open_source(f"bundled:{kernel}").map()
    whole = mix_of([result])
    parts = list(parts_of(result, extents=extents))
    assert len(parts) > 1
    assert mix_of(parts) == whole
    assert mix_of(parts[::-1], result.totals) == whole


@pytest.mark.parametrize("groups", ["region", "cgroup"])
def test_every_present_frame_is_in_one_cell(groups: str) -> None:
    from memdesc.answers.ledger import ledger

    result = open_source("bundled:debian-6.12").map()
    census = census_of(result, groups=groups)  # type: ignore[arg-type]
    frames: Counter[TypeSet] = Counter()
    for cell in census.cells:
        frames[cell.types] += cell.frames
    assert frames == {row.types: row.frames for row in ledger(result).rows}
    assert census.mix() == mix_of(result)


def test_a_map_without_frames_is_refused() -> None:
    with pytest.raises(QuestionError, match="no frames"):
        mix_of([])


def test_whether_the_map_of_huge_pages_was_freed() -> None:
    machines = {
        kernel: open_source(f"bundled:debian-{kernel}").machine for kernel in ("6.1", "6.12")
    }
    # 6.12 counts its memory map: 2560 pages, 64 bytes for each frame of five sections.
    assert vmemmap_freed(machines["6.12"]) is False
    plain = machines["6.1"]
    assert vmemmap_freed(plain) is None

    def with_settings(cmdline: str, **sysctls: int) -> bool | None:
        names = {f"vm.{name}": value for name, value in sysctls.items()}
        return vmemmap_freed(dataclasses.replace(plain, cmdline=cmdline, sysctls=names))

    assert with_settings("quiet hugetlb_free_vmemmap=on") is True
    assert with_settings("hugetlb_free_vmemmap=on hugetlb_free_vmemmap=off") is None
    assert with_settings("quiet", hugetlb_optimize_vmemmap=1) is True
    assert with_settings("quiet", hugetlb_optimize_vmemmap=0) is False


@pytest.mark.parametrize("kernel", ["debian-6.1", "debian-6.12", "debian-7.2"])
def test_the_kernel_counts_the_same_slabs_and_tables(kernel: str) -> None:
    """Slabs of each order in /proc/slabinfo, PageTables and HugePages_Total in /proc/meminfo."""
    result = open_source(f"bundled:{kernel}").map()
    found: Counter[tuple[MemoryType | None, int | None]] = Counter()
    for row in mix_of(result).rows:
        found[row.types.only, row.order] += row.count
    slabs: Counter[int] = Counter()
    for cache in result.machine.slabinfo:
        slabs[cache.pages_per_slab.bit_length() - 1] += cache.slabs
    assert sum(slabs.values()) > 2000
    assert {order: found[T.SLAB, order] for order in slabs} == slabs
    meminfo = result.machine.before.meminfo
    assert found[T.PAGE_TABLE, 0] == meminfo["PageTables"] // 4096
    assert found[T.HUGETLB, 9] == meminfo["HugePages_Total"] == 8
