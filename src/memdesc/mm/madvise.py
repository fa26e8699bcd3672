"""madvise(2): which advice goes where, area by area, and the advice about pages themselves.

`mm/madvise.c:do_madvise, madvise_walk_vmas, madvise_vma_behavior @6.12`.  Advice that only sets
flags of areas splits and merges them; what throws pages away or ages them is done here; huge
pages, KSM, reclaim and files are done by the modules of their names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from memdesc.kernels.kpageflags import KPF
from memdesc.mm import entries as e
from memdesc.mm.frames import BATCH_DEACTIVATE, BATCH_LAZYFREE, TABLE_ENTRIES
from memdesc.mm.process import Errno, Mm, OutOfMemory, Process
from memdesc.mm.vma import VM, VM_SPECIAL, Vma
from memdesc.mm.vma_modify import vma_modify_flags
from memdesc.mm.zap import zap_range

if TYPE_CHECKING:
    from memdesc.mm.kernel import Kernel

__all__ = ["madvise"]

Advisor = Callable[["Kernel", Process, Vma, int, int], None]


def madvise(kernel: Kernel, process: Process, vpn_start: int, vpn_end: int, advice: str) -> None:
    """Give advice, by the name of MADV_* in lower case, about a range of pages.

    What is not mapped is left out, and the call fails with ENOMEM in the end (`madvise_walk_vmas`).
    Raises Errno.
    """
    mm = process.mm
    if advice.startswith("guard_") and not kernel.rules.guard_regions:
        raise Errno("EINVAL")
    if advice in ("hwpoison", "soft_offline"):
        from memdesc.mm.memory_failure import inject

        inject(kernel, process, vpn_start, vpn_end, soft=advice == "soft_offline")
        return
    if vpn_end <= vpn_start:
        return
    if advice in ("populate_read", "populate_write"):
        from memdesc.mm.populate import madvise_populate

        madvise_populate(kernel, mm, vpn_start, vpn_end, write=advice == "populate_write")
        return
    _walk(kernel, process, vpn_start, vpn_end, _ADVICE[advice])


def new_flags(vma: Vma, advice: str) -> VM:
    """What an area's flags become by advice that changes only them. Raises Errno."""
    flags = vma.flags
    match advice:
        case "normal":
            return flags & ~(VM.RAND_READ | VM.SEQ_READ)
        case "sequential":
            return flags & ~VM.RAND_READ | VM.SEQ_READ
        case "random":
            return flags & ~VM.SEQ_READ | VM.RAND_READ
        case "dontfork":
            return flags | VM.DONTCOPY
        case "dofork":
            if flags & VM.IO:
                raise Errno("EINVAL")
            return flags & ~VM.DONTCOPY
        case "wipeonfork":
            if vma.file is not None or flags & VM.SHARED:
                raise Errno("EINVAL")
            return flags | VM.WIPEONFORK
        case "keeponfork":
            if flags & VM.DROPPABLE:
                raise Errno("EINVAL")
            return flags & ~VM.WIPEONFORK
        case "dontdump":
            return flags | VM.DONTDUMP
        case "dodump":
            special = not flags & VM.HUGETLB and flags & VM_SPECIAL
            if special or flags & VM.DROPPABLE:
                raise Errno("EINVAL")
            return flags & ~VM.DONTDUMP
    raise AssertionError(advice)


# --- pages -------------------------------------------------------------------------------


def dontneed(
    kernel: Kernel, process: Process, vma: Vma, vpn_start: int, vpn_end: int,
    *, locked: bool = False,
) -> None:  # fmt: skip
    """MADV_DONTNEED: unmap the pages, and leave the area. Raises Errno."""
    end = _dontneed_end(vma, vpn_start, vpn_end, locked=locked)
    if end <= vpn_start:
        return
    if kernel.rules.unmap_drains:
        kernel.drain()
    zap_range(kernel, process.mm, vma, vpn_start, end, drop_markers=False)
    kernel.say("madvise_dontneed_single_vma: unmapped, the area stays")
    if kernel.rules.frees_empty_tables:
        _free_empty_tables(process.mm, vpn_start, end)


def free(kernel: Kernel, process: Process, vma: Vma, vpn_start: int, vpn_end: int) -> None:
    """MADV_FREE: what the pages hold may be thrown away unless it is written again.

    `mm/madvise.c:madvise_free_pte_range @6.12`. Raises Errno.
    """
    _dontneed_end(vma, vpn_start, vpn_end, locked=False)
    if vma.flags & VM.HUGETLB or not vma.is_anonymous:
        raise Errno("EINVAL")
    kernel.drain()
    tables = process.mm.tables
    for low, high, pmd in tables.runs(vpn_start, vpn_end):
        if pmd.huge:
            from memdesc.mm.huge_advice import madvise_free_huge_pmd

            if madvise_free_huge_pmd(kernel, process.mm, vma, low, high):
                continue
        vpn = low
        while vpn < high:
            vpn += _free_at(kernel, process.mm, vma, vpn, high)


def cold(kernel: Kernel, process: Process, vma: Vma, vpn_start: int, vpn_end: int) -> None:
    """MADV_COLD: pages that nobody else maps are the first to go when memory is short.

    `mm/madvise.c:madvise_cold_or_pageout_pte_range @6.12`. Raises Errno.
    """
    if vma.flags & (VM.LOCKED | VM.PFNMAP | VM.HUGETLB):
        raise Errno("EINVAL")
    kernel.drain()
    for low, high, pmd in process.mm.tables.runs(vpn_start, vpn_end):
        if pmd.huge:
            from memdesc.mm.huge_advice import madvise_cold_huge_pmd

            if madvise_cold_huge_pmd(kernel, process.mm, vma, low, high):
                continue
        vpn = low
        while vpn < high:
            vpn += _cold_at(kernel, process.mm, vma, vpn, high)


# --- helpers -----------------------------------------------------------------------------


def _walk(kernel: Kernel, process: Process, vpn_start: int, vpn_end: int, advisor: Advisor) -> None:
    """madvise_walk_vmas(): the advice for each area's part of the range."""
    vmas = process.mm.vmas
    vpn, unmapped = vpn_start, False
    while vpn < vpn_end:
        vma = vmas.find(vpn) or vmas.after(vpn)
        if vma is None or vma.vpn_start >= vpn_end:
            raise Errno("ENOMEM")
        unmapped |= vpn < vma.vpn_start
        vpn = max(vpn, vma.vpn_start)
        end = min(vma.vpn_end, vpn_end)
        advisor(kernel, process, vma, vpn, end)
        vpn = end
    if unmapped:
        raise Errno("ENOMEM")


def _dontneed_end(vma: Vma, vpn_start: int, vpn_end: int, *, locked: bool) -> int:
    """madvise_dontneed_free_valid_vma(): how far the advice goes. Raises Errno."""
    if vma.flags & VM.HUGETLB:
        if vpn_start % TABLE_ENTRIES:
            raise Errno("EINVAL")
        return vpn_end - vpn_end % TABLE_ENTRIES
    if vma.flags & (VM.PFNMAP if locked else VM.PFNMAP | VM.LOCKED):
        raise Errno("EINVAL")
    return vpn_end


def _free_empty_tables(mm: Mm, vpn_start: int, vpn_end: int) -> None:
    """mm/pt_reclaim.c @7.2: whole tables of the range that are empty now."""
    for low, high, pmd in list(mm.tables.runs(vpn_start, vpn_end)):
        if high - low < TABLE_ENTRIES or pmd.table is None or pmd.huge:
            continue
        mm.tables.free_empty(low)


def _free_at(kernel: Kernel, mm: Mm, vma: Vma, vpn: int, vpn_end: int) -> int:
    """MADV_FREE at one entry; how many pages it was about."""
    entry = mm.tables.entry(vpn)
    if entry == e.NONE_ENTRY:
        return 1
    if not e.is_present(entry):
        from memdesc.mm.swap import zap_swap_entry

        if _goes_with_free(entry) and zap_swap_entry(kernel, mm, vma, vpn, entry, even_cows=True):
            mm.tables.set(vpn, e.NONE_ENTRY)
        return 1
    if entry & e.SPECIAL:
        return 1
    head = kernel.head(e.pfn_of(entry))
    count = 1
    if kernel.order_of(head):
        from memdesc.mm.huge_advice import madvise_large_folio

        count = madvise_large_folio(kernel, mm, vma, vpn, vpn_end)
        if not count:
            return 0  # It was split; the entry is looked at again.
        if count < 0:
            return 1
    flags = kernel.flags(head)
    if flags & (KPF.SWAPCACHE | KPF.DIRTY):
        if kernel.mapcount(head) != 1 << kernel.order_of(head):
            kernel.say("madvise_free: dirty and mapped by others too, left alone")
            return count
        if flags & KPF.SWAPCACHE:
            from memdesc.mm.swap_state import free_swap_cache

            free_swap_cache(kernel, head)
            if kernel.flags(head) & KPF.SWAPCACHE:
                return count
        kernel.clear_flags(head, int(KPF.DIRTY))
    for page in range(vpn, vpn + count):
        mm.tables.set(page, mm.tables.entry(page) & ~(e.ACCESSED | e.DIRTY))
    mark_lazyfree(kernel, head)
    return count


def mark_lazyfree(kernel: Kernel, pfn: int) -> None:
    """folio_mark_lazyfree(): takes effect when the CPU's batch is emptied."""
    head = kernel.head(pfn)
    flags = kernel.flags(head)
    wanted = KPF.ANON | KPF.SWAPBACKED | KPF.LRU
    if flags & wanted == wanted and not flags & (KPF.SWAPCACHE | KPF.UNEVICTABLE):
        kernel.batch(head, BATCH_LAZYFREE)
        kernel.say("folio_mark_lazyfree: may be dropped until it is written again")


def _goes_with_free(entry: int) -> bool:
    """What is swapped out or lost goes with MADV_FREE; guards and moving pages stay."""
    kind = e.swap_type(entry)
    if kind is e.SwapType.MARKER:
        return e.swap_offset(entry) == e.Marker.POISONED
    return kind is not e.SwapType.MIGRATION


def _cold_at(kernel: Kernel, mm: Mm, vma: Vma, vpn: int, vpn_end: int) -> int:
    """MADV_COLD at one entry; how many pages it was about."""
    entry = mm.tables.entry(vpn)
    if not e.is_present(entry) or entry & e.SPECIAL:
        return 1
    head = kernel.head(e.pfn_of(entry))
    count = 1
    if kernel.order_of(head):
        from memdesc.mm.huge_advice import madvise_large_folio

        count = madvise_large_folio(kernel, mm, vma, vpn, vpn_end)
        if not count:
            return 0
        if count < 0:
            return 1
    flags = kernel.flags(head)
    if not flags & KPF.LRU or kernel.mapcount(head) != 1 << kernel.order_of(head):
        return count
    for page in range(vpn, vpn + count):
        mm.tables.set(page, mm.tables.entry(page) & ~e.ACCESSED)
    kernel.clear_flags(head, int(KPF.REFERENCED))
    may = flags & KPF.ACTIVE or kernel.knobs["lru_gen"] != "0"
    if may and not flags & KPF.UNEVICTABLE:
        kernel.batch(head, BATCH_DEACTIVATE)
        kernel.say("folio_deactivate: to the end of the inactive list")
    return count


def _flags(advice: str) -> Advisor:
    """The advisor of advice that only sets flags (madvise_update_vma)."""

    def advise(kernel: Kernel, process: Process, vma: Vma, vpn_start: int, vpn_end: int) -> None:
        try:
            vma_modify_flags(kernel, process.mm, vma, vpn_start, vpn_end, new_flags(vma, advice))
        except OutOfMemory:
            raise Errno("EAGAIN") from None

    return advise


def _dontneed_locked(
    kernel: Kernel, process: Process, vma: Vma, vpn_start: int, vpn_end: int
) -> None:
    dontneed(kernel, process, vma, vpn_start, vpn_end, locked=True)


def _huge(advice: str) -> Advisor:
    def advise(kernel: Kernel, process: Process, vma: Vma, vpn_start: int, vpn_end: int) -> None:
        from memdesc.mm.huge_advice import hugepage_madvise

        flags = hugepage_madvise(kernel, process.mm, vma, advice)
        vma_modify_flags(kernel, process.mm, vma, vpn_start, vpn_end, flags)

    return advise


def _ksm(advice: str) -> Advisor:
    def advise(kernel: Kernel, process: Process, vma: Vma, vpn_start: int, vpn_end: int) -> None:
        from memdesc.mm.ksm import ksm_madvise

        flags = ksm_madvise(kernel, process.mm, vma, vpn_start, vpn_end, advice)
        vma_modify_flags(kernel, process.mm, vma, vpn_start, vpn_end, flags)

    return advise


def _collapse(kernel: Kernel, process: Process, vma: Vma, vpn_start: int, vpn_end: int) -> None:
    from memdesc.mm.khugepaged import madvise_collapse

    madvise_collapse(kernel, process.mm, vma, vpn_start, vpn_end)


def _pageout(kernel: Kernel, process: Process, vma: Vma, vpn_start: int, vpn_end: int) -> None:
    from memdesc.mm.vmscan import madvise_pageout

    madvise_pageout(kernel, process.mm, vma, vpn_start, vpn_end)


def _remove(kernel: Kernel, process: Process, vma: Vma, vpn_start: int, vpn_end: int) -> None:
    """madvise_remove(): punch a hole into the file behind a shared mapping."""
    if vma.flags & VM.LOCKED or vma.file is None:
        raise Errno("EINVAL")
    if vma.flags & (VM.SHARED | VM.MAYWRITE) != VM.SHARED | VM.MAYWRITE:
        raise Errno("EACCES")
    from memdesc.mm.filemap import punch_hole

    first = vma.index_of(vpn_start)
    punch_hole(kernel, vma.file, first, first + vpn_end - vpn_start)


def _willneed(kernel: Kernel, process: Process, vma: Vma, vpn_start: int, vpn_end: int) -> None:
    if vma.file is None:
        from memdesc.mm.swap import madvise_willneed as swap_in

        swap_in(kernel, process.mm, vma, vpn_start, vpn_end)
        return
    from memdesc.mm.filemap import madvise_willneed

    madvise_willneed(kernel, process.mm, vma, vpn_start, vpn_end)


def _guard_install(
    kernel: Kernel, process: Process, vma: Vma, vpn_start: int, vpn_end: int
) -> None:
    from memdesc.mm.guard import guard_install

    guard_install(kernel, process.mm, vma, vpn_start, vpn_end)


def _guard_remove(kernel: Kernel, process: Process, vma: Vma, vpn_start: int, vpn_end: int) -> None:
    from memdesc.mm.guard import guard_remove

    guard_remove(kernel, process.mm, vma, vpn_start, vpn_end)


_OF_FLAGS: Final = (
    "normal", "random", "sequential", "dontfork", "dofork", "dontdump", "dodump", "wipeonfork",
    "keeponfork",
)  # fmt: skip

_ADVICE: Final[Mapping[str, Advisor]] = MappingProxyType(
    {
        **{advice: _flags(advice) for advice in _OF_FLAGS},
        **{advice: _huge(advice) for advice in ("hugepage", "nohugepage")},
        **{advice: _ksm(advice) for advice in ("mergeable", "unmergeable")},
        "dontneed": dontneed,
        "dontneed_locked": _dontneed_locked,
        "free": free,
        "cold": cold,
        "pageout": _pageout,
        "collapse": _collapse,
        "remove": _remove,
        "willneed": _willneed,
        "guard_install": _guard_install,
        "guard_remove": _guard_remove,
    }
)
"""Advice -> what is done for each area."""
