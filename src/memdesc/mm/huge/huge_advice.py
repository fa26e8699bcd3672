"""madvise(2) and mprotect(2) at huge pages and other large folios.

`mm/huge_memory.c:madvise_free_huge_pmd, change_huge_pmd`, `mm/khugepaged.c:hugepage_madvise`,
`mm/madvise.c:madvise_cold_or_pageout_pte_range, madvise_free_pte_range` @6.12.  Advice about a
part of a large folio splits it, unless others map it too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from memdesc.kernels.kpageflags import KPF
from memdesc.mm import entries as e
from memdesc.mm.areas.vma import VM, Vma
from memdesc.mm.frames import TABLE_ENTRIES
from memdesc.mm.huge.file_pmd import change_file_pmd
from memdesc.mm.huge.huge_memory import is_huge_zero, split_pmd
from memdesc.mm.huge.large_folio import likely_mapped_shared, split_folio
from memdesc.mm.huge.thp_orders import khugepaged_runs
from memdesc.mm.process import Errno, Mm
from memdesc.mm.reclaim.mark_accessed import folio_deactivate
from memdesc.mm.reclaim.workingset import note_advice

if TYPE_CHECKING:
    from memdesc.mm.kernel import Kernel

__all__ = [
    "change_huge_pmd",
    "hugepage_madvise",
    "madvise_cold_huge_pmd",
    "madvise_free_huge_pmd",
    "madvise_large_folio",
    "madvise_pageout_huge_pmd",
]


def hugepage_madvise(kernel: Kernel, mm: Mm, vma: Vma, advice: str) -> VM:
    """The flags that MADV_HUGEPAGE ("hugepage") or MADV_NOHUGEPAGE gives an area."""
    if advice == "nohugepage":
        return vma.flags & ~VM.HUGEPAGE | VM.NOHUGEPAGE
    flags = vma.flags & ~VM.NOHUGEPAGE | VM.HUGEPAGE
    if khugepaged_runs(kernel, flags):
        mm.khugepaged = True
    return flags


def madvise_free_huge_pmd(kernel: Kernel, mm: Mm, vma: Vma, vpn_start: int, vpn_end: int) -> bool:
    """MADV_FREE at a PMD entry; False where its folio was split and its pages come next."""
    pmd = mm.tables.pmd_of(vpn_start)
    assert pmd is not None
    if not e.is_present(pmd.huge) or is_huge_zero(kernel, pmd.huge):
        return True
    pfn = e.pfn_of(pmd.huge)
    if likely_mapped_shared(kernel, pfn):
        kernel.say("madvise_free_huge_pmd: others map it too, left alone")
        return True
    if vpn_end - vpn_start != TABLE_ENTRIES:
        return bool(split_folio(kernel, pfn))
    kernel.clear_flags(pfn, int(KPF.DIRTY))
    pmd.huge &= ~(e.ACCESSED | e.DIRTY)
    from memdesc.mm.areas.madvise_pages import mark_lazyfree

    mark_lazyfree(kernel, pfn)
    return True


def madvise_cold_huge_pmd(kernel: Kernel, mm: Mm, vma: Vma, vpn_start: int, vpn_end: int) -> bool:
    """MADV_COLD at a PMD entry; False where its folio was split and its pages come next."""
    pfn, done = _cold_or_pageout(kernel, mm, vpn_start, vpn_end)
    if pfn is None:
        return done
    if kernel.flags(pfn) & KPF.LRU:
        folio_deactivate(kernel, pfn)
    return True


def madvise_pageout_huge_pmd(
    kernel: Kernel, mm: Mm, vma: Vma, vpn_start: int, vpn_end: int, isolated: list[int]
) -> bool:
    """MADV_PAGEOUT at a PMD entry: its folio is put into `isolated`, with a reference.

    False where it was split and its pages come next.
    """
    pfn, done = _cold_or_pageout(kernel, mm, vpn_start, vpn_end)
    if pfn is None:
        return done
    flags = kernel.flags(pfn)
    if flags & KPF.LRU and not flags & KPF.UNEVICTABLE:
        kernel.get(pfn)
        isolated.append(pfn)
    return True


def madvise_large_folio(kernel: Kernel, mm: Mm, vpn: int, vpn_end: int) -> int:
    """A large folio that an entry maps: how many entries from here on map all of it in order.

    0: only a part lies in the range, and it was split. -1: it is left alone.
    """
    first = mm.tables.entry(vpn)
    pfn = e.pfn_of(first)
    head = kernel.head(pfn)
    pages = 1 << kernel.order_of(head)
    if kernel.rules.madvise_keeps_whole_folios and pfn == head and vpn + pages <= vpn_end:
        mapped = (mm.tables.entry(vpn + page) for page in range(pages))
        if all(
            e.is_present(entry) and e.pfn_of(entry) == head + page
            for page, entry in enumerate(mapped)
        ):
            return pages
    if likely_mapped_shared(kernel, pfn):
        kernel.say("madvise: a part of a large folio that others map too, left alone")
        return -1
    return -1 if split_folio(kernel, pfn) else 0


def change_huge_pmd(
    kernel: Kernel, mm: Mm, vma: Vma, vpn_start: int, vpn_end: int, prot: VM
) -> bool:
    """mprotect of a whole PMD entry; False after it was split, as only a part is meant.

    It becomes writable at once where its page is exclusive (`can_change_pmd_writable`).
    """
    pmd = mm.tables.pmd_of(vpn_start)
    assert pmd is not None
    if vpn_end - vpn_start != TABLE_ENTRIES:
        split_pmd(kernel, mm, vma, vpn_start)
        return False
    if not e.is_present(pmd.huge):
        raise Errno("EFAULT")
    if vma.file is not None:
        change_file_pmd(kernel, vma, pmd)
        return True
    entry = pmd.huge & ~(e.PRESENT | e.PROTNONE | e.RW)
    entry |= e.PRESENT if prot & (VM.READ | VM.WRITE | VM.EXEC) else e.PROTNONE
    pfn = e.pfn_of(entry)
    if prot & VM.WRITE and (
        pmd.huge & e.RW or (not is_huge_zero(kernel, entry) and kernel.exclusive(pfn))
    ):
        entry |= e.RW
    pmd.huge = entry
    return True


# --- helpers -----------------------------------------------------------------------------


def _cold_or_pageout(
    kernel: Kernel, mm: Mm, vpn_start: int, vpn_end: int
) -> tuple[int | None, bool]:
    """What both do first with a PMD: the folio to go on with, or None and whether all is done."""
    pmd = mm.tables.pmd_of(vpn_start)
    assert pmd is not None
    if not e.is_present(pmd.huge) or is_huge_zero(kernel, pmd.huge):
        return None, True
    pfn = e.pfn_of(pmd.huge)
    if likely_mapped_shared(kernel, pfn):
        kernel.say("madvise_cold_or_pageout: others map it too, left alone")
        return None, True
    if vpn_end - vpn_start != TABLE_ENTRIES:
        return None, bool(split_folio(kernel, pfn))
    pmd.huge &= ~e.ACCESSED
    kernel.clear_flags(pfn, int(KPF.REFERENCED))
    note_advice(kernel, pfn)
    return pfn, True
