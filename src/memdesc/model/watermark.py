"""Watermarks: whether a zone has enough free memory for a request.

`mm/page_alloc.c:zone_watermark_fast, __zone_watermark_ok, get_page_from_freelist @6.12`.
"""

from __future__ import annotations

from memdesc.model.buddy import list_of
from memdesc.model.compiled import helper, hot
from memdesc.model.gfp import (
    MIN_RESERVE,
    NO_WATERMARKS,
    NON_BLOCK,
    OOM,
    RESERVE_HIGHATOMIC,
    RESERVES,
    WMARK_LOW,
    WMARK_MIN,
)
from memdesc.model.state import (
    BELOW_HIGH,
    BOOSTED,
    G_MAX_ORDER,
    G_PLAIN,
    HIGHATOMIC,
    PCP_TYPES,
    R_BELOW_HIGH,
    R_HIGHATOMIC_COUNTS_FREE,
    Z_BOOST,
    Z_FLAGS,
    Z_FREE,
    Z_FREE_HIGHATOMIC,
    Z_HIGH,
    Z_LOW,
    Z_MIN,
    Z_RESERVE,
    Z_RESERVED_HIGHATOMIC,
    ZONE_SHIFT,
    State,
)

__all__ = ["plenty", "watermark_ok", "zone_will_do"]


@helper
def zone_will_do(m: State, z: int, order: int, highest: int, alloc_flags: int) -> bool:
    """Whether a zone has enough free memory for the attempt; notices the high mark (6.12)."""
    if m.params[R_BELOW_HIGH] != 0 and m.zones[z + Z_FLAGS] & BELOW_HIGH == 0:
        if watermark_ok(m, z, order, m.zones[z + Z_HIGH], highest, alloc_flags):
            return True
        m.zones[z + Z_FLAGS] |= BELOW_HIGH
    mark = m.zones[z + Z_MIN + (alloc_flags & (WMARK_LOW | WMARK_MIN))]
    return watermark_ok(m, z, order, mark, highest, alloc_flags) or alloc_flags & NO_WATERMARKS != 0


@helper
def watermark_ok(m: State, z: int, order: int, mark: int, highest: int, alloc_flags: int) -> bool:
    """`zone_watermark_fast`; `mark` without the boost, which is added here."""
    reserve = m.zones[z + Z_RESERVE + highest]
    free = m.zones[z + Z_FREE]
    held = 0
    if alloc_flags & RESERVES == 0:
        held = m.zones[z + Z_FREE_HIGHATOMIC]
        if m.params[R_HIGHATOMIC_COUNTS_FREE] == 0:
            held = m.zones[z + Z_RESERVED_HIGHATOMIC]
    boost = m.zones[z + Z_BOOST]
    if order == 0 and free - min(free, held) > mark + boost + reserve:
        return True
    if _mark_met(m, z, order, mark + boost, reserve, free, held, alloc_flags):
        return True
    return (
        boost != 0
        and order == 0
        and alloc_flags & MIN_RESERVE != 0
        and alloc_flags & WMARK_LOW == 0
        and _mark_met(m, z, 0, m.zones[z + Z_MIN], reserve, free, held, alloc_flags)
    )


@helper
def _mark_met(
    m: State, z: int, order: int, mark: int, reserve: int, free: int, held: int, alloc_flags: int
) -> bool:
    """`__zone_watermark_ok`."""
    free -= (1 << order) - 1 + held
    if alloc_flags & RESERVES:
        if alloc_flags & MIN_RESERVE:
            mark -= mark >> 1
            if alloc_flags & NON_BLOCK:
                mark -= mark >> 2
        if alloc_flags & OOM:
            mark -= mark >> 1
    if free <= mark + reserve:
        return False
    if order == 0:
        return True
    zone = z >> ZONE_SHIFT
    reserve_too = alloc_flags & (RESERVE_HIGHATOMIC | OOM) != 0
    for high in range(order, m.params[G_MAX_ORDER] + 1):
        item = list_of(m, zone, high, 0)
        for migratetype in range(PCP_TYPES):
            if m.next[item + migratetype] != item + migratetype:
                return True
        if reserve_too and m.next[item + HIGHATOMIC] != item + HIGHATOMIC:
            return True
    return False


@hot
def plenty(m: State, z: int, highest: int) -> bool:
    """Whether a single frame may come from the zone's per-CPU list without another thought."""
    if m.zones[z + Z_FLAGS] & BOOSTED or m.params[G_PLAIN] == 0:
        return False
    mark = m.zones[z + Z_LOW]
    if m.params[R_BELOW_HIGH] != 0 and m.zones[z + Z_FLAGS] & BELOW_HIGH == 0:
        mark = m.zones[z + Z_HIGH]
    held = m.zones[z + Z_FREE_HIGHATOMIC]
    if m.params[R_HIGHATOMIC_COUNTS_FREE] == 0:
        held = m.zones[z + Z_RESERVED_HIGHATOMIC]
    return (
        m.zones[z + Z_FREE] - held > mark + m.zones[z + Z_BOOST] + m.zones[z + Z_RESERVE + highest]
    )
