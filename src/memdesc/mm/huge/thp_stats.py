"""What the kernel counts about large folios: per size, and in /proc/vmstat for huge pages.

`/sys/kernel/mm/transparent_hugepage/hugepages-*kB/stats`, `include/linux/huge_mm.h:mthp_stat_item
@6.12, @7.2`; since 6.10.  Scenarios name them `thp.64kB.split`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from memdesc.kernels.kpageflags import KPF
from memdesc.mm.frames import Kind
from memdesc.mm.huge.thp_orders import PMD_ORDER
from memdesc.model.compiled import array

if TYPE_CHECKING:
    from memdesc.mm.kernel import Kernel

__all__ = ["PARTIALLY_MAPPED", "THP_EVENTS", "count_mthp", "count_thp", "thp_counters"]

PARTIALLY_MAPPED: Final = 1 << 61
"""PG_partially_mapped, of `Frames.flags` above what /proc/kpageflags has: some pages of the folio
were unmapped."""

THP_EVENTS: Final = (
    "thp_fault_alloc", "thp_fault_fallback", "thp_collapse_alloc", "thp_split_page",
    "thp_split_page_failed", "thp_deferred_split_page", "thp_split_pmd", "thp_zero_page_alloc",
    "thp_swpout", "thp_swpout_fallback", "thp_file_alloc", "thp_file_fallback", "thp_file_mapped",
    "thp_migration_success",
)  # fmt: skip
"""Counters of /proc/vmstat about huge pages."""

_SIZES: Final = tuple(range(2, PMD_ORDER + 1))
_ITEMS: Final = (
    "anon_fault_alloc", "anon_fault_fallback", "swpout", "swpout_fallback", "split",
    "split_failed", "split_deferred",
)  # fmt: skip
_SWPIN: Final = ("swpin", "swpin_fallback")


def count_mthp(kernel: Kernel, order: int, item: str, by: int = 1) -> None:
    """count_mthp_stat(); small pages are not counted."""
    if order in _SIZES:
        kernel.size_events[order, item] += by


def count_thp(kernel: Kernel, order: int, event: str) -> None:
    """count_vm_event() of an event that only huge pages have."""
    if order >= PMD_ORDER:
        kernel.events[event] += 1


def thp_counters(kernel: Kernel) -> dict[str, int]:
    """All counters per size that the release has, as "thp.64kB.split"."""
    rules = kernel.rules
    if not rules.counts_large_folios:
        return {}
    items = _ITEMS + (_SWPIN if rules.counts_large_swapin else ())
    found = {
        f"thp.{4 << order}kB.{item}": kernel.size_events[order, item]
        for order in _SIZES
        for item in items
    }
    heads = np.flatnonzero(array(kernel.f.order))
    heads = heads[array(kernel.f.kind)[heads] == Kind.FOLIO]
    heads = heads[array(kernel.f.offset)[heads] == 0]
    heads = heads[array(kernel.f.flags)[heads] & int(KPF.ANON) != 0]
    orders, flags = array(kernel.f.order)[heads], array(kernel.f.flags)[heads]
    all_of = np.bincount(orders, minlength=PMD_ORDER + 1)
    parts_of = np.bincount(orders[flags & PARTIALLY_MAPPED != 0], minlength=PMD_ORDER + 1)
    for order in _SIZES:
        found[f"thp.{4 << order}kB.nr_anon"] = int(all_of[order])
        found[f"thp.{4 << order}kB.nr_anon_partially_mapped"] = int(parts_of[order])
    return found
