"""LRU lists and the batches of the CPU in front of them, compiled.

A new small folio waits in a per-CPU batch that holds a reference and has LRU clear; a full
batch, a drain, or a large folio puts all of them on their lists (`mm/swap.c:
__folio_batch_add_and_move, folio_batch_move_lru, lru_add_drain_cpu @6.12`).  Only when the
batch lets go of a folio that nobody else holds is it freed.

The model runs its processes on one CPU.
"""

from __future__ import annotations

from typing import Final

from memdesc.kernels.kpageflags import KPF
from memdesc.mm.frames import (
    BATCH_ACTIVATE,
    BATCH_ADD,
    BATCH_DEACTIVATE,
    BATCH_LAZYFREE,
    BATCH_ROOM,
    BATCHES,
    C_BATCH,
    C_FRAMES,
    C_LIST_COUNT,
    C_LRU_GEN,
    INACTIVE_FILE,
    LRU_GEN_FORGETS,
    UNEVICTABLE_LIST,
    Frames,
    Kind,
)
from memdesc.model.compiled import compiled, helper, hot, pointers
from memdesc.model.descriptors import free_described
from memdesc.model.slab_state import SlabState
from memdesc.model.state import State

__all__ = [
    "batch_add",
    "drain_all",
    "free_folio",
    "list_of",
    "lru_add",
    "lru_unlink",
    "put_refs",
]

_LRU: Final = int(KPF.LRU)
_ACTIVE: Final = int(KPF.ACTIVE)
_REFERENCED: Final = int(KPF.REFERENCED)
_UNEVICTABLE: Final = int(KPF.UNEVICTABLE)
_MLOCKED: Final = int(KPF.MLOCKED)
_SWAPBACKED: Final = int(KPF.SWAPBACKED)
_SWAPCACHE: Final = int(KPF.SWAPCACHE)
_ANON: Final = int(KPF.ANON)
_FOLIO: Final = Kind.FOLIO


@hot
def put_refs(m: State, s: SlabState, f: Frames, pfn: int, count: int) -> None:
    """folio_put_refs(): drop references of the folio that begins at `pfn`; the last frees it."""
    left = f.refs[pfn] - count
    f.refs[pfn] = left
    if left == 0:
        free_folio(m, s, f, pfn)


@helper
def free_folio(m: State, s: SlabState, f: Frames, pfn: int) -> None:
    """__folio_put(): off its LRU list, then its frames and its descriptor are free."""
    if f.flags[pfn] & _LRU:
        lru_unlink(f, pfn)
    for page in range(pfn, pfn + (1 << f.order[pfn])):
        f.flags[page] = 0
        f.maps[page] = 0
        f.offset[page] = 0
        f.content[page] = 0
        f.kind[page] = 0
    f.refs[pfn] = 0
    f.entire[pfn] = 0
    f.pins[pfn] = 0
    f.mapping[pfn] = 0
    f.pgoff[pfn] = 0
    f.order[pfn] = 0
    free_described(m, s, pfn, 0)


@hot
def list_of(flags: int) -> int:
    """The list that a folio with these flags belongs on."""
    if flags & _UNEVICTABLE:
        return UNEVICTABLE_LIST
    active = 1 if flags & _ACTIVE else 0
    return active if flags & _SWAPBACKED else INACTIVE_FILE + active


@hot
def lru_link(f: Frames, pfn: int) -> None:
    """Put a folio at the head of its list and set LRU."""
    flags = f.flags[pfn]
    which = list_of(flags)
    head = f.cell[C_FRAMES] + which
    first = f.lru_next[head]
    f.lru_next[pfn] = first
    f.lru_prev[pfn] = head
    f.lru_prev[first] = pfn
    f.lru_next[head] = pfn
    f.cell[C_LIST_COUNT + which] += 1
    f.flags[pfn] = flags | _LRU


@hot
def lru_unlink(f: Frames, pfn: int) -> None:
    """Take a folio from its list and clear LRU; its other flags say which list."""
    flags = f.flags[pfn]
    before, after = f.lru_prev[pfn], f.lru_next[pfn]
    f.lru_next[before] = after
    f.lru_prev[after] = before
    f.lru_prev[pfn] = 0
    f.lru_next[pfn] = 0
    f.cell[C_LIST_COUNT + list_of(flags)] -= 1
    f.flags[pfn] = flags & ~_LRU


@hot
def lru_add(m: State, s: SlabState, f: Frames, pfn: int) -> None:
    """folio_add_lru(): small folios through the batch, large ones at once."""
    batch_add(m, s, f, pfn, BATCH_ADD)


@hot
def batch_add(m: State, s: SlabState, f: Frames, pfn: int, which: int) -> None:
    """Put a folio into a batch of the CPU, which holds a reference until it is drained."""
    row = which * BATCH_ROOM
    count = f.batch[row] + 1
    f.batch[row] = count
    f.batch[row + count] = pfn
    f.refs[pfn] += 1
    if count == f.cell[C_BATCH] or f.order[pfn] > 0:
        _drain_one(m, s, f, which)


@helper
def _drain_one(m: State, s: SlabState, f: Frames, which: int) -> None:
    row = which * BATCH_ROOM
    count = f.batch[row]
    f.batch[row] = 0
    for place in range(row + 1, row + 1 + count):
        pfn = f.batch[place]
        # Nobody else holds it: on 7.2 munmap leaves such folios to their batch.
        if f.refs[pfn] > 1 and f.kind[pfn] == _FOLIO:
            _move(f, pfn, which)
        put_refs(m, s, f, pfn, 1)


@helper
def _move(f: Frames, pfn: int, which: int) -> None:
    """What each batch does with a folio when it is emptied."""
    flags = f.flags[pfn]
    if which == BATCH_ADD:
        if flags & _LRU == 0:
            if flags & _MLOCKED:
                f.flags[pfn] = (flags | _UNEVICTABLE) & ~_ACTIVE
            elif f.cell[C_LRU_GEN] != 0:
                flags &= ~_ACTIVE  # folded into the generation
                if f.cell[C_LRU_GEN] == LRU_GEN_FORGETS:
                    flags &= ~_REFERENCED
                f.flags[pfn] = flags
            lru_link(f, pfn)
        return
    if flags & _LRU == 0 or flags & _UNEVICTABLE:
        return
    if which == BATCH_LAZYFREE:
        if flags & (_ANON | _SWAPBACKED) == _ANON | _SWAPBACKED and flags & _SWAPCACHE == 0:
            lru_unlink(f, pfn)
            f.flags[pfn] &= ~(_ACTIVE | _REFERENCED | _SWAPBACKED)
            lru_link(f, pfn)
    elif which == BATCH_DEACTIVATE:
        lru_unlink(f, pfn)
        f.flags[pfn] &= ~(_ACTIVE | _REFERENCED)
        lru_link(f, pfn)
    elif which == BATCH_ACTIVATE and flags & _ACTIVE == 0:
        lru_unlink(f, pfn)
        f.flags[pfn] |= _ACTIVE
        lru_link(f, pfn)


@compiled
def drain_all(state: State, slabs: SlabState, frames: Frames) -> None:
    """lru_add_drain(): empty every batch of the CPU."""
    m = pointers(state)
    s = pointers(slabs)
    f = pointers(frames)
    for which in range(BATCHES):
        _drain_one(m, s, f, which)


@compiled
def put(state: State, slabs: SlabState, frames: Frames, pfn: int, count: int) -> None:
    """`put_refs` for Python."""
    put_refs(pointers(state), pointers(slabs), pointers(frames), pfn, count)


@compiled
def add(state: State, slabs: SlabState, frames: Frames, pfn: int, which: int) -> None:
    """`batch_add` for Python."""
    batch_add(pointers(state), pointers(slabs), pointers(frames), pfn, which)


@compiled
def relist(frames: Frames, pfn: int, set_flags: int, clear_flags: int) -> None:
    """Change flags of a folio, which moves to the list that they say if it is on one."""
    f = pointers(frames)
    if f.flags[pfn] & _LRU:
        lru_unlink(f, pfn)
        f.flags[pfn] = (f.flags[pfn] | set_flags) & ~clear_flags
        lru_link(f, pfn)
    else:
        f.flags[pfn] = (f.flags[pfn] | set_flags) & ~clear_flags
