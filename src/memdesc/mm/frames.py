"""What the model keeps of each frame beside the page allocator's columns, and of all tables.

Flags are the bits of /proc/kpageflags, where the kernel keeps a flag of its own for them; a
folio's flags are those of its first page, except AnonExclusive (OWNER_2) and HWPOISON, which
each page has.  A frame's content is one number: 0 for zeroes.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from memdesc.kernels.kpageflags import KPF
from memdesc.model.cache_types import column
from memdesc.model.compiled import Column, array

__all__ = ["Frames", "Kind", "empty_frames", "grow_entries"]


class Frames(NamedTuple):
    """Columns, one row per frame where nothing else is said."""

    flags: Column
    """int64: KPF bits; of a folio at its first page."""
    refs: Column
    """int32: references of the folio, at its first page."""
    maps: Column
    """int32: page-table entries of the lowest level that map this page (`_mapcount` + 1)."""
    entire: Column
    """int32: PMD entries that map the folio, at its first page (`_entire_mapcount` + 1)."""
    pins: Column
    """int32: `_pincount` of large folios, at the first page."""
    offset: Column
    """int32: pages from the folio's first one."""
    order: Column
    """uint8: at the first page."""
    kind: Column
    """uint8: see `Kind`."""
    mapping: Column
    """int32: number of the anon_vma, file or stable node, at the first page; 0: none."""
    pgoff: Column
    """int64: offset in the mapping in pages, at the first page."""
    content: Column
    """int32: what the page holds."""
    lru_next: Column
    """int32[frames + LISTS]: the LRU list's links; heads are behind the frames."""
    lru_prev: Column
    """int32[frames + LISTS]."""
    batch: Column
    """int64[BATCHES * BATCH_ROOM]: per-CPU batches of the CPU that runs; the first number of each
    counts."""
    cell: Column
    """int64[64]: see C_..."""
    entries: Column
    """int64[tables * 512]: entries of the lowest tables, by slot."""


class Kind:
    """What a frame is used for by processes: values of `Frames.kind`."""

    NONE: Final = 0
    FOLIO: Final = 1
    TABLE: Final = 2
    OTHER: Final = 3


ENTRIES_SHIFT: Final = 9
TABLE_ENTRIES: Final = 1 << ENTRIES_SHIFT

INACTIVE_ANON, ACTIVE_ANON, INACTIVE_FILE, ACTIVE_FILE, UNEVICTABLE_LIST = range(5)
LISTS: Final = 5

BATCH_ADD, BATCH_LAZYFREE, BATCH_DEACTIVATE, BATCH_ACTIVATE = range(4)
BATCHES: Final = 4
BATCH_ROOM: Final = 32

C_BATCH = 0
"""Folios that fill a batch."""
C_FRAMES = 1
C_LRU_GEN = 2
"""0: classic LRU lists; 1: the multi-generational LRU; or one of the two below."""
C_ZERO_PFN = 3
C_HUGE_ZERO_PFN = 4
C_LIST_COUNT = 8
"""Folios of each LRU list: 8 to 12."""

ANON_NEW: Final = int(KPF.UPTODATE | KPF.ANON | KPF.SWAPBACKED | KPF.OWNER_2)
"""A freshly faulted anonymous folio."""
LRU_GEN_FORGETS: Final = 2
"""@6.12: a folio that is put on its list loses REFERENCED."""
LRU_GEN_REFERENCED: Final = 3
"""@7.2: a folio that comes by a fault is REFERENCED."""
PIN_BIAS: Final = 1024
"""GUP_PIN_COUNTING_BIAS."""


def empty_frames(frames: int, batch: int) -> Frames:
    """Nothing is used yet. Untouched columns cost no memory."""
    cell = np.zeros(64, np.int64)
    cell[C_BATCH], cell[C_FRAMES] = batch, frames
    cell[C_ZERO_PFN] = cell[C_HUGE_ZERO_PFN] = -1
    links = [np.zeros(frames + LISTS, np.int32) for _ in range(2)]
    for link in links:
        link[frames:] = np.arange(frames, frames + LISTS)
    kinds: dict[str, type[np.generic]] = {
        **dict.fromkeys(("flags", "pgoff"), np.int64),
        **dict.fromkeys(("refs", "maps", "entire", "pins", "offset"), np.int32),
        **dict.fromkeys(("mapping", "content"), np.int32),
        **dict.fromkeys(("order", "kind"), np.uint8),
    }
    columns = {name: column(np.zeros(frames, kind)) for name, kind in kinds.items()}
    return Frames(
        **columns,
        lru_next=column(links[0]),
        lru_prev=column(links[1]),
        batch=column(np.zeros(BATCHES * BATCH_ROOM, np.int64)),
        cell=column(cell),
        entries=column(np.zeros(64 << ENTRIES_SHIFT, np.int64)),
    )


def grow_entries(frames: Frames, slots: int) -> Frames:
    """The same with room for at least so many tables."""
    old = array(frames.entries)
    if slots << ENTRIES_SHIFT <= old.size:
        return frames
    new = np.zeros(max(slots << ENTRIES_SHIFT, 2 * old.size), np.int64)
    new[: old.size] = old
    return frames._replace(entries=column(new))
