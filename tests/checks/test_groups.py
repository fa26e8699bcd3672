"""Groups of rows of the support matrix: what else was judged, as a table for each."""

from __future__ import annotations

from pathlib import Path

import pytest

from memdesc.checks.groups import GroupCell, GroupRow, RowGroup, narrowed
from memdesc.checks.page import GROUPS, kept_groups, render_markdown
from memdesc.checks.runs import FOLDER, recorded_runs
from memdesc.checks.sweep_group import failure_group
from memdesc.checks.sweep_judge import Grade, judge, score
from memdesc.checks.sweep_rows import Sweep, recorded_sweeps

RUNS = recorded_runs()


def cell(frames: int) -> GroupCell:
    return GroupCell(f"{frames} frames", str(frames), {"frames": frames})


GROUP = RowGroup(
    "Moves",
    "Asked to",
    "What moved.",
    (
        GroupRow("compact", "live:proc", {"6.1": cell(1), "7.2": cell(2)}),
        GroupRow("offline", "vmcore", {"6.12": cell(3), "7.2": cell(4)}),
    ),
)


@pytest.mark.parametrize("sweep", recorded_sweeps(), ids=lambda sweep: sweep.series)
def test_failures_are_counted_as_they_are_judged(sweep: Sweep) -> None:
    group = failure_group(FOLDER)
    assert group is not None
    for row in group.rows:
        read_from = {"live:proc": "proc", "vmcore": "structs"}[row.source]
        judged = [one for one in judge(sweep) if one.how == row.what and one.read_from == read_from]
        counts = score(judged).sampled
        figures = row.cells[sweep.series].figures
        assert [figures[grade.value] for grade in (Grade.EXACT, Grade.SEVERAL, Grade.WRONG)] == [
            counts[Grade.EXACT],
            counts[Grade.SEVERAL],
            counts[Grade.WRONG],
        ]
        assert figures["frames"] + figures["left_out"] == len(sweep.frames)


def test_a_share_is_never_rounded_up() -> None:
    """Of 7.2's struct pages three frames are several: that is not 100 % of memory."""
    group = failure_group(FOLDER)
    assert group is not None
    row = next(row for row in group.rows if (row.what, row.source) == ("hard", "vmcore"))
    assert 0.999 < row.cells["7.2"].figures["exact_share_of_memory"] < 1
    assert "99.9 % of memory" in row.cells["7.2"].text


def test_a_folder_without_data_has_no_groups(tmp_path: Path) -> None:
    assert [make(tmp_path) for make in GROUPS] == [None] * len(GROUPS)
    assert kept_groups(RUNS, tmp_path) == []


def test_the_part_about_a_kernel_or_a_source() -> None:
    assert GROUP.columns(["5.15", "6.1", "6.12", "7.2"]) == ["6.1", "6.12", "7.2"]
    part = narrowed(GROUP, ["6.12", "7.2"], source="vmcore")
    assert part is not None
    assert part.to_json()["rows"] == [
        {"kernel": "6.12", "what": "offline", "source": "vmcore", "frames": 3},
        {"kernel": "7.2", "what": "offline", "source": "vmcore", "frames": 4},
    ]
    assert narrowed(GROUP, ["6.12"], source="live:proc") is None
    assert narrowed(GROUP, ["5.15"]) is None


def test_a_kernel_without_a_cell_is_a_dash_on_the_page() -> None:
    page = render_markdown(RUNS, [GROUP])
    table = page[page.index("## Moves") :].splitlines()[4:8]
    assert table == [
        "| Asked to | Facts from | 6.1 | 6.12 | 7.2 |",
        "| --- | --- | --- | --- | --- |",
        "| compact | live:proc | 1 frames | - | 2 frames |",
        "| offline | vmcore | - | 3 frames | 4 frames |",
    ]
