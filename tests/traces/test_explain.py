"""Every page that changed between free and used has an event that explains it, on real kernels."""

from __future__ import annotations

import numpy as np
import pytest
from traces.recorded import NAMES, recorded, states

from memdesc.kernels.kpageflags import KPF
from memdesc.traces.events import Event, Trace
from memdesc.traces.explain import Explanation, explain, seen_at
from memdesc.traces.state import AllocatorState, blocks_of_runs, state_of_free


def rows_between(name: str) -> tuple[int, int]:
    trace = recorded(name).trace
    before, after = states(name)
    return (
        seen_at(trace, before, trace.marker("before"), trace.marker("begin")),
        seen_at(trace, after, trace.marker("after"), trace.marker("held")),
    )


def explained(name: str) -> Explanation:
    return explain(recorded(name).trace, *states(name), *rows_between(name))


@pytest.mark.parametrize("name", NAMES)
def test_nothing_was_lost(name: str) -> None:
    found = recorded(name)
    assert found.trace.report.is_complete
    assert not found.trace.report.other_events
    assert len(found.trace) > 40_000


@pytest.mark.parametrize("name", NAMES)
def test_every_page_that_changed_has_its_event(name: str) -> None:
    result = explained(name)
    assert result.frames_changed > 2000
    assert result.frames_unexplained == 0, [hex(pfn) for pfn in result.unexplained]
    # The markers enclose nearly everything: no window is left in which pages change unseen.
    assert result.end - result.first > 0.99 * len(recorded(name).trace)


@pytest.mark.parametrize("name", NAMES)
def test_page_flags_alone_are_explained_as_well(name: str) -> None:
    trace = recorded(name).trace
    before, after = flag_states(name)
    result = explain(trace, before, after, 0, trace.marker("after"))
    assert result.frames_changed > 2000
    assert result.frames_unexplained == 0


@pytest.mark.parametrize("event", [Event.PAGE_ALLOC, Event.PAGE_FREE, Event.ZONE_LOCKED])
def test_a_missing_event_is_noticed(event: Event) -> None:
    name = "6.12-compile"
    trace = recorded(name).trace
    first, end = rows_between(name)
    last = last_rows(trace, first, end)
    before, after = states(name)
    changed = np.flatnonzero(place(before) != place(after))
    row = next(last[pfn] for pfn in changed.tolist() if trace.event[last[pfn]] == event)
    without = trace.between(0, len(trace))
    without.columns["event"] = without.columns["event"].copy()
    without.columns["event"][row] = Event.KFREE
    result = explain(without, before, after, first, end)
    # What an event before it says may be as good; mostly it is not.
    assert result.frames_unexplained or result.changes != explained(name).changes


def test_a_trace_of_another_time_explains_nothing() -> None:
    before, after = states("6.12-compile")
    nothing = recorded("6.12-compile").trace.between(0, 10)
    result = explain(nothing, before, after)
    assert result.frames_unexplained == result.frames_changed > 2000
    assert result.unexplained.size == 16


# --- the states themselves ---------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_lists_page_flags_and_buddyinfo_agree_on_what_is_free(name: str) -> None:
    for state, flags in zip(states(name), flag_states(name), strict=True):
        assert np.array_equal(state.is_free(), flags.is_free())
        # Largest aligned blocks are the lists' own, but for neighbours of types that never merge.
        assert state.free_by_order().tolist() == flags.free_by_order().tolist()
        # NR_FREE_PAGES lacks what waits on the CPUs to be added: up to 125 for each zone.
        assert abs(state.free.nr_pages - sum(zone.free for zone in state.zones)) <= 250
        assert state.pcp.nr_pages == sum(cpu.count for zone in state.zones for cpu in zone.cpus)
        assert not (state.is_free() & state.is_on_cpus()).any()


def test_runs_are_cut_into_the_largest_aligned_blocks() -> None:
    starts, ends = np.array([1, 1024, 5000]), np.array([12, 4096, 5001])
    pfn, order = blocks_of_runs(starts, ends)
    assert list(zip(pfn.tolist(), order.tolist(), strict=True)) == [
        (1, 0), (2, 1), (4, 2), (8, 2), (1024, 10), (2048, 10), (3072, 10), (5000, 0),
    ]  # fmt: skip


# --- helpers -----------------------------------------------------------------------------


def flag_states(name: str) -> tuple[AllocatorState, AllocatorState]:
    """What /proc/kpageflags showed at the two moments."""
    found = recorded(name)
    both = []
    for state, flags in zip(states(name), (found.flags_before, found.flags_after), strict=True):
        assert flags is not None
        is_free = np.zeros(state.pfn_end, np.bool_)
        words = flags[: state.pfn_end]
        is_free[: words.size] = words & np.uint64(KPF.BUDDY) != 0
        both.append(state_of_free(is_free, state.zones, state.release, state.pageblocks))
    return both[0], both[1]


def place(state: AllocatorState) -> np.ndarray:
    return state.is_free().astype(int) + 2 * state.is_on_cpus()


def last_rows(trace: Trace, first: int, end: int) -> dict[int, int]:
    """The last row of each frame, by the slow way."""
    found: dict[int, int] = {}
    kinds = (Event.PAGE_ALLOC, Event.PAGE_FREE, Event.ZONE_LOCKED, Event.PCPU_DRAIN, Event.EXTFRAG)
    for row in first + trace.between(first, end).of(*kinds):
        pfn = int(trace.pfn[row])
        for frame in range(pfn, pfn + (1 << int(trace.order[row]))):
            found[frame] = int(row)
    return found
