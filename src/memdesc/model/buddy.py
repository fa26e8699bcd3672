"""The buddy: free blocks by order and migratetype, split, merge, and moved between types.

Each zone has a list per order and migratetype.  A block of order n begins at a multiple of
2^n frames; its buddy is the block beside it with which it makes one of order n + 1.

`mm/page_alloc.c:expand, __free_one_page, __rmqueue_smallest, move_freepages_block,
split_large_buddy @6.12`. All of this is compiled, and none of it allocates.
"""

from __future__ import annotations

from memdesc.model.compiled import Column, compiled, helper, hot, pointers
from memdesc.model.state import (
    FREE,
    G_BLOCK_ORDER,
    G_LISTS,
    G_MAX_ORDER,
    HIGHATOMIC,
    ISOLATE,
    LIST_ORDER_SHIFT,
    LIST_ZONE_SHIFT,
    ORDER_MASK,
    R_FREE_BY_PAGEBLOCK,
    R_MERGE_RETYPES,
    USED,
    USED_MOVABLE,
    Z_END,
    Z_FREE,
    Z_FREE_HIGHATOMIC,
    Z_ISOLATED_BLOCKS,
    Z_NR_FREE,
    Z_START,
    ZONE_SHIFT,
    State,
)

__all__ = [
    "account",
    "add_block",
    "churn",
    "free_block",
    "free_one_block",
    "head_of",
    "list_of",
    "list_push",
    "list_push_tail",
    "list_unlink",
    "move_block",
    "remove_block",
    "set_pageblocks",
    "take_smallest",
]

# --- what people come for ----------------------------------------------------------------


@helper
def take_smallest(m: State, zone: int, order: int, migratetype: int) -> int:
    """Take a block of 2^order from the smallest sufficient list of `migratetype`; -1: none."""
    return take_here(m, zone, order, migratetype)


@helper
def free_one_block(
    m: State, zone: int, pfn: int, order: int, migratetype: int, to_tail: int
) -> None:
    """Put a block on a list after it has merged as far as it may (`__free_one_page`)."""
    free_here(m, zone, pfn, order, migratetype, to_tail)


@hot
def take_here(m: State, zone: int, order: int, migratetype: int) -> int:
    """As `take_smallest`, put into the caller.

    The upper halves of a split block go to the lists of the same type (`__rmqueue_smallest`).
    """
    high = order
    top = m.params[G_MAX_ORDER]
    item = list_of(m, zone, order, migratetype)
    pfn = m.next[item]
    while pfn == item:
        high += 1
        if high > top:
            return -1
        item += 1 << LIST_ORDER_SHIFT
        pfn = m.next[item]
    # The first of a list: what lies before it is the head, and need not be read.
    after = m.next[pfn]
    m.next[item] = after
    m.prev[after] = item
    m.frame[pfn] = 0
    m.zones[(zone << ZONE_SHIFT) + Z_NR_FREE + high] -= 1
    account(m, zone, -(1 << order), migratetype)
    if high > order:
        expand(m, zone, pfn, order, high, migratetype)
    return pfn


@helper
def free_block(m: State, zone: int, pfn: int, order: int) -> None:
    """Give a block back, each of its pageblocks with its own type (`free_one_page`).

    6.1 puts a block of several pageblocks back in one piece, here only while none is isolated: it
    would count frames of an isolated pageblock as free.
    """
    block_order = m.params[G_BLOCK_ORDER]
    whole = (
        m.params[R_FREE_BY_PAGEBLOCK] == 0
        and m.zones[(zone << ZONE_SHIFT) + Z_ISOLATED_BLOCKS] == 0
    )
    if order <= block_order or whole:
        free_one_block(m, zone, pfn, order, m.block[pfn >> block_order], 0)
        return
    end = pfn + (1 << order)
    while pfn < end:
        free_one_block(m, zone, pfn, block_order, m.block[pfn >> block_order], 0)
        pfn += 1 << block_order


@hot
def free_here(m: State, zone: int, pfn: int, order: int, migratetype: int, to_tail: int) -> None:
    """As `free_one_block`, put into the caller."""
    account(m, zone, 1 << order, migratetype)
    block_order = m.params[G_BLOCK_ORDER]
    top = m.params[G_MAX_ORDER]
    frames = m.params[G_LISTS]
    row = (zone << ZONE_SHIFT) + Z_NR_FREE
    buddy = pfn ^ (1 << order)
    while order < top:
        buddy = pfn ^ (1 << order)
        if m.frame[buddy] != FREE | order:
            break
        if order >= block_order:
            # Below, a buddy lies in the same pageblock: same zone, same type.
            if m.block_zone[buddy >> block_order] != zone:
                break
            other = m.block[buddy >> block_order]
            if other != migratetype:
                if migratetype >= HIGHATOMIC or other >= HIGHATOMIC:
                    break
                if m.params[R_MERGE_RETYPES] != 0:
                    set_pageblocks(m, buddy, order, migratetype)
        after, before = m.next[buddy], m.prev[buddy]
        m.next[before] = after
        m.prev[after] = before
        m.frame[buddy] = 0
        m.zones[row + order] -= 1
        pfn &= buddy
        order += 1
    m.frame[pfn] = FREE | order
    m.zones[row + order] += 1
    item = frames + (((zone << 4) + order) << LIST_ORDER_SHIFT) + migratetype
    if to_tail == 0 and order < top - 1:
        # A block whose would-be parent could merge in turn waits at the tail, so that it
        # is not given away at once (`buddy_merge_likely`).
        parent = pfn & ~(1 << order)
        uncle = parent ^ (2 << order)
        if m.frame[uncle] == FREE | (order + 1) and (
            order + 1 < block_order or m.block_zone[uncle >> block_order] == zone
        ):
            to_tail = 1
    if to_tail != 0:
        list_push_tail(m, item, pfn)
    else:
        list_push(m, item, pfn)


@hot
def expand(m: State, zone: int, pfn: int, low: int, high: int, migratetype: int) -> None:
    """Give back what a block of order `high` has above its first 2^low frames (`expand`).

    The block is off its list already; counters of free frames are the caller's.
    """
    row = (zone << ZONE_SHIFT) + Z_NR_FREE
    item = list_of(m, zone, high, migratetype)
    while high > low:
        high -= 1
        item -= 1 << LIST_ORDER_SHIFT
        half = pfn + (1 << high)
        m.frame[half] = FREE | high
        m.zones[row + high] += 1
        list_push(m, item, half)


@helper
def move_block(m: State, zone: int, pfn: int, old: int, new: int) -> int:
    """Move the free blocks of one pageblock to the lists of type `new`, and say how many frames.

    The pageblock's own type is the caller's. -1: the pageblock reaches out of its zone and is
    left alone. `prep_move_freepages_block, __move_freepages_block @6.12`.
    """
    size = 1 << m.params[G_BLOCK_ORDER]
    start = pfn & ~(size - 1)
    if start < m.zones[(zone << ZONE_SHIFT) + Z_START]:
        return -1
    if start + size > m.zones[(zone << ZONE_SHIFT) + Z_END]:
        return -1
    moved = 0
    pfn = start
    while pfn < start + size:
        byte = m.frame[pfn]
        order = byte & ORDER_MASK
        if byte & ~ORDER_MASK != FREE:
            pfn += 1
            continue
        list_unlink(m, pfn)
        list_push_tail(m, list_of(m, zone, order, new), pfn)
        account(m, zone, -(1 << order), old)
        account(m, zone, 1 << order, new)
        moved += 1 << order
        pfn += 1 << order
    return moved


@helper
def count_block(m: State, pfn: int) -> tuple[int, int]:
    """Frames of the pageblock of `pfn` that are free, and that can be moved.

    The kernel asks each frame whether it is on the LRU or has movable operations
    (`prep_move_freepages_block`); here the head's byte says it for the whole block.
    """
    size = 1 << m.params[G_BLOCK_ORDER]
    start = pfn & ~(size - 1)
    pfn = start
    if m.frame[start] == 0:  # inside a block of several pageblocks
        return 0, size if m.frame[head_of(m, start)] & ~ORDER_MASK == USED_MOVABLE else 0
    free = 0
    movable = 0
    while pfn < start + size:
        byte = m.frame[pfn]
        kind = byte & ~ORDER_MASK
        if kind == FREE:
            free += 1 << (byte & ORDER_MASK)
        elif kind == USED_MOVABLE:
            movable += 1 << (byte & ORDER_MASK)
        pfn += 1 << (byte & ORDER_MASK)
    return free, movable


@helper
def head_of(m: State, pfn: int) -> int:
    """First frame of the block that holds `pfn`, free or allocated; `pfn` itself if in none."""
    head = pfn
    for order in range(m.params[G_MAX_ORDER] + 1):
        head = pfn & -(1 << order)
        byte = m.frame[head]
        if byte != 0:
            return head if head + (1 << (byte & ORDER_MASK)) > pfn else pfn
    return pfn


# --- helpers -----------------------------------------------------------------------------


@hot
def list_of(m: State, zone: int, order: int, migratetype: int) -> int:
    """Number of the list of a zone, order and migratetype."""
    return m.params[G_LISTS] + (zone << LIST_ZONE_SHIFT) + (order << LIST_ORDER_SHIFT) + migratetype


@hot
def list_push(m: State, item: int, pfn: int) -> None:
    """Put a block at the head of a list."""
    first = m.next[item]
    m.next[pfn] = first
    m.prev[pfn] = item
    m.prev[first] = pfn
    m.next[item] = pfn


@hot
def list_push_tail(m: State, item: int, pfn: int) -> None:
    """Put a block at the tail of a list."""
    last = m.prev[item]
    m.next[pfn] = item
    m.prev[pfn] = last
    m.next[last] = pfn
    m.prev[item] = pfn


@hot
def list_unlink(m: State, pfn: int) -> None:
    """Take a block out of the list that it is on."""
    after, before = m.next[pfn], m.prev[pfn]
    m.next[before] = after
    m.prev[after] = before


@hot
def remove_block(m: State, zone: int, pfn: int, order: int) -> None:
    """Take a free block off its list; counting free frames is the caller's."""
    list_unlink(m, pfn)
    m.frame[pfn] = 0
    m.zones[(zone << ZONE_SHIFT) + Z_NR_FREE + order] -= 1


@helper
def add_block(m: State, zone: int, pfn: int, order: int, migratetype: int) -> None:
    """Put a block at the tail of its list as it is, without merging: at boot, or to be split."""
    m.frame[pfn] = FREE | order
    m.zones[(zone << ZONE_SHIFT) + Z_NR_FREE + order] += 1
    list_push_tail(m, list_of(m, zone, order, migratetype), pfn)
    account(m, zone, 1 << order, migratetype)


@hot
def account(m: State, zone: int, frames: int, migratetype: int) -> None:
    """Count free frames; those in ISOLATE pageblocks do not count (`account_freepages`)."""
    if migratetype < HIGHATOMIC:
        m.zones[(zone << ZONE_SHIFT) + Z_FREE] += frames
    elif migratetype != ISOLATE:
        m.zones[(zone << ZONE_SHIFT) + Z_FREE] += frames
        m.zones[(zone << ZONE_SHIFT) + Z_FREE_HIGHATOMIC] += frames


@hot
def set_pageblocks(m: State, pfn: int, order: int, migratetype: int) -> None:
    """Set the type of every pageblock of a block of 2^order (`change_pageblock_range`)."""
    block_order = m.params[G_BLOCK_ORDER]
    block = pfn >> block_order
    end = (pfn + (1 << order) + (1 << block_order) - 1) >> block_order
    while block < end:
        m.block[block] = migratetype
        block += 1


# --- the bare buddy, to be measured ------------------------------------------------------


@compiled
def churn(state: State, ops: Column, zone: int, migratetype: int, stack: Column) -> int:
    """Run allocations and frees without per-CPU lists, watermarks or statistics.

    `ops`: int8[n], an order 0 to 10 to allocate, or -1 to free the newest block that lives;
    `stack`: int64[2 * most that live at once]. Returns a checksum of the frames handed out.
    """
    m = pointers(state)
    live = 0
    total = 0
    for op in ops:  # type: ignore[attr-defined]
        if op >= 0:
            pfn = take_here(m, zone, op, migratetype)
            if pfn >= 0:
                m.frame[pfn] = USED | op
                stack[live] = pfn
                live += 1
                total = (total * 31 + pfn) & 0xFFFFFFFF
        elif live > 0:
            live -= 1
            pfn = stack[live]
            order = m.frame[pfn] & ORDER_MASK
            m.frame[pfn] = 0
            free_here(m, zone, pfn, order, m.block[pfn >> m.params[G_BLOCK_ORDER]], 0)
    return total
