"""Recorded sweeps, judged by today's rules: what real kernels did is what we say they do."""

from __future__ import annotations

import dataclasses
import gzip
import os
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path

import numpy as np
import pytest
from guests import kernel_or_skip

from memdesc.checks.observed import observed, observed_on, swept_series
from memdesc.checks.sweep import Tell, run_sweep
from memdesc.checks.sweep_judge import FROM, Grade, Judged, Score, judge, score
from memdesc.checks.sweep_page import PROGRAM, tables
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
from memdesc.types import MemoryType, TypeSet
from memdesc.vm.kernels import Kernel
from memdesc.vm.qemu import Machine
from memdesc.written import with_generated

SERIES = ("6.1", "6.12", "7.2")
"""Kernels whose sweep is recorded."""

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
def test_at_least_300_frames_were_made_to_fail(series: str, how: How) -> None:
    frames = SWEEPS[series].frames
    assert sum(how in frame.trials for frame in frames) >= 300
    assert all(1 <= frame.weight <= SWEEPS[series].frames_total for frame in frames)
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
    assert page == with_generated(page, tables(recorded_sweeps()), PROGRAM)


# --- what the kernels showed --------------------------------------------------------------


def test_what_was_observed_is_told_by_kernel() -> None:
    ignored = ("ignored", "get hwpoison page", "EBUSY")
    assert observed_on(MemoryType.SLAB, ignored) == ("6.12", "7.2")
    assert observed_on(MemoryType.SLAB, ("ignored", "unknown page", "EBUSY")) == ("6.1",)
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


def test_a_free_frame_that_was_handed_out_before_it_failed_tests_nothing() -> None:
    """Between the look at it and the failure: afterwards it holds a process's memory."""
    frame = next(
        frame
        for frame in SWEEPS["6.12"].frames
        if frame.structs.types == frame.proc.types == TypeSet.of(MemoryType.FREE)
    )
    true = frame.trials["hard"]
    assert judged(frame, true) == dict.fromkeys(FROM, Grade.EXACT)
    lie = dataclasses.replace(true, message="dirty LRU page")
    assert judged(frame, lie) == dict.fromkeys(FROM, Grade.WRONG)
    word = KPF.HWPOISON | KPF.ANON | KPF.SWAPBACKED
    taken = dataclasses.replace(lie, flags_after=word.value)
    assert judged(frame, taken) == dict.fromkeys(FROM, Grade.MOVED)
    unmarked = dataclasses.replace(taken, flags_after=(KPF.ANON | KPF.SWAPBACKED).value)
    assert judged(frame, unmarked) == dict.fromkeys(FROM, Grade.WRONG)


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


# --- guests that no longer come back ------------------------------------------------------

NOTHING_SEEN = Trial("", "", "", None, None, "hung")


def swept(
    monkeypatch: pytest.MonkeyPatch, lives: Sequence[int], wanted: int
) -> tuple[Sweep, list[Sweep], list[str]]:
    """A sweep of guests of which each answers that many times: (result, saved, told)."""
    real = SWEEPS["6.12"]
    answers = {frame.pfn: frame.trials for frame in real.frames}
    left = list(lives)

    @contextmanager
    def planted(
        kernel: Kernel, nr_frames: int, seed: int, machine: Machine, tell: Tell
    ) -> Iterator[tuple[str, Sweep]]:
        drawn = random.Random(seed).sample(real.frames, nr_frames)
        empty = tuple(dataclasses.replace(frame, trials={}) for frame in drawn)
        yield "guest", dataclasses.replace(real, frames=empty, notes={"strata": 134})
        left.pop(0)

    def trial(guest: str, pfn: int, how: How) -> Trial:
        left[0] -= 1
        return answers[pfn][how] if left[0] >= 0 else NOTHING_SEEN

    monkeypatch.setattr("memdesc.checks.sweep._planted", planted)
    monkeypatch.setattr("memdesc.checks.sweep._trial", trial)
    kernel = Kernel("6.12", real.release, real.package, Path(), Path(), Path())
    saved: list[Sweep] = []
    told: list[str] = []
    sweep = run_sweep(kernel, nr_frames=wanted, seed=1, tell=told.append, save=saved.append)
    return sweep, saved, told


def test_a_fresh_guest_makes_up_for_one_that_stopped_answering(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sweep, saved, told = swept(monkeypatch, [51, 1000], 40)
    assert len(sweep.frames) == 40
    trials = [trial for frame in sweep.frames for trial in frame.trials.values()]
    assert len(trials) == 80
    assert NOTHING_SEEN not in trials, "failures that left nothing to see are not results"
    assert sweep.notes["sessions"] == 2
    assert [len(each.frames) for each in saved] == [20, 40]
    assert any(text.startswith("the guest no longer answers") for text in told)


def test_a_single_failure_without_a_trace_is_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guest died of it; only several in a row are the emulator's fault."""
    sweep, _, _ = swept(monkeypatch, [18], 10)
    trials = [trial for frame in sweep.frames for trial in frame.trials.values()]
    assert trials.count(NOTHING_SEEN) == 2
    assert sweep.notes["sessions"] == 1


def test_a_sweep_that_stays_incomplete_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    sweep, _, told = swept(monkeypatch, [8, 8, 8, 8], 40)
    assert len(sweep.frames) == 16
    assert told[-1] == "4 guests ended early: 16 frames of 40"


# --- a real kernel -----------------------------------------------------------------------


def in_turn() -> tuple[str, ...]:
    """One kernel a day, for each takes most of a minute; MEMDESC_SWEEP=6.1,7.2 names others."""
    named = os.environ.get("MEMDESC_SWEEP", "")
    return tuple(named.split(",")) if named else (SERIES[date.today().toordinal() % len(SERIES)],)


@pytest.mark.vm
@pytest.mark.parametrize("series", in_turn())
def test_a_real_kernel_still_does_what_we_say(series: str) -> None:
    """Ten random frames of a planted guest, hard and soft: 20 failures."""
    sweep: Sweep = run_sweep(kernel_or_skip(series), at_most=10, seed=7)
    assert len(sweep.frames) == 10
    assert all(set(frame.trials) == set(HOWS) for frame in sweep.frames)
    found = list(judge(sweep))
    assert [one for one in found if one.grade is Grade.WRONG] == []
    exact = [one for one in found if one.read_from == "structs" and one.grade is Grade.EXACT]
    assert len(exact) >= 18
