"""Huge pages of the pool that fail, or are taken out of use in good order.

`mm/memory-failure.c:try_memory_failure_hugetlb, me_huge_page, soft_offline_in_use_page`,
`mm/hugetlb.c:dissolve_free_hugetlb_folio`, `mm/migrate.c:unmap_and_move_huge_page @6.12`.  All
2 MiB are unmapped at once.  A page that then is nobody's is dissolved: only the 4 KiB that failed
are lost, the rest goes back to the page allocator, and the pool is one page smaller.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from memdesc.kernels.kpageflags import KPF
from memdesc.mm import entries as e
from memdesc.mm.areas.vma import Vma
from memdesc.mm.huge.large_folio_loops import split_columns
from memdesc.mm.hugetlb.hugetlb_cow import copy_content
from memdesc.mm.hugetlb.hugetlb_pool import HUGE, cache_refs, put_hugetlb
from memdesc.mm.page_tables import PMD_SHIFT, Pmd
from memdesc.mm.process import Errno, Mm, OutOfMemory, Signal
from memdesc.mm.rmap import mappings_of
from memdesc.types import MemoryType

if TYPE_CHECKING:
    from memdesc.mm.kernel import Kernel

__all__ = ["memory_failure_hugetlb", "soft_offline_hugetlb"]

_MOVED: Final = int(KPF.UPTODATE | KPF.DIRTY | KPF.ANON | KPF.REFERENCED)


def memory_failure_hugetlb(kernel: Kernel, pfn: int) -> bool:
    """A frame of a huge page that is in use fails; the caller holds a reference. Raises Errno.

    Whether the caller is killed.
    """
    head = kernel.head(pfn)
    failed = kernel.hugetlb.raw_errors.setdefault(head, set())
    kernel.num_poisoned_pages += pfn not in failed
    kernel.f.flags[head] |= int(KPF.HWPOISON)
    if failed:
        failed.add(pfn)
        kernel.put(head)
        raise Errno("EHWPOISON")
    failed.add(pfn)
    _unmap(kernel, head)
    dirty = bool(kernel.flags(head) & KPF.DIRTY)
    killed = dirty and kernel.rules.injected_error_is_urgent
    if kernel.flags(head) & KPF.ANON:
        recovered = _free_and_dissolve(kernel, pfn)
    else:
        # It stays in its file, and is held for good.
        kernel.poisoned.add(pfn)
        recovered = kernel.refs(head) == 1 + cache_refs(kernel)
    if not recovered:
        kernel.say("me_huge_page: Failed")
        if killed:
            raise Signal("SIGBUS", "MCEERR_AR")
        raise Errno("EBUSY")
    kernel.say("me_huge_page: Recovered")
    return killed


def soft_offline_hugetlb(kernel: Kernel, pfn: int) -> None:
    """Move a huge page elsewhere, and dissolve the old one; the caller's reference ends.

    Raises Errno.
    """
    head, pool = kernel.head(pfn), kernel.hugetlb
    temporary = pool.available <= 0
    try:
        new = _new_page(kernel, temporary=temporary)
    except OutOfMemory:
        kernel.put(head)
        raise Errno("EBUSY") from None
    if not _move(kernel, head, new):
        if temporary:
            kernel.clear_flags(new, int(KPF.HUGE))
        else:
            pool.free.append(new)
        if temporary:
            kernel.put(new)
        kernel.put(head)
        raise Errno("EBUSY")
    if temporary:
        # HPageTemporary passes to the old page: it never goes to the pool.
        _take_apart(kernel, pfn)
    else:
        if not _free_and_dissolve(kernel, pfn):
            raise Errno("EBUSY")
    kernel.num_poisoned_pages += 1
    kernel.say("soft_offline_in_use_page: moved, and the old huge page is dissolved")


# --- helpers -----------------------------------------------------------------------------


def _places(kernel: Kernel, head: int) -> list[tuple[Mm, Vma, Pmd]]:
    found = []
    for mm, vma, vpn in mappings_of(kernel, head):
        pmd = mm.tables.pmds[vpn >> PMD_SHIFT]
        found.append((mm, vma, pmd))
    return found


def _unmap(kernel: Kernel, head: int) -> None:
    """unmap_poisoned_folio(): each huge entry says that the huge page is lost."""
    places = _places(kernel, head)
    for _, _, pmd in places:
        if pmd.huge & e.DIRTY:
            kernel.set_flags(head, int(KPF.DIRTY))
        pmd.huge = e.not_present(e.SwapType.HWPOISON, head)
        kernel.f.entire[head] -= 1
        kernel.put(head)
    kernel.say(f"unmap_poisoned_folio: {len(places)} huge entries are poisoned now")


def _free_and_dissolve(kernel: Kernel, pfn: int) -> bool:
    """The caller's reference ends, then dissolve_free_hugetlb_folio().

    False while somebody holds the page, or if all free ones are reserved.
    """
    pool, head = kernel.hugetlb, kernel.head(pfn)
    if kernel.refs(head) == 1 and pool.surplus:
        # free_huge_folio() gives it to the page allocator at once.
        pool.surplus -= 1
        pool.total -= 1
        _take_apart(kernel, pfn)
        return True
    put_hugetlb(kernel, head)
    if head not in pool.free or pool.available < 1:
        kernel.say("dissolve_free_hugetlb_folio: held, or reserved")
        return False
    pool.free.remove(head)
    pool.total -= 1
    _take_apart(kernel, pfn)
    return True


def _take_apart(kernel: Kernel, pfn: int) -> None:
    """Frames of a huge page that has one reference go back one by one, except the bad one."""
    head, f = kernel.head(pfn), kernel.f
    assert f.refs[head] == 1
    kernel.hugetlb.raw_errors.pop(head, None)
    f.flags[head] = f.mapping[head] = f.pgoff[head] = 0
    split = kernel.machine.split(head, 0)
    assert split
    split_columns(f, head, 0)
    for page in range(head, head + HUGE):
        f.refs[page], f.flags[page] = 1, 0
        if page != pfn:
            kernel.put(page)
    f.flags[pfn] = int(KPF.HWPOISON)
    kernel.poisoned.add(pfn)


def _new_page(kernel: Kernel, *, temporary: bool) -> int:
    """alloc_hugetlb_folio_nodemask(): a free one that is nobody's, or one for this alone."""
    if temporary:
        return kernel.alloc_folio(MemoryType.HUGETLB, PMD_SHIFT, flags=int(KPF.HUGE))
    return kernel.hugetlb.free.pop()


def _move(kernel: Kernel, head: int, new: int) -> bool:
    """migrate_huge_page_move_mapping(), and the entries; False where somebody else holds it."""
    f, pool = kernel.f, kernel.hugetlb
    places = _places(kernel, head)
    if any(pmd.huge & e.DIRTY for _, _, pmd in places):
        kernel.set_flags(head, int(KPF.DIRTY))
    key = next((key for key, page in pool.cache.items() if page == head), None)
    cached = 0 if key is None else cache_refs(kernel)
    if kernel.refs(head) != len(places) + cached + 1:
        kernel.say("migrate_huge_page_move_mapping: somebody else holds it")
        return False
    copy_content(kernel, head, new)
    kernel.set_flags(new, int(f.flags[head]) & _MOVED)
    f.mapping[new], f.pgoff[new] = f.mapping[head], f.pgoff[head]
    if kernel.exclusive(head):
        kernel.set_exclusive(head, False)
        kernel.set_exclusive(new, True)
    for _, _, pmd in places:
        pmd.huge = pmd.huge & ~e.PFN_MASK | new << e.PFN_SHIFT
    f.entire[new], f.entire[head] = len(places), 0
    f.refs[new], f.refs[head] = len(places) + cached, 1
    if key is not None:
        pool.cache[key] = new
    return True
