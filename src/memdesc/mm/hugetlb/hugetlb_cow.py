"""Writes to private huge pages: taken over by whoever maps them alone, or copied, 2 MiB at once.

`mm/hugetlb.c:hugetlb_wp, unmap_ref_private @6.12`.  Unlike for small pages the map count decides,
whatever references there are; and when the pool has nothing for a copy, who has reserved pages
takes them from its children.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from memdesc.kernels.kpageflags import KPF
from memdesc.mm import entries as e
from memdesc.mm.areas.vma import VM, Vma
from memdesc.mm.hugetlb.hugetlb_pool import HUGE, HugetlbResv, huge_index, is_owner, take
from memdesc.mm.page_tables import PMD_SHIFT, Pmd
from memdesc.mm.process import Mm, OutOfMemory, Signal
from memdesc.mm.rmap import anon_vma_prepare, move_anon_rmap
from memdesc.model.compiled import array

if TYPE_CHECKING:
    from memdesc.mm.kernel import Kernel

__all__ = ["copy_content", "hugetlb_wp", "map_new_anon", "unmap_entry"]


def hugetlb_wp(
    kernel: Kernel, mm: Mm, vma: Vma, vpn: int, pmd: Pmd, *, unshare: bool = False
) -> None:
    """A write, or an unshare, at a read-only entry. Raises Signal: SIGBUS without a page."""
    if not unshare and pmd.huge & e.UFFD_WP:
        kernel.say("hugetlb_wp: protected by userfaultfd, which the next fault will see")
        return
    old = e.pfn_of(pmd.huge)
    if vma.flags & VM.MAYSHARE:
        pmd.huge |= e.RW | e.DIRTY | e.ACCESSED
        return
    if kernel.flags(old) & KPF.ANON and kernel.f.entire[old] == 1:
        if not kernel.exclusive(old):
            move_anon_rmap(kernel, old, vma)
            kernel.set_exclusive(old, True)
        if not unshare:
            write = e.RW if vma.flags & VM.WRITE else 0
            pmd.huge |= write | e.DIRTY | e.ACCESSED
        kernel.say("hugetlb_wp: reused, mapped once")
        return
    anon_vma_prepare(kernel, mm, vma)
    kernel.get(old)
    try:
        copy = _take_for_copy(kernel, vma, vpn, old)
    except OutOfMemory:
        kernel.put(old)
        kernel.say("hugetlb_wp: the pool has nothing for a copy")
        raise Signal("SIGBUS", "ADRERR") from None
    if copy is None:
        kernel.put(old)
        hugetlb_wp(kernel, mm, vma, vpn, pmd, unshare=unshare)
        return
    copy_content(kernel, old, copy)
    protected = pmd.huge & e.UFFD_WP
    unmap_entry(kernel, vma, vpn, pmd, copied=True)
    kernel.put(old)
    map_new_anon(kernel, mm, vma, vpn, copy, writable=not unshare)
    if protected:
        made = mm.tables.pmds[vpn >> PMD_SHIFT]
        made.huge = made.huge & ~e.RW | e.UFFD_WP
    kernel.say("hugetlb_wp: copied 2 MiB")


def map_new_anon(
    kernel: Kernel, mm: Mm, vma: Vma, vpn: int, head: int, *, writable: bool = True
) -> None:
    """hugetlb_add_new_anon_rmap() and the entry: takes over the caller's reference."""
    assert vma.anon_vma is not None
    kernel.set_flags(head, KPF.UPTODATE | KPF.ANON)
    kernel.set_exclusive(head, True)
    kernel.f.mapping[head] = vma.anon_vma.number
    kernel.f.pgoff[head] = vma.index_of(vpn)
    kernel.f.entire[head] = 1
    bits = e.HUGE | e.ACCESSED
    if writable:
        # As far as the area allows; dirty also where a debugger forces a write.
        bits |= e.DIRTY | (e.RW if vma.flags & VM.WRITE else 0)
    mm.tables.pmds[vpn >> PMD_SHIFT] = Pmd(huge=e.present(head, bits))


def unmap_entry(kernel: Kernel, vma: Vma, vpn: int, pmd: Pmd, *, copied: bool = False) -> None:
    """An entry goes; a dirty one makes the page dirty, anonymous or not, unless it was `copied`.

    What a private mapping had reserved and now unmaps is reserved for it again, since 6.8.
    """
    entry, pmd.huge = pmd.huge, 0
    if not e.is_present(entry):
        return
    head = e.pfn_of(entry)
    if entry & e.DIRTY and not copied:
        kernel.set_flags(head, KPF.DIRTY)
    kernel.f.entire[head] -= 1
    again = not copied and kernel.rules.hugetlb_restores_reserve
    again = again and bool(kernel.flags(head) & KPF.ANON) and not kernel.hugetlb.surplus
    if again and kernel.refs(head) == 1 and is_owner(vma):
        assert vma.resv is not None
        vma.resv.unused.add(huge_index(vma, vpn))
    kernel.put(head)


def copy_content(kernel: Kernel, old: int, new: int) -> None:
    """copy_user_large_folio()."""
    content = array(kernel.f.content)
    content[new : new + HUGE] = content[old : old + HUGE]


# --- helpers -----------------------------------------------------------------------------


def _take_for_copy(kernel: Kernel, vma: Vma, vpn: int, old: int) -> int | None:
    """A page for a copy; None after the page was taken from everybody else (unmap_ref_private).

    Who has reserved pages must not fail for its children: theirs are unmapped, and they get
    SIGBUS at their next access.
    """
    assert vma.file is not None
    cached = kernel.hugetlb.cache.get((vma.file.mapping.number, huge_index(vma, vpn)))
    from_owner = is_owner(vma) and old != cached
    try:
        return take(kernel, vma, vpn, avoid_reserve=from_owner)
    except OutOfMemory:
        if not from_owner:
            raise
    for other_mm, other in tuple(vma.file.mapping.vmas):
        if other is vma or other.flags & VM.MAYSHARE or is_owner(other):
            continue
        at = other.vpn_of(vma.index_of(vpn))
        pmd = other_mm.tables.pmd_of(at) if at is not None else None
        if at is None or pmd is None or not e.is_present(pmd.huge) or e.pfn_of(pmd.huge) != old:
            continue
        unmap_entry(kernel, other, at, pmd)
        other.resv = other.resv or HugetlbResv()
        other.resv.unmapped = True
    kernel.say("unmap_ref_private: taken from the children, the owner goes on")
    return None
