"""Real traces replayed: the model's lists at the end, and at every step, against the kernel's.

The traces are in tests/data/traces; `traces.recorded` says how they were made.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from functools import cache

import numpy as np
import pytest
from traces.recorded import FOLDER, NAMES, STEPS, recorded, states

from memdesc.errors import QuestionError
from memdesc.kernels.kpageflags import KPF
from memdesc.model.check import check
from memdesc.model.replay import Outcome, Replayer, replay
from memdesc.model.replay_state import blocks_in, machine_of
from memdesc.model.replay_steps import judge_steps, parse_buddyinfo
from memdesc.traces.events import Event, Trace
from memdesc.traces.state import state_of_free


@cache
def player(name: str) -> Replayer:
    before, after = states(name)
    return Replayer(recorded(name).trace, before, after, recorded(name).movable())


@cache
def followed(name: str) -> Outcome:
    return player(name).follow()


@cache
def chosen(name: str) -> Outcome:
    return player(name).choose()


@pytest.mark.parametrize("name", NAMES)
def test_a_machine_begins_with_the_kernels_lists_in_their_order(name: str) -> None:
    before, _ = states(name)
    machine = machine_of(before, movable=recorded(name).movable())
    check(machine)
    for mine, theirs in zip(blocks_in(machine.state), (before.free, before.pcp), strict=True):
        assert mine.pfn.tolist() == theirs.pfn.tolist()
        assert mine.order.tolist() == theirs.order.tolist()
        assert mine.migratetype.tolist() == theirs.migratetype.tolist()
    assert machine.buddyinfo() == before.files["buddyinfo"]


@pytest.mark.parametrize("name", NAMES)
def test_following_the_kernel_ends_with_its_lists_frame_by_frame(name: str) -> None:
    result = followed(name)
    assert result.counts["allocated"] > 5000
    assert result.counts["contradictions"] == 0
    assert result.counts["handed out without an event"] == 0
    assert result.lists.is_exact
    assert result.lists.cpu_frames_wrong == 0
    assert result.lists.pageblocks_wrong == 0
    check(result.machine)


@pytest.mark.parametrize("name", NAMES)
def test_the_model_alone_chooses_the_frames_that_the_kernel_chose(name: str) -> None:
    result = chosen(name)
    check(result.machine)
    same, allocated = result.counts["given the kernel's own frame"], result.counts["allocated"]
    assert result.counts["failed here"] == 0
    assert same == allocated
    assert result.lists.is_exact
    assert result.lists.cpu_frames_wrong == 0


def test_few_requests_are_told_of_later_than_they_were_served() -> None:
    """A task is preempted (7.2) or interrupted between getting its page and the event."""
    moved = {
        name: chosen(name).counts.get("put back to where they were served", 0) for name in NAMES
    }
    assert moved["7.2-churn"] == 5
    assert moved["7.2-compile"] == 12
    assert sum(moved.values()) == 17


def test_without_that_correction_frames_are_swapped_and_blocks_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "memdesc.model.replay.as_served", lambda _, rows, __: (np.arange(rows.size), 0)
    )
    before, after = states("7.2-churn")
    found = recorded("7.2-churn")
    result = replay(found.trace, before, after, modes=("own",), movable=found.movable()).own
    assert result is not None
    assert 0.9 < result.counts["given the kernel's own frame"] / result.counts["allocated"] < 1
    assert result.lists.blocks_wrong == 0


@pytest.mark.parametrize("name", STEPS)
def test_each_forced_sequence_changes_buddyinfo_as_in_the_kernel(name: str) -> None:
    found = judge_steps(recorded(name))
    assert [step.name.partition("-")[2] for step in found] == [
        "start", "hugetlb-grown", "hugetlb-shrunk", "touched", "unmapped", "files",
        "files-closed", "pipes", "pipes-filled", "pipes-closed",
    ]  # fmt: skip
    for step in found:
        assert step.model.tolist() == step.kernel.tolist(), step.name
        assert step.same_frame == step.allocated
    # They do change it: a model that stood still would not pass.
    assert len({step.kernel.tobytes() for step in found}) >= 7


def test_rules_of_another_kernel_are_noticed() -> None:
    before, after = states("6.12-steps")
    as_61 = dataclasses.replace(before, release="6.1.192")
    result = replay(recorded("6.12-steps").trace, as_61, after, modes=("own",)).own
    assert result is not None
    assert not result.lists.is_exact
    assert result.counts["given the kernel's own frame"] < result.counts["allocated"]


@pytest.mark.parametrize("event", [Event.PAGE_ALLOC, Event.PAGE_FREE, Event.ZONE_LOCKED])
def test_a_missing_event_is_noticed(event: Event) -> None:
    trace = recorded("6.12-steps").trace
    row = int(trace.of(event)[1000])
    without = trace.between(0, len(trace))
    without.columns["event"] = without.columns["event"].copy()
    without.columns["event"][row] = Event.KFREE
    before, after = states("6.12-steps")
    result = replay(without, before, after, modes=("follow",)).follow
    assert result is not None
    assert (
        result.counts["contradictions"]
        or result.counts["handed out without an event"]
        or not result.lists.is_exact
        or result.lists.cpu_frames_wrong
    )


def test_page_flags_are_enough_to_follow() -> None:
    """From a capture, which knows no order of lists and no CPUs' lists."""
    name = "6.12-compile"
    found = recorded(name)
    moments = []
    for state, flags in zip(states(name), (found.flags_before, found.flags_after), strict=True):
        assert flags is not None
        is_free = np.zeros(state.pfn_end, np.bool_)
        is_free[: flags.size] = flags[: state.pfn_end] & np.uint64(KPF.BUDDY) != 0
        moments.append(state_of_free(is_free, state.zones, state.release, state.pageblocks))
    result = replay(found.trace, *moments, modes=("follow",)).follow
    assert result is not None
    assert result.lists.names == ("all",)
    assert result.lists.is_exact
    assert result.lists.cpu_frames_wrong is None


def test_compiled_and_plain_python_agree() -> None:
    """The same trace, in a process where nothing is compiled."""
    program = (
        "from memdesc.model.compiled import COMPILED; assert not COMPILED\n"
        "from memdesc.traces.read import open_trace\n"
        "from memdesc.model.replay import Replayer\n"
        f"r = open_trace(__import__('pathlib').Path({str(FOLDER / '7.2-steps.npz')!r}))\n"
        "p = Replayer(r.trace, r.before, r.after, r.movable())\n"
        "import json\n"
        "print(json.dumps([[dict(o.counts), o.lists.model.tolist(), o.machine.buddyinfo()]"
        " for o in (p.follow(), p.choose())]))\n"
    )
    environment = {**os.environ, "MEMDESC_MODEL_COMPILED": "0"}
    plain = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    ways = (followed("7.2-steps"), chosen("7.2-steps"))
    compiled = [
        [dict(way.counts), way.lists.model.tolist(), way.machine.buddyinfo()] for way in ways
    ]
    assert json.loads(plain.stdout) == compiled


# --- what is refused ---------------------------------------------------------------------


def changed(column: str, value: int) -> Trace:
    trace = recorded("6.12-steps").trace
    copy = trace.between(0, len(trace))
    copy.columns[column] = copy.columns[column].copy()
    copy.columns[column][trace.of(Event.PAGE_ALLOC)[2000]] = value
    return copy


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("pfn", 1 << 40, "frames that the machine before it has not"),
        ("pfn", 0, "frames that the machine before it has not"),
        ("order", 60, "larger than the largest order"),
        ("cpu", 7, "more processors"),
        ("migratetype", 5, "migratetype"),
    ],
)
def test_a_trace_of_another_machine_is_refused(column: str, value: int, said: str) -> None:
    before, after = states("6.12-steps")
    with pytest.raises(QuestionError, match=said):
        replay(changed(column, value), before, after)


def test_lists_that_cannot_be_are_refused() -> None:
    before, _ = states("6.12-steps")
    free = before.free

    def with_free(**columns: np.ndarray) -> None:
        machine_of(dataclasses.replace(before, free=dataclasses.replace(free, **columns)))

    with_free()
    with pytest.raises(QuestionError, match="not modelled"):
        with_free(migratetype=np.full_like(free.migratetype, 200))
    with pytest.raises(QuestionError, match="contradict"):
        with_free(zone=1 - free.zone)
    with pytest.raises(QuestionError, match="contradict"):
        with_free(pfn=np.full_like(free.pfn, free.pfn[-1]))
    with pytest.raises(QuestionError, match="zones"):
        machine_of(dataclasses.replace(before, zones=()))


def test_a_kernel_with_one_more_migratetype_is_renumbered() -> None:
    """CMA comes before ISOLATE, and nothing is of that type."""
    before, after = states("6.12-steps")
    names = ("Unmovable", "Movable", "Reclaimable", "HighAtomic", "CMA", "Isolate")
    with_cma = dataclasses.replace(before, migratetypes=names)
    result = replay(recorded("6.12-steps").trace, with_cma, after, modes=("own",)).own
    assert result is not None
    assert result.lists.is_exact
    isolated = dataclasses.replace(
        with_cma, pageblocks=np.where(before.pageblocks == 1, 4, before.pageblocks)
    )
    with pytest.raises(QuestionError, match="CMA"):
        machine_of(isolated)


def test_a_trace_without_pages_is_refused() -> None:
    before, after = states("6.12-steps")
    trace = recorded("6.12-steps").trace
    with pytest.raises(QuestionError, match="no event of a page"):
        replay(trace.between(0, 2), before, after)


def test_steps_need_a_trace_with_steps() -> None:
    with pytest.raises(QuestionError, match="steps"):
        judge_steps(recorded("6.12-compile"))


def test_buddyinfo_is_read() -> None:
    before, _ = states("6.12-steps")
    table = parse_buddyinfo(before.files["buddyinfo"])
    assert table.sum(axis=0).tolist() == before.free_by_order().tolist()
