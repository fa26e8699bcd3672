"""Does somebody hold this folio beyond its mappings? From its counts.

Every holder of a folio counts once: each mapping, the page cache (once per frame), the
swap cache, private data, and whoever took a reference: a pin, a pipe, io_uring, a
driver, or, for a moment, a per-CPU batch. What is left over after the known holders is
what keeps a folio from being moved or dropped.

Source: `mm/migrate.c:folio_expected_refs` @6.12, @7.2 (expected_page_refs @6.1).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memdesc.types import MemoryType

__all__ = ["FolioCounts", "holds_extra", "hugetlb_is_held", "is_counted", "is_held"]

T = MemoryType

_CACHED = frozenset([T.FILE, T.SHMEM, T.SECRETMEM, T.GUEST_MEMFD, T.SWAP_CACHE])
_ANON = frozenset([T.ANON, T.KSM])


@dataclass(frozen=True, slots=True)
class FolioCounts:
    """What folios say of themselves: columns of n."""

    refcounts: NDArray[np.int64]
    mapcounts: NDArray[np.int64]
    """User page-table entries of the whole folio (`folio_mapcount`)."""
    nr_pages: NDArray[np.int64]
    is_cached: NDArray[np.bool_]
    """In the page cache or the swap cache, either of which counts once per frame."""
    has_private: NDArray[np.bool_]
    """PG_private: buffers and the like, which count once."""
    on_lru: NDArray[np.bool_]


def is_held(counts: FolioCounts) -> NDArray[np.bool_]:
    """bool[n]: whether somebody holds references beyond the expected ones.

    A folio that is not on an LRU list may be held for a moment by a per-CPU batch, which
    counts once and lets go by itself: one reference is not held against it.
    """
    expected = counts.mapcounts + np.where(counts.is_cached, counts.nr_pages, 0)
    expected += counts.is_cached & counts.has_private
    held: NDArray[np.bool_] = counts.refcounts - expected > np.where(counts.on_lru, 0, 1)
    return held


def is_counted(kind: MemoryType) -> bool:
    """Whether the references of `kind` say anything about who holds it."""
    return kind in _CACHED or kind in _ANON


def holds_extra(
    kind: MemoryType, *, refcount: int, mapcount: int, nr_pages: int, private: bool, on_lru: bool
) -> bool | None:
    """`is_held` for one folio of `kind`; None for memory whose references mean nothing here."""
    if not is_counted(kind):
        return None
    counts = FolioCounts(
        np.array([refcount], np.int64),
        np.array([mapcount], np.int64),
        np.array([nr_pages], np.int64),
        np.array([kind in _CACHED]),
        np.array([private]),
        np.array([on_lru]),
    )
    return bool(is_held(counts)[0])


def hugetlb_is_held(*, refcount: int, mapcount: int, nr_pages: int, is_anon: bool) -> bool:
    """Whether somebody holds a huge page beyond its mappings and its file.

    hugetlbfs counts once for the whole page in 6.1, once per frame in 6.12 and 7.2 (seen in
    dumps), so either is expected of one that is not anonymous.
    """
    extra = refcount - mapcount
    return extra > 0 if is_anon else extra not in (0, 1, nr_pages)
