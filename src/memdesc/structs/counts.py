"""Map counts, cgroups and owners of the frames of a chunk, as /proc would show them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from memdesc.kernels.layout import MAPPING_KIND_MASK, MappingKind
from memdesc.kernels.page_state import (
    SIG_HAS_MAPPING,
    SIG_IN_FREE_BLOCK,
    SIG_MAPPING_SHIFT,
    SIG_REFCOUNT_0,
    SIG_TAIL,
    SIG_TYPE_SHIFT,
    TypeCode,
)
from memdesc.structs.owned import OwnedRanges, kind_code
from memdesc.structs.pointers import Pointers
from memdesc.structs.work import B_MAPPING_SHIFT, I64, U64, Work
from memdesc.types import MemoryType

__all__ = ["counted_whole", "mapcounts", "memcg_words", "memcgs", "owned_frames", "owners"]


def mapcounts(work: Work) -> U64:
    """As kpagecount: the frame's own mappings and those of its whole folio."""
    counts = work.counts.astype(np.uint64)
    counts[work.typed] = 0
    counts[work.blank] = 0
    heads = work.heads
    whole = counted_whole(work, heads)
    if whole.any() or work.foreign:
        entire = np.zeros(work.size, np.int64)
        entire[heads] = whole
        owned = work.heads_of >= 0
        entire[work.tails[owned]] = entire[work.heads_of[owned]]
        for pfn, (_, theirs, _) in work.foreign.items():
            entire[work.tails[work.foreign_of == pfn]] = theirs
        counts += np.maximum(entire, 0).view(np.uint64)
    if slab := work.layout.flag("slab"):
        counts[work.signatures & np.uint64(slab) != 0] = 0
    return counts


def memcgs(work: Work) -> U64:
    """memcg_data of each frame, a tail's being its head's: whom kpagecgroup would name."""
    data = memcg_words(work)
    if work.tails.size:
        owned = work.heads_of >= 0
        if not owned.all():
            data[work.tails] = 0
            data[work.tails[owned]] = data[work.heads_of[owned]]
        else:
            data[work.tails] = data[work.heads_of]
    for pfn, (_, _, memcg) in work.foreign.items():
        data[work.tails[work.foreign_of == pfn]] = memcg
    return data


def owners(work: Work, pointers: Pointers, owned: OwnedRanges | None) -> U64:
    """Slab caches, files, and what the walks named, as indexes into `Pointers.owner_names`."""
    keys = np.zeros(work.signatures.size, np.uint64)
    mapping = work.words[:, work.layout.mapping // 8]
    typed = work.signatures >> np.uint64(SIG_TYPE_SHIFT) & np.uint64(15)
    slab = typed == TypeCode.SLAB
    if flag := work.layout.flag("slab"):
        slab |= work.signatures & np.uint64(flag) != 0
    plain = np.uint64(SIG_HAS_MAPPING | MAPPING_KIND_MASK << SIG_MAPPING_SHIFT)
    of_file = (work.signatures & plain == np.uint64(SIG_HAS_MAPPING)) & ~slab
    of_file &= work.signatures & np.uint64(SIG_TAIL) == 0
    keys[of_file] = pointers.keys_of_mappings(mapping[of_file])
    if pointers.slab_cache_offset is not None:
        caches = work.words[:, pointers.slab_cache_offset // 8]
        heads = slab & (work.signatures & np.uint64(SIG_TAIL) == 0)
        keys[heads] = pointers.keys_of_caches(caches[heads])
    whole = work.heads_of >= 0
    keys[work.tails[whole]] = keys[work.heads_of[whole]]
    if owned is not None and len(owned):
        offsets, index = owned_frames(work, owned)
        still = _still_owned(work.signatures[offsets], owned.kinds[index])
        offsets, index = offsets[still], index[still]
        keys[offsets] = pointers.keys_of_walks(owned.owners[index], owned.names)
    return keys


def _still_owned(signatures: U64, kinds: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """bool[n]: the struct page agrees with what a walk met (uint8[n] `kind_code`).

    A live machine has given some frames away since: "cpu 0" then owns no anonymous page. The
    same test as `memdesc.rules.structpage` makes before it believes a walk.
    """
    unused = signatures & np.uint64(SIG_REFCOUNT_0) != 0
    pcp = kinds == kind_code(MemoryType.FREE_PCP)
    agrees = (unused == pcp) | (kinds == kind_code(MemoryType.PAGE_TABLE))
    typed = signatures >> np.uint64(SIG_TYPE_SHIFT) & np.uint64(15)
    elsewhere = (signatures & np.uint64(SIG_IN_FREE_BLOCK) != 0) | (typed != TypeCode.NONE)
    still: NDArray[np.bool_] = agrees & ~(unused & elsewhere)
    return still


def owned_frames(work: Work, owned: OwnedRanges) -> tuple[I64, I64]:
    """(offsets, index into `owned`) of every frame of the chunk that a walk met."""
    low, high = work.pfn_start, work.pfn_start + work.size
    first = int(np.searchsorted(owned.pfn_start, low, side="right")) - 1
    first = max(first, 0)
    last = int(np.searchsorted(owned.pfn_start, high))
    starts = np.maximum(owned.pfn_start[first:last], low)
    ends = np.minimum(owned.pfn_start[first:last] + owned.nr_pages[first:last], high)
    lengths = np.maximum(ends - starts, 0)
    index = np.repeat(np.arange(first, last), lengths)
    before = np.repeat(np.cumsum(lengths) - lengths, lengths)
    offsets = np.repeat(starts - low, lengths) + np.arange(index.size) - before
    # A frame that is not initialised has no owner, whatever an old link says.
    known = work.signatures[offsets] != 0
    return offsets[known], index[known]


def counted_whole(work: Work, heads: I64) -> I64:
    """Mappings of the folio as a whole that kpagecount adds to each frame's own.

    6.1 counts those of a file's THP in every frame already, and those of a THP that is
    mapped both ways once too often (`include/linux/mm.h:page_mapcount` @6.1).
    """
    entire = work.entire(heads)
    if work.layout.has_subpage_mapcounts_only:
        found = work.signatures[heads]
        anon = work.packed[heads] & (MappingKind.ANON << B_MAPPING_SHIFT) != 0
        hugetlb = found >> np.uint64(SIG_TYPE_SHIFT) & np.uint64(15) == TypeCode.HUGETLB
        twice = work.flags[heads + 1] & np.uint32(work.layout.flag("double_map")) != 0
        entire -= (anon & twice).astype(np.int64)
        entire[~anon & ~hugetlb] = 0
    return entire


def memcg_words(work: Work) -> U64:
    """memcg_data, but 0 where it is a vector of a slab's objects."""
    if work.layout.memcg_data is None:
        return np.zeros(work.size, np.uint64)
    data = work.words[:, work.layout.memcg_data // 8].copy()
    data &= (data & np.uint64(1)) - np.uint64(1)
    data[work.typed[(work.codes == TypeCode.SLAB) | (work.codes == TypeCode.BUDDY)]] = 0
    return data
