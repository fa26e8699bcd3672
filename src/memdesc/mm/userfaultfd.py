"""userfaultfd: a process decides itself what comes of faults in a part of its memory.

`fs/userfaultfd.c:userfaultfd_register, userfaultfd_unregister, handle_userfault`,
`mm/userfaultfd.c:mfill_atomic, mwriteprotect_range, uffd_wp_range @6.12`.  Nobody waits here: the
descriptors have UFFD_FEATURE_SIGBUS, so a fault that would wake a handler brings SIGBUS, or
UFFD_FEATURE_WP_ASYNC, which ends the protection of a page by itself when it is written to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NoReturn

import numpy as np
from numpy.typing import NDArray

from memdesc.errors import MemdescError
from memdesc.mm import entries as e
from memdesc.mm.files import AddressSpace
from memdesc.mm.frames import BATCH_ADD
from memdesc.mm.process import Errno, Mm, OutOfMemory, Signal
from memdesc.mm.rmap import anon_vma_prepare
from memdesc.mm.vma import VM, VM_UFFD, Vma
from memdesc.mm.vma_modify import vma_modify_uffd

if TYPE_CHECKING:
    from memdesc.mm.kernel import Kernel
    from memdesc.mm.page_tables import Pmd

__all__ = [
    "UserfaultfdCtx", "clear_moved", "copy", "handle_userfault", "mremap_userfaultfd_prep",
    "poison", "register", "shmem_fault", "unregister", "userfaultfd", "wp_fault", "writeprotect",
    "zeropage",
]  # fmt: skip

_MARKER: Final = e.not_present(e.SwapType.MARKER, e.Marker.UFFD_WP)
_POISON: Final = e.not_present(e.SwapType.MARKER, e.Marker.POISONED)
_MODES: Final = {
    "missing": VM.UFFD_MISSING,
    "wp": VM.UFFD_WP,
    "wp_async": VM.UFFD_WP,
    "minor": VM.UFFD_MINOR,
}
"""What a descriptor is for -> flags of the areas that are registered with it."""


@dataclass(slots=True, eq=False)
class UserfaultfdCtx:
    """One userfaultfd (`struct userfaultfd_ctx`). Compared by identity."""

    mode: str
    """"missing", "wp", "wp_async" or "minor"."""
    ranges: list[tuple[int, int]] = field(default_factory=list)
    """What its owner registered with it, in pages."""

    @property
    def wp_async(self) -> bool:
        """UFFD_FEATURE_WP_ASYNC: a write ends the protection, and nobody is asked.

        It implies UFFD_FEATURE_WP_UNPOPULATED: also empty entries of anonymous memory can be
        protected, by markers.
        """
        return self.mode == "wp_async"


# --- system calls ----------------------------------------------------------------------------


def userfaultfd(kernel: Kernel, mode: str) -> UserfaultfdCtx:
    """userfaultfd(2) and UFFDIO_API with the features that a mode needs. Raises Errno."""
    if mode == "wp_async" and not kernel.rules.uffd_wp_async:
        raise Errno("EINVAL")
    return UserfaultfdCtx(mode)


def register(kernel: Kernel, mm: Mm, ctx: UserfaultfdCtx, vpn_start: int, vpn_end: int) -> None:
    """UFFDIO_REGISTER: all areas of a range, of which gaps are left out. Raises Errno."""
    wanted = _MODES[ctx.mode]
    areas = mm.vmas.overlapping(vpn_start, vpn_end)
    if not areas:
        raise Errno("EINVAL")
    for vma in areas:
        if not _can_userfault(kernel, vma, wanted, wp_async=ctx.wp_async):
            raise Errno("EINVAL")
        if not vma.flags & VM.MAYWRITE:
            raise Errno("EPERM")
        if vma.uffd not in (None, ctx):
            kernel.say("userfaultfd_register: another userfaultfd has the area")
            raise Errno("EBUSY")
    for vma in areas:
        if vma.uffd is ctx and vma.flags & wanted:
            continue
        start, end = max(vma.vpn_start, vpn_start), min(vma.vpn_end, vpn_end)
        flags = vma.flags & ~VM_UFFD | wanted
        vma_modify_uffd(kernel, mm, vma, start, end, flags, ctx)
        kernel.say("userfaultfd_register: faults there are the descriptor's now")


def unregister(kernel: Kernel, mm: Mm, ctx: UserfaultfdCtx, vpn_start: int, vpn_end: int) -> None:
    """UFFDIO_UNREGISTER: an area as before, without any protection left. Raises Errno."""
    areas = mm.vmas.overlapping(vpn_start, vpn_end)
    if not areas:
        raise Errno("EINVAL")
    for vma in areas:
        if not _can_userfault(kernel, vma, vma.flags & VM_UFFD, wp_async=ctx.wp_async):
            raise Errno("EINVAL")
    for vma in areas:
        if vma.uffd is None:
            continue
        start, end = max(vma.vpn_start, vpn_start), min(vma.vpn_end, vpn_end)
        if vma.flags & VM.UFFD_WP:
            _wp_range(kernel, mm, vma, start, end, protect=False)
        vma_modify_uffd(kernel, mm, vma, start, end, vma.flags & ~VM_UFFD, None)
        kernel.say("userfaultfd_unregister: faults are the kernel's again")


def writeprotect(kernel: Kernel, mm: Mm, vpn_start: int, vpn_end: int, *, protect: bool) -> None:
    """UFFDIO_WRITEPROTECT: protect what is there, or end that. Raises Errno."""
    areas = mm.vmas.overlapping(vpn_start, vpn_end)
    if not kernel.rules.uffd_wp_several_areas:
        areas = [v for v in areas[:1] if v.vpn_start <= vpn_start and vpn_end <= v.vpn_end]
    if not areas:
        raise Errno("ENOENT")
    for vma in areas:
        if not vma.flags & VM.UFFD_WP:
            raise Errno("ENOENT")
        start, end = max(vma.vpn_start, vpn_start), min(vma.vpn_end, vpn_end)
        _wp_range(kernel, mm, vma, start, end, protect=protect)


def copy(kernel: Kernel, mm: Mm, vpn: int, contents: Sequence[int]) -> None:
    """UFFDIO_COPY: pages with contents where nothing is yet. Raises Errno.

    What was done before an error stays; the error is EAGAIN then.
    """

    def fill(vma: Vma, at: int) -> None:
        if vma.flags & VM.SHARED:
            _fill_shmem(kernel, mm, vma, at, contents[at - vpn])
        else:
            _fill_anon(kernel, mm, vma, at, contents[at - vpn])
        kernel.say("mfill_atomic_install_pte: a page with that content")

    _mfill(kernel, mm, vpn, vpn + len(contents), fill)


def zeropage(kernel: Kernel, mm: Mm, vpn_start: int, vpn_end: int) -> None:
    """UFFDIO_ZEROPAGE: the zero page, or new pages of zeroes in shared memory. Raises Errno."""

    def fill(vma: Vma, at: int) -> None:
        if vma.flags & VM.SHARED:
            _fill_shmem(kernel, mm, vma, at, 0)
            return
        _check_size(vma, at)
        if mm.tables.entry(at) != e.NONE_ENTRY:
            raise Errno("EEXIST")
        mm.tables.set(at, e.present(kernel.zero_pfn, e.SPECIAL | e.ACCESSED))
        kernel.say("mfill_atomic_pte_zeropage: the zero page")

    _mfill(kernel, mm, vpn_start, vpn_end, fill)


def poison(kernel: Kernel, mm: Mm, vpn_start: int, vpn_end: int) -> None:
    """UFFDIO_POISON: markers that say that the memory was lost elsewhere. Raises Errno."""
    if not kernel.rules.uffd_poison:
        raise Errno("EINVAL")

    def fill(vma: Vma, at: int) -> None:
        _check_size(vma, at)
        if mm.tables.entry(at) != e.NONE_ENTRY:
            raise Errno("EEXIST")
        mm.tables.set(at, _POISON)
        kernel.say("mfill_atomic_pte_poison: a marker, every access brings SIGBUS")

    _mfill(kernel, mm, vpn_start, vpn_end, fill)


# --- faults ----------------------------------------------------------------------------------


def handle_userfault(kernel: Kernel, vma: Vma, why: str) -> NoReturn:
    """A fault that is the descriptor's. Raises Signal (UFFD_FEATURE_SIGBUS)."""
    kernel.say(f"handle_userfault: {why}, SIGBUS as the descriptor asked for it")
    raise Signal("SIGBUS", "ADRERR")


def wp_fault(kernel: Kernel, vma: Vma) -> None:
    """A write to a protected entry: returns where its protection ends by itself. Raises Signal."""
    assert vma.uffd is not None
    if not vma.uffd.wp_async:
        handle_userfault(kernel, vma, "write-protected")
    kernel.say("userfaultfd_wp_async: the protection ends with the first write")


def shmem_fault(kernel: Kernel, vma: Vma, mapping: AddressSpace, index: int) -> None:
    """shmem_get_folio_gfp() with an area: pages that are there and not mapped ("minor"), or not
    there ("missing"), are the descriptor's. Raises Signal."""
    there = index in mapping.pages or index in mapping.swapped
    if there and vma.flags & VM.UFFD_MINOR:
        handle_userfault(kernel, vma, "in the page cache, and not mapped")
    if not there and vma.flags & VM.UFFD_MISSING:
        handle_userfault(kernel, vma, "a hole in the file")


# --- mremap ----------------------------------------------------------------------------------


def mremap_userfaultfd_prep(kernel: Kernel, vma: Vma) -> None:
    """Without UFFD_FEATURE_EVENT_REMAP an area that moved is not registered any more."""
    if vma.uffd is not None:
        vma.flags &= ~VM_UFFD
        vma.uffd = None
        kernel.say("mremap_userfaultfd_prep: the moved area is not registered any more")


def clear_moved(row: NDArray[np.int64]) -> None:
    """Entries on the move lose protection, and markers of it go (`mm/mremap.c:move_ptes`)."""
    here = row & (e.PRESENT | e.PROTNONE) != 0
    markers = ~here & (row & ~np.int64(e.SOFT_DIRTY_SWAP) == _MARKER)
    row[here] &= ~np.int64(e.UFFD_WP)
    row[~here] &= ~np.int64(e.UFFD_WP_SWAP)
    row[markers] = e.NONE_ENTRY


# --- helpers ---------------------------------------------------------------------------------


def _can_userfault(kernel: Kernel, vma: Vma, wanted: VM, *, wp_async: bool) -> bool:
    """vma_can_userfault()."""
    if vma.flags & VM.DROPPABLE:
        return False
    if vma.flags & VM.HUGETLB:
        raise MemdescError(
            "userfaultfd of hugetlb memory is not modelled",
            hint="register anonymous or shared memory",
        )
    shmem = vma.file is not None and vma.file.mapping.is_shmem
    if wanted & VM.UFFD_MINOR and not shmem:
        return False
    return shmem or vma.is_anonymous or (wp_async and wanted == VM.UFFD_WP)


def _mfill(
    kernel: Kernel, mm: Mm, vpn_start: int, vpn_end: int, fill: Callable[[Vma, int], None]
) -> None:
    """mfill_atomic(): page by page, in one registered area."""
    vma = mm.vmas.find(vpn_start)
    if vma is None or vpn_end > vma.vpn_end or vma.uffd is None:
        raise Errno("ENOENT")
    if not vma.is_anonymous and not (vma.file and vma.file.mapping.is_shmem):
        raise Errno("EINVAL")
    if not vma.flags & VM.SHARED:
        anon_vma_prepare(kernel, mm, vma)
    for vpn in range(vpn_start, vpn_end):
        try:
            _alloc_pte(mm, vpn)
            fill(vma, vpn)
        except Errno as error:
            if vpn > vpn_start:
                kernel.say(f"mfill_atomic: {error.name} after {vpn - vpn_start} pages")
                raise Errno("EAGAIN") from None
            raise


def _alloc_pte(mm: Mm, vpn: int) -> None:
    """A lowest table for a page; a huge page that is there is not filled."""
    mm.tables.alloc_upper(vpn)
    pmd = mm.tables.pmd_of(vpn)
    if pmd is not None and pmd.huge:
        raise Errno("EEXIST")
    mm.tables.alloc_pte(vpn)


def _check_size(vma: Vma, vpn: int) -> None:
    """mfill_file_over_size()."""
    if vma.file is not None and vma.index_of(vpn) >= vma.file.mapping.pages_in_size:
        raise Errno("EFAULT")


def _check_entry(entry: int) -> None:
    """Only an empty entry is filled, or a marker of userfaultfd's own; not a guard."""
    if entry == e.NONE_ENTRY:
        return
    marker = not e.is_present(entry) and e.swap_type(entry) is e.SwapType.MARKER
    if not marker or e.swap_offset(entry) == e.Marker.GUARD:
        raise Errno("EEXIST")


def _fill_anon(kernel: Kernel, mm: Mm, vma: Vma, vpn: int, content: int) -> None:
    """mfill_atomic_pte_copy()."""
    from memdesc.mm.new_folio import marked_by_area
    from memdesc.mm.wp import new_anon_page

    _check_size(vma, vpn)
    _check_entry(mm.tables.entry(vpn))
    pfn = new_anon_page(kernel, vma, vpn)
    kernel.f.content[pfn] = content
    mm.tables.set(vpn, e.present(pfn, _filled_bits(vma)))
    kernel.f.maps[pfn] = 1
    kernel.batch(pfn, BATCH_ADD)
    marked_by_area(kernel, vma, pfn)


def _fill_shmem(kernel: Kernel, mm: Mm, vma: Vma, vpn: int, content: int) -> None:
    """shmem_mfill_atomic_pte(): a new page of the file, mapped."""
    from memdesc.mm.page_cache import add_folio

    assert vma.file is not None
    mapping, index = vma.file.mapping, vma.index_of(vpn)
    if kernel.rules.uffd_allocates_first and index >= mapping.pages_in_size:
        raise OutOfMemory
    _check_size(vma, vpn)
    if index in mapping.pages or index in mapping.swapped:
        kernel.say("shmem_add_to_page_cache: the file has a page there")
        raise Errno("EEXIST")
    _check_entry(mm.tables.entry(vpn))
    pfn = add_folio(kernel, mapping, index)
    kernel.f.content[pfn] = content
    mm.tables.set(vpn, e.present(pfn, _filled_bits(vma)))
    kernel.f.maps[pfn] += 1
    kernel.get(pfn)
    if vma.flags & VM.LOCKED:
        from memdesc.mm.mlock import mlock_vma_folio

        mlock_vma_folio(kernel, vma, pfn)


def _filled_bits(vma: Vma) -> int:
    """Bits of an entry that mfill_atomic_install_pte() makes."""
    return e.ACCESSED | e.DIRTY | e.SOFT_DIRTY | (e.RW if vma.flags & VM.WRITE else 0)


def _wp_range(
    kernel: Kernel, mm: Mm, vma: Vma, vpn_start: int, vpn_end: int, *, protect: bool
) -> None:
    """uffd_wp_range(): MM_CP_UFFD_WP or MM_CP_UFFD_WP_RESOLVE of change_protection()."""
    tables = mm.tables
    markers = protect and (not vma.is_anonymous or (vma.uffd is not None and vma.uffd.wp_async))
    if markers:
        for vpn in range(vpn_start, vpn_end):
            pmd = tables.pmd_of(vpn)
            if pmd is None or not pmd.huge:
                tables.alloc_pte(vpn)
    for low, high, pmd in tables.runs(vpn_start, vpn_end):
        if pmd.huge and _change_huge(kernel, mm, vma, pmd, low, high, protect=protect):
            continue
        if pmd.table is None:
            continue
        for vpn in range(low, high):
            entry = tables.entry(vpn)
            if entry == e.NONE_ENTRY:
                new = _MARKER if markers else entry
            elif protect:
                new = _protected(entry)
            else:
                new = _resolved(kernel, vma, entry)
            if new != entry:
                tables.set(vpn, new)
    kernel.say(f"uffd_wp_range: entries are {'protected' if protect else 'as they were'}")


def _protected(entry: int) -> int:
    if e.is_present(entry):
        return entry & ~e.RW | e.UFFD_WP
    return entry if e.swap_type(entry) is e.SwapType.MARKER else entry | e.UFFD_WP_SWAP


def _resolved(kernel: Kernel, vma: Vma, entry: int) -> int:
    """Without protection; writable at once where that tells nobody less."""
    from memdesc.mm.filemap import wants_writenotify
    from memdesc.mm.mprotect import can_change_pte_writable

    if not e.is_present(entry):
        if e.swap_type(entry) is e.SwapType.MARKER:
            return e.NONE_ENTRY if entry & ~e.SOFT_DIRTY_SWAP == _MARKER else entry
        return entry & ~e.UFFD_WP_SWAP
    entry &= ~e.UFFD_WP
    if not vma.flags & VM.WRITE:
        return entry
    shared = bool(vma.flags & VM.SHARED)
    if not kernel.rules.uffd_unprotect_asks:
        return entry | e.RW if shared else entry
    if shared and not wants_writenotify(vma):
        return entry
    may = can_change_pte_writable(kernel, vma, np.array([entry], dtype=np.int64))
    return entry | e.RW if may[0] else entry


def _change_huge(
    kernel: Kernel, mm: Mm, vma: Vma, pmd: Pmd, low: int, high: int, *, protect: bool
) -> bool:
    """change_huge_pmd() of all of it; False after it was split, as only a part is meant."""
    from memdesc.mm.huge_memory import is_huge_zero, split_pmd

    if high - low != 1 << 9:
        split_pmd(kernel, mm, vma, low)
        return False
    if protect:
        pmd.huge = pmd.huge & ~e.RW | e.UFFD_WP
        return True
    pmd.huge &= ~e.UFFD_WP
    asks = kernel.rules.uffd_unprotect_asks and vma.flags & VM.WRITE
    if asks and not is_huge_zero(kernel, pmd.huge) and kernel.exclusive(e.pfn_of(pmd.huge)):
        pmd.huge |= e.RW
    return True
