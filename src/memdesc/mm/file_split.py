"""Large folios of files that a truncation or a hole cuts through.

`mm/truncate.c:truncate_inode_partial_folio, try_folio_split_or_unmap; mm/huge_memory.c:
__folio_split @7.2`.  The pieces are as large as the place of the cut allows: each time the half
with the cut in it is halved again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from memdesc.kernels.kpageflags import KPF
from memdesc.mm import entries as e
from memdesc.mm.files import AddressSpace
from memdesc.mm.large_folio_loops import split_columns
from memdesc.mm.page_cache import detach_private
from memdesc.mm.rmap import mappings_of

if TYPE_CHECKING:
    from memdesc.mm.kernel import Kernel

__all__ = ["cut_folio"]


def cut_folio(kernel: Kernel, mapping: AddressSpace, index: int) -> None:
    """Split the folio that has a page before `index` and the page at `index`, if there is one.

    It loses all its mappings, so that accesses behind the end of the file fault again. Whether it
    is split depends on its buffers: those of a dirty folio cannot be taken away.
    """
    pfn = mapping.pages.get(index)
    if pfn is None or kernel.head(pfn) == pfn:
        return
    head = kernel.head(pfn)
    _unmap(kernel, head)
    flags = kernel.flags(head)
    if flags & KPF.WRITEBACK or (flags & KPF.PRIVATE and flags & KPF.DIRTY):
        kernel.say("try_folio_split_or_unmap: dirty buffers, the folio stays whole, unmapped")
        return
    detach_private(kernel, head)
    if kernel.refs(head) != 1 << kernel.order_of(head):
        kernel.say("try_folio_split_or_unmap: somebody holds it, the folio stays whole, unmapped")
        return
    while order := kernel.order_of(pfn):
        _halve(kernel, kernel.head(pfn), order - 1)
    kernel.say("__folio_split: smaller folios around the cut")


# --- helpers -----------------------------------------------------------------------------


def _unmap(kernel: Kernel, head: int) -> None:
    """try_to_unmap() of every page."""
    from memdesc.mm.filemap import file_entry_gone
    from memdesc.mm.zap import drop_mapping

    for page in kernel.pages_of(head):
        for mm, vma, vpn in list(mappings_of(kernel, page)):
            entry = mm.tables.entry(vpn)
            file_entry_gone(kernel, vma, page, entry)
            mm.tables.set(vpn, e.NONE_ENTRY)
            drop_mapping(kernel, page)


def _halve(kernel: Kernel, head: int, new_order: int) -> None:
    if not kernel.machine.split(head, new_order):
        raise AssertionError("no memory for the descriptors of the pieces")
    split_columns(kernel.f, head, new_order)
    for piece in (head, head + (1 << new_order)):
        kernel.get(piece, 1 << new_order)
