"""Giving back what caches keep: shrink, and the end of readers' sections (compiled).

Source: `mm/slub.c` (flush_all, __kmem_cache_do_shrink) @6.12, (pcs_flush_all, barn_shrink) @7.2.
"""

from __future__ import annotations

from memdesc.model.compiled import helper, keep_apart
from memdesc.model.cpu_slabs import (
    flush_cpu,
)
from memdesc.model.sheaves import (
    end_sheaf,
)
from memdesc.model.slab import (
    discard,
    flush_sheaf,
    free_descriptors,
    release,
)
from memdesc.model.slab_lists import (
    add_head,
    cpu_row,
    is_empty,
    node_row,
    remove,
)
from memdesc.model.slab_state import (
    G_CPUS,
    G_NODES,
    G_READERS,
    G_WAITING,
    H_NEXT,
    N_EMPTIES,
    N_EMPTY,
    N_FULL,
    N_FULLS,
    N_HEAD,
    N_SLABS,
    NONE,
    P_MAIN,
    P_SPARE,
    R_IN_USE,
    R_NEXT,
    R_OBJECTS,
    RECORD_FIELDS,
    SHEAF_FIELDS,
    SlabState,
)
from memdesc.model.state import State

__all__ = ["reader_begins", "reader_ends", "shrink"]

_PROMOTED = 32
"""SHRINK_PROMOTE_MAX: slabs with more free objects keep their order."""


@helper
def shrink(m: State, s: SlabState, cache: int) -> int:
    """kmem_cache_shrink: CPUs give up what they hold, empty slabs go, the fullest come first.

    Returns how many slabs are left.
    """
    keep_apart()
    for cpu in range(s.cell[G_CPUS]):
        discard(m, s, flush_cpu(s, cache, cpu), cpu)
        _flush_sheaves(m, s, cache, cpu)
    left = 0
    for node in range(s.cell[G_NODES]):
        at = node_row(s, cache, node)
        _flush_barn(m, s, cache, node)
        record = s.node[at + N_HEAD]
        while record >= 0:
            following = s.record[record * RECORD_FIELDS + R_NEXT]
            if is_empty(s, record):
                remove(s, record)
                discard(m, s, record, 0)
            record = following
        for free in range(_PROMOTED, 0, -1):
            record = s.node[at + N_HEAD]
            while record >= 0:
                row = record * RECORD_FIELDS
                following = s.record[row + R_NEXT]
                if s.record[row + R_OBJECTS] - s.record[row + R_IN_USE] == free:
                    remove(s, record)
                    add_head(s, record)
                record = following
        left += s.node[at + N_SLABS]
    free_descriptors(m, s, 0)
    return left


@helper
def reader_begins(s: SlabState) -> None:
    """rcu_read_lock: no slab of a type-safe cache goes back until the last reader ends."""
    s.cell[G_READERS] += 1


@helper
def reader_ends(m: State, s: SlabState, cpu: int) -> None:
    """rcu_read_unlock; the last one ends the grace period that slabs wait for."""
    keep_apart()
    s.cell[G_READERS] -= 1
    if s.cell[G_READERS] == 0:
        record = s.cell[G_WAITING]
        s.cell[G_WAITING] = NONE
        while record >= 0:
            following = s.record[record * RECORD_FIELDS + R_NEXT]
            release(m, s, record, cpu)
            record = following
        free_descriptors(m, s, cpu)


# Helpers


@helper
def _flush_sheaves(m: State, s: SlabState, cache: int, cpu: int) -> None:
    keep_apart()
    at = cpu_row(s, cache, cpu)
    for field in (P_MAIN, P_SPARE):
        sheaf = s.cpu[at + field]
        if sheaf >= 0:
            flush_sheaf(m, s, sheaf, cpu)
            end_sheaf(s, sheaf)
            s.cpu[at + field] = NONE


@helper
def _flush_barn(m: State, s: SlabState, cache: int, node: int) -> None:
    keep_apart()
    at = node_row(s, cache, node)
    for first, count in ((N_FULL, N_FULLS), (N_EMPTY, N_EMPTIES)):
        sheaf = s.node[at + first]
        while sheaf >= 0:
            following = s.sheaf[sheaf * SHEAF_FIELDS + H_NEXT]
            flush_sheaf(m, s, sheaf, 0)
            end_sheaf(s, sheaf)
            sheaf = following
        s.node[at + first] = NONE
        s.node[at + count] = 0
