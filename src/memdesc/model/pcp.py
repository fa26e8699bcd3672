"""Per-CPU lists: how many blocks come at once, how many go back at once, and when.

A CPU keeps, for each zone, lists of free blocks of orders 0 to 3 by type, and two of the
pageblock order.  6.12 and 7.2 size them as they are used: refills double while a CPU goes on
allocating, `high` follows what is freed; 6.1 has one `high`, and flushes that double.

`mm/page_alloc.c:nr_pcp_alloc, nr_pcp_high, nr_pcp_free, free_unref_page_commit,
free_pcppages_bulk, decay_pcp_high` @6.1, @6.12, @7.2.
"""

from __future__ import annotations

from memdesc.kernels.allocator import COSTLY_ORDER
from memdesc.model.buddy import free_one_block, list_push, list_push_tail, list_unlink
from memdesc.model.compiled import helper, hot, keep_apart
from memdesc.model.counters import E_DRAIN, PCP_DRAINED, PGFREE, note
from memdesc.model.state import (
    BELOW_HIGH,
    FREE_HIGH_BATCH,
    G_BLOCK_ORDER,
    G_CPUS,
    G_PCP_LISTS,
    G_ZONES,
    KIND_SHIFT,
    MOVABLE,
    ORDER_MASK,
    P_ALLOC_FACTOR,
    P_BATCH,
    P_COUNT,
    P_FLAGS,
    P_FREE_COUNT,
    P_HIGH,
    P_HIGH_MAX,
    P_HIGH_MIN,
    PCP,
    PCP_LISTS,
    PCP_LISTS_SHIFT,
    PCP_TYPES,
    PERCPU_SHIFT,
    PREV_FREE_HIGH_ORDER,
    R_FREE_HIGH_HALF_MIN,
    R_FREE_IN_BATCHES,
    R_PCP_REMEMBERS_TYPE,
    R_PCP_TUNED,
    R_PGFREE_COUNTS_FRAMES,
    RECLAIM_ACTIVE,
    SCALE_MAX,
    Z_BOOST,
    Z_FLAGS,
    Z_FREE,
    Z_FREE_HIGHATOMIC,
    Z_HIGH,
    Z_ISOLATED_BLOCKS,
    Z_RESERVE,
    ZONE_MOVABLE,
    ZONE_SHIFT,
    State,
)

__all__ = [
    "decay",
    "drain",
    "drain_all",
    "pcp_append",
    "pcp_free",
    "pcp_index",
    "pcp_list",
    "pcp_push",
    "pcp_refill_size",
    "pcp_remove",
    "pcp_type",
    "percpu_row",
]


@hot
def percpu_row(m: State, cpu: int, zone: int) -> int:
    """Number of the per-CPU lists of a CPU and a zone."""
    return cpu * m.params[G_ZONES] + zone


@hot
def pcp_index(m: State, migratetype: int, order: int) -> int:
    """Which of the 14 lists; -1: blocks of that order bypass them (`pcp_allowed_order`)."""
    if order <= COSTLY_ORDER:
        return migratetype + PCP_TYPES * order
    if order == m.params[G_BLOCK_ORDER]:
        return PCP_LISTS - 2 + (1 if migratetype == MOVABLE else 0)
    return -1


@hot
def pcp_list(m: State, row: int, index: int) -> int:
    """Number of one of the lists of a CPU and a zone."""
    return m.params[G_PCP_LISTS] + (row << PCP_LISTS_SHIFT) + index


@hot
def pcp_type(migratetype: int) -> int:
    """On whose lists blocks of a pageblock of that type wait (`free_unref_page`)."""
    return migratetype if migratetype < PCP_TYPES else MOVABLE


@hot
def pcp_push(m: State, row: int, pfn: int, order: int, migratetype: int) -> int:
    """Put a block at the head of its list, as a free does; returns how many frames wait there.

    `migratetype` is its pageblock's, which is not ISOLATE; the order has a list.
    """
    m.frame[pfn] = PCP | migratetype << KIND_SHIFT | order
    list_push(m, pcp_list(m, row, pcp_index(m, pcp_type(migratetype), order)), pfn)
    count = m.percpu[(row << PERCPU_SHIFT) + P_COUNT] + (1 << order)
    m.percpu[(row << PERCPU_SHIFT) + P_COUNT] = count
    return count


@helper
def pcp_append(m: State, row: int, pfn: int, order: int, migratetype: int) -> None:
    """Put a block at the tail of its list, as a refill does, under the type that it came with."""
    m.frame[pfn] = PCP | migratetype << KIND_SHIFT | order
    list_push_tail(m, pcp_list(m, row, pcp_index(m, pcp_type(migratetype), order)), pfn)
    m.percpu[(row << PERCPU_SHIFT) + P_COUNT] += 1 << order


@helper
def pcp_remove(m: State, pfn: int) -> None:
    """Take a block off the list that it is on, wherever it is there."""
    first = m.params[G_PCP_LISTS]
    at = m.next[pfn]
    while at < first:
        at = m.next[at]
    row = (at - first) >> PCP_LISTS_SHIFT
    m.percpu[(row << PERCPU_SHIFT) + P_COUNT] -= 1 << (m.frame[pfn] & ORDER_MASK)
    list_unlink(m, pfn)
    m.frame[pfn] = 0


@helper
def pcp_refill_size(m: State, zone: int, row: int, order: int) -> int:
    """How many blocks of 2^order an empty list takes from the buddy (`nr_pcp_alloc`)."""
    p = row << PERCPU_SHIFT
    batch = m.percpu[p + P_BATCH]
    if m.params[R_PCP_TUNED] != 0:
        base, high_min, high_max = batch, m.percpu[p + P_HIGH_MIN], m.percpu[p + P_HIGH_MAX]
        high = min(max(m.percpu[p + P_HIGH], high_min), high_max)
        m.percpu[p + P_HIGH] = high
        if high < base:
            return 1
        if order == 0:
            batch = base << m.percpu[p + P_ALLOC_FACTOR]
        if high_min != high_max and m.zones[(zone << ZONE_SHIFT) + Z_FLAGS] & BELOW_HIGH == 0:
            high = min(high + batch, high_max)
            m.percpu[p + P_HIGH] = high
        if order == 0:
            most = max(high - m.percpu[p + P_COUNT] - base, base)
            if batch <= most and m.percpu[p + P_ALLOC_FACTOR] < SCALE_MAX:
                m.percpu[p + P_ALLOC_FACTOR] += 1
            batch = min(batch, most)
    if batch > 1:
        batch = max(batch >> order, 2)
    return batch


@hot
def pcp_free(m: State, zone: int, row: int, pfn: int, order: int, migratetype: int) -> None:
    """Put a block on a CPU's list, and give blocks back if there are too many.

    `migratetype` is its pageblock's, which is not ISOLATE. (`free_unref_page_commit`)
    """
    p = row << PERCPU_SHIFT
    count = pcp_push(m, row, pfn, order, migratetype)
    batch = m.percpu[p + P_BATCH]
    free_count = m.percpu[p + P_FREE_COUNT]
    high = m.percpu[p + P_HIGH]
    if (
        order == 0
        and count < high
        and m.params[R_PCP_TUNED] != 0
        and high >= m.percpu[p + P_HIGH_MIN]
        and high <= m.percpu[p + P_HIGH_MAX]
        and m.zones[(zone << ZONE_SHIFT) + Z_FLAGS] & (RECLAIM_ACTIVE | BELOW_HIGH) == 0
    ):
        # By far the most frequent case, in which all that `_settle` asks finds nothing.
        m.stats[PGFREE] += 1
        m.percpu[p + P_ALLOC_FACTOR] >>= 1
        m.percpu[p + P_FLAGS] &= ~PREV_FREE_HIGH_ORDER
        if free_count < batch << SCALE_MAX:
            m.percpu[p + P_FREE_COUNT] = free_count + 1
        return
    _settle(m, zone, row, order, pcp_index(m, pcp_type(migratetype), order))


@helper
def free_bulk(m: State, zone: int, row: int, frames: int, index: int) -> None:
    """Give at least `frames` frames back, the oldest first, beginning with list `index`.

    (`free_pcppages_bulk`; 6.1 puts them back under the type that they came with.)
    """
    keep_apart()
    p = row << PERCPU_SHIFT
    frames = min(frames, m.percpu[p + P_COUNT])
    lists = pcp_list(m, row, 0)
    remembered = (
        m.params[R_PCP_REMEMBERS_TYPE] != 0
        and m.zones[(zone << ZONE_SHIFT) + Z_ISOLATED_BLOCKS] == 0
    )
    block_order = m.params[G_BLOCK_ORDER]
    done = 0
    while done < frames:
        pfn = m.prev[lists + index]
        if pfn == lists + index:
            index += 1
            if index == PCP_LISTS:
                index = 0
            continue
        byte = m.frame[pfn]
        order = byte & ORDER_MASK
        migratetype = (byte >> KIND_SHIFT) & 3 if remembered else m.block[pfn >> block_order]
        list_unlink(m, pfn)
        m.frame[pfn] = 0
        done += 1 << order
        free_one_block(m, zone, pfn, order, migratetype, 0)
    m.percpu[p + P_COUNT] -= done
    m.stats[PCP_DRAINED] += done
    note(m, E_DRAIN, zone, -1, row, done, m.percpu[p + P_COUNT])


@helper
def drain(m: State, zone: int, row: int) -> None:
    """Empty one CPU's lists of one zone (`drain_pages_zone`)."""
    if m.percpu[(row << PERCPU_SHIFT) + P_COUNT] > 0:
        free_bulk(m, zone, row, m.percpu[(row << PERCPU_SHIFT) + P_COUNT], 0)


@helper
def drain_all(m: State) -> None:
    """Empty every CPU's lists of every zone (`drain_all_pages`)."""
    for cpu in range(m.params[G_CPUS]):
        for zone in range(m.params[G_ZONES]):
            drain(m, zone, percpu_row(m, cpu, zone))


@helper
def decay(m: State, cpu: int) -> None:
    """What the vmstat worker does about every second: lower `high` by an eighth, and flush.

    (`decay_pcp_high`; 6.1 has no such thing.)
    """
    if m.params[R_PCP_TUNED] == 0:
        return
    for zone in range(m.params[G_ZONES]):
        row = percpu_row(m, cpu, zone)
        p = row << PERCPU_SHIFT
        high, high_min = m.percpu[p + P_HIGH], m.percpu[p + P_HIGH_MIN]
        if high > high_min:
            most = m.percpu[p + P_COUNT] - (m.percpu[p + P_BATCH] << SCALE_MAX)
            high = max(most, high - (high >> 3), high_min)
            m.percpu[p + P_HIGH] = high
        if m.percpu[p + P_COUNT] > high:
            free_bulk(m, zone, row, m.percpu[p + P_COUNT] - high, 0)


# --- helpers -----------------------------------------------------------------------------


@helper
def _settle(m: State, zone: int, row: int, order: int, index: int) -> None:
    """After a block came to list `index`: count it, and give blocks back if there are too many."""
    keep_apart()
    p = row << PERCPU_SHIFT
    m.stats[PGFREE] += 1 << order if m.params[R_PGFREE_COUNTS_FRAMES] != 0 else 1
    count = m.percpu[p + P_COUNT]
    batch = m.percpu[p + P_BATCH]
    if m.params[R_PCP_TUNED] == 0:
        free_high = m.percpu[p + P_FREE_COUNT] > 0 and 0 < order <= COSTLY_ORDER
        high = m.percpu[p + P_HIGH]
        if free_high:
            high = 0
        elif m.zones[(zone << ZONE_SHIFT) + Z_FLAGS] & RECLAIM_ACTIVE:
            high = min(batch << 2, high)
        if count >= high:
            free_bulk(m, zone, row, _burst_61(m, p, high, batch, free_high), index)
        return

    m.percpu[p + P_ALLOC_FACTOR] >>= 1
    flags = m.percpu[p + P_FLAGS]
    free_count = m.percpu[p + P_FREE_COUNT]
    free_high = False
    if 0 < order <= COSTLY_ORDER:
        enough = batch
        if m.params[R_FREE_HIGH_HALF_MIN] != 0:
            enough += m.percpu[p + P_HIGH_MIN] >> 1
        free_high = (
            free_count >= enough
            and flags & PREV_FREE_HIGH_ORDER != 0
            and (flags & FREE_HIGH_BATCH == 0 or count >= batch)
        )
        m.percpu[p + P_FLAGS] = flags | PREV_FREE_HIGH_ORDER
    elif flags & PREV_FREE_HIGH_ORDER:
        m.percpu[p + P_FLAGS] = flags & ~PREV_FREE_HIGH_ORDER
    if free_count < batch << SCALE_MAX:
        m.percpu[p + P_FREE_COUNT] = free_count + (1 << order)
    _flush(m, zone, row, batch, free_high, index)


@helper
def _flush(m: State, zone: int, row: int, batch: int, free_high: bool, index: int) -> None:
    """The rest of a free that may give blocks back (`nr_pcp_high, nr_pcp_free` @6.12)."""
    p = row << PERCPU_SHIFT
    count = m.percpu[p + P_COUNT]
    high = _high(m, zone, p, batch, free_high)
    if count < high:
        return
    if free_high:
        frames = min(count, batch << SCALE_MAX)
    elif high < batch:
        frames = 1
    else:
        frames = min(max(m.percpu[p + P_FREE_COUNT], batch), high - batch)
    step = batch if m.params[R_FREE_IN_BATCHES] != 0 else frames
    while frames > 0 and m.percpu[p + P_COUNT] > 0:
        free_bulk(m, zone, row, min(frames, step), index)
        frames -= step
    z = zone << ZONE_SHIFT
    if m.zones[z + Z_FLAGS] & BELOW_HIGH:
        usable = m.zones[z + Z_FREE] - m.zones[z + Z_FREE_HIGHATOMIC]
        mark = m.zones[z + Z_HIGH] + m.zones[z + Z_BOOST] + m.zones[z + Z_RESERVE + ZONE_MOVABLE]
        if usable > mark:
            m.zones[z + Z_FLAGS] &= ~BELOW_HIGH


@helper
def _high(m: State, zone: int, p: int, batch: int, free_high: bool) -> int:
    """The number of frames from which a list gives back, and `high` for the next time."""
    high_min, high_max = m.percpu[p + P_HIGH_MIN], m.percpu[p + P_HIGH_MAX]
    high = min(max(m.percpu[p + P_HIGH], high_min), high_max)
    m.percpu[p + P_HIGH] = high
    if high == 0:
        return 0
    if free_high:
        m.percpu[p + P_HIGH] = max(high - (batch << SCALE_MAX), high_min)
        return 0
    flags = m.zones[(zone << ZONE_SHIFT) + Z_FLAGS]
    free_count = m.percpu[p + P_FREE_COUNT]
    if flags & RECLAIM_ACTIVE:
        m.percpu[p + P_HIGH] = max(high - max(free_count, batch), high_min)
        return min(batch << 2, m.percpu[p + P_HIGH])
    if high_min == high_max:
        return high
    count = m.percpu[p + P_COUNT]
    if flags & BELOW_HIGH:
        m.percpu[p + P_HIGH] = max(high - max(free_count, batch), high_min)
        return max(count, high_min)
    if count >= high and high < free_count + batch:
        m.percpu[p + P_HIGH] = min(max(free_count + batch, high_min), high_max)
    return high


@helper
def _burst_61(m: State, p: int, high: int, batch: int, free_high: bool) -> int:
    """Frames to give back at once (`nr_pcp_free` @6.1)."""
    if free_high:
        return m.percpu[p + P_COUNT]
    if high < batch:
        return 1
    most = high - batch
    burst = batch << m.percpu[p + P_FREE_COUNT]
    if burst < most and m.percpu[p + P_FREE_COUNT] < SCALE_MAX:
        m.percpu[p + P_FREE_COUNT] += 1
    return min(max(burst, batch), most)
