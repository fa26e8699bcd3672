"""Huge pages of anonymous memory: faults, writes, fork, unmapping, and splitting the PMD entry.

`mm/huge_memory.c @6.12`: do_huge_pmd_anonymous_page, do_huge_pmd_wp_page, copy_huge_pmd,
zap_huge_pmd, __split_huge_pmd_locked.  A PMD that maps 512 pages keeps a lowest table deposited,
so that splitting it needs no memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from memdesc.kernels.kpageflags import KPF
from memdesc.mm import entries as e
from memdesc.mm.areas.mlock_batch import munlock_vma_folio
from memdesc.mm.areas.vma import VM, Vma
from memdesc.mm.faults.new_folio import marked_by_area, new_anon_folio
from memdesc.mm.frames import BATCH_ADD, C_HUGE_ZERO_PFN, TABLE_ENTRIES, Kind
from memdesc.mm.huge.file_pmd import drop_file_pmd, zap_file_pmd
from memdesc.mm.huge.large_folio import deferred_split, pmd_unmapped
from memdesc.mm.huge.large_folio import page_unmapped as page_unmapped
from memdesc.mm.huge.large_folio import try_large_anon as try_large_anon
from memdesc.mm.huge.thp_orders import PMD_ORDER, allowed_orders, is_suitable, pmd_allowed
from memdesc.mm.huge.thp_stats import count_mthp
from memdesc.mm.mm_ids import note_child
from memdesc.mm.page_tables import PMD_SHIFT, Pmd
from memdesc.mm.process import Mm, OutOfMemory
from memdesc.mm.reclaim.swap_state import free_swap_cache
from memdesc.mm.rmap import anon_vma_prepare, mappings_of, move_anon_rmap
from memdesc.model.compiled import array
from memdesc.types import MemoryType

if TYPE_CHECKING:
    from memdesc.mm.kernel import Kernel

__all__ = [
    "copy_huge_pmd", "huge_pmd_fault", "is_huge_zero", "map_huge_pmd", "move_huge_pmd",
    "new_huge_folio", "page_unmapped", "shrink_huge_zero", "split_pmd", "split_pmd_at",
    "split_pmds", "try_huge_fault", "try_large_anon", "wants_large", "zap_huge_pmd",
]  # fmt: skip

_LOW: Final = TABLE_ENTRIES - 1
_EFFORT: Final = {
    "always": ("direct reclaim and compaction", "direct reclaim and compaction"),
    "defer": ("kswapd", "kswapd"),
    "defer+madvise": ("direct reclaim and compaction", "kswapd"),
    "madvise": ("direct reclaim and compaction", "none"),
    "never": ("none", "none"),
}
"""Setting of `defrag` -> effort where no huge page is free, with and without MADV_HUGEPAGE
(`mm/huge_memory.c:vma_thp_gfp_mask`)."""


def try_huge_fault(kernel: Kernel, mm: Mm, vma: Vma, vpn: int, *, write: bool) -> bool:
    """do_huge_pmd_anonymous_page(): whether a huge page resolved a fault where nothing maps the
    2 MiB range."""
    if not pmd_allowed(kernel, mm, vma) or not is_suitable(vma, vpn, PMD_ORDER):
        return False
    low = vpn & ~_LOW
    anon_vma_prepare(kernel, mm, vma)
    mm.khugepaged = True
    if vma.flags & VM.UFFD_MISSING:
        from memdesc.mm.userfault.userfaultfd import handle_userfault

        handle_userfault(kernel, "nothing is there")
    if not write and kernel.knobs["thp_zero"] != "0":
        return _map_huge_zero(kernel, mm, low)
    pfn = _fault_huge_folio(kernel, vma, low)
    if pfn is None:
        return False
    try:
        map_huge_pmd(kernel, mm, vma, low, pfn)
    except OutOfMemory:
        kernel.put(pfn)
        raise
    kernel.say("do_huge_pmd_anonymous_page: a huge page of zeroes")
    return True


def huge_pmd_fault(
    kernel: Kernel, mm: Mm, vma: Vma, vpn: int, *, write: bool, unshare: bool
) -> bool:
    """A fault at a PMD entry; False after it was split, so that the fault goes on below."""
    pmd = mm.tables.pmd_of(vpn)
    assert pmd is not None
    if (write or unshare) and not pmd.huge & e.RW:
        if vma.file is not None:
            # wp_huge_pmd(): copies and notices of writes are a matter of small entries.
            drop_file_pmd(kernel, mm, vma, vpn)
            return False
        return _do_huge_pmd_wp_page(kernel, mm, vma, vpn, pmd, unshare=unshare)
    pmd.huge |= e.ACCESSED | (e.DIRTY if write else 0)
    return True


def wants_large(kernel: Kernel, mm: Mm, vma: Vma) -> bool:
    """Whether a write fault at a page may be resolved by more than one page."""
    return pmd_allowed(kernel, mm, vma) or bool(allowed_orders(kernel, mm, vma))


def copy_huge_pmd(kernel: Kernel, source: Mm, target: Mm, vma: Vma, vpn: int) -> bool:
    """fork at a PMD entry; False after it was split, because its page may be pinned."""
    if vma.file is not None:
        kernel.say("copy_huge_pmd: of a file, faults will bring the same")
        return True
    pmd = source.tables.pmd_of(vpn)
    assert pmd is not None
    entry = pmd.huge
    pfn = e.pfn_of(entry)
    zero = is_huge_zero(kernel, entry)
    pinned = not zero and kernel.exclusive(pfn) and kernel.may_be_pinned(pfn)
    if pinned and source.has_pinned:
        kernel.say("copy_huge_pmd: pinned, the PMD is split and its pages are copied")
        split_pmd(kernel, source, vma, vpn)
        return False
    target.tables.alloc_upper(vpn)
    deposit = target.tables.new_pte_table()
    if not zero:
        kernel.get(pfn)
        kernel.f.entire[pfn] += 1
        kernel.set_exclusive(pfn, False)
        if kernel.rules.knows_who_maps_large:
            note_child(kernel, pfn, source, target)
        kernel.say("copy_huge_pmd: the huge page is shared")
    else:
        target.huge_zero = True
    pmd.huge = entry & ~e.RW
    target.tables.pmds[vpn >> PMD_SHIFT] = Pmd(
        huge=entry & ~(e.RW | e.ACCESSED | e.UFFD_WP), deposit=deposit
    )
    return True


def zap_huge_pmd(kernel: Kernel, mm: Mm, vma: Vma, vpn_start: int, vpn_end: int) -> bool:
    """Unmap a PMD entry, or split it where the range is only a part of it (False)."""
    if vpn_end - vpn_start != TABLE_ENTRIES:
        split_pmd(kernel, mm, vma, vpn_start)
        return False
    if vma.file is not None:
        zap_file_pmd(kernel, mm, vma, vpn_start)
        return True
    pmd = mm.tables.pmds.pop(vpn_start >> PMD_SHIFT)
    assert pmd.deposit is not None
    mm.tables.free_pte_table(pmd.deposit)
    if not is_huge_zero(kernel, pmd.huge):
        pfn = e.pfn_of(pmd.huge)
        kernel.f.entire[pfn] -= 1
        pmd_unmapped(kernel, pfn)
        munlock_vma_folio(kernel, vma, pfn, compound=True)
        kernel.put(pfn)
        kernel.say("zap_huge_pmd: one entry unmapped 512 pages")
    return True


def split_pmd(kernel: Kernel, mm: Mm, vma: Vma, vpn: int) -> None:
    """__split_huge_pmd(): the same pages, mapped by 512 entries of the deposited table.

    A file's has none, and is dropped.
    """
    if vma.file is not None:
        drop_file_pmd(kernel, mm, vma, vpn)
        return
    pmd = mm.tables.pmd_of(vpn)
    assert pmd is not None
    assert pmd.deposit is not None
    kernel.events["thp_split_pmd"] += 1
    entry, pmd.huge = pmd.huge, 0
    pmd.table, pmd.deposit = pmd.deposit, None
    entries = array(kernel.f.entries)
    at = pmd.table.first
    if is_huge_zero(kernel, entry):
        bits = e.SPECIAL | e.ACCESSED | entry & (e.UFFD_WP | e.PROTNONE)
        zero = e.present(kernel.zero_pfn, bits)
        if entry & e.PROTNONE:
            zero &= ~e.PRESENT
        entries[at : at + TABLE_ENTRIES] = zero
        kernel.say("__split_huge_zero_page_pmd: 512 entries of the small zero page")
        return
    pfn = e.pfn_of(entry)
    first = entry & ~e.HUGE
    f = kernel.f
    for page in range(TABLE_ENTRIES):
        entries[at + page] = first + (page << 12)
        f.maps[pfn + page] += 1
    if entry & e.DIRTY:
        kernel.set_flags(pfn, int(KPF.DIRTY))
    if kernel.exclusive(pfn):
        for page in range(1, TABLE_ENTRIES):
            kernel.set_exclusive(pfn + page, True)
    kernel.get(pfn, TABLE_ENTRIES - 1)
    f.entire[pfn] -= 1
    # The new entries do not lock it again; reclaim does (folio_add_anon_rmap_ptes).
    munlock_vma_folio(kernel, vma, pfn, compound=True)
    kernel.say("__split_huge_pmd: the same pages, mapped one by one")


def split_pmd_at(kernel: Kernel, mm: Mm, vma: Vma, vpn: int) -> None:
    """Split the PMD entry that crosses an address, if there is one (vma_adjust_trans_huge)."""
    pmd = mm.tables.pmd_of(vpn)
    if vpn & _LOW and pmd is not None and pmd.huge and not vma.flags & VM.HUGETLB:
        split_pmd(kernel, mm, vma, vpn)


def split_pmds(kernel: Kernel, head: int) -> None:
    """Split every PMD entry that maps a folio (TTU_SPLIT_HUGE_PMD)."""
    if not kernel.f.entire[head]:
        return
    for mm, vma, vpn in tuple(mappings_of(kernel, head)):
        pmd = mm.tables.pmd_of(vpn)
        if pmd is not None and pmd.huge:
            split_pmd(kernel, mm, vma, vpn)


def move_huge_pmd(kernel: Kernel, source: Mm, target: Mm, vpn_from: int, vpn_to: int) -> None:
    """mremap of a whole PMD: the entry and its deposited table go elsewhere; both are aligned."""
    assert not (vpn_from | vpn_to) & _LOW
    pmd = source.tables.pmds.pop(vpn_from >> PMD_SHIFT)
    pmd.huge |= e.SOFT_DIRTY
    target.tables.alloc_upper(vpn_to)
    target.tables.pmds[vpn_to >> PMD_SHIFT] = pmd
    kernel.say("move_huge_pmd: the huge page moves as one")


# --- huge pages ----------------------------------------------------------------------------


def new_huge_folio(kernel: Kernel, vma: Vma, low: int) -> int | None:
    """A huge page for an aligned range, not mapped yet; None where none is free."""
    try:
        return new_anon_folio(kernel, vma, low, PMD_ORDER)
    except OutOfMemory:
        advised, other = _EFFORT[kernel.knobs["thp_defrag"]]
        effort = advised if vma.flags & VM.HUGEPAGE else other
        kernel.say(f"vma_alloc_folio: no huge page is free; effort that defrag allows: {effort}")
        return None


def map_huge_pmd(kernel: Kernel, mm: Mm, vma: Vma, low: int, pfn: int) -> None:
    """map_anon_folio_pmd(): a new huge page becomes the mapping of an aligned range.

    The lowest table that is there becomes the deposited one, else there is a new one.
    """
    mm.tables.alloc_upper(low)
    pmd = mm.tables.pmds.setdefault(low >> PMD_SHIFT, Pmd())
    pmd.deposit = pmd.deposit or pmd.table or mm.tables.new_pte_table()
    pmd.table = None
    write = e.RW if vma.flags & VM.WRITE else 0
    pmd.huge = e.present(pfn, e.HUGE | e.ACCESSED | e.DIRTY | e.SOFT_DIRTY | write)
    kernel.f.entire[pfn] = 1
    kernel.batch(pfn, BATCH_ADD)
    marked_by_area(kernel, vma, pfn)
    if kernel.rules.split_drops_zero_pages:
        deferred_split(kernel, pfn, partially=False)


def is_huge_zero(kernel: Kernel, entry: int) -> bool:
    """is_huge_zero_pmd()."""
    return e.is_present(entry) and e.pfn_of(entry) == kernel.f.cell[C_HUGE_ZERO_PFN]


def shrink_huge_zero(kernel: Kernel) -> None:
    """shrink_huge_zero_page_scan(): it is freed when no address space holds it any more."""
    pfn = int(kernel.f.cell[C_HUGE_ZERO_PFN])
    if pfn < 0 or any(process.mm.huge_zero for process in kernel.processes.values()):
        return
    f = kernel.f
    for page in range(pfn, pfn + TABLE_ENTRIES):
        f.flags[page] = f.offset[page] = f.kind[page] = 0
    f.order[pfn] = f.refs[pfn] = 0
    f.cell[C_HUGE_ZERO_PFN] = -1
    kernel.machine.free(pfn)
    kernel.say("shrink_huge_zero_page_scan: nobody holds it")


# --- helpers -----------------------------------------------------------------------------


def _fault_huge_folio(kernel: Kernel, vma: Vma, low: int) -> int | None:
    """vma_alloc_anon_folio_pmd(): a huge page for a fault, which is counted."""
    pfn = new_huge_folio(kernel, vma, low)
    kernel.events["thp_fault_fallback" if pfn is None else "thp_fault_alloc"] += 1
    count_mthp(kernel, PMD_ORDER, "anon_fault_fallback" if pfn is None else "anon_fault_alloc")
    return pfn


def _map_huge_zero(kernel: Kernel, mm: Mm, low: int) -> bool:
    """The huge zero page, read-only. It is not counted; the address space holds it once."""
    pfn = _huge_zero(kernel)
    if pfn is None:
        return False
    mm.huge_zero = True
    mm.tables.pmds[low >> PMD_SHIFT] = Pmd(
        huge=e.present(pfn, e.HUGE | e.ACCESSED | e.SOFT_DIRTY),
        deposit=mm.tables.new_pte_table(),
    )
    kernel.say("do_huge_pmd_anonymous_page: read, the huge zero page")
    return True


def _huge_zero(kernel: Kernel) -> int | None:
    """get_huge_zero_page(): allocated at its first use."""
    f = kernel.f
    if f.cell[C_HUGE_ZERO_PFN] >= 0:
        return int(f.cell[C_HUGE_ZERO_PFN])
    pfn = kernel.machine.alloc(MemoryType.HUGE_ZERO, PMD_ORDER)
    if pfn is None:
        kernel.say("get_huge_zero_page: no memory for it")
        return None
    kernel.events["thp_zero_page_alloc"] += 1
    for page in range(TABLE_ENTRIES):
        f.offset[pfn + page] = page
        f.kind[pfn + page] = Kind.OTHER
        f.content[pfn + page] = 0
    f.order[pfn], f.refs[pfn] = PMD_ORDER, 1
    f.flags[pfn] = int(KPF.ZERO_PAGE)
    f.cell[C_HUGE_ZERO_PFN] = pfn
    return int(pfn)


def _do_huge_pmd_wp_page(
    kernel: Kernel, mm: Mm, vma: Vma, vpn: int, pmd: Pmd, *, unshare: bool
) -> bool:
    """A write, or an unshare, at a read-only PMD: reuse, or split it and let the fault copy a
    small page. A huge page is never copied as one."""
    if not unshare and pmd.huge & e.UFFD_WP and vma.flags & VM.UFFD_WP:
        from memdesc.mm.userfault.userfaultfd import wp_fault

        wp_fault(kernel, vma)
        split_pmd(kernel, mm, vma, vpn)
        return False
    if is_huge_zero(kernel, pmd.huge):
        if kernel.rules.huge_zero_becomes_huge:
            anon_vma_prepare(kernel, mm, vma)
            pfn = _fault_huge_folio(kernel, vma, vpn & ~_LOW)
            if pfn is not None:
                map_huge_pmd(kernel, mm, vma, vpn & ~_LOW, pfn)
                kernel.say("do_huge_zero_wp_pmd: a huge page in the place of the huge zero page")
                return True
        split_pmd(kernel, mm, vma, vpn)
        return False
    pfn = e.pfn_of(pmd.huge)
    cached = bool(kernel.flags(pfn) & KPF.SWAPCACHE)
    why = "exclusive already"
    if not kernel.exclusive(pfn):
        why = "the only reference"
        if kernel.refs(pfn) <= 1 + (TABLE_ENTRIES if cached else 0) and cached:
            free_swap_cache(kernel, pfn)
        if kernel.refs(pfn) != 1:
            kernel.say(f"do_huge_pmd_wp_page: {kernel.refs(pfn)} references, the PMD is split")
            split_pmd(kernel, mm, vma, vpn)
            return False
        move_anon_rmap(kernel, pfn, vma)
        kernel.set_exclusive(pfn, True)
    if unshare:
        kernel.say(f"unshare: the huge page is exclusive now, {why}")
        return True
    write = e.RW if vma.flags & VM.WRITE else 0
    pmd.huge |= write | e.DIRTY | e.ACCESSED | e.SOFT_DIRTY
    kernel.say(f"do_huge_pmd_wp_page: the huge page is reused, {why}")
    return True
