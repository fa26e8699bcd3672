"""What describing memory costs: sums that agree, honest ranges, and numbers done by hand."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import raw_map, tree

from memdesc.answers.ledger import COUNTED_BY, ledger
from memdesc.answers.savings import Savings, savings
from memdesc.errors import QuestionError
from memdesc.kernels.kpageflags import word_of
from memdesc.map import parts as parts_module
from memdesc.map.parts import parts_of
from memdesc.model.designs import DESIGNS
from memdesc.sources.open import open_source
from memdesc.types import MemoryType

T = MemoryType
BUNDLED = ["debian-6.1", "debian-6.12", "debian-7.2"]
HEAD, TAIL, BUDDY = word_of(["HEAD"]), word_of(["TAIL"]), word_of(["BUDDY"])
FILE = word_of(["LRU", "UPTODATE", "REFERENCED"])
SLAB, TABLE = word_of(["SLAB"]), word_of(["PGTABLE", "MMAP"])


def assert_adds_up(answer: Savings) -> None:
    """Rows add up to the whole, and no range is upside down."""
    whole = answer.chosen
    columns = {
        "then": whole.cost.total_bytes,
        "saved": whole.saved,
        "descriptors": whole.cost.descriptors,
    }
    for name, total in columns.items():
        ends = [getattr(row, name) for row in answer.rows]
        assert tuple(map(sum, zip(*ends, strict=True))) == total
        assert all(low <= high for low, high in ends)
    assert sum(row.frames for row in answer.rows) == answer.frames
    for one in answer.designs:
        for low, high in (one.cost.memmap_bytes, one.cost.total_bytes, one.saved, one.slab_bytes):
            assert low <= high


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("by", COUNTED_BY)
@pytest.mark.parametrize("kernel", BUNDLED)
def test_every_split_adds_up(kernel: str, by: str, design: str) -> None:
    result = open_source(f"bundled:{kernel}").map()
    answer = savings(result, design, by)  # type: ignore[arg-type]
    assert answer.frames == ledger(result).frames_present
    assert_adds_up(answer)
    assert answer.designs == savings(result).designs


def test_a_world_by_hand(tmp_path: Path) -> None:
    """A slab of 4, a folio of 2, one page of cache, one table, 8 free frames."""
    words = [
        *(SLAB | HEAD, SLAB | TAIL, SLAB | TAIL, SLAB | TAIL),
        *(FILE | HEAD, FILE | TAIL, FILE, TABLE),
        *[BUDDY] * 8,
    ]
    answer = savings(raw_map(tmp_path, words))
    costs = {one.design.id: one.cost.total_bytes for one in answer.designs}
    descriptors = 64 + 96 + 80 + 64
    assert costs == {
        "2021": (1024, 1024),
        "today": (1024, 1024),
        "32": (512 + descriptors,) * 2,
        "16": (256 + descriptors,) * 2,
        "8": (128 + descriptors,) * 2,
    }
    saved = {row.types.only: row.saved[0] for row in answer.rows}
    assert saved == {
        T.FREE: 8 * 56,
        T.SLAB: 4 * 56 - 64,
        T.FILE: 3 * 56 - 96 - 80,
        T.PAGE_TABLE: 56 - 64,
    }
    assert [row.types.only for row in answer.rows] == [T.FREE, T.SLAB, T.FILE, T.PAGE_TABLE]
    # Four kinds of descriptor, a page each, and their slab descriptors with the real one.
    assert answer.chosen.slab_bytes == (4 * 4096, 4 * 4096)
    assert [(one.kind, one.frames, one.single_bytes) for one in answer.break_even] == [
        (T.FILE, 2, 88),
        (T.SLAB, 2, 72),
        (T.PAGE_TABLE, 2, 72),
    ]
    assert not answer.notes


_CERTAIN = [FILE, SLAB, TABLE, BUDDY, word_of(["ANON", "LRU", "SWAPBACKED", "MMAP"])]
_OPEN = [0, HEAD, TAIL, word_of(["MMAP"]), word_of(["LOCKED"]), word_of(["OFFLINE"])]
_WORDS = [*_CERTAIN, *_OPEN, *(w | mark for w in (FILE, SLAB) for mark in (HEAD, TAIL))]


@settings(deadline=None, max_examples=40)
@given(
    runs=st.lists(
        st.tuples(st.sampled_from(_WORDS), st.integers(1, 9), st.sampled_from([0, 7, 8])),
        min_size=1,
        max_size=20,
    ),
    design=st.sampled_from(list(DESIGNS)),
    by=st.sampled_from(COUNTED_BY),
    release=st.sampled_from(["6.1.192", "6.12.117", "7.2.13"]),
)
def test_any_memory_adds_up(
    runs: list[tuple[int, int, int]], design: str, by: str, release: str
) -> None:
    words = [word for word, length, _ in runs for _ in range(length)]
    cgroups = [cgroup for _, length, cgroup in runs for _ in range(length)]
    with TemporaryDirectory() as folder:
        result = tree(Path(folder), words, cgroups=cgroups, release=release).map()
    answer = savings(result, design, by)  # type: ignore[arg-type]
    assert_adds_up(answer)
    assert answer.frames == len(words)
    if set(words) <= set(_CERTAIN):
        assert answer.chosen.cost.is_exact
        assert all(row.saved[0] == row.saved[1] for row in answer.rows)


@pytest.mark.parametrize("kernel", BUNDLED)
def test_the_order_of_parts_does_not_matter(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts_module, "PART_FRAMES", 1 << 12)
    result = open_source(f"bundled:{kernel}").map()
    parts = list(parts_of(result, extents=1000))
    for some in (parts, parts[::-1]):
        assert savings(iter(some), "8", "zone") == savings(result, "8", "zone")
        assert savings(iter(some), totals=result.totals) == savings(result)


def test_what_is_open_is_said() -> None:
    answers = {kernel: savings(open_source(f"bundled:{kernel}").map()) for kernel in BUNDLED}
    # 6.1 does not count its memory map: 8 huge pages may have 7 of 8 pages freed.
    today = answers["debian-6.1"].designs[1]
    assert today.cost.freed_bytes == (0, 8 * 7 * 4096)
    assert any("vm.hugetlb_optimize_vmemmap" in note for note in answers["debian-6.1"].notes)
    for kernel in ("debian-6.12", "debian-7.2"):
        assert answers[kernel].designs[1].cost.is_exact
        assert any("10,485,760 bytes" in note for note in answers[kernel].notes)
    for answer in answers.values():
        assert any("80 (ksm)" in text for text in answer.assumptions)
        assert not any("ZONE_DEVICE" in text for text in answer.assumptions)
        assert answer.to_json()["plan"]["revision"] == "R6"


def test_what_cannot_be_answered() -> None:
    result = open_source("bundled:debian-6.12").map()
    with pytest.raises(QuestionError, match="no frames"):
        savings([])
    with pytest.raises(QuestionError, match="no design '9'"):
        savings(result, "9")
    with pytest.raises(QuestionError, match="whole map"):
        savings(parts_of(result), by="cgroup")
