"""Writes to entries that are read-only: reuse or copy.

`mm/memory.c:do_wp_page, wp_can_reuse_anon_folio, wp_page_copy, wp_page_shared @6.12`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from memdesc.kernels.kpageflags import KPF
from memdesc.mm import entries as e
from memdesc.mm.areas.mlock_batch import munlock_vma_folio
from memdesc.mm.areas.vma import VM, Vma
from memdesc.mm.faults.new_folio import map_new_anon_page, new_anon_folio
from memdesc.mm.faults.zap import drop_mapping
from memdesc.mm.files.filemap import wp_page_shared
from memdesc.mm.huge.large_folio import likely_mapped_shared
from memdesc.mm.process import Mm
from memdesc.mm.reclaim.swap_state import free_swap_cache
from memdesc.mm.rmap import anon_vma_prepare, move_anon_rmap
from memdesc.mm.userfault.userfaultfd import wp_fault

if TYPE_CHECKING:
    from memdesc.mm.kernel import Kernel

__all__ = ["can_reuse_anon", "do_wp_page"]


def do_wp_page(
    kernel: Kernel, mm: Mm, vma: Vma, vpn: int, entry: int, *, unshare: bool = False
) -> None:
    """Write, or `unshare`, through a present entry without RW. Raises Signal, OutOfMemory."""
    if not unshare and entry & e.UFFD_WP and vma.flags & VM.UFFD_WP:
        wp_fault(kernel, vma)
        entry &= ~e.UFFD_WP
        mm.tables.set(vpn, entry)
    if vma.flags & (VM.SHARED | VM.MAYSHARE) and not vma.is_cow:
        wp_page_shared(kernel, mm, vma, vpn, entry)
        return
    if entry & e.SPECIAL:
        wp_page_copy(kernel, mm, vma, vpn, entry, "no page to share", unshare=unshare)
        return
    pfn = e.pfn_of(entry)
    if kernel.flags(pfn) & KPF.ANON:
        if kernel.exclusive(pfn):
            _reuse(kernel, mm, vma, vpn, entry, "exclusive already", unshare=unshare)
            return
        reason = can_reuse_anon(kernel, vma, pfn)
        if not reason:
            kernel.set_exclusive(pfn, True)
            _reuse(kernel, mm, vma, vpn, entry, "the only reference", unshare=unshare)
            return
        wp_page_copy(kernel, mm, vma, vpn, entry, reason, unshare=unshare)
        return
    wp_page_copy(kernel, mm, vma, vpn, entry, "a page of a file", unshare=unshare)


def can_reuse_anon(kernel: Kernel, vma: Vma, pfn: int) -> str:
    """wp_can_reuse_anon_folio(): why not, or "" after the folio was taken over."""
    flags = kernel.flags(pfn)
    rules = kernel.rules
    if kernel.order_of(pfn) and rules.small_folios_only_reuse:
        return "a large folio"
    if kernel.order_of(pfn) and rules.large_folio_reuse:
        return _can_reuse_large(kernel, vma, pfn)
    if flags & KPF.KSM:
        kernel.events["cow_ksm"] += 1
        return "a KSM page"
    if kernel.refs(pfn) > 3:
        return f"{kernel.refs(pfn)} references"
    if not flags & KPF.LRU:
        kernel.drain()
    cached = bool(flags & KPF.SWAPCACHE)
    if kernel.refs(pfn) > 1 + cached:
        return f"{kernel.refs(pfn)} references"
    if cached:
        free_swap_cache(kernel, pfn)
    if kernel.refs(pfn) != 1:
        return f"{kernel.refs(pfn)} references"
    move_anon_rmap(kernel, pfn, vma)
    return ""


def wp_page_copy(
    kernel: Kernel, mm: Mm, vma: Vma, vpn: int, entry: int, why: str, *, unshare: bool = False
) -> None:
    """A page of its own for this mapping, with the old one's content. Raises OutOfMemory."""
    anon_vma_prepare(kernel, mm, vma)
    old = e.pfn_of(entry)
    pfn = new_anon_folio(kernel, vma, vpn)
    kernel.f.content[pfn] = kernel.f.content[old]
    bits = e.ACCESSED
    if unshare:
        bits |= entry & (e.UFFD_WP | e.SOFT_DIRTY)
    else:
        # Dirty also where a debugger forces a write to what stays read-only (maybe_mkwrite).
        bits |= e.DIRTY | e.SOFT_DIRTY | (e.RW if vma.flags & VM.WRITE else 0)
    map_new_anon_page(kernel, mm, vma, vpn, pfn, bits)
    if vma.flags & VM.LOCKED and not entry & e.SPECIAL:
        munlock_vma_folio(kernel, vma, old)
    what = "unshare" if unshare else "do_wp_page"
    kernel.say(f"{what}: copied, {why}")
    if not entry & e.SPECIAL:
        drop_mapping(kernel, old, swap_cache=True)


# --- helpers -----------------------------------------------------------------------------


def _reuse(
    kernel: Kernel, mm: Mm, vma: Vma, vpn: int, entry: int, why: str, *, unshare: bool
) -> None:
    """wp_page_reuse(): the entry becomes writable; an unshare leaves it as it is."""
    if unshare:
        kernel.say(f"unshare: exclusive now, {why}")
        return
    write = e.RW if vma.flags & VM.WRITE else 0
    mm.tables.set(vpn, entry | write | e.DIRTY | e.ACCESSED | e.SOFT_DIRTY)
    kernel.say(f"do_wp_page: reused, {why}")


def _can_reuse_large(kernel: Kernel, vma: Vma, pfn: int) -> str:
    """__wp_can_reuse_large_anon_folio(): every reference is a mapping of this address space."""
    mapcount = kernel.mapcount(pfn)
    if mapcount <= 1 and kernel.rules.copies_last_of_large:
        return "the last page of a large folio, of which the rest can be freed then"
    if likely_mapped_shared(kernel, pfn):
        return "others map the large folio"
    if kernel.flags(pfn) & KPF.SWAPCACHE:
        free_swap_cache(kernel, pfn)
    if mapcount != kernel.refs(pfn):
        return f"{kernel.refs(pfn)} references, {mapcount} mappings of the large folio"
    move_anon_rmap(kernel, pfn, vma)
    return ""
