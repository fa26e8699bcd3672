"""Huge pages of files in page tables: a PMD that maps 512 pages of the page cache.

`mm/memory.c:do_set_pmd, wp_huge_pmd`, `mm/huge_memory.c:zap_huge_pmd, __split_huge_pmd_locked`,
`mm/rmap.c:try_to_unmap` @6.12.  No table is deposited under such a PMD on x86, and so it cannot be
split: whatever concerns a part of it drops it, and faults bring what is wanted back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from memdesc.kernels.kpageflags import KPF
from memdesc.mm import entries as e
from memdesc.mm.areas.mlock_batch import mlock_vma_folio, munlock_vma_folio
from memdesc.mm.areas.vma import VM, Vma
from memdesc.mm.files.writeback import dirty_folio
from memdesc.mm.frames import TABLE_ENTRIES, Kind
from memdesc.mm.huge.thp_orders import PMD_ORDER, is_suitable
from memdesc.mm.page_tables import PMD_SHIFT, Pmd
from memdesc.mm.reclaim.mark_accessed import has_recency, mark_accessed
from memdesc.mm.rmap import mappings_of
from memdesc.model.compiled import array
from memdesc.types import PAGE_SIZE_BYTES

if TYPE_CHECKING:
    from memdesc.mm.kernel import Kernel
    from memdesc.mm.process import Mm

__all__ = [
    "change_file_pmd", "drop_file_pmd", "huge_file_counters", "set_file_pmd", "unmap_file_folio",
    "zap_file_pmd",
]  # fmt: skip

_LOW: Final = TABLE_ENTRIES - 1


def set_file_pmd(
    kernel: Kernel, mm: Mm, vma: Vma, vpn: int, pfn: int, *, write: bool = False
) -> bool:
    """do_set_pmd(): map the huge page that has a frame by a PMD, if area and tables allow it."""
    if kernel.order_of(pfn) != PMD_ORDER or not is_suitable(vma, vpn, PMD_ORDER):
        return False
    disabled = mm.thp_disabled or vma.flags & VM.NOHUGEPAGE
    if disabled and kernel.rules.no_file_pmd_where_disabled:
        return False
    pmd = mm.tables.pmd_of(vpn)
    if pmd is not None and (pmd.huge or pmd.table is not None):
        return False
    head = kernel.head(pfn)
    if any(kernel.f.flags[page] & KPF.HWPOISON for page in kernel.pages_of(head)):
        return False
    from memdesc.mm.files.filemap import wants_writenotify

    bits = e.HUGE | e.ACCESSED
    if write:
        bits |= e.SOFT_DIRTY | e.DIRTY | (e.RW if vma.flags & VM.WRITE else 0)
    elif vma.flags & VM.WRITE and vma.flags & VM.SHARED and not wants_writenotify(vma):
        bits |= e.RW
    mm.tables.alloc_upper(vpn)
    mm.tables.pmds[vpn >> PMD_SHIFT] = Pmd(huge=e.present(head, bits))
    kernel.events["thp_file_mapped"] += 1
    kernel.f.entire[head] += 1
    kernel.get(head)
    if vma.flags & VM.LOCKED and kernel.rules.pmd_of_file_is_locked:
        mlock_vma_folio(kernel, vma, head, whole=True)
    kernel.say("do_set_pmd: one entry maps 512 pages of the file")
    return True


def zap_file_pmd(kernel: Kernel, mm: Mm, vma: Vma, vpn: int) -> None:
    """zap_huge_pmd() of a file's huge page."""
    entry, head = _take_out(kernel, mm, vma, vpn)
    recent = entry & e.ACCESSED and has_recency(kernel, vma)
    if recent and kernel.rules.pmd_zap_marks_accessed:
        mark_accessed(kernel, head)
    kernel.put(head)
    kernel.say("zap_huge_pmd: one entry unmapped 512 pages of the file")


def drop_file_pmd(kernel: Kernel, mm: Mm, vma: Vma, vpn: int) -> None:
    """__split_huge_pmd_locked() of a file's huge page: nothing is mapped afterwards."""
    kernel.events["thp_split_pmd"] += 1
    entry, head = _take_out(kernel, mm, vma, vpn)
    if entry & e.ACCESSED:
        kernel.set_flags(head, int(KPF.REFERENCED))
    kernel.put(head)
    kernel.say("__split_huge_pmd: of a file, so it is dropped; faults will map what is wanted")


def change_file_pmd(kernel: Kernel, vma: Vma, pmd: Pmd) -> None:
    """change_huge_pmd() of a whole PMD that maps a file: the permissions of its area."""
    from memdesc.mm.files.filemap import wants_writenotify

    entry = pmd.huge & ~(e.PRESENT | e.PROTNONE | e.RW)
    entry |= e.PRESENT if vma.flags & (VM.READ | VM.WRITE | VM.EXEC) else e.PROTNONE
    writable = vma.flags & (VM.WRITE | VM.SHARED) == VM.WRITE | VM.SHARED
    if writable and not wants_writenotify(vma):
        entry |= e.RW
    elif writable and entry & e.DIRTY and not kernel.rules.mprotect_wants_dirty:
        # can_change_pmd_writable(): the file system knows of a write already.
        tracked = not vma.flags & VM.SOFTDIRTY and not entry & e.SOFT_DIRTY
        entry |= 0 if tracked or entry & e.UFFD_WP else e.RW
    pmd.huge = entry


def unmap_file_folio(kernel: Kernel, head: int) -> None:
    """try_to_unmap() of a folio of a file, also where areas are locked; dirt moves to the folio."""
    from memdesc.mm.faults.zap import drop_mapping

    for page in kernel.pages_of(head):
        for mm, vma, vpn in list(mappings_of(kernel, page)):
            pmd = mm.tables.pmd_of(vpn)
            assert pmd is not None
            if pmd.huge:
                drop_file_pmd(kernel, mm, vma, vpn)
                continue
            entry = mm.tables.entry(vpn)
            if entry & e.DIRTY:
                dirty_folio(kernel, head)
            marker = e.marker(e.Marker.UFFD_WP)
            mm.tables.set(vpn, marker if entry & e.UFFD_WP else e.NONE_ENTRY)
            munlock_vma_folio(kernel, vma, page)
            drop_mapping(kernel, page)


def huge_file_counters(kernel: Kernel) -> dict[str, int]:
    """Huge pages of files, as /proc/meminfo counts them, in kB."""
    f = kernel.f
    flags, order = array(f.flags), array(f.order)
    huge = (array(f.kind) == Kind.FOLIO) & (array(f.offset) == 0) & (order == PMD_ORDER)
    huge &= flags & int(KPF.ANON | KPF.HUGE | KPF.SWAPCACHE) == 0
    mapped = huge & (array(f.entire) > 0)
    cached = huge & (array(f.mapping) > 0)
    shmem = flags & int(KPF.SWAPBACKED) != 0
    rows = {
        "ShmemHugePages": cached & shmem,
        "ShmemPmdMapped": mapped & shmem,
        "FileHugePages": cached & ~shmem,
        "FilePmdMapped": mapped & ~shmem,
    }
    size = TABLE_ENTRIES * PAGE_SIZE_BYTES >> 10
    return {f"meminfo.{name}": int(row.sum()) * size for name, row in rows.items()}


# --- helpers -----------------------------------------------------------------------------


def _take_out(kernel: Kernel, mm: Mm, vma: Vma, vpn: int) -> tuple[int, int]:
    """The entry that goes, and its folio, of which the mapping's reference is left."""
    pmd = mm.tables.pmds.pop(vpn >> PMD_SHIFT)
    assert pmd.deposit is None
    head = e.pfn_of(pmd.huge)
    if pmd.huge & e.DIRTY:
        dirty_folio(kernel, head)
    kernel.f.entire[head] -= 1
    munlock_vma_folio(kernel, vma, head, compound=True)
    return pmd.huge, head
