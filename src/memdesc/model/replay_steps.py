"""Sequences that user space can force, judged step by step against /proc/buddyinfo.

A recorded workload stops now and then and copies the free lists, between two markers of the
trace ("reading N-NAME", "step N-NAME").  The model gets the same requests, chooses its own
frames, and must have the same number of free blocks of every order in every zone at some event
between the two markers: the kernel goes on while its file is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memdesc.errors import FormatError, QuestionError
from memdesc.kernels.allocator import MAX_ORDER
from memdesc.model import state as s
from memdesc.model.compiled import array
from memdesc.model.replay import Replayer
from memdesc.model.state import State
from memdesc.traces.store import Recorded

__all__ = ["Step", "judge_steps"]

_ORDERS = MAX_ORDER + 1
_MOST_TRIES = 64
"""Page events between the markers that are tried, evenly spread."""


@dataclass(frozen=True)
class Step:
    """One moment of a workload: free blocks by zone (rows) and order (columns 0 to 10)."""

    name: str
    kernel: NDArray[np.int64]
    model: NDArray[np.int64]
    """At the event between the markers where it comes nearest."""
    allocated: int
    """Requests since the start."""
    same_frame: int
    """Of these, those that were given the frame that the kernel gave."""

    @property
    def blocks_wrong(self) -> int:
        """Sum over zones and orders of the difference of the numbers of blocks."""
        return int(np.abs(self.kernel - self.model).sum())


def judge_steps(recorded: Recorded) -> list[Step]:
    """Every step of a recorded workload. Raises QuestionError where it has none."""
    if recorded.before is None or not recorded.steps:
        raise QuestionError(
            "the trace was not recorded with steps", hint="memdesc vm trace --workload steps"
        )
    player = Replayer(recorded.trace, recorded.before, recorded.after, recorded.movable())
    found = []
    for name, reading, read in _moments(recorded):
        kernel = parse_buddyinfo(recorded.steps[f"{name}/buddyinfo"])
        best: Step | None = None
        for end in player.ends_between(reading, read, _MOST_TRIES):
            outcome = player.choose(end)
            model = _by_zone(outcome.machine.state)
            if model.shape != kernel.shape:
                raise FormatError("buddyinfo of a step has other zones than the machine before it")
            step = Step(
                name,
                kernel,
                model,
                outcome.counts["allocated"],
                outcome.counts["given the kernel's own frame"],
            )
            if best is None or step.blocks_wrong < best.blocks_wrong:
                best = step
            if not best.blocks_wrong:
                break
        if best is not None:
            found.append(best)
    return found


def parse_buddyinfo(text: str) -> NDArray[np.int64]:
    """int64[zones, 11] of /proc/buddyinfo. Raises FormatError for anything else."""
    rows = [line.split()[4:] for line in text.splitlines()]
    if not rows or any(len(row) != _ORDERS or not all(map(str.isdecimal, row)) for row in rows):
        raise FormatError("this is no /proc/buddyinfo")
    return np.array([[int(word) for word in row] for row in rows], np.int64)


# --- helpers -----------------------------------------------------------------------------


def _moments(recorded: Recorded) -> Iterator[tuple[str, int, int]]:
    """(name, row of the marker before reading, row of the one after) of every step."""
    marks = {text: row for row, text in recorded.trace.markers()}
    for text, row in marks.items():
        kind, _, name = text.partition(" ")
        if kind == "step" and f"{name}/buddyinfo" in recorded.steps:
            yield name, marks.get(f"reading {name}", row), row


def _by_zone(state: State) -> NDArray[np.int64]:
    """Free blocks by zone and order: nr_free."""
    zones = array(state.zones).reshape(-1, 1 << s.ZONE_SHIFT)
    return zones[:, s.Z_NR_FREE : s.Z_NR_FREE + _ORDERS].copy()
