"""Huge pages that fragmented guests got, beside the range that `blocks` gives for them.

The records are in `src/memdesc/checks/data/blocks-*.json`: the map of each guest, and how many
huge pages of 2 MiB its kernel had for each way of asking.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from memdesc.checks.fragment import WAYS
from memdesc.checks.fragment_blocks import (
    BlocksRun,
    Comparison,
    compare,
    read_blocks,
    recorded_blocks,
    write_blocks,
)
from memdesc.errors import FormatError
from memdesc.vm.workload.fragment import PROGRAMS

RUNS = recorded_blocks()

each_kernel = pytest.mark.parametrize("run", RUNS, ids=lambda run: run.series)


def rows_of(run: BlocksRun) -> list[Comparison]:
    return [row for guest in run.guests for row in compare(guest)]


def test_three_kernels_were_asked_in_every_way() -> None:
    assert [run.series for run in RUNS] == ["6.1", "6.12", "7.2"]
    for run in RUNS:
        asked = {(row.program, row.way) for row in rows_of(run)}
        assert asked == {(program, way) for program in PROGRAMS for way in WAYS}


@each_kernel
def test_the_number_lies_in_the_range(run: BlocksRun) -> None:
    outside = [row for row in rows_of(run) if not row.is_inside]
    assert outside == []


def widest(run: BlocksRun, row: Comparison) -> float:
    """Wider than a tenth only where much page cache may go or stay (docs/moves-checked.md)."""
    if row.way.startswith("transparent") and run.series != "6.1":
        return 0.19
    return 0.13 if row.program == "cache" else 0.10


@each_kernel
def test_the_range_is_narrow(run: BlocksRun) -> None:
    for row in rows_of(run):
        assert row.blocks > 240
        assert row.share <= widest(run, row), row


@each_kernel
def test_compaction_matters_in_these_guests(run: BlocksRun) -> None:
    """Else the free blocks alone would be the whole answer."""
    for guest in run.guests:
        rows = {row.way: row for row in compare(guest)}
        assert rows["hugetlb, compacted first"].lowest > 1.5 * rows["free blocks"].highest


def test_a_record_survives_writing(tmp_path: Path) -> None:
    write_blocks(RUNS[0], tmp_path / "blocks.json")
    again = read_blocks(tmp_path / "blocks.json")
    for guest, copy in zip(RUNS[0].guests, again.guests, strict=True):
        assert copy.got == guest.got
        assert np.array_equal(copy.map.pfn_starts, guest.map.pfn_starts)
        assert np.array_equal(copy.map.facts, guest.map.facts)
        assert compare(copy) == compare(guest)


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "blocks.json").write_text("[]")
    with pytest.raises(FormatError, match="no record of blocks"):
        read_blocks(tmp_path / "blocks.json")
