"""A trace followed: every frame that the kernel took or gave back goes the same way here.

The events of the free lists say what moved between them and the CPUs' lists; this machine only
does the splitting and merging.  So the end shows whether those rules are the kernel's.

Four things the events do not say, and they are read from what surrounds them:

- a block freed while its CPU's list was locked goes straight to the free lists: it is found when
  it is taken from there without having been drained, and a second pass puts it where it was;
- the bulk allocator hands out what a refill brought, without mm_page_alloc: such frames stay on
  the CPU's list here until they are freed;
- a claim of a pageblock or more takes its block with mm_page_alloc_extfrag alone (6.12);
- a request has its event after it was served, a free before it is carried out: where the task is
  preempted (7.2) or interrupted in between, others come first.  Such a request passes over the
  first block of its list, and is put where it was served (`memdesc.model.served`).

Sources: `mm/page_alloc.c` @6.12 (rmqueue_bulk, free_pcppages_bulk, try_to_steal_block,
__rmqueue_steal), @6.1 (steal_suitable_fallback).
"""

from __future__ import annotations

from typing import NamedTuple

from memdesc.model.buddy import (
    account,
    free_block,
    free_one_block,
    head_of,
    list_of,
    list_push,
    list_push_tail,
    list_unlink,
    move_block,
    remove_block,
    set_pageblocks,
)
from memdesc.model.compiled import Column, compiled, helper, pointers
from memdesc.model.fallback import may_claim
from memdesc.model.gfp import GFP_MOVABLE
from memdesc.model.page_alloc import split_pages
from memdesc.model.pcp import (
    pcp_append,
    pcp_index,
    pcp_push,
    pcp_remove,
    pcp_type,
    percpu_row,
)
from memdesc.model.state import (
    FREE,
    G_BLOCK_ORDER,
    G_PCP_LISTS,
    ISOLATE,
    ORDER_MASK,
    PCP,
    R_CLAIM_THEN_STEAL,
    USED,
    USED_MOVABLE,
    Z_NR_FREE,
    ZONE_SHIFT,
    State,
)
from memdesc.traces.events import Event

__all__ = ["COUNTS", "PageEvents", "follow", "mark_block", "zone_of"]

ALLOC, FREED = int(Event.PAGE_ALLOC), int(Event.PAGE_FREE)
LOCKED, DRAINED = int(Event.ZONE_LOCKED), int(Event.PCPU_DRAIN)
EXTFRAG = int(Event.EXTFRAG)

(
    C_ALLOCS, C_FREES, C_REFILLED, C_DRAINED, C_FALLBACKS, C_FAILED, C_STRAIGHT, C_UNSEEN,
    C_CONTRADICTIONS,
) = range(9)  # fmt: skip
COUNTS = (
    "allocated",
    "freed",
    "taken off the free lists",
    "drained",
    "fallbacks",
    "failed requests",
    "freed straight to the free lists",
    "handed out without an event",
    "contradictions",
)
"""What each count says."""


class PageEvents(NamedTuple):
    """Columns of the page events of a trace, one row per event."""

    event: Column
    pfn: Column
    order: Column
    migratetype: Column
    gfp_flags: Column
    cpu: Column
    flag: Column
    fallback_order: Column
    fallback_migratetype: Column
    straight: Column
    """uint8: a free that went straight to the free lists; found while following."""
    passed_over: Column
    """int64[rows]: written for a request that did not get the first block of its CPU's list: the
    frame of that block; -1 else."""
    behind: Column
    """int64[rows]: written there, too: the row that freed the block right before its own on that
    list, the earliest of those that it passed over; -1 where a refill brought it."""
    freed_at: Column
    """int64[frames]: the last row that freed a frame, -1 for none; scratch."""
    counts: Column
    """int64[16]: as `COUNTS`."""


@compiled
def follow(state: State, events: PageEvents, rows: int) -> int:
    """Follow all rows. Returns how many frees were found to have gone another way than thought:
    follow the rows once more then, from the beginning."""
    m = pointers(state)
    e = pointers(events)
    found = 0
    for i in range(rows):
        event, pfn, order = e.event[i], e.pfn[i], e.order[i]
        if event == ALLOC:
            if pfn < 0:
                e.counts[C_FAILED] += 1
                continue
            e.counts[C_ALLOCS] += 1
            e.passed_over[i] = _first_beside(m, pfn)
            if e.passed_over[i] >= 0:
                e.behind[i] = e.freed_at[m.prev[pfn]]
            if not _hand_out(m, pfn, order):
                e.counts[C_CONTRADICTIONS] += 1
            movable = e.gfp_flags[i] & GFP_MOVABLE
            mark_block(m, pfn, order, USED_MOVABLE if movable != 0 else USED)
        elif event == FREED:
            e.counts[C_FREES] += 1
            if m.frame[pfn] >= PCP:
                # A refill brought it and nobody was seen to get it: the bulk allocator gave it.
                e.counts[C_UNSEEN] += 1
                pcp_remove(m, pfn)
            _cut(m, pfn, order)
            mark_block(m, pfn, order, 0)
            e.freed_at[pfn] = i
            if e.straight[i] != 0 or not _to_cpu(m, pfn, order, e.cpu[i]):
                e.counts[C_STRAIGHT] += 1
                free_block(m, zone_of(m, pfn), pfn, order)
        elif event == LOCKED:
            e.counts[C_REFILLED] += 1
            found += _found_late(m, e, pfn, order)
            if m.frame[pfn] >= PCP:
                continue  # 6.12 told of it already (EXTFRAG)
            if _take(m, pfn, order, e.migratetype[i]):
                _refill(m, pfn, order, e.migratetype[i], e.cpu[i])
            else:
                e.counts[C_CONTRADICTIONS] += 1
        elif event == DRAINED:
            e.counts[C_DRAINED] += 1
            if m.frame[pfn] >= PCP:
                pcp_remove(m, pfn)
            else:
                e.counts[C_CONTRADICTIONS] += 1
                if m.frame[head_of(m, pfn)] & ~ORDER_MASK == FREE:
                    continue
                mark_block(m, pfn, order, 0)
            free_one_block(m, zone_of(m, pfn), pfn, order, e.migratetype[i], 0)
        elif event == EXTFRAG:
            e.counts[C_FALLBACKS] += 1
            _fall_back(m, e, i)
    return found


# --- CPUs' lists -------------------------------------------------------------------------


@helper
def _refill(m: State, pfn: int, order: int, migratetype: int, cpu: int) -> None:
    """Put a block that left the free lists at the tail of a CPU's list."""
    listed = pcp_type(migratetype)
    if pcp_index(m, listed, order) < 0:
        mark_block(m, pfn, order, USED)  # mm_page_alloc follows
        return
    pcp_append(m, percpu_row(m, cpu, zone_of(m, pfn)), pfn, order, listed)


@helper
def _to_cpu(m: State, pfn: int, order: int, cpu: int) -> bool:
    """Free a block to a CPU's list; False where it does not go there."""
    migratetype = m.block[pfn >> m.params[G_BLOCK_ORDER]]
    if pcp_index(m, pcp_type(migratetype), order) < 0 or migratetype == ISOLATE:
        return False
    pcp_push(m, percpu_row(m, cpu, zone_of(m, pfn)), pfn, order, migratetype)
    return True


@helper
def _first_beside(m: State, pfn: int) -> int:
    """The first block of the CPU's list that a block is on, if that is another; else -1."""
    if m.frame[pfn] < PCP or m.prev[pfn] >= m.params[G_PCP_LISTS]:
        return -1
    at = m.prev[pfn]
    while m.prev[at] < m.params[G_PCP_LISTS]:
        at = m.prev[at]
    return at


@helper
def _found_late(m: State, e: PageEvents, pfn: int, order: int) -> int:
    """Frames of a block that is taken off the free lists must not be on a CPU's list: they had
    been freed straight to the free lists. Do that now, and note it for the next pass."""
    found = 0
    end = pfn + (1 << order)
    at = pfn
    while at < end:
        byte = m.frame[at]
        size = byte & ORDER_MASK
        if byte >= PCP and e.freed_at[at] >= 0 and e.straight[e.freed_at[at]] == 0:
            e.straight[e.freed_at[at]] = 1
            found += 1
            pcp_remove(m, at)
            free_block(m, zone_of(m, at), at, size)
            # It has merged: look at the block that it is part of now.
            at = head_of(m, at)
            byte = m.frame[at]
            size = byte & ORDER_MASK
        at += 1 << size
    return found


# --- free lists --------------------------------------------------------------------------


@helper
def _take(m: State, pfn: int, order: int, migratetype: int) -> bool:
    """Take a block off the list of `migratetype`; what remains of a larger one stays there."""
    head = head_of(m, pfn)
    byte = m.frame[head]
    size = byte & ORDER_MASK
    if byte & ~ORDER_MASK != FREE or size < order:
        return False
    zone = zone_of(m, pfn)
    remove_block(m, zone, head, size)
    account(m, zone, -(1 << order), migratetype)
    while size > order:
        size -= 1
        half = head + (1 << size)
        if pfn >= half:
            head, half = half, head
        m.frame[half] = FREE | size
        m.zones[(zone << ZONE_SHIFT) + Z_NR_FREE + size] += 1
        list_push(m, list_of(m, zone, size, migratetype), half)
    return True


@helper
def _hand_out(m: State, pfn: int, order: int) -> bool:
    """Take a block from wherever it waits; False where it was in use, or still on a free list:
    an event comes before that takes it from there."""
    byte = m.frame[pfn]
    if byte >= PCP and byte & ORDER_MASK == order:
        pcp_remove(m, pfn)
        return True
    if byte == USED | order:
        return True  # LOCKED took it for this request
    if not _take(m, pfn, order, m.block[pfn >> m.params[G_BLOCK_ORDER]]):
        _cut(m, pfn, order)
    return False


@helper
def _fall_back(m: State, e: PageEvents, i: int) -> None:
    """What a fallback did to the free lists."""
    pfn, order, wanted = e.pfn[i], e.order[i], e.migratetype[i]
    high, other = e.fallback_order[i], e.fallback_migratetype[i]
    changed = e.flag[i] != 0
    block_order = m.params[G_BLOCK_ORDER]
    zone = zone_of(m, pfn)
    head = head_of(m, pfn)
    is_free = m.frame[head] & ~ORDER_MASK == FREE
    if m.params[R_CLAIM_THEN_STEAL] != 0:
        if not is_free:
            # LOCKED has told of the block; the rest of its pageblock changed its type.
            if changed and m.block[pfn >> block_order] != wanted:
                move_block(m, zone, pfn, m.block[pfn >> block_order], wanted)
                m.block[pfn >> block_order] = wanted
            return
        if changed and high >= block_order:
            set_pageblocks(m, head, high, wanted)
            if _take(m, pfn, order, wanted):
                # _take counts what it left as free of `wanted`; the types differ in nothing else.
                _refill(m, pfn, order, wanted, e.cpu[i])
        elif _take(m, pfn, order, other):
            _refill(m, pfn, order, wanted, e.cpu[i])
        return
    # 6.1: the block changes lists, and LOCKED tells which part of it is taken.
    if not is_free:
        return
    size = m.frame[head] & ORDER_MASK
    if high >= block_order:
        set_pageblocks(m, head, size, wanted)
    elif changed or may_claim(m, high, wanted):
        move_block(m, zone, pfn, other, wanted)
        if changed:
            m.block[pfn >> block_order] = wanted
        return
    list_unlink(m, head)
    list_push_tail(m, list_of(m, zone, size, wanted), head)
    account(m, zone, -(1 << size), other)
    account(m, zone, 1 << size, wanted)


# --- helpers -----------------------------------------------------------------------------


@helper
def _cut(m: State, pfn: int, order: int) -> None:
    """Split what was allocated as a larger block than is spoken of now."""
    head = head_of(m, pfn)
    byte = m.frame[head]
    kind, size = byte & ~ORDER_MASK, byte & ORDER_MASK
    if size > order and kind in (USED, USED_MOVABLE):
        split_pages(m, head, size, order)


@helper
def mark_block(m: State, pfn: int, order: int, kind: int) -> None:
    """Make 2^order frames one block of a kind; 0: of none, as a list wants them."""
    for each in range(pfn, pfn + (1 << order)):
        m.frame[each] = 0
    if kind != 0:
        m.frame[pfn] = kind | order


@helper
def zone_of(m: State, pfn: int) -> int:
    """Index of the zone of a frame."""
    return m.block_zone[pfn >> m.params[G_BLOCK_ORDER]]
