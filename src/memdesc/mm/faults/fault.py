"""Accesses by the processor, and the faults that they take.

`mm/memory.c:handle_mm_fault, __handle_mm_fault, handle_pte_fault @6.12`; permission checks are
those of `arch/x86/mm/fault.c:access_error`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from memdesc.mm import entries as e
from memdesc.mm import loops
from memdesc.mm.areas.mmap import expand_stack
from memdesc.mm.areas.pkeys import pkey_allows
from memdesc.mm.areas.vma import VM, VM_UFFD, Vma
from memdesc.mm.faults.new_folio import is_plain, marked_by_area
from memdesc.mm.faults.wp import do_wp_page
from memdesc.mm.files.filemap import do_file_fault
from memdesc.mm.frames import C_LRU_GEN, TABLE_ENTRIES
from memdesc.mm.huge.huge_memory import huge_pmd_fault, try_huge_fault, try_large_anon, wants_large
from memdesc.mm.hugetlb.hugetlb import hugetlb_fault
from memdesc.mm.process import Mm, OutOfMemory, Signal
from memdesc.mm.reclaim.mark_accessed import has_recency
from memdesc.mm.reclaim.swap import do_swap_page
from memdesc.mm.rmap import anon_vma_prepare
from memdesc.mm.userfault.userfaultfd import handle_userfault
from memdesc.model.described import KIND_CODES
from memdesc.types import MemoryType

if TYPE_CHECKING:
    from memdesc.mm.kernel import Kernel

__all__ = ["access", "handle_mm_fault", "populate"]

_ANON = KIND_CODES[MemoryType.ANON]


def access(kernel: Kernel, mm: Mm, vpn: int, *, write: bool) -> int:
    """A load or a store of user code: the frame it reaches. Raises Signal.

    Sets accessed and dirty as the processor does.
    """
    if mm.pkru:
        _check_key(mm, vpn, write=write)
    while True:
        entry = mm.tables.entry(vpn)
        if entry & e.PRESENT and (entry & e.RW or not write):
            wanted = e.ACCESSED | (e.DIRTY if write else 0)
            if entry & wanted != wanted:
                touch(mm, vpn, wanted)
            return e.pfn_of(entry)
        vma = mm.vmas.find(vpn) or expand_stack(kernel, mm, vpn)
        if vma is None:
            raise Signal("SIGSEGV", "MAPERR")
        if not vma.flags & (VM.WRITE if write else VM.READ | VM.WRITE | VM.EXEC):
            raise Signal("SIGSEGV", "ACCERR")
        try:
            handle_mm_fault(kernel, mm, vma, vpn, write=write)
        except OutOfMemory:
            raise Signal("SIGKILL", "OOM") from None


def _check_key(mm: Mm, vpn: int, *, write: bool) -> None:
    """The protection key of the area, before anything else of it is asked. Raises Signal."""
    vma = mm.vmas.find(vpn)
    if vma is not None and not pkey_allows(mm, vma, write=write):
        raise Signal("SIGSEGV", "PKUERR")


def touch(mm: Mm, vpn: int, bits: int) -> None:
    """Set bits in the present entry, of either level, that maps a page."""
    pmd = mm.tables.pmd_of(vpn)
    assert pmd is not None
    if pmd.huge:
        pmd.huge |= bits
    else:
        mm.tables.set(vpn, mm.tables.entry(vpn) | bits)


def handle_mm_fault(
    kernel: Kernel, mm: Mm, vma: Vma, vpn: int, *, write: bool = False, unshare: bool = False
) -> None:
    """Resolve one fault at a page whose area permits it. Raises Signal, OutOfMemory.

    `unshare`: FAULT_FLAG_UNSHARE, make an anonymous page exclusive without writing.
    """
    if not kernel.f.cell[C_LRU_GEN]:
        _handle_mm_fault(kernel, mm, vma, vpn, write=write, unshare=unshare)
        return
    # lru_gen_enter_fault(): what is read once, or here and there, is no sign of use.
    outer = kernel.in_lru_fault
    kernel.in_lru_fault = not vma.flags & VM.RAND_READ and has_recency(kernel, vma)
    try:
        _handle_mm_fault(kernel, mm, vma, vpn, write=write, unshare=unshare)
    finally:
        kernel.in_lru_fault = outer


def _handle_mm_fault(
    kernel: Kernel, mm: Mm, vma: Vma, vpn: int, *, write: bool, unshare: bool
) -> None:
    if vma.flags & VM.HUGETLB:
        hugetlb_fault(kernel, mm, vma, vpn, write=write, unshare=unshare)
        return
    tables = mm.tables
    tables.alloc_upper(vpn)
    pmd = tables.pmd_of(vpn)
    if pmd is None or (pmd.table is None and not pmd.huge):
        if try_huge_fault(kernel, mm, vma, vpn, write=write):
            return
    elif pmd.huge and huge_pmd_fault(kernel, mm, vma, vpn, write=write, unshare=unshare):
        return
    entry = tables.entry(vpn)
    if entry == e.NONE_ENTRY:
        if vma.is_anonymous:
            do_anonymous_page(kernel, mm, vma, vpn, write=write)
        else:
            do_file_fault(kernel, mm, vma, vpn, write=write)
    elif not e.is_present(entry):
        do_swap_page(kernel, mm, vma, vpn, entry, write=write)
    elif (write or unshare) and not entry & e.RW:
        do_wp_page(kernel, mm, vma, vpn, entry, unshare=unshare)
    else:
        touch(mm, vpn, e.ACCESSED | (e.DIRTY if write else 0))


def do_anonymous_page(kernel: Kernel, mm: Mm, vma: Vma, vpn: int, *, write: bool) -> None:
    """mm/memory.c:do_anonymous_page: the zero page for a read, a new folio for a write."""
    table = mm.tables.alloc_pte(vpn)
    if not write:
        if vma.flags & VM.UFFD_MISSING:
            handle_userfault(kernel, "nothing is there")
        mm.tables.set(vpn, e.present(kernel.zero_pfn, e.SPECIAL | e.ACCESSED))
        kernel.say("do_anonymous_page: read, the shared zero page")
        return
    anon_vma = anon_vma_prepare(kernel, mm, vma)
    if try_large_anon(kernel, mm, vma, vpn):
        return
    if vma.flags & VM.UFFD_MISSING:
        handle_userfault(kernel, "nothing is there")
    place = table.first + (vpn & (TABLE_ENTRIES - 1))
    kernel.machine.slabs.make_room()
    made = loops.populate_anon(
        *kernel.columns, place, 1, _ANON, anon_vma.number, vma.index_of(vpn),
        written_bits(vma), 0,
    )  # fmt: skip
    if made != 1:
        raise OutOfMemory
    marked_by_area(kernel, vma, e.pfn_of(mm.tables.entry(vpn)))
    kernel.say("do_anonymous_page: written, a new zeroed page")


def populate(kernel: Kernel, mm: Mm, vma: Vma, vpn_start: int, vpn_end: int, content: int) -> None:
    """Write to every page of a range of one private anonymous area, in order.

    The same as an access to each, without huge pages in between done one table at a time.
    Raises Signal.
    """
    vpn = vpn_start
    plain = vma.is_anonymous and vma.flags & (VM.WRITE | VM.SHARED) == VM.WRITE
    plain = plain and is_plain(kernel, vma) and not vma.flags & VM_UFFD
    while vpn < vpn_end:
        end = min(vpn_end, (vpn & ~(TABLE_ENTRIES - 1)) + TABLE_ENTRIES)
        done = 0
        if plain and not wants_large(kernel, mm, vma):
            done = _populate_table(kernel, mm, vma, vpn, end, content)
        if not done:
            kernel.f.content[access(kernel, mm, vpn, write=True)] = content
            done = 1
        vpn += done


def written_bits(vma: Vma) -> int:
    """Bits of an entry that a write fault installs; without VM_WRITE it was forced."""
    write = e.RW | e.DIRTY if vma.flags & VM.WRITE else 0
    return e.PRESENT | e.USER | e.ACCESSED | write | e.SOFT_DIRTY


# --- helpers -----------------------------------------------------------------------------


def _populate_table(kernel: Kernel, mm: Mm, vma: Vma, vpn: int, vpn_end: int, content: int) -> int:
    """Empty entries of one table from `vpn` on; how many were filled."""
    pmd = mm.tables.pmd_of(vpn)
    if pmd is not None and pmd.huge:
        return 0
    anon_vma = anon_vma_prepare(kernel, mm, vma)
    table = mm.tables.alloc_pte(vpn)
    kernel.machine.slabs.make_room()
    place = table.first + (vpn & (TABLE_ENTRIES - 1))
    made = loops.populate_anon(
        *kernel.columns, place, vpn_end - vpn, _ANON, anon_vma.number, vma.index_of(vpn),
        written_bits(vma), content,
    )  # fmt: skip
    if made == loops.NO_MEMORY:
        raise Signal("SIGKILL", "OOM")
    return int(made)
