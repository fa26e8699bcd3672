"""A trace's requests and frees given to the model, which chooses the frames itself.

The whole allocator is at work here: watermarks, CPUs' lists and their sizes, fallbacks.  What the
trace frees is translated to the frame that the model gave for that request.
"""

from __future__ import annotations

from memdesc.model.buddy import free_block, head_of
from memdesc.model.compiled import compiled, helper, pointers
from memdesc.model.follow import (
    ALLOC,
    C_ALLOCS,
    C_CONTRADICTIONS,
    C_FAILED,
    C_FREES,
    C_STRAIGHT,
    C_UNSEEN,
    FREED,
    PageEvents,
    mark_block,
    zone_of,
)
from memdesc.model.page_alloc import alloc_pages, free_pages, split_pages
from memdesc.model.pcp import decay
from memdesc.model.state import FREE, ORDER_MASK, USED, USED_MOVABLE, State

__all__ = ["C_FAILED_HERE", "C_SAME", "choose"]

TICK = 16
"""A row that is no event: a second has passed for the CPU's lists (`memdesc.model.pcp.decay`)."""
C_SAME, C_FAILED_HERE = 9, 10


@compiled
def choose(state: State, events: PageEvents, rows: int) -> None:
    """Do all rows. `events.freed_at` translates here: int64[frames], the model's frame for each
    frame of the trace, -1 for none; it is the frame itself for what is in use at the start."""
    m = pointers(state)
    e = pointers(events)
    for i in range(rows):
        event, pfn, order, cpu = e.event[i], e.pfn[i], e.order[i], e.cpu[i]
        if event == ALLOC:
            if pfn < 0:
                e.counts[C_FAILED] += 1
                continue
            e.counts[C_ALLOCS] += 1
            got = alloc_pages(m, order, e.gfp_flags[i], cpu)
            if got < 0:
                e.counts[C_FAILED_HERE] += 1
            elif got == pfn:
                e.counts[C_SAME] += 1
            for each in range(1 << order):
                e.freed_at[pfn + each] = got + each if got >= 0 else -1
        elif event == FREED:
            e.counts[C_FREES] += 1
            mine = e.freed_at[pfn]
            if mine < 0:
                e.counts[C_UNSEEN] += 1
                continue
            if not _one_block(m, e, pfn, mine, order):
                e.counts[C_CONTRADICTIONS] += 1
                continue
            for each in range(pfn, pfn + (1 << order)):
                e.freed_at[each] = -1
            if e.straight[i] != 0:
                e.counts[C_STRAIGHT] += 1
                m.frame[mine] = 0
                free_block(m, zone_of(m, mine), mine, order)
            else:
                free_pages(m, mine, order, cpu)
        elif event == TICK:
            decay(m, cpu)


# --- helpers -----------------------------------------------------------------------------


@helper
def _one_block(m: State, e: PageEvents, pfn: int, mine: int, order: int) -> bool:
    """Make what is freed one block: split what was allocated larger, join what was smaller."""
    head = head_of(m, mine)
    byte = m.frame[head]
    kind = byte & ~ORDER_MASK
    if kind != USED and kind != USED_MOVABLE:
        return False
    size = byte & ORDER_MASK
    if size > order:
        split_pages(m, head, size, order)
    elif size < order:
        for each in range(1 << order):
            if e.freed_at[pfn + each] != mine + each:
                return False
        mark_block(m, mine, order, USED)
    return m.frame[mine] & ~ORDER_MASK != FREE
