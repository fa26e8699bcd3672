"""Filling memory by userfaultfd: UFFDIO_COPY, _ZEROPAGE, _CONTINUE and _POISON.

`mm/userfaultfd.c:mfill_atomic, mfill_atomic_pte_copy, mfill_atomic_pte_continue,
mfill_atomic_install_pte @6.12`.  Each fills entries that are empty, page by page; what was done
before an error stays, and the error is EAGAIN then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from memdesc.kernels.kpageflags import KPF
from memdesc.mm import entries as e
from memdesc.mm.areas.mlock_batch import mlock_vma_folio
from memdesc.mm.areas.vma import VM, Vma
from memdesc.mm.faults.new_folio import map_new_anon_page, new_anon_folio
from memdesc.mm.files.page_cache import add_folio
from memdesc.mm.files.shmem import shmem_get_page
from memdesc.mm.frames import TABLE_ENTRIES as HUGE
from memdesc.mm.process import Errno, Mm, OutOfMemory
from memdesc.mm.rmap import anon_vma_prepare
from memdesc.mm.userfault.userfault_hugetlb import continue_hugetlb, fill_hugetlb, poison_hugetlb

if TYPE_CHECKING:
    from memdesc.mm.kernel import Kernel

__all__ = ["continue_", "copy", "poison", "zeropage"]

POISON_MARKER: Final = e.marker(e.Marker.POISONED)


def copy(
    kernel: Kernel, mm: Mm, vpn: int, contents: Sequence[int], *, protect: bool = False
) -> None:
    """UFFDIO_COPY: pages with contents where nothing is yet. Raises Errno.

    `protect`: UFFDIO_COPY_MODE_WP.
    """

    def fill(vma: Vma, at: int) -> None:
        if vma.flags & VM.HUGETLB:
            first = at - vpn
            fill_hugetlb(kernel, mm, vma, at, contents[first : first + HUGE], protect=protect)
        elif vma.flags & VM.SHARED:
            _fill_shmem(kernel, mm, vma, at, contents[at - vpn], protect=protect)
        else:
            _fill_anon(kernel, mm, vma, at, contents[at - vpn], protect=protect)
        kernel.say("mfill_atomic_install_pte: a page with that content")

    _mfill(kernel, mm, vpn, vpn + len(contents), fill, protect=protect)


def continue_(
    kernel: Kernel, mm: Mm, vpn_start: int, vpn_end: int, *, protect: bool = False
) -> None:
    """UFFDIO_CONTINUE: map the pages that the file has there. Raises Errno.

    `protect`: UFFDIO_CONTINUE_MODE_WP.
    """
    if protect and not kernel.rules.uffd_continue_protects:
        raise Errno("EINVAL")

    def fill(vma: Vma, at: int) -> None:
        if vma.flags & VM.HUGETLB:
            continue_hugetlb(kernel, mm, vma, at, protect=protect)
        elif vma.file is None:
            raise Errno("EINVAL")
        else:
            _continue_shmem(kernel, mm, vma, at, protect=protect)
        kernel.say("mfill_atomic_pte_continue: what the file has there is mapped")

    _mfill(kernel, mm, vpn_start, vpn_end, fill, protect=protect)


def zeropage(kernel: Kernel, mm: Mm, vpn_start: int, vpn_end: int) -> None:
    """UFFDIO_ZEROPAGE: the zero page, or new pages of zeroes in shared memory. Raises Errno."""

    def fill(vma: Vma, at: int) -> None:
        if vma.flags & VM.HUGETLB:
            kernel.say("mfill_atomic_hugetlb: there is no huge zero page for hugetlb")
            raise Errno("EINVAL")
        if vma.flags & VM.SHARED:
            _fill_shmem(kernel, mm, vma, at, 0, protect=False)
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
        if vma.flags & VM.HUGETLB:
            poison_hugetlb(kernel, mm, at, POISON_MARKER)
            return
        _check_size(vma, at)
        if mm.tables.entry(at) != e.NONE_ENTRY:
            raise Errno("EEXIST")
        mm.tables.set(at, POISON_MARKER)
        kernel.say("mfill_atomic_pte_poison: a marker, every access brings SIGBUS")

    _mfill(kernel, mm, vpn_start, vpn_end, fill)


# --- helpers -----------------------------------------------------------------------------


def _mfill(
    kernel: Kernel,
    mm: Mm,
    vpn_start: int,
    vpn_end: int,
    fill: Callable[[Vma, int], None],
    *,
    protect: bool = False,
) -> None:
    """mfill_atomic(): page by page, in one registered area."""
    vma = mm.vmas.find(vpn_start)
    if vma is None or vpn_end > vma.vpn_end or vma.uffd is None:
        raise Errno("ENOENT")
    if protect and not vma.flags & VM.UFFD_WP:
        raise Errno("EINVAL")
    huge = bool(vma.flags & VM.HUGETLB)
    if huge and (vpn_start | vpn_end) % HUGE:
        raise Errno("EINVAL")
    if not huge and not vma.is_anonymous and not (vma.file and vma.file.mapping.is_shmem):
        raise Errno("EINVAL")
    if not vma.flags & VM.SHARED:
        anon_vma_prepare(kernel, mm, vma)
    step = HUGE if huge else 1
    for vpn in range(vpn_start, vpn_end, step):
        try:
            if not huge:
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


def _fill_anon(kernel: Kernel, mm: Mm, vma: Vma, vpn: int, content: int, *, protect: bool) -> None:
    """mfill_atomic_pte_copy()."""
    _check_size(vma, vpn)
    _check_entry(mm.tables.entry(vpn))
    pfn = new_anon_folio(kernel, vma, vpn)
    kernel.f.content[pfn] = content
    map_new_anon_page(kernel, mm, vma, vpn, pfn, _filled_bits(vma, protect=protect))


def _fill_shmem(kernel: Kernel, mm: Mm, vma: Vma, vpn: int, content: int, *, protect: bool) -> None:
    """shmem_mfill_atomic_pte(): a new page of the file, mapped."""
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
    _map_cached(kernel, mm, vma, vpn, pfn, protect=protect)


def _continue_shmem(kernel: Kernel, mm: Mm, vma: Vma, vpn: int, *, protect: bool) -> None:
    """mfill_atomic_pte_continue(): shmem_get_folio() with SGP_NOALLOC."""
    assert vma.file is not None
    mapping, index = vma.file.mapping, vma.index_of(vpn)
    if index >= mapping.pages_in_size:
        raise Errno("EFAULT" if kernel.rules.uffd_continue_has_one_error else "EINVAL")
    if index not in mapping.pages and index not in mapping.swapped:
        kernel.say("mfill_atomic_pte_continue: a hole, which it does not fill")
        raise Errno("EFAULT")
    pfn = shmem_get_page(kernel, mapping, index)
    if kernel.f.flags[pfn] & int(KPF.HWPOISON):
        raise Errno("EIO")
    _check_entry(mm.tables.entry(vpn))
    _map_cached(kernel, mm, vma, vpn, pfn, protect=protect)


def _map_cached(kernel: Kernel, mm: Mm, vma: Vma, vpn: int, pfn: int, *, protect: bool) -> None:
    """mfill_atomic_install_pte() of a page of the file; a private mapping may not write to it."""
    bits = _filled_bits(vma, protect=protect)
    if not vma.flags & VM.SHARED:
        bits &= ~e.RW
    mm.tables.set(vpn, e.present(pfn, bits))
    kernel.f.maps[pfn] += 1
    kernel.get(pfn)
    if vma.flags & VM.LOCKED:
        mlock_vma_folio(kernel, vma, pfn)


def _filled_bits(vma: Vma, *, protect: bool) -> int:
    """Bits of an entry that mfill_atomic_install_pte() makes."""
    write = e.UFFD_WP if protect else e.RW if vma.flags & VM.WRITE else 0
    return e.ACCESSED | e.DIRTY | e.SOFT_DIRTY | write
