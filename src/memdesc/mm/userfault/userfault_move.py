"""UFFDIO_MOVE: anonymous pages change their address, and nothing is copied.

`mm/userfaultfd.c:move_pages, validate_move_areas, move_pages_pte, move_present_pte,
move_zeropage_pte, move_swap_pte`, `mm/huge_memory.c:move_pages_huge_pmd @6.12`.  A page that moves
must be its process's alone, because its reverse mapping names one address for all who map it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from memdesc.errors import MemdescError
from memdesc.kernels.kpageflags import KPF
from memdesc.mm import entries as e
from memdesc.mm.areas.vma import VM, VM_ACCESS, Vma
from memdesc.mm.frames import TABLE_ENTRIES
from memdesc.mm.huge.huge_memory import is_huge_zero, split_pmd
from memdesc.mm.huge.large_folio import split_folio
from memdesc.mm.page_tables import PMD_SHIFT, Pmd
from memdesc.mm.process import Errno, Mm
from memdesc.mm.rmap import anon_vma_prepare, move_anon_rmap

if TYPE_CHECKING:
    from memdesc.mm.kernel import Kernel
    from memdesc.mm.userfault.userfaultfd import UserfaultfdCtx

__all__ = ["move_pages"]

_NOT_MOVED = VM.PFNMAP | VM.IO | VM.HUGETLB | VM.MIXEDMAP
_LOW = TABLE_ENTRIES - 1


def move_pages(
    kernel: Kernel, mm: Mm, ctx: UserfaultfdCtx, vpn_to: int, vpn_from: int, count: int,
    *, holes: bool,
) -> None:  # fmt: skip
    """Move pages to where nothing is, between private areas or inside one. Raises Errno.

    What was moved before an error stays moved, and the error is EAGAIN then. `holes`:
    UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES.
    """
    if not kernel.rules.uffd_move:
        raise Errno("EINVAL")
    target, source = mm.vmas.find(vpn_to), mm.vmas.find(vpn_from)
    if target is None:
        raise Errno("ENOENT")
    if not target.flags & VM.SHARED:
        anon_vma_prepare(kernel, mm, target)
    if source is None:
        raise Errno("ENOENT")
    _validate(ctx, source, target, vpn_from + count, vpn_to + count)
    done = 0
    while done < count:
        try:
            done += _move_at(
                kernel,
                mm,
                source,
                target,
                vpn_from + done,
                vpn_to + done,
                count - done,
                holes=holes,
            )
        except Errno as error:
            if done:
                kernel.say(f"move_pages: {error.name} after {done} pages")
                raise Errno("EAGAIN") from None
            raise


# --- helpers -----------------------------------------------------------------------------


def _validate(ctx: UserfaultfdCtx, source: Vma, target: Vma, end_from: int, end_to: int) -> None:
    """validate_move_areas(), and what move_pages() asks before."""
    fits = end_from <= source.vpn_end and end_to <= target.vpn_end
    differ = (source.flags ^ target.flags) & (VM_ACCESS | VM.LOCKED)
    both = source.flags | target.flags
    private = not both & (VM.SHARED | _NOT_MOVED)
    anonymous = source.is_anonymous and target.is_anonymous
    writable = bool(source.flags & VM.WRITE)
    if not (fits and private and anonymous and writable) or differ or target.uffd is not ctx:
        raise Errno("EINVAL")


def _move_at(
    kernel: Kernel, mm: Mm, source: Vma, target: Vma, at: int, to: int, left: int, *, holes: bool
) -> int:
    """One page, or one huge page; how many pages that was. Raises Errno."""
    tables = mm.tables
    pmd = tables.pmd_of(at)
    if pmd is None:
        if not holes:
            raise Errno("ENOENT")
        tables.alloc_upper(at)
    tables.alloc_upper(to)
    there = tables.pmd_of(to)
    if there is not None and there.huge:
        raise Errno("EEXIST")
    if pmd is not None and pmd.huge:
        whole = not (at | to) & _LOW and left >= TABLE_ENTRIES and there is None
        if whole:
            _move_huge(kernel, mm, target, at, to, pmd)
            return TABLE_ENTRIES
        pfn = e.pfn_of(pmd.huge)
        if not is_huge_zero(kernel, pmd.huge) and not kernel.exclusive(pfn):
            raise Errno("EBUSY")
        split_pmd(kernel, mm, source, at)
    tables.alloc_pte(at)
    tables.alloc_pte(to)
    _move_entry(kernel, mm, source, target, at, to, holes=holes)
    return 1


def _move_entry(
    kernel: Kernel, mm: Mm, source: Vma, target: Vma, at: int, to: int, *, holes: bool
) -> None:
    """move_pages_pte(). Raises Errno."""
    tables = mm.tables
    if tables.entry(to) != e.NONE_ENTRY:
        raise Errno("EEXIST")
    entry = tables.entry(at)
    if entry == e.NONE_ENTRY:
        if not holes:
            raise Errno("ENOENT")
        return
    if not e.is_present(entry):
        _move_swapped(kernel, mm, target, at, to, entry)
        return
    if entry & e.SPECIAL:
        tables.set(at, e.NONE_ENTRY)
        tables.set(to, e.present(kernel.zero_pfn, e.SPECIAL | e.ACCESSED))
        kernel.say("move_zeropage_pte: the zero page there as well")
        return
    pfn = e.pfn_of(entry)
    if not kernel.exclusive(kernel.head(pfn)):
        kernel.say("move_pages_pte: not exclusive, others may have the page at another address")
        raise Errno("EBUSY")
    if kernel.order_of(pfn):
        _split(kernel, pfn)
        _move_entry(kernel, mm, source, target, at, to, holes=holes)
        return
    if kernel.may_be_pinned(pfn):
        kernel.say("move_present_pte: pinned, so it stays")
        raise Errno("EBUSY")
    move_anon_rmap(kernel, pfn, target)
    kernel.f.pgoff[pfn] = target.index_of(to)
    tables.set(at, e.NONE_ENTRY)
    tables.set(to, e.present(pfn, e.ACCESSED | e.SOFT_DIRTY | e.RW | entry & e.DIRTY))
    kernel.say("move_present_pte: the same page at the other address, writable")


def _split(kernel: Kernel, pfn: int) -> None:
    """split_folio(), with the reference and the lock that the caller has."""
    kernel.get(pfn)
    why = split_folio(kernel, pfn, held=1)
    kernel.put(pfn)
    if why == "EAGAIN":
        raise MemdescError(
            "UFFDIO_MOVE tries for ever to split a large folio that somebody holds",
            hint="give the reference back before the pages are moved",
        )
    if why:
        raise Errno(why)


def _move_swapped(kernel: Kernel, mm: Mm, target: Vma, at: int, to: int, entry: int) -> None:
    """move_swap_pte(): the entry goes, and what the swap cache has gets the new address."""
    if e.swap_type(entry) is not e.SwapType.SWAP:
        raise Errno("EFAULT")
    if not entry & e.EXCLUSIVE_SWAP:
        kernel.say("move_pages_pte: the slot is shared")
        raise Errno("EBUSY")
    assert kernel.swap is not None
    cached = kernel.swap.cache.get(e.swap_offset(entry))
    if cached is not None:
        if kernel.order_of(cached):
            raise Errno("EBUSY")
        move_anon_rmap(kernel, cached, target)
        kernel.f.pgoff[cached] = target.index_of(to)
    bits = e.SOFT_DIRTY_SWAP if kernel.rules.uffd_move_marks_swapped else 0
    mm.tables.set(at, e.NONE_ENTRY)
    mm.tables.set(to, entry | bits)
    kernel.say("move_swap_pte: the slot has another address now")


def _move_huge(kernel: Kernel, mm: Mm, target: Vma, at: int, to: int, pmd: Pmd) -> None:
    """move_pages_huge_pmd(): the entry and the table that is deposited with it. Raises Errno."""
    entry = pmd.huge
    zero = is_huge_zero(kernel, entry)
    pfn = e.pfn_of(entry)
    bits = e.HUGE | e.ACCESSED
    if not zero:
        if not kernel.exclusive(pfn) or kernel.may_be_pinned(pfn):
            kernel.say("move_pages_huge_pmd: pinned, or not exclusive")
            raise Errno("EBUSY")
        assert kernel.flags(pfn) & KPF.ANON
        move_anon_rmap(kernel, pfn, target)
        kernel.f.pgoff[pfn] = target.index_of(to)
        bits |= e.DIRTY | e.SOFT_DIRTY | e.RW
    del mm.tables.pmds[at >> PMD_SHIFT]
    mm.tables.pmds[to >> PMD_SHIFT] = Pmd(huge=e.present(pfn, bits), deposit=pmd.deposit)
    kernel.say("move_pages_huge_pmd: the huge page as one")
