"""What failures would do, added up: exact sums, honest odds, and who is hit."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import pytest
from report_worlds import known_source
from worlds import raw_map, tree

from memdesc.answers.exposure import (
    FileExposure,
    ProcessExposure,
    RangeExposure,
    failure_by_file,
    failure_by_process,
    failure_by_range,
)
from memdesc.answers.failure import FailureRow, failure
from memdesc.answers.ledger import COUNTED_BY, ledger
from memdesc.answers.usage import Usage
from memdesc.errors import QuestionError
from memdesc.kernels.kpageflags import KPF
from memdesc.map.parts import parts_of
from memdesc.rules.failure import Consequence
from memdesc.sources.capture import Capture
from memdesc.sources.open import open_source
from memdesc.types import PAGE_SIZE_BYTES, MemoryType

BUNDLED = ["debian-6.1", "debian-6.12", "debian-7.2"]
TILE = 4096


@pytest.mark.parametrize("by", COUNTED_BY)
@pytest.mark.parametrize("kernel", BUNDLED)
def test_every_present_frame_once(kernel: str, by: str) -> None:
    result = open_source(f"bundled:{kernel}").map()
    answer = failure(result, by)  # type: ignore[arg-type]
    assert answer.frames == ledger(result).frames_present
    for odds in (answer.odds, answer.odds_injected):
        assert sum(one.frames_min for one in odds) <= answer.frames
        assert sum(one.frames_max for one in odds) >= answer.frames
        assert all(one.frames_min <= one.frames_max for one in odds)


def test_a_small_world(tmp_path: Path) -> None:
    """Free, anonymous, a chessboard of slab and file, and a hole."""
    answer = failure(known_source(tmp_path).map())
    odds = {one.consequence: one for one in answer.odds}
    free = odds[Consequence.NOTHING_LOST]
    assert free.frames_min == TILE
    assert odds[Consequence.KILLED_ON_TOUCH].frames_min == TILE
    # 2044 slab frames, and 8 words of 0 that are kernel memory or free on a per-CPU list.
    assert odds[Consequence.MACHINE_LOST].frames_min == TILE // 2 - 4
    assert odds[Consequence.MACHINE_LOST].frames_max == TILE // 2 + 4
    # Clean page cache is read again, unless somebody holds the page: not visible here.
    assert free.frames_max == TILE + TILE // 2 - 4 + 8
    injected = {one.consequence: one.frames_min for one in answer.odds_injected}
    assert Consequence.MACHINE_LOST not in injected
    assert injected[Consequence.UNHANDLED] == TILE // 2 - 4


def test_what_was_observed(tmp_path: Path) -> None:
    words = [int(KPF.SLAB), int(KPF.PGTABLE)]
    result = raw_map(tmp_path, words, release="7.2.13")

    def observed(kind: MemoryType, outcome: tuple[str, ...]) -> tuple[str, ...]:
        assert outcome == ("ignored", "get hwpoison page", "EBUSY")
        return ("6.12", "7.2") if kind is MemoryType.SLAB else ("6.12",)

    rows = {row.types.only: row for row in failure(result, observed=observed).rows}
    slab, tables = rows[MemoryType.SLAB], rows[MemoryType.PAGE_TABLE]
    assert (slab.basis, slab.observed_on) == ("observed", ("6.12", "7.2"))
    assert (tables.basis, tables.observed_on) == ("inferred", ("6.12",))
    assert {row.basis for row in failure(result).rows} == {"inferred"}


def test_a_row_of_several_outcomes_is_observed_in_part(tmp_path: Path) -> None:
    """Page cache that /proc shows: dropped, or still held by somebody."""
    words = [int(KPF.LRU | KPF.UPTODATE)]

    def observed(kind: MemoryType, outcome: tuple[str, ...]) -> tuple[str, ...]:
        return ("6.12", "7.2") if outcome[0] == "recovered" else ("7.2",)

    def row(release: str) -> FailureRow:
        result = raw_map(tmp_path, words, release=release)
        (row,) = failure(result, observed=observed).rows
        assert [out.verdict.value for out in row.hard.outcomes] == ["recovered", "failed"]
        return row

    assert (row("7.2.13").is_observed, row("7.2.13").is_observed_in_part) == (True, False)
    assert (row("6.12.9").is_observed, row("6.12.9").is_observed_in_part) == (False, True)
    assert (row("6.6.1").is_observed, row("6.6.1").is_observed_in_part) == (False, False)


def test_tails_of_6_1_leave_open_whether_they_are_dirty(tmp_path: Path) -> None:
    """A tail's own word there does not show its folio's flags, and totals know no heads."""
    head = KPF.LRU | KPF.UPTODATE | KPF.DIRTY | KPF.COMPOUND_HEAD
    result = raw_map(tmp_path, [head, *[int(KPF.COMPOUND_TAIL)] * 3], release="6.1.192")
    ends = {
        row.frames: {out.on_hardware for out in row.hard.outcomes} for row in failure(result).rows
    }
    assert Consequence.NOTHING_LOST not in ends[1]
    assert {Consequence.NOTHING_LOST, Consequence.CONTENT_LOST} <= ends[3]


def test_settings_are_named(tmp_path: Path) -> None:
    notes = failure(raw_map(tmp_path, [0])).notes
    assert any("memory_failure_early_kill is not visible" in note for note in notes)
    early = {"proc/sys/vm/memory_failure_early_kill": "1\n"}
    anon = int(KPF.ANON | KPF.LRU | KPF.SWAPBACKED | KPF.MMAP)
    answer = failure(tree(tmp_path / "early", [anon], files=early).map())
    assert [one.consequence for one in answer.odds] == [Consequence.KILLED_NOW]


# --- who and where -----------------------------------------------------------------------


@pytest.fixture(scope="module", params=BUNDLED)
def usage(request: pytest.FixtureRequest) -> Usage:
    source = open_source(f"bundled:{request.param}")
    return Usage.of(source.map(), source.attribution())


def test_processes(usage: Usage) -> None:
    rows = cast("tuple[ProcessExposure, ...]", failure_by_process(usage).rows)
    assert len(rows) == len(usage.attribution.processes)
    for row in rows:
        assert 0 <= row.kills_min_bytes <= row.kills_max_bytes <= row.mapped_bytes
        assert row.shared_bytes <= row.kills_max_bytes
        assert row.kills_max_bytes + row.harmless_bytes <= row.mapped_bytes
    by_name = {row.comm: row for row in rows}
    # Three workers share what they inherited; each would die of it.
    assert by_name["webworker0"].shared_bytes > by_name["database"].shared_bytes


def test_a_process_by_hand(usage: Usage) -> None:
    """Anonymous frames of one process, counted one by one."""
    who, result = usage.attribution, usage.map
    index = who.process_index(int(who.processes.pid[1]))
    frames: set[int] = set()
    for run in np.flatnonzero(who.process_of_mapping == index).tolist():
        first = int(who.mappings.pfn_start[run])
        frames.update(range(first, first + int(who.mappings.nr_pages[run])))
    row = next(
        row
        for row in cast("tuple[ProcessExposure, ...]", failure_by_process(usage).rows)
        if row.pid == int(who.processes.pid[index])
    )
    assert row.mapped_bytes == len(frames) * PAGE_SIZE_BYTES
    anon = sum(
        result.extent(result.index_of(pfn)).fact.types.only is MemoryType.ANON for pfn in frames
    )
    assert row.kills_max_bytes >= anon * PAGE_SIZE_BYTES > 0


def test_files(usage: Usage) -> None:
    rows = cast("tuple[FileExposure, ...]", failure_by_file(usage).rows)
    by_name = {row.name: row for row in rows}
    # Written through a mapping and not yet on the disk; read only; in memory alone.
    assert by_name["/data/journal.dat"].lost_min_bytes > 0
    assert by_name["/usr/lib/libc.so.6"].lost_max_bytes == 0
    memfd = next(row for row in rows if row.name.startswith("/memfd:memdesc-memfd"))
    assert memfd.lost_max_bytes == memfd.cached_bytes
    assert by_name["(mapped by nobody)"].lost_min_bytes > 0
    for row in rows:
        assert 0 <= row.lost_min_bytes <= row.lost_max_bytes <= row.cached_bytes


@pytest.mark.parametrize("kernel", BUNDLED)
def test_ranges_add_up(kernel: str) -> None:
    source = open_source(f"bundled:{kernel}")
    result = source.map()
    whole = failure(result)
    rows = cast("tuple[RangeExposure, ...]", failure_by_range(result, 1 << 26).rows)
    assert len(rows) == 10
    assert sum(row.frames for row in rows) == whole.frames
    if kernel != "debian-6.1":  # there, only whole folios tell what a tail is
        for one in whole.odds:
            assert sum(row.frames_max(one.consequence) for row in rows) == one.frames_max
    losses = [row.frames_max(Consequence.MACHINE_LOST) for row in rows]
    assert losses == sorted(losses, reverse=True)
    assert isinstance(source, Capture)
    for parts in (source.parts(), parts_of(result, extents=1000)):
        assert failure_by_range(parts, 1 << 26).rows == rows


def test_a_range_has_a_size(tmp_path: Path) -> None:
    result = raw_map(tmp_path, [0])
    for size in (0, 100, 3 << 30):
        with pytest.raises(QuestionError):
            failure_by_range(result, size)
