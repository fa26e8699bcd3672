"""Frames by their number: taken out of the lists, isolated, given back.

`take_frames` is for those who know which frames they want: a replayed trace, a poisoned page, a
contiguous allocation.  `isolate_block` is what offlining and contiguous allocations do first.

`mm/page_alloc.c:break_down_buddy_pages, take_page_off_buddy`,
`mm/page_isolation.c:set_migratetype_isolate, unset_migratetype_isolate @6.12`.
"""

from __future__ import annotations

from memdesc.model.buddy import (
    account,
    add_block,
    expand,
    free_block,
    free_one_block,
    head_of,
    move_block,
    remove_block,
)
from memdesc.model.compiled import helper, keep_apart
from memdesc.model.pcp import pcp_remove
from memdesc.model.state import (
    FREE,
    G_BLOCK_ORDER,
    G_FRAMES,
    G_MAX_ORDER,
    HIGHATOMIC,
    ISOLATE,
    NO_ZONE,
    ORDER_MASK,
    PCP,
    Z_ISOLATED_BLOCKS,
    Z_RESERVED_HIGHATOMIC,
    ZONE_SHIFT,
    State,
)

__all__ = ["isolate_block", "take_frames", "unisolate_block"]


@helper
def take_frames(m: State, pfn: int, order: int, kind: int) -> int:
    """Take exactly [pfn, pfn + 2^order) out of free blocks and per-CPU lists.

    They become a block of `kind` (USED, USED_MOVABLE, TAKEN). 0: done. -1: not all of them are
    free, and nothing happened.
    """
    keep_apart()
    end = pfn + (1 << order)
    if pfn & ((1 << order) - 1) != 0 or end > m.params[G_FRAMES] or order > m.params[G_MAX_ORDER]:
        return -1
    at = pfn
    while at < end:
        head = head_of(m, at)
        byte = m.frame[head]
        if byte & ~ORDER_MASK != FREE and byte < PCP:
            return -1
        at = head + (1 << (byte & ORDER_MASK))
    at = pfn
    while at < end:
        head = head_of(m, at)
        size = m.frame[head] & ORDER_MASK
        _cut_out(m, head, at, min(size, order))
        at += 1 << min(size, order)
    m.frame[pfn] = kind | order
    return 0


@helper
def isolate_block(m: State, block: int) -> int:
    """Keep a pageblock's free frames from being given out. Returns frames moved, -1: refused.

    Refused: it is isolated already, or not wholly inside a zone.
    """
    block_order = m.params[G_BLOCK_ORDER]
    zone = m.block_zone[block]
    old = m.block[block]
    if zone == NO_ZONE or old == ISOLATE:
        return -1
    moved = _retype(m, zone, block, old, ISOLATE)
    if moved >= 0:
        m.zones[(zone << ZONE_SHIFT) + Z_ISOLATED_BLOCKS] += 1
        if old == HIGHATOMIC:
            m.zones[(zone << ZONE_SHIFT) + Z_RESERVED_HIGHATOMIC] -= 1 << block_order
    return moved


@helper
def unisolate_block(m: State, block: int, migratetype: int) -> int:
    """Give an isolated pageblock back as `migratetype`. Returns frames moved, -1: refused.

    A pageblock that is free as a whole goes in anew, so that it merges with its neighbour.
    """
    block_order = m.params[G_BLOCK_ORDER]
    pfn = block << block_order
    zone = m.block_zone[block]
    if zone == NO_ZONE or m.block[block] != ISOLATE or migratetype >= HIGHATOMIC:
        return -1
    m.zones[(zone << ZONE_SHIFT) + Z_ISOLATED_BLOCKS] -= 1
    if m.frame[pfn] != FREE | block_order:
        return _retype(m, zone, block, ISOLATE, migratetype)
    remove_block(m, zone, pfn, block_order)
    account(m, zone, -(1 << block_order), ISOLATE)
    m.block[block] = migratetype
    free_one_block(m, zone, pfn, block_order, migratetype, 1)
    return 1 << block_order


# --- helpers -----------------------------------------------------------------------------


@helper
def _cut_out(m: State, head: int, pfn: int, order: int) -> None:
    """Take 2^order frames at `pfn` out of the free block at `head`; the rest stays free."""
    block_order = m.params[G_BLOCK_ORDER]
    byte = m.frame[head]
    size = byte & ORDER_MASK
    zone = m.block_zone[head >> block_order]
    if byte >= PCP:
        pcp_remove(m, head)
        while size > order:
            size -= 1
            half = head ^ (1 << size)
            if pfn & (1 << size):
                head, half = half, head
            free_block(m, zone, half, size)
        return
    migratetype = m.block[head >> block_order]
    remove_block(m, zone, head, size)
    account(m, zone, -(1 << order), migratetype)
    while size > order:
        size -= 1
        if pfn & (1 << size):
            # expand() gives back the upper half; here the lower one is wanted back.
            upper = head + (1 << size)
            account(m, zone, -(1 << size), migratetype)
            add_block(m, zone, head, size, migratetype)
            head = upper
        else:
            expand(m, zone, head, size, size + 1, migratetype)


@helper
def _retype(m: State, zone: int, block: int, old: int, new: int) -> int:
    """Set a pageblock's type and move its free frames; -1: it reaches out of its zone.

    A free block of several pageblocks is put back one by one, each with its type
    (`move_freepages_block_isolate`).
    """
    keep_apart()
    block_order = m.params[G_BLOCK_ORDER]
    pfn = block << block_order
    head = head_of(m, pfn)
    byte = m.frame[head]
    order = byte & ORDER_MASK
    if byte & ~ORDER_MASK != FREE or order <= block_order:
        moved = move_block(m, zone, pfn, old, new)
        if moved >= 0:
            m.block[block] = new
        return moved
    remove_block(m, zone, head, order)
    # Before 6.12 it went to the list of its first pageblock, whatever the others are.
    account(m, zone, -(1 << order), m.block[head >> block_order])
    m.block[block] = new
    end = head + (1 << order)
    while head < end:
        free_one_block(m, zone, head, block_order, m.block[head >> block_order], 0)
        head += 1 << block_order
    return 1 << block_order
