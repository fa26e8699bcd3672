"""Were we right? Today's rules, asked about recorded sweeps, against what the kernels did.

The rules see what a source saw before the failure and nothing else.  A frame is judged

    exact      one outcome was named, and it came
    several    several were named, and the one that came is among them
    wrong      what came was not named

An outcome is, for a hard failure, the verdict, what the log calls the frame, and the errno;
for soft offlining, the errno.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from memdesc.checks.sweep_rows import Frame, How, StructFacts, Sweep, Trial
from memdesc.kernels.kpageflags import KPF
from memdesc.kernels.release import KernelRelease, behaviour_of
from memdesc.rules.failure import HardOutcome, hard_failure, soft_offline
from memdesc.rules.references import holds_extra, hugetlb_is_held
from memdesc.rules.subject import Knowledge, Subject, merged
from memdesc.types import MemoryType, TypeSet

__all__ = [
    "FROM",
    "From",
    "Grade",
    "Judged",
    "Outcome",
    "Score",
    "has_moved",
    "judge",
    "knowledge_of_sweep",
    "outcome_of",
    "score",
]

From = Literal["proc", "structs"]
"""Where the facts come from."""
FROM: tuple[From, ...] = ("proc", "structs")

Outcome = tuple[str, ...]
"""Hard: (verdict, message, errno). Soft: (errno,)."""


class Grade(enum.Enum):
    """How one verdict of ours was."""

    EXACT = "exact"
    SEVERAL = "several"
    WRONG = "wrong"
    MOVED = "moved"
    """The frame had become something else when the failure began: nothing was tested."""
    UNSEEN = "unseen"
    """The guest ended before anybody could read what the kernel said."""


@dataclass(frozen=True, slots=True)
class Judged:
    """One frame, one way to fail, one source: what we named, and what came."""

    frame: Frame
    how: How
    read_from: From
    named: tuple[Outcome, ...]
    came: Outcome
    """An errno "" where nobody lived to see it; then it is not compared."""
    grade: Grade

    @property
    def types(self) -> TypeSet:
        return self.frame.proc.types if self.read_from == "proc" else self.frame.structs.types


@dataclass
class Score:
    """Grades added up: per frame of the sample, and per frame of the guest."""

    sampled: Counter[Grade] = field(default_factory=Counter)
    weighted: dict[Grade, float] = field(default_factory=lambda: dict.fromkeys(Grade, 0.0))

    def share(self, grade: Grade, *, weighted: bool = False) -> float:
        """Of the frames that were tested; 0.0 to 1.0."""
        counts: Mapping[Grade, float] = self.weighted if weighted else self.sampled
        tested = sum(counts[one] for one in (Grade.EXACT, Grade.SEVERAL, Grade.WRONG))
        return counts[grade] / tested if tested else 0.0


def judge(sweep: Sweep) -> Iterator[Judged]:
    """Every trial of a sweep, from both sources."""
    kernel = knowledge_of_sweep(sweep)
    for frame in sweep.frames:
        for how, trial in frame.trials.items():
            for read_from in FROM:
                rulings = _named(frame, how, read_from, kernel)
                came = outcome_of(how, trial)
                grade = _grade(frame, trial, read_from, rulings, came)
                yield Judged(frame, how, read_from, rulings, came, grade)


def score(judged: Iterable[Judged]) -> Score:
    """Add up; the weights are the frames of the guest that each sampled one stands for."""
    result = Score()
    for one in judged:
        result.sampled[one.grade] += 1
        result.weighted[one.grade] += one.frame.weight
    return result


def knowledge_of_sweep(sweep: Sweep) -> Knowledge:
    """What is known of the kernel that was swept."""
    behaviour = behaviour_of(KernelRelease.parse(sweep.release))
    return Knowledge(behaviour, sweep.sysctls, sweep.hugetlb_reserved)


# --- one trial ---------------------------------------------------------------------------


def _named(frame: Frame, how: How, read_from: From, kernel: Knowledge) -> tuple[Outcome, ...]:
    subjects = [_subject(frame, kind, read_from, kernel) for kind in _types(frame, read_from)]
    if how == "hard":
        hard = merged([hard_failure(subject, kernel) for subject in subjects])
        return tuple(dict.fromkeys(_hard(outcome) for outcome in hard.outcomes))
    soft = merged([soft_offline(subject, kernel) for subject in subjects])
    return tuple(dict.fromkeys((outcome.errno,) for outcome in soft.outcomes))


def _hard(outcome: HardOutcome) -> Outcome:
    return outcome.verdict.value, outcome.message, outcome.errno


def outcome_of(how: How, trial: Trial) -> Outcome:
    """What came of a trial; an errno "" where nobody lived to see it."""
    if how == "soft":
        return (trial.errno,)
    return trial.verdict.lower() or "no verdict", trial.message, trial.errno


def _grade(
    frame: Frame, trial: Trial, read_from: From, named: tuple[Outcome, ...], came: Outcome
) -> Grade:
    if not any((trial.errno, trial.verdict)):
        return Grade.UNSEEN
    if has_moved(frame, trial, read_from):
        return Grade.MOVED
    # Where nobody saw the errno, the verdict alone is compared.
    seen = len(came) if trial.errno else len(came) - 1
    hits = [one for one in named if one[:seen] == came[:seen]]
    if not hits:
        return Grade.WRONG
    return Grade.EXACT if len(named) == 1 else Grade.SEVERAL


def has_moved(frame: Frame, trial: Trial, read_from: From) -> bool:
    """Whether the frame had become something else between the look at it and the failure."""
    if read_from == "proc" and _differ(frame.proc.flags, frame.structs.flags):
        return True
    before, after = trial.flags_before, trial.flags_after
    if before is not None and _differ(before, frame.structs.flags):
        return True
    # A poisoned frame is never handed out: what it holds afterwards it held when it failed.
    was_free = not frame.structs.types.mask & ~_FREE.mask
    return was_free and after is not None and bool(after & KPF.HWPOISON and after & _CONTENT)


def _differ(one: int, other: int) -> bool:
    """Whether two kpageflags words tell of different memory, not only of other use."""
    return bool((one ^ other) & ~_USE)


_FREE = TypeSet.of(MemoryType.FREE, MemoryType.FREE_PCP)
_CONTENT = (KPF.ANON | KPF.SWAPBACKED).value
_USE = (KPF.REFERENCED | KPF.ACTIVE | KPF.IDLE | KPF.LOCKED | KPF.RECLAIM).value


def _types(frame: Frame, read_from: From) -> TypeSet:
    return frame.proc.types if read_from == "proc" else frame.structs.types


def _subject(frame: Frame, kind: MemoryType, read_from: From, kernel: Knowledge) -> Subject:
    facts = frame.proc if read_from == "proc" else frame.structs
    flags = KPF(facts.flags & _KNOWN)
    if kernel.behaviour.tails_show_own_flags:
        own = KPF.COMPOUND_HEAD | KPF.COMPOUND_TAIL | KPF.HWPOISON
        flags |= KPF(facts.head_flags & _KNOWN) & ~own
    if read_from == "proc":
        return Subject(kind, flags)
    order = frame.structs.nr_pages.bit_length() - 1
    extra = _extra(kind, frame.structs)
    return Subject(kind, flags, order, extra, file_system=frame.structs.owner or None)


def _extra(kind: MemoryType, structs: StructFacts) -> bool | None:
    """Whether somebody holds the frame, as its counts and buffers tell."""
    if structs.refcount is None or structs.mapcount is None:
        return None
    counts = {
        "refcount": structs.refcount,
        "mapcount": structs.mapcount,
        "nr_pages": structs.nr_pages,
    }
    if kind is MemoryType.HUGETLB:
        return hugetlb_is_held(**counts, is_anon=bool(structs.head_flags & KPF.ANON))
    extra = holds_extra(
        kind,
        **counts,
        private=bool(structs.head_flags & KPF.PRIVATE),
        on_lru=bool(structs.head_flags & KPF.LRU),
    )
    if structs.buffers is not None and structs.buffers.is_held:
        return True
    return extra


_KNOWN = 0
for _flag in KPF:
    _KNOWN |= _flag.value
