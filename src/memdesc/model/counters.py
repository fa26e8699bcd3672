"""Event counters by their names in /proc/vmstat, and the rows of the event log.

`mm/vmstat.c:vmstat_text @6.12`. Counters that the kernel has not are named `model_...`.
"""

from __future__ import annotations

from memdesc.model.compiled import helper
from memdesc.model.state import State

__all__ = ["COUNTERS", "EVENTS", "note"]

PGALLOC = 0
"""pgalloc_dma, pgalloc_dma32, pgalloc_normal, pgalloc_movable: 0 to 3, in frames."""
PGFREE = 4
NUMA_HIT = 5
NUMA_MISS = 6
NUMA_FOREIGN = 7
NUMA_LOCAL = 8
NUMA_OTHER = 9
FAILURES = 11
KSWAPD_WAKES = 12
REFILLS = 13
REFILLED = 14
PCP_DRAINED = 15
CLAIMS_WHOLE = 16
CLAIMS_PART = 17
CLAIMS_REFUSED = 18
STEALS = 19
BOOSTS = 20
RESERVED_BLOCKS = 21
UNRESERVED_BLOCKS = 22
LAST_RESORT = 23
DOUBLE_FREES = 24

COUNTERS: dict[str, int] = {
    "pgalloc_dma": PGALLOC,
    "pgalloc_dma32": PGALLOC + 1,
    "pgalloc_normal": PGALLOC + 2,
    "pgalloc_movable": PGALLOC + 3,
    "pgfree": PGFREE,
    "numa_hit": NUMA_HIT,
    "numa_miss": NUMA_MISS,
    "numa_foreign": NUMA_FOREIGN,
    "numa_local": NUMA_LOCAL,
    "numa_other": NUMA_OTHER,
    "model_failures": FAILURES,
    "model_kswapd_wakes": KSWAPD_WAKES,
    "model_pcp_refills": REFILLS,
    "model_pcp_refilled": REFILLED,
    "model_pcp_drained": PCP_DRAINED,
    "model_claims_of_pageblocks": CLAIMS_WHOLE,
    "model_claims_below_pageblock": CLAIMS_PART,
    "model_claims_refused": CLAIMS_REFUSED,
    "model_steals": STEALS,
    "model_boosts": BOOSTS,
    "model_highatomic_reserved": RESERVED_BLOCKS,
    "model_highatomic_unreserved": UNRESERVED_BLOCKS,
    "model_last_resort": LAST_RESORT,
    "model_bad_frees": DOUBLE_FREES,
}
"""Name -> index into `State.stats`."""

# --- the event log -----------------------------------------------------------------------

E_REFILL, E_DRAIN, E_CLAIM, E_CLAIM_REFUSED, E_STEAL, E_BOOST = range(6)
E_RESERVE, E_UNRESERVE, E_KSWAPD, E_FAIL, E_LAST_RESORT, E_RETYPE = range(6, 12)

EVENTS: tuple[str, ...] = (
    "per-CPU list refilled",
    "per-CPU list drained",
    "fallback claimed",
    "fallback refused",
    "fallback stole",
    "watermark boosted",
    "pageblock reserved for HIGHATOMIC",
    "pageblock given back from HIGHATOMIC",
    "kswapd woken",
    "failed",
    "per-CPU lists drained and reserve given back before failing",
    "pageblock took the type of the block that it merged with",
)
"""What each code of the log's first column says."""

LOG_COUNT, LOG_ROOM, LOG_LOST, LOG_STEP = range(4)
LOG_ROWS = 16


@helper
def note(m: State, event: int, zone: int, pfn: int, a: int, b: int, c: int) -> None:
    """Write a row [event, zone, pfn, a, b, c, step, 0] where there is room; else count it lost."""
    if m.log[LOG_ROOM] == 0:
        return
    count = m.log[LOG_COUNT]
    if count >= m.log[LOG_ROOM]:
        m.log[LOG_LOST] += 1
        return
    row = LOG_ROWS + count * 8
    m.log[row] = event
    m.log[row + 1] = zone
    m.log[row + 2] = pfn
    m.log[row + 3] = a
    m.log[row + 4] = b
    m.log[row + 5] = c
    m.log[row + 6] = m.log[LOG_STEP]
    m.log[LOG_COUNT] = count + 1
