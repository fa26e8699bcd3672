"""The machine as columns: frames, pageblocks, zones, free lists, per-CPU lists, counters.

A `State` is owned by Python (`memdesc.model.machine.Machine`) and changed by compiled code.
Rows of `zones` and `percpu` are fields of the kernel's `struct zone` and
`struct per_cpu_pages`, 64 and 16 numbers wide; the constants below name them.

Nine bytes describe a frame to the page allocator: two links and one byte that says what it
is. All of it is zero for the inside of a block, so a fresh machine costs nothing but its list
heads.

Lists are circular, and their heads are elements of `next` and `prev` behind the frames, so
that linking and unlinking know no special case: list number `n` is "frame" `n`.
"""

from __future__ import annotations

from typing import NamedTuple

from memdesc.kernels.allocator import COSTLY_ORDER, MIGRATETYPES
from memdesc.model.compiled import Column

__all__ = ["State"]


class State(NamedTuple):
    """All that the page allocator knows. `frames` below is a multiple of the largest block."""

    next: Column
    """uint32[frames + lists]: the next block of the list, from a head; free for the owner's
    use in allocated frames."""
    prev: Column
    """uint32[frames + lists]: the one before."""
    frame: Column
    """uint8[frames]: kind << 4 | order of the block that starts here; 0 inside a block."""
    block: Column
    """uint8[pageblocks]: migratetype."""
    block_zone: Column
    """uint8[pageblocks]: index of the zone; NO_ZONE where no zone is."""
    zones: Column
    """int64[zones * 64]: see Z_..."""
    percpu: Column
    """int64[cpus * zones * 16]: see P_..."""
    zonelists: Column
    """int64[nodes * 2 * 8 * 32]: zones in the order tried, ended by -1; by node, whether only
    that node will do, and highest zone type."""
    params: Column
    """int64[...]: geometry, rules of the release, and what is not per zone: see G_, R_, V_."""
    stats: Column
    """int64[64]: event counters, see `memdesc.model.counters`."""
    log: Column
    """int64[16 + 8 * room]: the event log: count, room, lost; then rows."""


# --- a frame's byte ----------------------------------------------------------------------

KIND_SHIFT = 4
ORDER_MASK = 15
TAIL = 0 << 4
"""Not the start of a block."""
FREE = 1 << 4
"""Head of a free block on a list of its zone."""
USED = 2 << 4
"""Head of an allocated block that nothing can move."""
USED_MOVABLE = 3 << 4
"""Head of an allocated block that is on the LRU or has movable operations."""
RESERVED = 4 << 4
"""A frame that was never the allocator's: the kernel image, boot memory."""
HOLE = 5 << 4
"""No memory."""
TAKEN = 6 << 4
"""Out of the free lists by hand (poisoned, isolated and taken)."""
PCP = 8 << 4
"""Head of a block on a per-CPU list; + migratetype << 4 as it was when it came (0 to 3)."""

NO_ZONE = 255

# --- migratetypes, and the slots of lists ------------------------------------------------

UNMOVABLE, MOVABLE, RECLAIMABLE, HIGHATOMIC, ISOLATE = range(len(MIGRATETYPES))
PCP_TYPES = 3

LIST_ORDER_SHIFT = 3
"""free list of (zone, order, migratetype) = lists + (zone << 4 | order) << 3 | migratetype"""
LIST_ZONE_SHIFT = 7
PCP_LISTS = PCP_TYPES * (COSTLY_ORDER + 1) + 2
"""Per-CPU lists of a zone: three types of orders 0 to 3, and two of the pageblock order."""
PCP_LISTS_SHIFT = 4
SCALE_MAX = 5
"""CONFIG_PCP_BATCH_SCALE_MAX."""

# --- zone types, and zones ---------------------------------------------------------------

ZONE_DMA, ZONE_DMA32, ZONE_NORMAL, ZONE_MOVABLE = range(4)
ZONE_TYPES = 4

ZONE_SHIFT = 6
Z_FREE = 0
"""NR_FREE_PAGES: without per-CPU lists and ISOLATE blocks."""
Z_FREE_HIGHATOMIC = 1
Z_MIN = 2
Z_LOW = 3
Z_HIGH = 4
Z_PROMO = 5
Z_BOOST = 6
Z_FLAGS = 7
Z_RESERVE = 8
"""lowmem_reserve by zone type: 8 to 11."""
Z_MANAGED = 12
Z_RESERVED_HIGHATOMIC = 13
"""nr_reserved_highatomic: frames of HIGHATOMIC pageblocks, free or not."""
Z_ISOLATED_BLOCKS = 14
Z_START = 15
Z_END = 16
Z_NODE = 17
Z_TYPE = 18
Z_PRESENT = 19
Z_NR_FREE = 32
"""Free blocks of each order, all types: 32 to 47."""

BELOW_HIGH = 1
BOOSTED = 2
RECLAIM_ACTIVE = 4

# --- per-CPU lists of a zone -------------------------------------------------------------

PERCPU_SHIFT = 4
P_COUNT = 0
P_HIGH = 1
P_HIGH_MIN = 2
P_HIGH_MAX = 3
P_BATCH = 4
P_ALLOC_FACTOR = 5
P_FREE_COUNT = 6
"""free_count; free_factor in 6.1."""
P_FLAGS = 7

PREV_FREE_HIGH_ORDER = 1
FREE_HIGH_BATCH = 2

# --- params ------------------------------------------------------------------------------

G_FRAMES = 0
G_MAX_ORDER = 1
G_BLOCK_ORDER = 2
G_LISTS = 3
"""Number of the first free list (= frames)."""
G_PCP_LISTS = 4
"""Number of the first per-CPU list."""
G_ZONES = 5
G_CPUS = 6
G_NODES = 7
G_GROUPING_OFF = 8
"""page_group_by_mobility_disabled."""
G_BOOST_FACTOR = 9
"""vm.watermark_boost_factor, in 1/10000 of the high mark."""
G_PCP_OFF = 10
"""Per-CPU lists are bypassed (zone_pcp_disable)."""
G_PLAIN = 13
"""Requests keep their type and use per-CPU lists: G_GROUPING_OFF and G_PCP_OFF are both 0."""
V_FAIL_AFTER = 11
"""The n-th allocation from now fails; 0: none."""
V_FAILED = 12
"""Injected failures so far."""

R_CLAIM_THEN_STEAL = 16
R_BELOW_HIGH = 17
R_PCP_TUNED = 18
R_PCP_REMEMBERS_TYPE = 19
R_FREE_HIGH_HALF_MIN = 20
R_FREE_IN_BATCHES = 21
R_MERGE_RETYPES = 22
R_FREE_BY_PAGEBLOCK = 23
R_HIGHATOMIC_ROUNDED = 24
R_HIGHATOMIC_COUNTS_FREE = 25
R_HIGHATOMIC_NO_REFILL = 26
R_PGFREE_COUNTS_FRAMES = 27

G_GFP_ZONE = 32
"""Highest zone type by the lowest four gfp bits: 32 to 47."""
G_CPU_NODE = 64
"""Node of each CPU, from here on."""
