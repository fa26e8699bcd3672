"""Getting a page and giving it back: zones, watermarks, per-CPU lists, buddy, slow path.

What other compiled modules call::

    pfn = alloc_pages(m, order, gfp, cpu)      # -1: there is none
    free_pages(m, pfn, order, cpu)

There is no reclaim and no compaction: the slow path wakes kswapd (counted), tries the min mark
with the reserves that the request may use, and, where the request may wait, drains the per-CPU
lists and gives the HIGHATOMIC reserve back, as the kernel does before it kills somebody.

`mm/page_alloc.c:__alloc_pages, get_page_from_freelist, rmqueue, __zone_watermark_ok,
gfp_to_alloc_flags, __alloc_pages_slowpath, free_unref_page @6.12`.
"""

from __future__ import annotations

from memdesc.kernels.allocator import COSTLY_ORDER
from memdesc.model.buddy import free_block, list_push_tail, list_unlink, take_smallest
from memdesc.model.compiled import helper, hot, keep_apart
from memdesc.model.counters import (
    DOUBLE_FREES,
    E_FAIL,
    E_KSWAPD,
    E_LAST_RESORT,
    E_REFILL,
    FAILURES,
    KSWAPD_WAKES,
    LAST_RESORT,
    NUMA_FOREIGN,
    NUMA_HIT,
    NUMA_LOCAL,
    NUMA_MISS,
    NUMA_OTHER,
    PGALLOC,
    PGFREE,
    REFILLED,
    REFILLS,
    note,
)
from memdesc.model.fallback import NORMAL, reserve_highatomic, take, unreserve_highatomic
from memdesc.model.gfp import (
    GFP_DIRECT_RECLAIM,
    GFP_HIGH,
    GFP_KSWAPD_RECLAIM,
    GFP_MEMALLOC,
    GFP_MOVABLE,
    GFP_NOMEMALLOC,
    GFP_THISNODE,
    KSWAPD,
    MIN_RESERVE,
    NO_WATERMARKS,
    NOFRAGMENT,
    NON_BLOCK,
    OOM,
    RESERVE_HIGHATOMIC,
    WMARK_LOW,
    WMARK_MIN,
)
from memdesc.model.pcp import (
    drain_all,
    pcp_free,
    pcp_index,
    pcp_list,
    pcp_refill_size,
    percpu_row,
)
from memdesc.model.state import (
    BOOSTED,
    G_BLOCK_ORDER,
    G_CPU_NODE,
    G_GFP_ZONE,
    G_GROUPING_OFF,
    G_MAX_ORDER,
    G_NODES,
    G_PCP_OFF,
    HIGHATOMIC,
    ISOLATE,
    KIND_SHIFT,
    ORDER_MASK,
    P_COUNT,
    P_FREE_COUNT,
    PCP,
    PERCPU_SHIFT,
    R_HIGHATOMIC_NO_REFILL,
    R_PGFREE_COUNTS_FRAMES,
    UNMOVABLE,
    USED,
    USED_MOVABLE,
    V_FAIL_AFTER,
    V_FAILED,
    Z_FLAGS,
    Z_FREE,
    Z_NODE,
    Z_TYPE,
    ZONE_DMA32,
    ZONE_NORMAL,
    ZONE_SHIFT,
    State,
)
from memdesc.model.watermark import plenty, zone_will_do

__all__ = [
    "alloc_pages",
    "alloc_pages_here",
    "free_pages",
    "free_pages_here",
    "split_pages",
]


@helper
def alloc_pages(m: State, order: int, gfp: int, cpu: int) -> int:
    """Allocate 2^order frames for a request with flags `gfp` on `cpu`; -1: there are none.

    The block counts as movable when the request says MOVABLE.
    """
    return alloc_pages_here(m, order, gfp, cpu)


@helper
def free_pages(m: State, pfn: int, order: int, cpu: int) -> int:
    """Free the block of 2^order frames at `pfn`, on `cpu`.

    0: done. -1: no block of that order is allocated there (a double free): nothing happens, and
    the counter model_bad_frees goes up.
    """
    return free_pages_here(m, pfn, order, cpu)


@hot
def alloc_pages_here(m: State, order: int, gfp: int, cpu: int) -> int:
    """As `alloc_pages`, with the most frequent case put into the caller.

    That is: one frame, the zone that the request prefers is above its mark, and the CPU's list
    is not empty. Everything else is `_alloc_otherwise`, which does the same in that case.
    """
    if order == 0 and m.params[V_FAIL_AFTER] == 0:
        node = m.params[G_CPU_NODE + cpu]
        highest = m.params[G_GFP_ZONE + (gfp & 15)]
        zone = m.zonelists[((((node << 1) + (1 if gfp & GFP_THISNODE else 0)) << 3) + highest) << 5]
        z = zone << ZONE_SHIFT
        if zone >= 0 and m.zones[z + Z_NODE] == node and plenty(m, z, highest):
            migratetype = (gfp & 0x18) >> 3
            row = percpu_row(m, cpu, zone)
            p = row << PERCPU_SHIFT
            item = pcp_list(m, row, migratetype)
            pfn = m.next[item]
            if pfn != item:
                after = m.next[pfn]
                m.next[item] = after
                m.prev[after] = item
                m.percpu[p + P_FREE_COUNT] >>= 1
                m.percpu[p + P_COUNT] -= 1
                m.frame[pfn] = USED_MOVABLE if gfp & GFP_MOVABLE else USED
                m.stats[PGALLOC + m.zones[z + Z_TYPE]] += 1
                m.stats[NUMA_HIT] += 1
                m.stats[NUMA_LOCAL] += 1
                return pfn
    return _alloc_otherwise(m, order, gfp, cpu)


@hot
def free_pages_here(m: State, pfn: int, order: int, cpu: int) -> int:
    """As `free_pages`, put into the caller as far as the CPU's list."""
    byte = m.frame[pfn]
    if byte != USED | order and byte != USED_MOVABLE | order:
        m.stats[DOUBLE_FREES] += 1
        return -1
    block = pfn >> m.params[G_BLOCK_ORDER]
    zone = m.block_zone[block]
    migratetype = m.block[block]
    if order <= COSTLY_ORDER and migratetype != ISOLATE and m.params[G_PCP_OFF] == 0:
        pcp_free(m, zone, percpu_row(m, cpu, zone), pfn, order, migratetype)
        return 0
    _free_otherwise(m, zone, pfn, order, migratetype, cpu)
    return 0


@helper
def split_pages(m: State, pfn: int, order: int, new_order: int) -> int:
    """Make an allocated block of 2^order several of 2^new_order (`split_page`).

    0: done. -1: no such block is allocated there.
    """
    byte = m.frame[pfn]
    if byte & ORDER_MASK != order or new_order > order:
        return -1
    if byte & ~ORDER_MASK != USED and byte & ~ORDER_MASK != USED_MOVABLE:
        return -1
    end = pfn + (1 << order)
    while pfn < end:
        m.frame[pfn] = (byte & ~ORDER_MASK) | new_order
        pfn += 1 << new_order
    return 0


# --- what is not the most frequent case -----------------------------------------------------


@helper
def _alloc_otherwise(m: State, order: int, gfp: int, cpu: int) -> int:
    """`__alloc_pages`: first at the low mark, then the slow path."""
    keep_apart()
    if m.params[V_FAIL_AFTER] != 0 and _injected(m):
        return -1
    migratetype = (gfp & 0x18) >> 3
    if m.params[G_GROUPING_OFF] != 0:
        migratetype = UNMOVABLE
    highest = m.params[G_GFP_ZONE + (gfp & 15)]
    node = m.params[G_CPU_NODE + cpu]
    zones = ((((node << 1) + (1 if gfp & GFP_THISNODE else 0)) << 3) + highest) << 5
    preferred = m.zonelists[zones]
    if preferred < 0 or order > m.params[G_MAX_ORDER]:
        return _failed(m, order, gfp, -1)
    alloc_flags = WMARK_LOW | (gfp & GFP_KSWAPD_RECLAIM) | _nofragment(m, preferred)
    pfn = _from_free_lists(m, zones, order, migratetype, highest, alloc_flags, cpu)
    if pfn < 0:
        pfn = _slow_path(m, zones, order, migratetype, highest, gfp, cpu)
        if pfn < 0:
            return _failed(m, order, gfp, preferred)
    m.frame[pfn] = (USED_MOVABLE if gfp & GFP_MOVABLE else USED) | order
    return pfn


@helper
def _free_otherwise(m: State, zone: int, pfn: int, order: int, migratetype: int, cpu: int) -> None:
    """A free of a large block, into an isolated pageblock, or past the per-CPU lists."""
    keep_apart()
    if migratetype != ISOLATE and pcp_index(m, 0, order) >= 0 and m.params[G_PCP_OFF] == 0:
        pcp_free(m, zone, percpu_row(m, cpu, zone), pfn, order, migratetype)
        return
    m.frame[pfn] = 0
    m.stats[PGFREE] += 1 << order if m.params[R_PGFREE_COUNTS_FRAMES] != 0 else 1
    free_block(m, zone, pfn, order)


# --- zones -------------------------------------------------------------------------------


@helper
def _from_free_lists(
    m: State, zones: int, order: int, migratetype: int, highest: int, alloc_flags: int, cpu: int
) -> int:
    """`get_page_from_freelist`."""
    keep_apart()
    preferred = m.zonelists[zones]
    while True:
        no_fallback = alloc_flags & NOFRAGMENT
        restart = False
        at = zones
        zone = preferred
        while zone >= 0:
            z = zone << ZONE_SHIFT
            if (
                no_fallback != 0
                and m.params[G_NODES] > 1
                and m.zones[z + Z_NODE] != m.zones[(preferred << ZONE_SHIFT) + Z_NODE]
            ):
                # Rather mix types here than go to another node.
                alloc_flags &= ~NOFRAGMENT
                restart = True
                break
            if zone_will_do(m, z, order, highest, alloc_flags):
                pfn = _from_zone(m, preferred, zone, order, migratetype, alloc_flags, cpu)
                if pfn >= 0:
                    if alloc_flags & RESERVE_HIGHATOMIC:
                        reserve_highatomic(m, zone, pfn, order)
                    return pfn
            at += 1
            zone = m.zonelists[at]
        if not restart:
            if no_fallback == 0:
                return -1
            alloc_flags &= ~NOFRAGMENT


@helper
def _from_zone(
    m: State, preferred: int, zone: int, order: int, migratetype: int, alloc_flags: int, cpu: int
) -> int:
    """`rmqueue`: from this CPU's list, else from the buddy."""
    z = zone << ZONE_SHIFT
    pfn = -1
    index = pcp_index(m, migratetype, order)
    if index >= 0 and m.params[G_PCP_OFF] == 0:
        row = percpu_row(m, cpu, zone)
        p = row << PERCPU_SHIFT
        m.percpu[p + P_FREE_COUNT] >>= 1
        item = pcp_list(m, row, index)
        pfn = m.next[item]
        if pfn == item:
            pfn = -1
            if alloc_flags & RESERVE_HIGHATOMIC == 0 or m.params[R_HIGHATOMIC_NO_REFILL] == 0:
                pfn = _refill(m, zone, row, item, order, migratetype, alloc_flags)
        if pfn >= 0:
            list_unlink(m, pfn)
            m.percpu[p + P_COUNT] -= 1 << order
    if pfn < 0:
        pfn = _from_buddy(m, zone, order, migratetype, alloc_flags)
        if pfn < 0:
            return -1
    m.stats[PGALLOC + m.zones[z + Z_TYPE]] += 1 << order
    node = m.zones[z + Z_NODE]
    if zone == preferred or node == m.zones[(preferred << ZONE_SHIFT) + Z_NODE]:
        m.stats[NUMA_HIT] += 1
    else:
        m.stats[NUMA_MISS] += 1
        m.stats[NUMA_FOREIGN] += 1
    if node == m.params[G_CPU_NODE + cpu]:
        m.stats[NUMA_LOCAL] += 1
    else:
        m.stats[NUMA_OTHER] += 1
    if m.zones[z + Z_FLAGS] & BOOSTED and alloc_flags & KSWAPD:
        m.zones[z + Z_FLAGS] &= ~BOOSTED
        _wake_kswapd(m, zone)
    return pfn


@helper
def _refill(
    m: State, zone: int, row: int, item: int, order: int, migratetype: int, alloc_flags: int
) -> int:
    """Fill an empty per-CPU list, in order, and return its first block; -1: nothing came.

    (`rmqueue_bulk`)
    """
    keep_apart()
    wanted = pcp_refill_size(m, zone, row, order)
    mode = NORMAL
    done = 0
    while done < wanted:
        pfn, mode = take(m, zone, order, migratetype, alloc_flags, mode)
        if pfn < 0:
            break
        m.frame[pfn] = PCP | migratetype << KIND_SHIFT | order
        list_push_tail(m, item, pfn)
        done += 1
    if done == 0:
        return -1
    m.percpu[(row << PERCPU_SHIFT) + P_COUNT] += done << order
    m.stats[REFILLS] += 1
    m.stats[REFILLED] += done << order
    note(m, E_REFILL, zone, m.next[item], row, done, order)
    return m.next[item]


@helper
def _from_buddy(m: State, zone: int, order: int, migratetype: int, alloc_flags: int) -> int:
    """`rmqueue_buddy`."""
    keep_apart()
    pfn = -1
    if alloc_flags & RESERVE_HIGHATOMIC:
        pfn = take_smallest(m, zone, order, HIGHATOMIC)
    if pfn < 0:
        pfn, _ = take(m, zone, order, migratetype, alloc_flags, NORMAL)
        if pfn < 0 and alloc_flags & (OOM | NON_BLOCK):
            pfn = take_smallest(m, zone, order, HIGHATOMIC)
    return pfn


# --- the slow path -----------------------------------------------------------------------


@helper
def _slow_path(
    m: State, zones: int, order: int, migratetype: int, highest: int, gfp: int, cpu: int
) -> int:
    """What of `__alloc_pages_slowpath` needs neither reclaim nor compaction."""
    keep_apart()
    if gfp & GFP_KSWAPD_RECLAIM:
        at = zones
        last = -1
        while m.zonelists[at] >= 0:
            node = m.zones[(m.zonelists[at] << ZONE_SHIFT) + Z_NODE]
            if node != last:
                _wake_kswapd(m, m.zonelists[at])
            last = node
            at += 1
    alloc_flags = WMARK_MIN | (gfp & GFP_KSWAPD_RECLAIM)
    if gfp & GFP_HIGH:
        alloc_flags |= MIN_RESERVE
    if gfp & GFP_DIRECT_RECLAIM == 0 and gfp & GFP_NOMEMALLOC == 0:
        alloc_flags |= NON_BLOCK
        if order > 0 and gfp & GFP_HIGH:
            alloc_flags |= RESERVE_HIGHATOMIC
    pfn = _from_free_lists(m, zones, order, migratetype, highest, alloc_flags, cpu)
    if pfn < 0 and gfp & GFP_MEMALLOC and gfp & GFP_NOMEMALLOC == 0:
        alloc_flags = NO_WATERMARKS | (alloc_flags & KSWAPD)
        pfn = _from_free_lists(m, zones, order, migratetype, highest, alloc_flags, cpu)
    if pfn < 0 and gfp & GFP_DIRECT_RECLAIM:
        m.stats[LAST_RESORT] += 1
        note(m, E_LAST_RESORT, m.zonelists[zones], -1, order, migratetype, 0)
        drain_all(m)
        at = zones
        while m.zonelists[at] >= 0:
            if unreserve_highatomic(m, m.zonelists[at], migratetype, True):
                break
            at += 1
        pfn = _from_free_lists(m, zones, order, migratetype, highest, alloc_flags, cpu)
    return pfn


@helper
def _nofragment(m: State, zone: int) -> int:
    """`alloc_flags_nofragment`, for the zone that the request prefers."""
    z = zone << ZONE_SHIFT
    if m.zones[z + Z_TYPE] != ZONE_NORMAL:
        return 0
    if m.params[G_NODES] > 1:
        # Only where the node has DMA32 as well.
        if zone == 0 or m.zones[z - (1 << ZONE_SHIFT) + Z_TYPE] != ZONE_DMA32:
            return 0
        if m.zones[z - (1 << ZONE_SHIFT) + Z_NODE] != m.zones[z + Z_NODE]:
            return 0
    return NOFRAGMENT


@helper
def _wake_kswapd(m: State, zone: int) -> None:
    m.stats[KSWAPD_WAKES] += 1
    note(m, E_KSWAPD, zone, -1, m.zones[(zone << ZONE_SHIFT) + Z_FREE], 0, 0)


@helper
def _injected(m: State) -> bool:
    """Count towards the failure that was asked for; True: it is now."""
    m.params[V_FAIL_AFTER] -= 1
    if m.params[V_FAIL_AFTER] != 0:
        return False
    m.params[V_FAILED] += 1
    m.stats[FAILURES] += 1
    return True


@helper
def _failed(m: State, order: int, gfp: int, zone: int) -> int:
    m.stats[FAILURES] += 1
    note(m, E_FAIL, zone, -1, order, gfp, 0)
    return -1
