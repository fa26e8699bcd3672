"""The rows of the support matrix about failures: how often we said what came of them."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from memdesc.checks.groups import GroupCell, GroupRow, RowGroup
from memdesc.checks.sweep_judge import FROM, From, Grade, Judged, judge, score
from memdesc.checks.sweep_rows import HOWS, How, recorded_sweeps

__all__ = ["failure_group"]

_SOURCES: Final[dict[From, str]] = {"proc": "live:proc", "structs": "vmcore"}

_INTRODUCTION = """\
What `memdesc failure` says, against what kernels did when frames of every kind were made to fail,
each from the same moment: *hard* as after a machine check, *soft* as `soft_offline_page` does.
The sample prefers rare kinds of memory, so the share of the guest's memory is given too. *Several*:
more outcomes were named, and the one that came is among them. Frames that had become something
else before they failed are not counted. More, with every miss: [failures](../failure-sweep.md)."""


def failure_group(folder: Path) -> RowGroup | None:
    """How the recorded sweeps in `folder` are judged today; None where there are none.

    Raises FormatError for a file that is no sweep.
    """
    judged = {sweep.series: list(judge(sweep)) for sweep in recorded_sweeps(folder)}
    if not judged:
        return None
    rows = [
        GroupRow(
            how,
            _SOURCES[read_from],
            {series: _cell(ones, how, read_from) for series, ones in judged.items()},
        )
        for how in HOWS
        for read_from in FROM
    ]
    return RowGroup("Failures", "Failure", _INTRODUCTION, tuple(rows))


# --- helpers -----------------------------------------------------------------------------


def _cell(judged: list[Judged], how: How, read_from: From) -> GroupCell:
    found = score(one for one in judged if one.how == how and one.read_from == read_from)
    exact, several, wrong = (
        found.sampled[grade] for grade in (Grade.EXACT, Grade.SEVERAL, Grade.WRONG)
    )
    tested = exact + several + wrong
    share = found.share(Grade.EXACT)
    of_memory = found.share(Grade.EXACT, weighted=True)
    return GroupCell(
        f"{exact} of {tested} exact ({_percent(share)}; {_percent(of_memory)} of memory), "
        f"{several} several, {wrong} wrong",
        f"{_percent(share)}, {wrong} wrong",
        {
            "frames": tested,
            "exact": exact,
            "several": several,
            "wrong": wrong,
            "left_out": found.sampled.total() - tested,
            "exact_share": share,
            "exact_share_of_memory": of_memory,
        },
    )


def _percent(share: float) -> str:
    """Rounded down, so that 100 % means all."""
    return f"{int(share * 1000) / 10:g} %"
