"""Who is held beyond mappings and caches: a chunk's folios, by their counts."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from memdesc.kernels.layout import MappingKind
from memdesc.kernels.page_state import SIG_DEVICE, SIG_TYPE_SHIFT, TypeCode
from memdesc.rules.references import FolioCounts, is_held
from memdesc.structs.work import (
    B_HAS_MAPPING,
    B_MAPPING_MASK,
    B_MAPPING_SHIFT,
    B_MOVABLE,
    B_TAIL,
    I64,
    Work,
)

__all__ = ["references"]

_OTHERS = np.uint64(15 << SIG_TYPE_SHIFT | SIG_DEVICE)


def references(work: Work) -> NDArray[np.int8]:
    """int8 per frame, as `MemoryMap.references`: 1 held, 0 not, -1 no folio of a process or
    a file. A tail has what its head has; one whose head lies outside the chunk has -1."""
    column = np.full(work.size, -1, np.int8)
    folios = _folios(work)
    if folios.size:
        column[folios] = is_held(_counts(work, folios))
        owned = work.heads_of >= 0
        column[work.tails[owned]] = column[work.heads_of[owned]]
    return column


# --- helpers -----------------------------------------------------------------------------


def _folios(work: Work) -> I64:
    """Offsets of the folios of anonymous memory, the page cache and the swap cache."""
    marks = work.packed & np.uint8(B_HAS_MAPPING | B_TAIL | B_MAPPING_MASK)
    mine = (marks & np.uint8(B_HAS_MAPPING | B_TAIL) == B_HAS_MAPPING) & (marks != B_MOVABLE)
    if swapcache := _swapcache(work):
        # A shmem folio in the swap cache has no mapping.
        mine |= (work.flags & np.uint32(swapcache) == np.uint32(swapcache)) & (
            work.packed & np.uint8(B_TAIL) == 0
        )
    folios = np.flatnonzero(mine)
    signatures = work.signatures[folios]
    plain: NDArray[np.bool_] = signatures & _OTHERS == np.uint64(TypeCode.NONE)
    if slab := work.layout.flag("slab"):
        plain &= work.flags[folios] & np.uint32(slab) == 0
    chosen: I64 = folios[plain]
    return chosen


def _counts(work: Work, folios: I64) -> FolioCounts:
    layout = work.layout
    flags = work.flags[folios]
    kinds = work.packed[folios] & np.uint8(B_MAPPING_MASK)
    is_cached = kinds == 0
    if swapcache := _swapcache(work):
        is_cached |= flags & np.uint32(swapcache) == np.uint32(swapcache)
    mapcounts = work.counts[folios].astype(np.int64)
    nr_pages = np.ones(folios.size, np.int64)
    if work.heads.size:
        large = np.flatnonzero(np.isin(folios, work.heads, assume_unique=True))
        heads = folios[large]
        orders = np.minimum(work.folio_byte(heads, layout.folio_order), 30)
        nr_pages[large] = np.int64(1) << orders.astype(np.int64)
        is_anon = kinds[large] == MappingKind.ANON << B_MAPPING_SHIFT
        mapcounts[large] = _large_mapcounts(work, heads, nr_pages[large], is_anon)
    return FolioCounts(
        work.pages.view(np.int32)[folios, layout.refcount // 4].astype(np.int64),
        mapcounts,
        nr_pages,
        is_cached,
        flags & np.uint32(layout.flag("private")) != 0,
        flags & np.uint32(layout.flag("lru")) != 0,
    )


def _large_mapcounts(work: Work, heads: I64, nr_pages: I64, is_anon: NDArray[np.bool_]) -> I64:
    """Page-table entries of each folio: `folio_mapcount` (`include/linux/mm.h` @6.12, @7.2),
    in 6.1 the sum of what its frames say (`mm/util.c:folio_mapcount` @6.1)."""
    layout = work.layout
    if layout.folio_large_mapcount is not None:
        return work.folio_int(heads, layout.folio_large_mapcount).astype(np.int64) + 1
    if not heads.size:
        return np.zeros(0, np.int64)
    before = np.zeros(work.size + 1, np.int64)
    # A frame whose word holds a type has no mappings.
    own = np.where(work.counts > np.uint32(1 << 31), 0, work.counts)
    np.cumsum(own, out=before[1:])
    total = before[np.minimum(heads + nr_pages, work.size)] - before[heads]
    entire = work.entire(heads)
    # Of a file, each frame's own count includes the mappings of the whole; so does, once,
    # that of an anonymous folio which is mapped both ways.
    twice = work.flags[heads + 1] & np.uint32(layout.flag("double_map")) != 0
    total -= np.where(is_anon, np.where(twice, nr_pages, 0), entire * nr_pages)
    mapcounts: I64 = total + entire
    return mapcounts


def _swapcache(work: Work) -> int:
    """The flags that a folio in the swap cache has, both."""
    return work.layout.flag("swapbacked") | work.layout.flag("owner_priv_1")
