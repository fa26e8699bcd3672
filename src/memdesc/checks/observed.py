"""What did real kernels do with memory of this kind? From the recorded sweeps.

An answer that a rule gives is *inferred*; where a sweep made a frame of the same kind fail
on the same kernel series and the same came of it, it was *observed*.

    >>> "6.12" in observed_on(MemoryType.SLAB, ("ignored", "get hwpoison page", "EBUSY"))
    True
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from memdesc.checks.sweep_judge import Outcome, has_moved, outcome_of
from memdesc.checks.sweep_rows import How, recorded_sweeps
from memdesc.types import MemoryType

__all__ = ["Observation", "observed", "observed_on", "swept_series"]


@dataclass(frozen=True, slots=True)
class Observation:
    """One outcome of failures of one kind of memory on one kernel."""

    outcome: Outcome
    """Hard: (verdict, what the log calls the frame, errno). Soft: (errno,)."""
    frames: int
    """Frames that were made to fail with that outcome."""


def observed(kind: MemoryType, series: str, how: How = "hard") -> tuple[Observation, ...]:
    """Everything that came of failures of `kind` on the kernels of `series` ("6.12").

    Most frequent first; empty where no frame that is certainly of that kind was made to fail.
    """
    found = _outcomes().get((series, how, kind), {})
    seen = [Observation(outcome, frames) for outcome, frames in found.items()]
    return tuple(sorted(seen, key=lambda it: (-it.frames, it.outcome)))


def observed_on(kind: MemoryType, outcome: Outcome, how: How = "hard") -> tuple[str, ...]:
    """The series on which a failure of `kind` ended with `outcome`, oldest first."""
    return tuple(
        series for series in swept_series() if outcome in _outcomes().get((series, how, kind), {})
    )


@cache
def swept_series() -> tuple[str, ...]:
    """The kernel series with a recorded sweep, oldest first."""
    return tuple(sweep.series for sweep in recorded_sweeps())


# --- helpers -----------------------------------------------------------------------------


@cache
def _outcomes() -> Mapping[tuple[str, How, MemoryType], Mapping[Outcome, int]]:
    """(series, how, kind) -> outcome -> frames. Kinds are those of the struct pages."""
    found: dict[tuple[str, How, MemoryType], dict[Outcome, int]] = defaultdict(dict)
    for sweep in recorded_sweeps():
        for frame in sweep.frames:
            if len(frame.structs.types) != 1:
                continue
            (kind,) = frame.structs.types
            for how, trial in frame.trials.items():
                # Where the guest died of it, nobody saw the errno.
                if trial.errno and not has_moved(frame, trial, "structs"):
                    counts = found[sweep.series, how, kind]
                    came = outcome_of(how, trial)
                    counts[came] = counts.get(came, 0) + 1
    return found
