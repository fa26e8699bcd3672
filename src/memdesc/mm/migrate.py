"""Moving a folio to another frame, with everything that maps it.

`mm/migrate.c:migrate_folio_unmap, folio_migrate_mapping, folio_migrate_flags,
remove_migration_pte; mm/rmap.c:try_to_migrate_one @6.12`.  Entries keep their bits; what they say
about dirtying goes into the folio as well.  Nobody runs meanwhile, so migration entries are not
seen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from memdesc.kernels.kpageflags import KPF
from memdesc.mm import entries as e
from memdesc.mm.files.folio_writeback import wait_writeback
from memdesc.mm.frames import BATCH_ADD
from memdesc.mm.huge.thp_stats import count_thp
from memdesc.mm.process import OutOfMemory
from memdesc.mm.reclaim.isolate import isolate
from memdesc.mm.rmap import mappings_of

if TYPE_CHECKING:
    from memdesc.mm.kernel import Kernel

__all__ = ["migrate_folio"]

_COPIED: Final = int(
    KPF.UPTODATE | KPF.REFERENCED | KPF.ACTIVE | KPF.UNEVICTABLE | KPF.DIRTY | KPF.SWAPBACKED
    | KPF.ANON | KPF.KSM | KPF.PRIVATE
)  # fmt: skip


def migrate_folio(kernel: Kernel, head: int, *, held: int = 0) -> bool:
    """Move a folio; False where somebody holds it beside its entries and its cache.

    `held`: references of the caller, which stay with the old frame. Raises OutOfMemory.
    """
    wait_writeback(kernel, head, "migrate_folio_unmap")
    f = kernel.f
    flags = kernel.flags(head)
    pages = 1 << kernel.order_of(head)
    cached = pages if _cache_of(kernel, head) or flags & KPF.SWAPCACHE else 0
    mapped = kernel.mapcount(head)
    if not isolate(kernel.f, head):
        kernel.say("folio_isolate_lru: on no LRU list")
        return False
    places = [
        (page, mm, vma, vpn)
        for page in range(pages)
        for mm, vma, vpn in mappings_of(kernel, head + page)
    ]
    if any(mm.tables.entry(vpn) & e.DIRTY for _, mm, _, vpn in places):
        kernel.set_flags(head, int(KPF.DIRTY))
    if kernel.refs(head) != mapped + cached + bool(flags & KPF.PRIVATE) + held:
        # The entries were taken away and are back: the dirty mark stays with the folio.
        _put_back(kernel, head)
        kernel.say("folio_migrate_mapping: somebody else holds it")
        kernel.events["pgmigrate_fail"] += pages
        return False
    exclusive = [kernel.exclusive(head + page) for page in range(pages)]
    try:
        new = kernel.alloc_folio(kernel.type_at(head), kernel.order_of(head))
    except OutOfMemory:
        _put_back(kernel, head)
        raise
    f = kernel.f
    f.flags[new] = int(f.flags[head]) & _COPIED
    f.mapping[new], f.pgoff[new] = f.mapping[head], f.pgoff[head]
    for page in range(pages):
        f.content[new + page] = f.content[head + page]
        f.maps[new + page], f.maps[head + page] = f.maps[head + page], 0
    f.entire[new], f.entire[head] = f.entire[head], 0
    moved = set()
    for page, mm, _vma, vpn in places:
        pmd = mm.tables.pmd_of(vpn)
        assert pmd is not None
        if not pmd.huge:
            entry = mm.tables.entry(vpn)
            mm.tables.set(vpn, entry & ~e.PFN_MASK | new + page << e.PFN_SHIFT)
        elif id(pmd) not in moved:
            moved.add(id(pmd))
            pmd.huge = pmd.huge & ~e.PFN_MASK | new << e.PFN_SHIFT
    for page in range(pages):
        if flags & KPF.ANON and exclusive[page]:
            kernel.set_exclusive(head + page, False)
            kernel.set_exclusive(new + page, True)
    _move_cache(kernel, head, new, pages)
    kernel.get(new, mapped + cached)
    _move_locks(kernel, head, new)
    kernel.batch(new, BATCH_ADD)
    kernel.put(new)  # of the allocation
    kernel.events["pgmigrate_success"] += pages
    count_thp(kernel, kernel.order_of(new), "thp_migration_success")
    kernel.say(f"migrate_folio: {len(places)} entries name another frame")
    if places and (flags & KPF.MLOCKED or kernel.rules.migration_drains):
        kernel.drain()
    kernel.put(head, mapped + cached)
    return True


# --- helpers -----------------------------------------------------------------------------


def _put_back(kernel: Kernel, head: int) -> None:
    """putback_movable_pages(), and lru_add_drain()."""
    kernel.batch(head, BATCH_ADD)
    kernel.drain()


def _cache_of(kernel: Kernel, head: int) -> dict[int, int] | None:
    """The page cache that a folio is in: index -> frame."""
    if kernel.flags(head) & KPF.ANON:
        return None
    mapping = kernel.mappings.get(int(kernel.f.mapping[head]))
    return None if mapping is None else mapping.pages


def _move_cache(kernel: Kernel, head: int, new: int, pages: int) -> None:
    """folio_migrate_mapping(), and what a KSM page's stable node names."""
    f = kernel.f
    flags = kernel.flags(head)
    if flags & KPF.SWAPCACHE:
        assert kernel.swap is not None
        for page in range(pages):
            slot = kernel.swap.slots.pop(head + page)
            kernel.swap.slots[new + page], kernel.swap.cache[slot] = slot, new + page
        kernel.clear_flags(head, int(KPF.SWAPCACHE))
        kernel.set_flags(new, int(KPF.SWAPCACHE))
    elif flags & KPF.KSM:
        kernel.mappings[int(f.mapping[head])].pfn = new
    elif (cache := _cache_of(kernel, head)) is not None:
        for page in range(pages):
            cache[int(f.pgoff[head]) + page] = new + page
        f.mapping[head] = 0
        if flags & KPF.PRIVATE:
            kernel.clear_flags(head, int(KPF.PRIVATE | KPF.DIRTY))
            kernel.get(new)
            kernel.put(head)
        kernel.clear_flags(head, int(KPF.DIRTY))


def _move_locks(kernel: Kernel, head: int, new: int) -> None:
    """Locked areas unlock the old folio and lock the new one."""
    if not kernel.flags(head) & KPF.MLOCKED:
        return
    kernel.set_flags(new, int(KPF.MLOCKED))
    kernel.mlock.counts[new] = kernel.mlock.counts.pop(head, 0)
    kernel.clear_flags(head, int(KPF.MLOCKED | KPF.UNEVICTABLE))
