"""Events in the order in which requests were served, where a trace has them in another.

`mm_page_alloc` is the last thing that an allocation does, `mm_page_free` nearly the first that a
free does (`mm/page_alloc.c:__alloc_pages, free_pages_prepare` @6.12).  Where the task is preempted
or interrupted in between, events of others come first.  The CPU's list tells: it is last in, first
out, so a request that passes over its first block cannot have been served at that point.

- The block passed over goes, later, to another task, as the first that is heard of it since: that
  task was preempted after it had been served.  Its request comes first.
- The blocks passed over were freed before, and the task made no request since: they were on their
  way, or freed by an interrupt, when its request was served.  It comes before them.

What neither explains stays where it is.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from memdesc.model.compiled import array
from memdesc.model.follow import PageEvents
from memdesc.traces.events import Event, Trace

__all__ = ["as_served"]


def as_served(
    trace: Trace, rows: NDArray[np.int64], events: PageEvents
) -> tuple[NDArray[np.int64], int]:
    """A better order of `rows`, after they were followed, and how many requests it moves.

    `rows`: int64[n], rows of the trace; the order is int64[n], places in `rows`. Moves that
    overlap wait for the next time: what is passed over after a wrong place may be its effect.
    """
    passed_over, behind = array(events.passed_over), array(events.behind)
    order = np.arange(rows.size)
    is_alloc = trace.event[rows] == Event.PAGE_ALLOC
    done, moved = -1, 0
    for at in np.flatnonzero(passed_over >= 0).tolist():
        if at <= done:
            continue
        source, target = _preempted(trace, rows, is_alloc, at, int(passed_over[at])), at
        if source < 0:
            source, target = at, int(behind[at])
            own = trace.pid[rows[max(0, target) : at]] == trace.pid[rows[at]]
            if target <= done or (is_alloc[target:at] & own).any():
                continue
        order[target : source + 1] = np.concatenate(([source], np.arange(target, source)))
        done, moved = source, moved + 1
    return order, moved


# --- helpers -----------------------------------------------------------------------------


def _preempted(
    trace: Trace, rows: NDArray[np.int64], is_alloc: NDArray[np.bool_], at: int, first: int
) -> int:
    """The place of the request that was served before the one at `at` and got the block `first`;
    -1 where it is not one of a task that was silent since."""
    later = np.flatnonzero((trace.pfn[rows[at:]] == first) & is_alloc[at:])
    if not later.size:
        return -1
    place = at + int(later[0])
    row, pid = int(rows[place]), int(trace.pid[rows[place]])
    silent = not (trace.pid[int(rows[at]) : row] == pid).any()
    return place if silent and pid != int(trace.pid[rows[at]]) else -1
