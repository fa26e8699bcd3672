"""Reclaim by list: what kswapd does to the oldest folios, and a control group that gives up all.

`mm/vmscan.c:shrink_lruvec, shrink_active_list, shrink_inactive_list @6.12`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from memdesc.kernels.kpageflags import KPF
from memdesc.mm import entries as e
from memdesc.mm.areas.vma import VM
from memdesc.mm.files.page_cache import file_mappings
from memdesc.mm.files.writeback import filemap_fdatawrite, nr_dirty
from memdesc.mm.frames import (
    ACTIVE_ANON,
    ACTIVE_FILE,
    C_FRAMES,
    C_LIST_COUNT,
    INACTIVE_ANON,
    INACTIVE_FILE,
)
from memdesc.mm.reclaim.vmscan import Fate, check_references, reclaim_folio
from memdesc.mm.reclaim.workingset import WORKINGSET
from memdesc.mm.rmap import mappings_of

if TYPE_CHECKING:
    from memdesc.mm.kernel import Kernel

__all__ = ["shrink_all", "shrink_lists"]


def shrink_lists(kernel: Kernel, *, anon: int = 0, file: int = 0) -> int:
    """Look at so many folios of the inactive lists, oldest first; how many were freed.

    Active lists give some up first where the inactive ones are shorter (inactive_is_low).
    """
    kernel.drain()
    freed = 0
    for inactive, active, count in (
        (INACTIVE_ANON, ACTIVE_ANON, anon),
        (INACTIVE_FILE, ACTIVE_FILE, file),
    ):
        if not count or (inactive == INACTIVE_ANON and kernel.swap is None):
            continue
        if _length(kernel, inactive) < _length(kernel, active):
            for head in _oldest(kernel, active, count):
                _deactivate(kernel, head)
        for head in _oldest(kernel, inactive, count):
            kernel.get(head)
            freed += reclaim_folio(kernel, head, ignore_references=False) is Fate.FREED
    return freed


def shrink_all(kernel: Kernel) -> int:
    """Reclaim all that can be, as a control group that is told to (memory.reclaim); how many went.

    What was used lately has its second chance in one pass and goes in another, so that does not
    count; dirty files are written back meanwhile (`wakeup_flusher_threads`).
    """
    kernel.drain()
    kernel.workingset.reclaims_group = True
    try:
        return _shrink_group(kernel)
    finally:
        kernel.workingset.reclaims_group = False


# --- helpers -------------------------------------------------------------------------------------


def _shrink_group(kernel: Kernel) -> int:
    freed = 0
    while True:
        before = freed
        for which in (INACTIVE_FILE, ACTIVE_FILE, INACTIVE_ANON, ACTIVE_ANON):
            if which in (INACTIVE_ANON, ACTIVE_ANON) and kernel.swap is None:
                continue
            for head in _oldest(kernel, which, _length(kernel, which)):
                if kernel.flags(head) & KPF.LRU:
                    if which in (ACTIVE_FILE, ACTIVE_ANON):
                        kernel.set_flags(head, WORKINGSET)  # shrink_active_list() came first
                    kernel.get(head)
                    check_references(kernel, head)
                    freed += reclaim_folio(kernel, head) is Fate.FREED
        if freed == before:
            waiting = nr_dirty(kernel)
            for mapping in file_mappings(kernel):
                filemap_fdatawrite(kernel, mapping)  # the flusher, woken by dirty files
            if not waiting or nr_dirty(kernel) == waiting:
                return freed


def _deactivate(kernel: Kernel, head: int) -> None:
    """shrink_active_list(): all but executed files go to the inactive list."""
    flags = kernel.flags(head)
    areas = [
        (mm, vma, vpn)
        for pfn in kernel.pages_of(head)
        for mm, vma, vpn in tuple(mappings_of(kernel, pfn))
    ]
    touched = [area for area in areas if area[0].tables.entry(area[2]) & e.ACCESSED]
    for mm, _, vpn in touched:
        entry = mm.tables.entry(vpn)
        if not entry & e.HUGE:
            mm.tables.set(vpn, entry & ~e.ACCESSED)
    if not flags & KPF.SWAPBACKED and any(vma.flags & VM.EXEC for _, vma, _ in touched):
        kernel.relist(head)
        return
    kernel.relist(head, set_flags=WORKINGSET, clear_flags=int(KPF.ACTIVE))


def _length(kernel: Kernel, which: int) -> int:
    return int(kernel.f.cell[C_LIST_COUNT + which])


def _oldest(kernel: Kernel, which: int, count: int) -> list[int]:
    """Folios at the end of a list, oldest first."""
    head = int(kernel.f.cell[C_FRAMES]) + which
    found: list[int] = []
    pfn = int(kernel.f.lru_prev[head])
    while pfn != head and len(found) < count:
        found.append(pfn)
        pfn = int(kernel.f.lru_prev[pfn])
    return found
