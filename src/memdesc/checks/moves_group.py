"""The rows of the support matrix about moving memory and about huge pages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from memdesc.checks.fragment_blocks import Comparison, compare, recorded_blocks
from memdesc.checks.groups import GroupCell, GroupRow, RowGroup
from memdesc.checks.moves import Claim, Judgement, judge
from memdesc.checks.moves_record import HeldPages, recorded_moves

__all__ = ["blocks_group", "moves_group"]

_MOVES: Final = """\
What `memdesc move` says, against what kernels did in guests that six programs had fragmented:
they compacted all memory and took memory blocks offline. *Never moves*: how many of these frames
moved all the same. *Moves*: how many of those moved that the kernel tried. *Held*: pages in pipes,
io_uring and O_DIRECT whose holder was recognised. Every miss: [moves](../moves-checked.md)."""

_BLOCKS: Final = """\
The range that `memdesc blocks` gives in the same guests, against the huge pages of 2 MiB that the
kernel gave until it had no more: how many of the numbers lie in the range, and how wide it is at
most, of all blocks of the guest. Every number: [moves](../moves-checked.md#huge-pages)."""

_TRIALS: Final = {"compaction": "moves, compacting", "offline": "moves, offlining"}
_ASKED: Final = {"free": "free blocks", "transparent": "faults", "hugetlb": "hugetlb pool"}
"""First word of a way of asking (`memdesc.checks.fragment.WAYS`) -> its row."""


def moves_group(folder: Path) -> RowGroup | None:
    """How the recorded moves in `folder` are judged today; None where there are none.

    Raises FormatError for a file that is no such record.
    """
    runs = recorded_moves(folder)
    if not runs:
        return None
    judged = {run.series: judge(run) for run in runs}
    rows = [
        GroupRow(
            Claim.STAYS.value,
            source,
            {series: _stays(_those(rows, source, Claim.STAYS)) for series, rows in judged.items()},
        )
        for source in ("vmcore", "live:proc")
    ]
    rows += [
        GroupRow(
            what,
            "vmcore",
            {
                series: _moves(_those(rows, "vmcore", Claim.MOVES, trial))
                for series, rows in judged.items()
            },
        )
        for trial, what in _TRIALS.items()
    ]
    held = {run.series: [held for each in run.programs for held in each.held] for run in runs}
    cells = {series: _held(found) for series, found in held.items() if found}
    rows.append(GroupRow("held", "vmcore", cells))
    return RowGroup("Moves", "Said to", _MOVES, tuple(rows))


def blocks_group(folder: Path) -> RowGroup | None:
    """How the recorded huge pages in `folder` are judged today; None where there are none.

    Raises FormatError, CaptureError for a file that is no such record.
    """
    runs = recorded_blocks(folder)
    if not runs:
        return None
    found = {run.series: [row for guest in run.guests for row in compare(guest)] for run in runs}
    rows = (
        GroupRow(
            what,
            "vmcore",
            {
                series: _got([row for row in rows if row.way.startswith(word)])
                for series, rows in found.items()
            },
        )
        for word, what in _ASKED.items()
    )
    return RowGroup("Huge pages", "Asked by", _BLOCKS, tuple(rows))


# --- helpers -----------------------------------------------------------------------------


def _those(
    judged: Sequence[Judgement], source: str, claim: Claim, trial: str = ""
) -> list[Judgement]:
    return [
        row
        for row in judged
        if (row.source, row.claim) == (source, claim) and row.trial.startswith(trial)
    ]


def _stays(rows: Sequence[Judgement]) -> GroupCell:
    frames, moved = sum(row.frames for row in rows), sum(row.moved for row in rows)
    text = f"{moved:,} of {frames:,} moved"
    return GroupCell(text, f"{moved:,} moved", {"frames": frames, "moved": moved})


def _moves(rows: Sequence[Judgement]) -> GroupCell:
    tried, moved = sum(row.tried for row in rows), sum(row.moved for row in rows)
    share = moved / max(1, tried)
    # Rounded down, so that 100 % means all.
    percent = f"{int(share * 10000) / 100:g} %"
    return GroupCell(
        f"{moved:,} of {tried:,} moved ({percent})",
        f"{percent} moved",
        {"tried": tried, "moved": moved, "moved_share": share},
    )


def _held(rows: Sequence[HeldPages]) -> GroupCell:
    frames, seen = sum(row.frames for row in rows), sum(row.recognised for row in rows)
    return GroupCell(
        f"{seen:,} of {frames:,} recognised",
        f"{seen:,} of {frames:,}",
        {"frames": frames, "recognised": seen},
    )


def _got(rows: Sequence[Comparison]) -> GroupCell:
    inside, widest = sum(row.is_inside for row in rows), max(row.share for row in rows)
    return GroupCell(
        f"{inside} of {len(rows)} in the range, {widest:.1%} wide".replace("%", " %"),
        f"{inside} of {len(rows)} in range",
        {"numbers": len(rows), "in_range": inside, "widest_share": widest},
    )
