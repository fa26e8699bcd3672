"""A real trace as a workload of designs: what it allocates, no more and no less."""

from __future__ import annotations

import numpy as np
import pytest
from traces.recorded import recorded

from memdesc.kernels.gfp import GFP_NAMES
from memdesc.model.compare import compare
from memdesc.model.described import KIND_CODES
from memdesc.model.operations import ALLOC, FREE, KMEM_ALLOC, KMEM_FREE
from memdesc.model.trace_workload import kind_of, trace_workload
from memdesc.model.zones import Layout
from memdesc.traces.events import Event
from memdesc.types import MemoryType

T = MemoryType


@pytest.mark.parametrize(
    ("gfp", "order", "kind"),
    [
        ("GFP_HIGHUSER_MOVABLE|__GFP_COMP", 0, T.ANON),
        ("GFP_HIGHUSER_MOVABLE|__GFP_WRITE|__GFP_COMP", 2, T.FILE),
        ("GFP_KERNEL_ACCOUNT|__GFP_ZERO|__GFP_COMP", 0, T.PAGE_TABLE),
        ("GFP_HIGHUSER|__GFP_ACCOUNT|__GFP_COMP", 0, T.DRIVER),
        ("GFP_KERNEL|__GFP_NOWARN|__GFP_NORETRY|__GFP_COMP", 3, None),
    ],
)
def test_flags_tell_what_a_page_is_for(gfp: str, order: int, kind: MemoryType | None) -> None:
    value = 0
    for name in gfp.split("|"):
        value |= GFP_NAMES[name]
    assert kind_of(value, order) is kind


def test_a_trace_becomes_what_it_allocated_and_freed() -> None:
    trace = recorded("7.2-churn").trace
    work = trace_workload(trace)
    rows = np.array(work.rows)
    codes = np.bincount(rows[:, 0], minlength=4)
    slabs = sum(
        kind_of(int(gfp), int(order)) is None
        for gfp, order in zip(
            trace.gfp_flags[trace.of(Event.PAGE_ALLOC)],
            trace.order[trace.of(Event.PAGE_ALLOC)],
            strict=True,
        )
    )
    assert slabs > 10
    assert codes[ALLOC] == trace.of(Event.PAGE_ALLOC).size - slabs
    assert codes[KMEM_ALLOC] > 0.95 * trace.of(Event.KMALLOC, Event.CACHE_ALLOC).size
    # Each handle is allocated once, and freed at most once, later.
    allocated = rows[np.isin(rows[:, 0], (ALLOC, KMEM_ALLOC)), 4]
    freed = rows[np.isin(rows[:, 0], (FREE, KMEM_FREE)), 4]
    assert np.array_equal(np.sort(allocated), np.arange(work.handles))
    assert np.unique(freed).size == freed.size
    assert {cache.name for cache in work.caches} >= {"vm_area_struct", "filp", "kmalloc-64"}


def test_every_page_of_a_kind_has_its_descriptor_where_the_design_has_some() -> None:
    trace = recorded("7.2-churn").trace
    work = trace_workload(trace)
    found = compare(work, Layout.pc(512 << 20), kernel="7.2", cpus=1, lines=False)
    runs = {run.design.id: run for run in found.runs}
    assert all(run.failed == 0 for run in found.runs)
    assert runs["today"].now.descriptors == 0
    live: dict[int, int] = {}
    for code, kind, _, _, handle, _ in work.rows:
        if code == ALLOC:
            live[handle] = kind
        elif code == FREE:
            del live[handle]
    described = {KIND_CODES[kind] for kind in (T.ANON, T.FILE, T.PAGE_TABLE)}
    pages = sum(kind in described for kind in live.values())
    # The others describe slabs.
    assert pages > 5000
    assert pages < runs["8"].now.descriptors < pages + 3000
