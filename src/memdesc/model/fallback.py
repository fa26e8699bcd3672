"""What happens when a type has no free block left: claims, steals, and the reserve.

A request of one migratetype that finds its own lists empty looks at the other types.  It may
*claim* a pageblock, which then changes its type, or *steal* one block, which leaves the
pageblock as it was: that is how unmovable memory gets among movable.

`mm/page_alloc.c:__rmqueue_claim, try_to_claim_block, __rmqueue_steal @6.12`,
`__rmqueue_fallback, steal_suitable_fallback @6.1`, `reserve_highatomic_pageblock,
unreserve_highatomic_pageblock, boost_watermark` @6.1, @6.12.
"""

from __future__ import annotations

from memdesc.model.buddy import (
    account,
    count_block,
    expand,
    list_of,
    list_push_tail,
    list_unlink,
    move_block,
    remove_block,
    set_pageblocks,
    take_smallest,
)
from memdesc.model.compiled import helper, keep_apart
from memdesc.model.counters import (
    BOOSTS,
    CLAIMS_PART,
    CLAIMS_REFUSED,
    CLAIMS_WHOLE,
    E_BOOST,
    E_CLAIM,
    E_CLAIM_REFUSED,
    E_RESERVE,
    E_STEAL,
    E_UNRESERVE,
    RESERVED_BLOCKS,
    STEALS,
    UNRESERVED_BLOCKS,
    note,
)
from memdesc.model.gfp import KSWAPD, NOFRAGMENT
from memdesc.model.state import (
    BOOSTED,
    G_BLOCK_ORDER,
    G_BOOST_FACTOR,
    G_GROUPING_OFF,
    G_MAX_ORDER,
    HIGHATOMIC,
    MOVABLE,
    R_CLAIM_THEN_STEAL,
    R_HIGHATOMIC_ROUNDED,
    RECLAIMABLE,
    UNMOVABLE,
    Z_BOOST,
    Z_FLAGS,
    Z_HIGH,
    Z_MANAGED,
    Z_RESERVED_HIGHATOMIC,
    ZONE_SHIFT,
    State,
)

__all__ = ["NORMAL", "STEAL", "may_claim", "reserve_highatomic", "take", "unreserve_highatomic"]

NORMAL, STEAL = 0, 3
"""How the last take of a bulk refill succeeded (`enum rmqueue_mode`)."""


@helper
def take(
    m: State, zone: int, order: int, migratetype: int, alloc_flags: int, mode: int
) -> tuple[int, int]:
    """Take a block from the buddy: own type, claim, steal. Returns (pfn or -1, mode).

    `mode` is how the take before it in the same refill succeeded; NORMAL at first.
    (`__rmqueue`)
    """
    keep_apart()
    if mode == NORMAL:
        pfn = take_smallest(m, zone, order, migratetype)
        if pfn >= 0:
            return pfn, NORMAL
    if m.params[R_CLAIM_THEN_STEAL] == 0:
        if _fall_back_61(m, zone, order, migratetype, alloc_flags):
            return take_smallest(m, zone, order, migratetype), NORMAL
        return -1, NORMAL
    if mode != STEAL:
        pfn = _claim(m, zone, order, migratetype, alloc_flags)
        if pfn >= 0:
            return pfn, NORMAL
    if alloc_flags & NOFRAGMENT == 0:
        pfn = _steal(m, zone, order, migratetype)
        if pfn >= 0:
            return pfn, STEAL
    return -1, mode


@helper
def reserve_highatomic(m: State, zone: int, pfn: int, order: int) -> None:
    """After an allocation from the reserve's clients: keep its pageblock for more of them.

    (`reserve_highatomic_pageblock`)
    """
    keep_apart()
    z = zone << ZONE_SHIFT
    block_order = m.params[G_BLOCK_ORDER]
    size = 1 << block_order
    share = m.zones[z + Z_MANAGED] // 100
    if m.params[R_HIGHATOMIC_ROUNDED] != 0:
        if share < size:
            return
        limit = (share + size - 1) & -size
    else:
        limit = share + size
    if m.zones[z + Z_RESERVED_HIGHATOMIC] >= limit:
        return
    old = m.block[pfn >> block_order]
    if old >= HIGHATOMIC:
        return
    if order < block_order:
        # 6.1 sets the type even where no free block could be moved.
        if move_block(m, zone, pfn, old, HIGHATOMIC) < 0 and m.params[R_HIGHATOMIC_ROUNDED] != 0:
            return
        m.block[pfn >> block_order] = HIGHATOMIC
        m.zones[z + Z_RESERVED_HIGHATOMIC] += size
    else:
        set_pageblocks(m, pfn, order, HIGHATOMIC)
        m.zones[z + Z_RESERVED_HIGHATOMIC] += 1 << order
    m.stats[RESERVED_BLOCKS] += 1
    note(m, E_RESERVE, zone, pfn, pfn >> block_order, old, HIGHATOMIC)


@helper
def unreserve_highatomic(m: State, zone: int, migratetype: int, force: bool) -> bool:
    """Give one pageblock of the reserve to `migratetype`; True where that freed a block.

    Without `force` one pageblock stays. (`unreserve_highatomic_pageblock`)
    """
    keep_apart()
    z = zone << ZONE_SHIFT
    block_order = m.params[G_BLOCK_ORDER]
    size = 1 << block_order
    reserved = m.zones[z + Z_RESERVED_HIGHATOMIC]
    if reserved == 0 or (not force and reserved <= size):
        return False
    for order in range(m.params[G_MAX_ORDER] + 1):
        item = list_of(m, zone, order, HIGHATOMIC)
        pfn = m.next[item]
        if pfn == item:
            continue
        if m.block[pfn >> block_order] == HIGHATOMIC:  # 6.1 may have left blocks behind
            m.zones[z + Z_RESERVED_HIGHATOMIC] = reserved - min(max(size, 1 << order), reserved)
        m.stats[UNRESERVED_BLOCKS] += 1
        note(m, E_UNRESERVE, zone, pfn, pfn >> block_order, HIGHATOMIC, migratetype)
        if order >= block_order:
            _move_one(m, zone, pfn, order, HIGHATOMIC, migratetype)
            set_pageblocks(m, pfn, order, migratetype)
            return True
        # The type changes even where nothing can be moved: 6.1 reserves such pageblocks as well.
        m.block[pfn >> block_order] = migratetype
        return move_block(m, zone, pfn, HIGHATOMIC, migratetype) > 0
    return False


# --- 6.12 and later ----------------------------------------------------------------------


@helper
def _claim(m: State, zone: int, order: int, wanted: int, alloc_flags: int) -> int:
    """Make a pageblock of another type one of `wanted`, largest free block first."""
    keep_apart()
    block_order = m.params[G_BLOCK_ORDER]
    low = order
    if alloc_flags & NOFRAGMENT != 0 and order < block_order:
        low = block_order
    high = m.params[G_MAX_ORDER]
    while high >= low:
        if not may_claim(m, high, wanted):
            return -1
        other = _fallback_type(m, zone, high, wanted)
        if other >= 0:
            item = list_of(m, zone, high, other)
            pfn = _claim_block(m, zone, m.next[item], high, order, wanted, other, alloc_flags)
            if pfn >= 0:
                return pfn
        high -= 1
    return -1


@helper
def _claim_block(
    m: State, zone: int, pfn: int, high: int, order: int, wanted: int, other: int, alloc_flags: int
) -> int:
    """Claim the pageblock(s) of the free block at `pfn`; -1: too little in it is free or alike."""
    block_order = m.params[G_BLOCK_ORDER]
    if high >= block_order:
        remove_block(m, zone, pfn, high)
        account(m, zone, -(1 << high), other)
        set_pageblocks(m, pfn, high, wanted)
        expand(m, zone, pfn, order, high, wanted)
        account(m, zone, (1 << high) - (1 << order), wanted)
        m.stats[CLAIMS_WHOLE] += 1
        note(m, E_CLAIM, zone, pfn, pfn >> block_order, other, wanted)
        return pfn
    _boost(m, zone, alloc_flags)
    if _worth_claiming(m, pfn, wanted, other) and move_block(m, zone, pfn, other, wanted) >= 0:
        m.block[pfn >> block_order] = wanted
        m.stats[CLAIMS_PART] += 1
        note(m, E_CLAIM, zone, pfn, pfn >> block_order, other, wanted)
        return take_smallest(m, zone, order, wanted)
    m.stats[CLAIMS_REFUSED] += 1
    note(m, E_CLAIM_REFUSED, zone, pfn, pfn >> block_order, other, wanted)
    return -1


@helper
def _steal(m: State, zone: int, order: int, wanted: int) -> int:
    """Take the smallest block of another type; what is left of it stays of that type."""
    keep_apart()
    for high in range(order, m.params[G_MAX_ORDER] + 1):
        other = _fallback_type(m, zone, high, wanted)
        if other < 0:
            continue
        pfn = m.next[list_of(m, zone, high, other)]
        remove_block(m, zone, pfn, high)
        account(m, zone, -(1 << order), other)
        expand(m, zone, pfn, order, high, other)
        m.stats[STEALS] += 1
        note(m, E_STEAL, zone, pfn, pfn >> m.params[G_BLOCK_ORDER], other, wanted)
        return pfn
    return -1


# --- 6.1 ---------------------------------------------------------------------------------


@helper
def _fall_back_61(m: State, zone: int, order: int, wanted: int, alloc_flags: int) -> bool:
    """Move a block, or all of its pageblock, to the lists of `wanted` (`__rmqueue_fallback`)."""
    keep_apart()
    block_order = m.params[G_BLOCK_ORDER]
    low = order
    if alloc_flags & NOFRAGMENT != 0 and order < block_order:
        low = block_order
    high = m.params[G_MAX_ORDER]
    while high >= low:
        other = _fallback_type(m, zone, high, wanted)
        if other >= 0:
            if not may_claim(m, high, wanted) and wanted == MOVABLE and high > order:
                # Rather split a small block than a large one.
                high = order
                other = _fallback_type(m, zone, high, wanted)
                while other < 0:
                    high += 1
                    other = _fallback_type(m, zone, high, wanted)
            pfn = m.next[list_of(m, zone, high, other)]
            _steal_61(m, zone, pfn, high, wanted, other, alloc_flags)
            return True
        high -= 1
    return False


@helper
def _steal_61(
    m: State, zone: int, pfn: int, high: int, wanted: int, other: int, alloc_flags: int
) -> None:
    """`steal_suitable_fallback @6.1`: lists and pageblock type may disagree afterwards."""
    block_order = m.params[G_BLOCK_ORDER]
    old = m.block[pfn >> block_order]
    if old != HIGHATOMIC:
        if high >= block_order:
            set_pageblocks(m, pfn, high, wanted)
            m.stats[CLAIMS_WHOLE] += 1
            note(m, E_CLAIM, zone, pfn, pfn >> block_order, old, wanted)
        else:
            _boost(m, zone, alloc_flags)
            if may_claim(m, high, wanted):
                worth = _worth_claiming(m, pfn, wanted, old)
                if move_block(m, zone, pfn, other, wanted) > 0:
                    if worth:
                        m.block[pfn >> block_order] = wanted
                        m.stats[CLAIMS_PART] += 1
                        note(m, E_CLAIM, zone, pfn, pfn >> block_order, old, wanted)
                    else:
                        m.stats[CLAIMS_REFUSED] += 1
                        note(m, E_CLAIM_REFUSED, zone, pfn, pfn >> block_order, old, wanted)
                    return
    if old == HIGHATOMIC or high < block_order:
        m.stats[STEALS] += 1
        note(m, E_STEAL, zone, pfn, pfn >> block_order, old, wanted)
    _move_one(m, zone, pfn, high, other, wanted)


# --- helpers -----------------------------------------------------------------------------


@helper
def _fallback_type(m: State, zone: int, order: int, wanted: int) -> int:
    """The first other type with a free block of that order (`fallbacks`); -1: none."""
    if wanted >= HIGHATOMIC:
        return -1
    first = UNMOVABLE if wanted == RECLAIMABLE else RECLAIMABLE
    item = list_of(m, zone, order, first)
    if m.next[item] != item:
        return first
    second = UNMOVABLE if wanted == MOVABLE else MOVABLE
    item = list_of(m, zone, order, second)
    if m.next[item] != item:
        return second
    return -1


@helper
def may_claim(m: State, order: int, wanted: int) -> bool:
    """Whether a free block of that order lets a request have the pageblock."""
    return (
        order >= m.params[G_BLOCK_ORDER] >> 1
        or wanted in (UNMOVABLE, RECLAIMABLE)
        or m.params[G_GROUPING_OFF] != 0
    )


@helper
def _worth_claiming(m: State, pfn: int, wanted: int, old: int) -> bool:
    """Whether half of the pageblock is free, or in use by what is like the request."""
    size = 1 << m.params[G_BLOCK_ORDER]
    free, movable = count_block(m, pfn)
    alike = 0
    if wanted == MOVABLE:
        alike = movable
    elif old == MOVABLE:
        alike = size - free - movable
    return free + alike >= size >> 1 or m.params[G_GROUPING_OFF] != 0


@helper
def _boost(m: State, zone: int, alloc_flags: int) -> None:
    """Raise all marks for a while, so that kswapd makes room (`boost_watermark`)."""
    z = zone << ZONE_SHIFT
    size = 1 << m.params[G_BLOCK_ORDER]
    if m.params[G_BOOST_FACTOR] == 0 or size * 4 > m.zones[z + Z_MANAGED]:
        return
    most = m.zones[z + Z_HIGH] * m.params[G_BOOST_FACTOR] // 10000
    if most == 0:
        return
    m.zones[z + Z_BOOST] = min(m.zones[z + Z_BOOST] + size, max(size, most))
    m.stats[BOOSTS] += 1
    note(m, E_BOOST, zone, -1, m.zones[z + Z_BOOST], 0, 0)
    if alloc_flags & KSWAPD:
        m.zones[z + Z_FLAGS] |= BOOSTED


@helper
def _move_one(m: State, zone: int, pfn: int, order: int, old: int, new: int) -> None:
    """Move one free block to the tail of another type's list (`move_to_free_list`)."""
    list_unlink(m, pfn)
    list_push_tail(m, list_of(m, zone, order, new), pfn)
    account(m, zone, -(1 << order), old)
    account(m, zone, 1 << order, new)
