"""`memdesc model replay`."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memdesc.cli.common import (
    add_thread_argument,
    console,
    envelope,
    notice,
    print_json,
    steps,
    table,
)
from memdesc.cli.model_replay_designs import cost_json, costs_of, show_costs
from memdesc.errors import QuestionError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from memdesc.model.replay import Outcome, Replay
    from memdesc.model.replay_steps import Step
    from memdesc.traces.events import Trace
    from memdesc.traces.explain import Explanation
    from memdesc.traces.state import AllocatorState

HELP = "feed a real allocation trace to the model"
DESCRIPTION = (
    "Feed a real allocation trace to the model, from the machine as it was before: once with the\n"
    "frames that the kernel chose, once with its own choice. Then compare the free lists with\n"
    "the kernel's, order by order, and say which event explains each page that changed.\n\n"
    "TRACE is a folder of `memdesc vm trace` or its trace.npz, a folder copied from tracefs\n"
    "(events/, per_cpu/*/trace_pipe_raw), or a text: tracefs, perf script, trace-cmd report.\n"
    "Only `memdesc vm trace` keeps the moments before and after; others need --before."
)
EXAMPLES = """
  memdesc model replay traced                          recorded by `memdesc vm trace`
  memdesc model replay traced --own --json             only with the model's own choice
  memdesc model replay traced --designs                what describing its pages would cost
  memdesc model replay trace.txt --before capture-1 --after capture-2
  memdesc model replay tracefs-copy --before 1.vmcore --vmlinux vmlinux
"""

_ORDERS = 11


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("trace", metavar="TRACE", type=Path)
    parser.add_argument(
        "--before",
        metavar="SOURCE",
        help="the machine before: a dump has all lists, a capture or tree:DIR only what is free",
    )
    parser.add_argument("--after", metavar="SOURCE", help="the machine after, to compare with")
    way = parser.add_mutually_exclusive_group()
    way.add_argument("--follow", action="store_true", help="only with the kernel's frames")
    way.add_argument("--own", action="store_true", help="only with the model's own choice")
    parser.add_argument(
        "--designs",
        action="store_true",
        help="also what the trace's allocations cost under each design of page and descriptors",
    )
    parser.add_argument(
        "--kernel", metavar="RELEASE", help="whose rules the model follows (default: the source's)"
    )
    parser.add_argument(
        "--vmlinux", metavar="FILE", help="with a crash dump: its kernel image, with DWARF or BTF"
    )
    add_thread_argument(parser)
    parser.add_argument("--json", action="store_true", help="machine-readable output on stdout")


def run(options: argparse.Namespace) -> int:
    from memdesc.model.replay import bounds, replay
    from memdesc.model.replay_state import rules_of
    from memdesc.model.replay_steps import judge_steps
    from memdesc.traces.explain import explain
    from memdesc.traces.read import open_trace

    with steps() as tell:
        tell("reading the trace")
        recorded = open_trace(options.trace)
        if options.before:
            tell("reading the machine before")
            recorded.before, movable = _moment(options, options.before)
        else:
            movable = recorded.movable()
        if options.after:
            tell("reading the machine after")
            recorded.after, _ = _moment(options, options.after)
        if recorded.before is None:
            raise QuestionError(
                "the trace does not say what was free before it",
                hint="--before SOURCE: a dump, a capture, or a copy of /proc made before tracing",
            )
        if options.kernel:
            recorded.before = _with_release(recorded.before, options.kernel)
        trace, before, after = recorded.trace, recorded.before, recorded.after
        tell("replaying (the first time, compiling)")
        modes = ("follow",) * (not options.own) + ("own",) * (not options.follow)
        result = replay(trace, before, after, modes=modes, movable=movable)
        explained = None
        if after is not None:
            explained = explain(trace, before, after, *bounds(trace, before, after))
        judged = judge_steps(recorded) if recorded.steps and result.own is not None else []
        costs = costs_of(trace, before) if options.designs else []
    if options.json:
        value = {
            **_json(trace, before, result, explained, judged),
            "designs": [cost_json(run) for run in costs],
        }
        kernel = rules_of(before).release
        print_json(envelope(value, source=str(options.trace), kernel=kernel))
    else:
        _show(trace, before, result, explained, judged)
        if costs:
            show_costs(costs)
    return 1 if _is_wrong(before, after, result, explained, judged) else 0


# --- input -------------------------------------------------------------------------------


def _moment(
    options: argparse.Namespace, text: str
) -> tuple[AllocatorState, NDArray[np.bool_] | None]:
    """The allocator's state in a source, and which frames could be moved there."""
    from memdesc.model.replay_map import moment_of_map, movable_in_map
    from memdesc.sources.open import open_source
    from memdesc.sources.structs import DumpSource

    source = open_source(text, vmlinux=options.vmlinux, threads=options.threads)
    found = source.map()
    if isinstance(source, DumpSource):
        from memdesc.structs.walk.allocator import read_allocator

        return read_allocator(source.kernel, source.memmap), movable_in_map(found)
    return moment_of_map(found), movable_in_map(found)


def _with_release(before: AllocatorState, text: str) -> AllocatorState:
    from memdesc.kernels.release import KernelRelease

    release = KernelRelease.parse(text)
    if release.beyond_what_was_read:
        notice(f"note: {release.beyond_what_was_read}")
    return dataclasses.replace(before, release=release.text)


def _is_wrong(
    before: AllocatorState,
    after: AllocatorState | None,
    result: Replay,
    explained: Explanation | None,
    judged: list[Step],
) -> bool:
    """Whether something was found that should not be, where all that matters is known."""
    if after is None or not (before.exact and after.exact):
        return False
    followed = result.follow
    return (
        (followed is not None and not followed.lists.is_exact)
        or (explained is not None and explained.frames_unexplained > 0)
        or any(step.blocks_wrong for step in judged)
    )


def _notes(trace: Trace, before: AllocatorState) -> list[str]:
    """What a reader of the answer must know."""
    notes = trace.report.notes()
    counts = trace.counts()
    if "page_alloc" in counts and "zone_locked" not in counts:
        notes.append(
            "the trace has no mm_page_alloc_zone_locked: what went to the CPUs' lists cannot be "
            "followed; record it and mm_page_pcpu_drain as well"
        )
    if not before.exact:
        notes.append(
            "the machine before shows no order of the lists, no CPUs' lists and no migratetypes: "
            "only a dump does"
        )
    return notes


# --- text --------------------------------------------------------------------------------

_WAYS = {"follow": "with the kernel's frames", "own": "with its own choice"}


def _show(
    trace: Trace,
    before: AllocatorState,
    result: Replay,
    explained: Explanation | None,
    judged: list[Step],
) -> None:
    out = console()
    ways = [way for way in (result.follow, result.own) if way is not None]
    out.print(
        f"{len(trace):,} events, {result.events:,} of pages replayed; kernel "
        f"{before.release or 'not known'}",
        markup=False,
        highlight=False,
    )
    out.print()
    lists = ways[0].lists
    rows = [_row("free before", lists.start.sum(axis=0))]
    if lists.kernel is not None:
        rows.append(_row("after, kernel", lists.kernel.sum(axis=0)))
    rows += [_row(f"after, model {_WAYS[way.mode]}", way.lists.model.sum(axis=0)) for way in ways]
    columns = ["free blocks by order", *map(str, range(_ORDERS)), "frames"]
    out.print(table(columns, rows, right=range(1, _ORDERS + 2)))
    if len(lists.names) > 1:
        out.print()
        columns = ["after, by migratetype", *map(str, range(_ORDERS)), "frames"]
        out.print(table(columns, _by_type(ways), right=range(1, _ORDERS + 2)))
    for way in ways:
        out.print()
        out.print(f"{_WAYS[way.mode]}:", markup=False, highlight=False)
        for line in _lines(way):
            out.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)
    if explained is not None:
        out.print()
        _show_changes(explained)
    if judged:
        out.print()
        cells = [
            [step.name, f"{step.blocks_wrong}", f"{step.same_frame:,}", f"{step.allocated:,}"]
            for step in judged
        ]
        out.print(
            table(
                ["step", "blocks that differ", "same frame", "of requests"], cells, right=(1, 2, 3)
            )
        )
    for note in _notes(trace, before):
        notice(f"note: {note}")


def _by_type(ways: list[Outcome]) -> list[list[str]]:
    """A row for each type; where kernel and models differ, one for each of them."""
    rows = []
    for index, name in enumerate(ways[0].lists.names):
        tables = {f"{name}, model {_WAYS[way.mode]}": way.lists.model[index] for way in ways}
        if ways[0].lists.kernel is not None:
            tables = {f"{name}, kernel": ways[0].lists.kernel[index], **tables}
        if len({blocks.tobytes() for blocks in tables.values()}) == 1:
            tables = {name: next(iter(tables.values()))}
        rows += [_row(label, blocks) for label, blocks in tables.items() if blocks.any()]
    return rows


def _row(name: str, blocks: NDArray[np.int64]) -> list[str]:
    frames = sum(int(count) << order for order, count in enumerate(blocks))
    return [name, *(f"{count:,}" for count in blocks.tolist()), f"{frames:,}"]


def _lines(way: Outcome) -> list[str]:
    lists = way.lists
    counts = ", ".join(f"{value:,} {name}" for name, value in way.counts.items() if value)
    found = [counts]
    if way.mode == "own" and way.counts["allocated"]:
        same = way.counts["given the kernel's own frame"]
        share = 100 * same / way.counts["allocated"]
        found.append(f"{share:.1f} % of the requests were given the frame that the kernel gave")
    if lists.kernel is None:
        return found
    if lists.is_exact:
        found.append("every free list is the kernel's, frame by frame")
    else:
        found.append(
            f"{lists.blocks_wrong:,} blocks too many or too few, {lists.frames_wrong:,} frames "
            "free in one and not in the other"
        )
    if lists.cpu_frames_wrong is not None:
        found.append(
            "the CPUs' lists hold the same frames"
            if not lists.cpu_frames_wrong
            else f"{lists.cpu_frames_wrong:,} frames are on a CPU's list in one and not in the "
            "other"
        )
    if lists.pageblocks_wrong:
        found.append(f"{lists.pageblocks_wrong:,} pageblocks have another type")
    return found


def _show_changes(explained: Explanation) -> None:
    out = console()
    cells = [
        [change.before, change.after, f"{change.frames:,}", change.explanation or "NOT EXPLAINED"]
        for change in explained.changes
    ]
    out.print(table(["frames were", "and are", "frames", "because"], cells, right=(2,)))
    unexplained = explained.frames_unexplained
    said = f"{unexplained:,} have no event" if unexplained else "every one has its event"
    out.print(f"{explained.frames_changed:,} frames changed; {said}", markup=False, highlight=False)
    for pfn in explained.unexplained.tolist():
        out.print(f"  frame {pfn:#x}", markup=False, highlight=False)


# --- JSON --------------------------------------------------------------------------------


def _json(
    trace: Trace,
    before: AllocatorState,
    result: Replay,
    explained: Explanation | None,
    judged: list[Step],
) -> dict[str, Any]:
    report = trace.report
    return {
        "schema": "memdesc-replay/1",
        "exact": before.exact,
        "trace": {
            "format": report.format,
            "events": len(trace),
            "by_event": trace.counts(),
            "lost_events": report.lost_events,
            "lost_gaps": report.lost_gaps,
            "complete": report.is_complete,
        },
        "replayed": {
            "row_start": result.first,
            "row_end": result.end,
            "page_events": result.events,
        },
        "rows": _rows(result),
        "follow": _outcome_json(result.follow),
        "own": _outcome_json(result.own),
        "explained": None
        if explained is None
        else {
            "frames_changed": explained.frames_changed,
            "frames_unexplained": explained.frames_unexplained,
            "changes": [dataclasses.asdict(change) for change in explained.changes],
        },
        "steps": [
            {
                "step": step.name,
                "kernel": step.kernel.tolist(),
                "model": step.model.tolist(),
                "blocks_wrong": step.blocks_wrong,
                "allocated": step.allocated,
                "same_frame": step.same_frame,
            }
            for step in judged
        ],
        "notes": _notes(trace, before),
    }


def _rows(result: Replay) -> list[dict[str, Any]]:
    """Free blocks by migratetype and order, at the start and at the end of each way."""
    ways = {way.mode: way.lists for way in (result.follow, result.own) if way is not None}
    lists = next(iter(ways.values()))
    rows = []
    for kind, name in enumerate(lists.names):
        for order in range(_ORDERS):
            counts = {mode: int(found.model[kind, order]) for mode, found in ways.items()}
            kernel = None if lists.kernel is None else int(lists.kernel[kind, order])
            rows.append(
                {
                    "migratetype": name,
                    "order": order,
                    "start": int(lists.start[kind, order]),
                    "kernel": kernel,
                    "follow": counts.get("follow"),
                    "own": counts.get("own"),
                }
            )
    return rows


def _outcome_json(way: Outcome | None) -> dict[str, Any] | None:
    if way is None:
        return None
    lists = way.lists
    return {
        "counts": dict(way.counts),
        "is_exact": None if lists.kernel is None else lists.is_exact,
        "blocks_wrong": lists.blocks_wrong,
        "frames_wrong": lists.frames_wrong,
        "cpu_frames_wrong": lists.cpu_frames_wrong,
        "pageblocks_wrong": lists.pageblocks_wrong,
    }
