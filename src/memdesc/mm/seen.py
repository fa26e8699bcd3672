"""What the files of /proc would show of the model: pagemap, kpageflags, kpagecount, smaps.

`fs/proc/task_mmu.c:pte_to_pagemap_entry, smaps_account, show_smap`,
`fs/proc/page.c:stable_page_flags` @6.1, @6.12, @7.2.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from memdesc.kernels.kpageflags import KPF
from memdesc.kernels.pagemap import PM, EntryKind, SwapConfig, swap_meanings
from memdesc.kernels.smaps import PSS_SHIFT
from memdesc.mm import entries as e
from memdesc.mm.areas.vma import VM, Vma
from memdesc.mm.process import Mm
from memdesc.mm.reclaim.swap_state import swap_count
from memdesc.types import PAGE_SIZE_BYTES

if TYPE_CHECKING:
    from memdesc.mm.kernel import Kernel
    from memdesc.mm.page_tables import Pmd

__all__ = ["kpagecount", "kpageflags", "pagemap_entry", "shows_huge", "smaps", "vm_flags"]

_PAGE_KB: Final = 4
_PAGES_MASK: Final = (1 << 52) - 1
"""Pages whose bytes fit into an unsigned long."""
_PER_PAGE: Final = int(KPF.OWNER_2 | KPF.HWPOISON)
_SHARED: Final = int(
    KPF.MMAP | KPF.ANON | KPF.KSM | KPF.THP | KPF.HUGE | KPF.COMPOUND_TAIL | KPF.ZERO_PAGE
)
"""What a tail shows of its folio on kernels that show its own flags."""
_STORED: Final = int(
    KPF.LOCKED | KPF.REFERENCED | KPF.UPTODATE | KPF.DIRTY | KPF.LRU | KPF.ACTIVE | KPF.WRITEBACK
    | KPF.RECLAIM | KPF.ANON | KPF.SWAPCACHE | KPF.SWAPBACKED | KPF.HUGE | KPF.UNEVICTABLE
    | KPF.HWPOISON | KPF.KSM | KPF.ZERO_PAGE | KPF.RESERVED | KPF.MLOCKED | KPF.OWNER_2
    | KPF.PRIVATE | KPF.PRIVATE_2 | KPF.OWNER_PRIVATE | KPF.ERROR
)  # fmt: skip
"""Flags that columns hold as they are shown."""

_VM_NAMES: Final = (
    (VM.READ, "rd"), (VM.WRITE, "wr"), (VM.EXEC, "ex"), (VM.SHARED, "sh"), (VM.MAYREAD, "mr"),
    (VM.MAYWRITE, "mw"), (VM.MAYEXEC, "me"), (VM.MAYSHARE, "ms"), (VM.GROWSDOWN, "gd"),
    (VM.UFFD_MISSING, "um"), (VM.PFNMAP, "pf"), (VM.MAYBE_GUARD, "gu"), (VM.UFFD_WP, "uw"),
    (VM.LOCKED, "lo"), (VM.IO, "io"), (VM.SEQ_READ, "sr"),
    (VM.RAND_READ, "rr"), (VM.DONTCOPY, "dc"), (VM.DONTEXPAND, "de"), (VM.LOCKONFAULT, "lf"),
    (VM.ACCOUNT, "ac"), (VM.NORESERVE, "nr"), (VM.HUGETLB, "ht"), (VM.SYNC, "sf"),
    (VM.PAT, "ar"),
    (VM.WIPEONFORK, "wf"), (VM.DONTDUMP, "dd"), (VM.SOFTDIRTY, "sd"), (VM.MIXEDMAP, "mm"),
    (VM.HUGEPAGE, "hg"), (VM.NOHUGEPAGE, "nh"), (VM.MERGEABLE, "mg"),
    (VM.UFFD_MINOR, "ui"), (VM.DROPPABLE, "dp"), (VM.SEALED, "sl"),
)  # fmt: skip
"""In the order of the bits (`fs/proc/task_mmu.c:show_smap_vma_flags`)."""


def pagemap_entry(kernel: Kernel, mm: Mm, vma: Vma, vpn: int) -> int:
    """The word of /proc/PID/pagemap for a page."""
    entry = mm.tables.entry(vpn)
    word = int(PM.SOFT_DIRTY) if vma.flags & VM.SOFTDIRTY else 0
    if entry == e.NONE_ENTRY or vma.flags & VM.PFNMAP:
        return word  # pagemap does not walk such areas (mm/pagewalk.c:walk_page_test), smaps does
    if not e.is_present(entry):
        if vma.flags & VM.HUGETLB:
            return word | _not_present_hugetlb(entry)
        return word | _not_present(kernel, entry)
    pfn = e.pfn_of(entry)
    word |= int(PM.PRESENT) | pfn
    if entry & e.SOFT_DIRTY:
        word |= int(PM.SOFT_DIRTY)
    if entry & e.UFFD_WP:
        word |= int(PM.UFFD_WP)
    if not entry & e.SPECIAL:
        if not kernel.flags(pfn) & KPF.ANON:
            word |= int(PM.FILE)
        pmd = mm.tables.pmd_of(vpn)
        if pmd is not None and pmd.huge and not kernel.rules.pagemap_asks_each_page:
            pfn = e.pfn_of(pmd.huge)
        if kpagecount(kernel, pfn) == 1:
            word |= int(PM.EXCLUSIVE)
    return word


def kpagecount(kernel: Kernel, pfn: int) -> int:
    """The number of /proc/kpagecount: entries that map this page, PMD entries of its folio too."""
    return int(kernel.f.maps[pfn]) + int(kernel.f.entire[kernel.head(pfn)])


def kpageflags(kernel: Kernel, pfn: int) -> int:
    """The word of /proc/kpageflags."""
    f = kernel.f
    head = kernel.head(pfn)
    order = int(f.order[head])
    flags = int(f.flags[head]) & _STORED
    if f.maps[pfn] or f.entire[head] or kernel.mapcount(head):
        flags |= int(KPF.MMAP)
    if flags & KPF.ANON and kernel.rules.ksm_shown_for_all_anon:
        flags |= int(KPF.KSM)
    if flags & KPF.SWAPCACHE:
        flags |= int(KPF.OWNER_PRIVATE)
    if not order:
        return flags
    if not flags & KPF.HUGE:
        flags |= int(KPF.THP)
    tail = pfn != head
    flags |= int(KPF.COMPOUND_TAIL if tail else KPF.COMPOUND_HEAD)
    if tail and kernel.rules.tails_have_own_flags:
        return flags & _SHARED | int(f.flags[pfn]) & _PER_PAGE
    flags &= ~int(KPF.HWPOISON)
    return flags | int(f.flags[pfn]) & int(KPF.HWPOISON)


def shows_huge(kernel: Kernel, vma: Vma, pmd: Pmd | None) -> bool:
    """Whether the kernel tells that a PMD maps the memory there.

    6.1 passes over huge pages behind PROT_NONE, as if NUMA balancing had hidden them.
    """
    if pmd is None or not pmd.huge:
        return False
    hidden = pmd.huge & e.PROTNONE and not vma.flags & VM.HUGETLB
    return kernel.rules.smaps_shows_protnone_huge or not hidden


def vm_flags(kernel: Kernel, vma: Vma) -> tuple[str, ...]:
    """VmFlags of smaps."""
    names = tuple(name for flag, name in _VM_NAMES if vma.flags & flag)
    if kernel.rules.smaps_names_lock_on_fault:
        return names
    return tuple("??" if name == "lf" else name for name in names)


@dataclass(slots=True)
class _Sums:
    kb: dict[str, int] = field(default_factory=dict)
    pss: int = 0
    """In bytes << PSS_SHIFT, as the kernel adds it up."""
    swap_pss: int = 0

    def add(self, name: str, pages: int = 1) -> None:
        self.kb[name] = self.kb.get(name, 0) + pages * _PAGE_KB


_FIELDS: Final = (
    "Rss", "Pss", "Shared_Clean", "Shared_Dirty", "Private_Clean", "Private_Dirty", "Referenced",
    "Anonymous", "LazyFree", "AnonHugePages", "ShmemPmdMapped", "FilePmdMapped", "Shared_Hugetlb",
    "Private_Hugetlb", "Swap", "SwapPss", "Locked",
)  # fmt: skip


def smaps(kernel: Kernel, mm: Mm, vma: Vma) -> dict[str, int]:
    """Fields of /proc/PID/smaps of an area that the model knows, in kB."""
    sums = _Sums(dict.fromkeys(_FIELDS, 0))
    if kernel.rules.smaps_shows_ksm:
        sums.kb["KSM"] = 0
    walked = not vma.flags & VM.PFNMAP or kernel.rules.smaps_walks_pfnmap
    for low, high, pmd in mm.tables.runs(vma.vpn_start, vma.vpn_end) if walked else ():
        if pmd.huge and not shows_huge(kernel, vma, pmd):
            continue
        if pmd.huge and e.is_present(pmd.huge):
            _huge(kernel, sums, vma, pmd.huge, high - low)
        if not pmd.huge and pmd.table is None:
            continue
        for vpn in range(low, high):
            _account(kernel, sums, mm.tables.entry(vpn), vma=vma)
    if vma.file is not None:
        sums.add("Swap", _shmem_swapped(mm, vma))
    sums.kb["Pss"] = sums.pss >> (10 + PSS_SHIFT)
    sums.kb["SwapPss"] = sums.swap_pss >> (10 + PSS_SHIFT)
    sums.kb["Locked"] = sums.kb["Pss"] if vma.flags & VM.LOCKED else 0
    return sums.kb


# --- helpers -----------------------------------------------------------------------------


def _account(kernel: Kernel, sums: _Sums, entry: int, *, vma: Vma) -> None:
    """smaps_pte_entry(), smaps_account() of one page."""
    if entry == e.NONE_ENTRY:
        return
    if not e.is_present(entry):
        if e.swap_type(entry) is e.SwapType.SWAP:
            sums.add("Swap")
            sums.swap_pss += (PAGE_SIZE_BYTES << PSS_SHIFT) // max(1, swap_count(kernel, entry))
            return
        # A frame that was lost is still counted where its entry is (is_pfn_swap_entry).
        if e.swap_type(entry) is not e.SwapType.HWPOISON:
            return
        if vma.flags & VM.HUGETLB:
            shares = kernel.rules.smaps_shares_lost_pages
            sums.add("Shared_Hugetlb" if shares else "Private_Hugetlb")
            return
    present = e.is_present(entry)
    pfn = e.pfn_of(entry) if present else e.swap_offset(entry)
    flags = kernel.flags(pfn)
    if flags & KPF.ZERO_PAGE or (present and entry & e.SPECIAL):
        return
    mapcount = kpagecount(kernel, pfn)
    if vma.flags & VM.HUGETLB:
        sums.add("Shared_Hugetlb" if kernel.hugetlb_shared(pfn) else "Private_Hugetlb")
        return
    dirty = bool((present and entry & e.DIRTY) or flags & KPF.DIRTY)
    sums.add("Rss")
    if (present and entry & e.ACCESSED) or flags & KPF.REFERENCED:
        sums.add("Referenced")
    if flags & KPF.ANON:
        sums.add("Anonymous")
        if not flags & KPF.SWAPBACKED and not dirty:
            sums.add("LazyFree")
        if flags & KPF.KSM and "KSM" in sums.kb:
            sums.add("KSM")
    alone = kernel.refs(pfn) == 1 or mapcount < 2
    private = alone and (present or not kernel.rules.smaps_shares_lost_pages)
    sums.add(("Private_" if private else "Shared_") + ("Dirty" if dirty else "Clean"))
    sums.pss += (PAGE_SIZE_BYTES << PSS_SHIFT) // (1 if alone else mapcount)


def _shmem_swapped(mm: Mm, vma: Vma) -> int:
    """shmem_swap_usage(): pages of the area's part of its file that are swapped out.

    A private copy hides the file's page (`smaps_pte_hole_lookup`). What swap did not give back is
    no longer counted in the inode, but is where entries are counted (`shmem_partial_swap_usage`);
    when it is thrown away the inode counts it once more, so that its number may fall below zero.
    """
    assert vma.file is not None
    mapping = vma.file.mapping
    counted = (len(mapping.swapped) - mapping.lost_twice) & _PAGES_MASK
    if not counted:
        return 0
    copies = vma.flags & VM.WRITE and not vma.flags & VM.SHARED
    if not copies and not vma.pgoff and vma.pages >= mapping.pages_in_size:
        return counted
    vpns = (vma.vpn_of(index) for index in (*mapping.swapped, *mapping.lost))
    found = [vpn for vpn in vpns if vpn is not None]
    if not copies:
        return len(found)
    return sum(mm.tables.entry(vpn) == e.NONE_ENTRY for vpn in found)


def _huge(kernel: Kernel, sums: _Sums, vma: Vma, entry: int, pages: int) -> None:
    flags = kernel.flags(e.pfn_of(entry))
    if flags & KPF.ZERO_PAGE or vma.flags & VM.HUGETLB:
        return
    if flags & KPF.ANON:
        sums.add("AnonHugePages", pages)
    elif flags & KPF.SWAPBACKED:
        sums.add("ShmemPmdMapped", pages)
    else:
        sums.add("FilePmdMapped", pages)


def _not_present_hugetlb(entry: int) -> int:
    """pagemap_hugetlb_range() shows nothing of lost pages; of markers only if they protect."""
    marker = e.swap_type(entry) is e.SwapType.MARKER
    return int(PM.UFFD_WP) if marker and e.swap_offset(entry) == e.Marker.UFFD_WP else 0


def _not_present(kernel: Kernel, entry: int) -> int:
    kind, offset = e.swap_type(entry), e.swap_offset(entry)
    word = int(PM.SWAP)
    if entry & e.SOFT_DIRTY_SWAP:
        word |= int(PM.SOFT_DIRTY)
    if entry & e.UFFD_WP_SWAP:
        word |= int(PM.UFFD_WP)
    if kind is e.SwapType.SWAP:
        return word | offset << 5
    if kind is e.SwapType.MARKER:
        if offset == e.Marker.GUARD:
            word |= int(PM.GUARD)
        if offset == e.Marker.UFFD_WP:
            word |= int(PM.UFFD_WP)
        if offset == e.Marker.SWAPIN_ERROR:
            return word | _type_number(kernel, EntryKind.SWAPIN_ERROR)
        return word | _type_number(kernel, EntryKind.MARKER) | offset << 5
    wanted = EntryKind.HWPOISON if kind is e.SwapType.HWPOISON else EntryKind.MIGRATION
    word |= _type_number(kernel, wanted) | offset << 5
    if not kernel.flags(offset) & KPF.ANON:
        word |= int(PM.FILE)
    return word


def _type_number(kernel: Kernel, wanted: EntryKind) -> int:
    """The swap type that Debian's configuration of a release gives a kind of entry."""
    config = SwapConfig(
        migration=True, memory_failure=True, device_private=kernel.rules.device_private
    )
    for number in range(32):
        meanings = swap_meanings(number, kernel.release, config)
        if len(meanings) == 1 and meanings[0].kind is wanted:
            return number
    raise AssertionError(wanted)
