"""Recorded sweeps, judged by today's rules: what real kernels did is what we say they do."""

from __future__ import annotations

import dataclasses
import gzip
from pathlib import Path

import numpy as np
import pytest
from guests import kernel_or_skip

from memdesc.checks.observed import observed, observed_on, swept_series
from memdesc.checks.sweep import run_sweep
from memdesc.checks.sweep_judge import FROM, Grade, Judged, Score, judge, score
from memdesc.checks.sweep_page import tables, with_tables
from memdesc.checks.sweep_rows import (
    HOWS,
    Frame,
    How,
    Sweep,
    Trial,
    read_sweep,
    recorded_sweeps,
    write_sweep,
)
from memdesc.checks.sweep_sample import Stratum, draw
from memdesc.errors import FormatError
from memdesc.kernels.kpageflags import KPF
from memdesc.types import MemoryType

SERIES = ("6.12",)
"""Kernels whose sweep is recorded; the others wait for theirs."""

SWEEPS = {sweep.series: sweep for sweep in recorded_sweeps()}
PAGE = Path(__file__).parents[2] / "docs/failure-sweep.md"


def rows(series: str, how: How, read_from: str) -> list[Judged]:
    return [one for one in judge(SWEEPS[series]) if one.how == how and one.read_from == read_from]


def scored(series: str, how: How, read_from: str) -> Score:
    return score(rows(series, how, read_from))


# --- the goals ---------------------------------------------------------------------------


def test_every_kernel_has_a_sweep() -> None:
    assert set(SWEEPS) == set(SERIES)
    assert swept_series() == SERIES


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("series", SERIES)
def test_at_least_300_frames_of_every_stratum_were_made_to_fail(series: str, how: How) -> None:
    frames = SWEEPS[series].frames
    assert sum(how in frame.trials for frame in frames) >= 300
    assert sum(frame.weight for frame in frames) == pytest.approx(SWEEPS[series].frames_total)
    seen = scored(series, how, "structs").sampled
    assert seen[Grade.MOVED] + seen[Grade.UNSEEN] <= 0.03 * seen.total()


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("series", SERIES)
def test_struct_pages_name_the_outcome_of_99_in_100(series: str, how: How) -> None:
    found = scored(series, how, "structs")
    assert found.share(Grade.EXACT) >= 0.99
    assert found.share(Grade.EXACT, weighted=True) >= 0.99
    assert found.sampled[Grade.WRONG] == 0


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("series", SERIES)
def test_proc_is_never_wrong_and_names_one_outcome_for_70_in_100(series: str, how: How) -> None:
    found = scored(series, how, "proc")
    assert found.sampled[Grade.WRONG] == 0
    assert found.share(Grade.EXACT, weighted=True) >= 0.70


def test_the_page_shows_these_numbers() -> None:
    page = PAGE.read_text()
    assert page == with_tables(page, tables(recorded_sweeps()))


# --- what the kernels showed --------------------------------------------------------------


def test_what_was_observed_is_told_by_kernel() -> None:
    ignored = ("ignored", "get hwpoison page", "EBUSY")
    assert observed_on(MemoryType.SLAB, ignored) == ("6.12",)
    assert observed_on(MemoryType.SLAB, ("ignored", "unknown page", "EBUSY")) == ()
    assert {one.outcome for one in observed(MemoryType.SLAB, "6.12", "soft")} == {("EIO",)}
    assert observed(MemoryType.FS_DAX, "6.12") == ()


@pytest.mark.parametrize("series", SERIES)
def test_a_frame_that_was_handled_or_not_shows_the_mark_afterwards(series: str) -> None:
    """HWPOISON is set before anything is tried, and stays (`HardOutcome.flag_stays`). Only a
    huge page of 6.1 that stays in its file shows it on the head alone."""
    for one in rows(series, "hard", "structs"):
        trial = one.frame.trials["hard"]
        if trial.flags_after is None or trial.errno == "ENXIO":
            continue
        on_head = one.frame.kind == "hugetlb_memfd" and series == "6.1"
        assert on_head or trial.flags_after & KPF.HWPOISON, one


# --- judging -----------------------------------------------------------------------------


def one_frame(series: str, kind: str) -> Frame:
    return next(frame for frame in SWEEPS[series].frames if frame.kind == kind)


def judged(frame: Frame, trial: Trial, how: How = "hard") -> dict[str, Grade]:
    changed = dataclasses.replace(frame, trials={how: trial})
    sweep = dataclasses.replace(SWEEPS["6.12"], frames=(changed,))
    return {one.read_from: one.grade for one in judge(sweep)}


def test_another_verdict_another_name_and_another_errno_are_wrong() -> None:
    frame = one_frame("6.12", "anon")
    true = frame.trials["hard"]
    assert judged(frame, true) == dict.fromkeys(FROM, Grade.EXACT)
    for lie in (
        dataclasses.replace(true, verdict="Failed"),
        dataclasses.replace(true, message="clean LRU page"),
        dataclasses.replace(true, errno="EBUSY"),
    ):
        assert judged(frame, lie) == dict.fromkeys(FROM, Grade.WRONG)


def test_proc_names_several_outcomes_where_a_pin_would_decide() -> None:
    frame = one_frame("6.12", "anon")
    moved = frame.trials["soft"]
    assert judged(frame, moved, "soft") == {"proc": Grade.SEVERAL, "structs": Grade.EXACT}
    busy = dataclasses.replace(moved, errno="EBUSY")
    assert judged(frame, busy, "soft") == {"proc": Grade.SEVERAL, "structs": Grade.WRONG}


def test_a_frame_that_became_something_else_tests_nothing() -> None:
    frame = one_frame("6.12", "anon")
    trial = dataclasses.replace(frame.trials["hard"], flags_before=KPF.BUDDY.value)
    assert judged(frame, trial) == dict.fromkeys(FROM, Grade.MOVED)


def test_a_guest_that_died_is_judged_by_its_console_alone() -> None:
    frame = one_frame("6.12", "anon")
    trial = dataclasses.replace(frame.trials["hard"], errno="", flags_before=None, end="reset")
    assert judged(frame, trial) == dict.fromkeys(FROM, Grade.EXACT)
    assert judged(frame, Trial("", "", "", None, None, "reset")) == dict.fromkeys(
        FROM, Grade.UNSEEN
    )


# --- the sample and the file --------------------------------------------------------------


def test_every_stratum_has_a_frame_and_large_ones_more() -> None:
    sizes = [1, 1, 5, 400, 90_000]
    edges = np.cumsum([0, *sizes])
    strata = [
        Stratum(number, "", "", np.arange(edges[number], edges[number + 1]))
        for number in range(len(sizes))
    ]
    drawn = draw(strata, 60)
    assert len({frame for frame, _, _ in drawn}) == len(drawn) == 60
    counts = [sum(stratum.number == number for _, stratum, _ in drawn) for number in range(5)]
    assert counts[:2] == [1, 1]
    assert 1 <= counts[2] < counts[3] < counts[4]
    weights = [stratum.frames.size / sampled for _, stratum, sampled in drawn]
    assert sum(weights) == pytest.approx(sum(sizes))
    assert draw(strata, 60) == drawn
    assert len(draw(strata[:3], 60)) == 7, "there are no more frames than these"


def test_a_sweep_is_written_and_read_unchanged(tmp_path: Path) -> None:
    for sweep in SWEEPS.values():
        path = tmp_path / f"{sweep.series}.csv.gz"
        write_sweep(sweep, path)
        assert read_sweep(path) == sweep
        first = path.read_bytes()
        write_sweep(sweep, path)
        assert path.read_bytes() == first
        assert len(first) < 100_000


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no gzip",
        gzip.compress(b""),
        gzip.compress(b'# {"schema": "other/1"}\npfn\n1\n'),
        gzip.compress(b'# {"schema": "memdesc-sweep/1"}\npfn\n1\n'),
        gzip.compress(b"\xff\xfe"),
    ],
)
def test_a_file_that_is_no_sweep_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "sweep.csv.gz"
    path.write_bytes(content)
    with pytest.raises(FormatError):
        read_sweep(path)


# --- a real kernel -----------------------------------------------------------------------


@pytest.mark.vm
def test_a_real_kernel_still_does_what_we_say() -> None:
    """Ten random frames of a planted guest, hard and soft: 20 failures."""
    sweep: Sweep = run_sweep(kernel_or_skip("6.12"), at_most=10, seed=7)
    assert len(sweep.frames) == 10
    assert all(set(frame.trials) == set(HOWS) for frame in sweep.frames)
    grades = [one.grade for one in judge(sweep)]
    assert grades.count(Grade.WRONG) == 0
    assert grades.count(Grade.EXACT) >= 20
