"""Loops over the entries of one lowest page table, compiled: populate, fork, unmap.

Each takes a run of entries of one table and does what is the same for all of them; it stops at
the first that wants a decision (a pinned page, a swap entry, a page of a file that is dirty)
and returns how many it did, so that Python decides and goes on.
"""

from __future__ import annotations

from typing import Final

from memdesc.kernels.kpageflags import KPF
from memdesc.mm.entries import ACCESSED, DIRTY, PFN_MASK, PFN_SHIFT, PRESENT, PROTNONE, RW, SPECIAL
from memdesc.mm.frames import ANON_NEW, PIN_BIAS, Frames, Kind
from memdesc.mm.lru import lru_add, put_refs
from memdesc.model.compiled import compiled, hot, pointers
from memdesc.model.descriptors import alloc_described
from memdesc.model.operations import has_room
from memdesc.model.slab_state import SlabState
from memdesc.model.state import State

__all__ = ["NO_MEMORY", "copy_entries", "populate_anon", "zap_anon"]

NO_MEMORY: Final = -1

_FOLIO: Final = Kind.FOLIO
_ANON: Final = int(KPF.ANON)
_OWNER_2: Final = int(KPF.OWNER_2)
_HERE: Final = PRESENT | PROTNONE


@hot
def new_folio(
    m: State, s: SlabState, f: Frames, kind: int, order: int, flags: int, mapping: int, index: int
) -> int:
    """A folio with one reference, not mapped and on no list; its first frame, or -1."""
    pfn = alloc_described(m, s, kind, order, 0, mapping)
    if pfn < 0:
        return pfn
    f.flags[pfn] = flags
    f.refs[pfn] = 1
    f.order[pfn] = order
    f.kind[pfn] = _FOLIO
    f.mapping[pfn] = mapping
    f.pgoff[pfn] = index
    for page in range(1, 1 << order):
        f.offset[pfn + page] = page
        f.kind[pfn + page] = _FOLIO
    return pfn


@compiled
def alloc_folio(
    state: State, slabs: SlabState, frames: Frames,
    kind: int, order: int, flags: int, mapping: int, index: int,
) -> int:  # fmt: skip
    """`new_folio` for Python, which has made room."""
    m, s, f = pointers(state), pointers(slabs), pointers(frames)
    return new_folio(m, s, f, kind, order, flags, mapping, index)


@compiled
def populate_anon(
    state: State, slabs: SlabState, frames: Frames,
    first: int, count: int, kind: int, mapping: int, index: int, bits: int, content: int,
) -> int:  # fmt: skip
    """Write faults of order 0 in a row: entries [first, first + count) of `Frames.entries`.

    Stops at an entry that is not empty, and where slabs need room. `index` belongs to the first
    entry. Returns how many were populated, or NO_MEMORY where the first could not be.
    """
    m, s, f = pointers(state), pointers(slabs), pointers(frames)
    for i in range(count):
        if f.entries[first + i] != 0 or not has_room(s):
            return i
        pfn = new_folio(m, s, f, kind, 0, ANON_NEW, mapping, index + i)
        if pfn < 0:
            return i if i > 0 else NO_MEMORY
        f.content[pfn] = content
        f.maps[pfn] = 1
        lru_add(m, s, f, pfn)
        f.entries[first + i] = pfn << PFN_SHIFT | bits
    return count


@compiled
def copy_entries(
    frames: Frames, source: int, target: int, count: int, private: int, keep: int
) -> int:
    """copy_present_pte() in a row (`mm/memory.c @6.12`), from entries at `source` to `target`.

    `private`: a mapping that is copied on write. `keep`: bits that survive in the child. Empty and
    special entries are done too. Stops at entries that are not present, at large folios, and at
    exclusive pages that may be pinned.
    """
    f = pointers(frames)
    for i in range(count):
        entry = f.entries[source + i]
        if entry == 0:
            continue
        if entry & _HERE == 0:
            return i
        if entry & SPECIAL:
            f.entries[target + i] = entry
            continue
        pfn = (entry & PFN_MASK) >> PFN_SHIFT
        if f.order[pfn] != 0 or f.offset[pfn] != 0 or f.kind[pfn] != _FOLIO:
            return i
        flags = f.flags[pfn]
        if flags & _OWNER_2 and flags & _ANON:
            if f.refs[pfn] + 1 >= PIN_BIAS:  # the child's reference counts already
                return i
            f.flags[pfn] = flags & ~_OWNER_2
        f.refs[pfn] += 1
        f.maps[pfn] += 1
        if private:
            f.entries[source + i] = entry & ~RW
            entry &= ~RW
        else:
            entry &= ~DIRTY
        f.entries[target + i] = entry & ~ACCESSED & keep
    return count


@compiled
def zap_anon(state: State, slabs: SlabState, frames: Frames, first: int, count: int) -> int:
    """Unmap small anonymous pages and special entries in a row; stops at anything else."""
    m, s, f = pointers(state), pointers(slabs), pointers(frames)
    for i in range(count):
        entry = f.entries[first + i]
        if entry == 0:
            continue
        if entry & _HERE == 0:
            return i
        if entry & SPECIAL == 0:
            pfn = (entry & PFN_MASK) >> PFN_SHIFT
            if f.order[pfn] != 0 or f.offset[pfn] != 0 or f.flags[pfn] & _ANON == 0:
                return i
            f.maps[pfn] -= 1
            put_refs(m, s, f, pfn, 1)
        f.entries[first + i] = 0
    return count
