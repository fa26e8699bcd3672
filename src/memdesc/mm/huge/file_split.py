"""Splitting large folios of files, and what a truncation or a hole does to one that it cuts.

`mm/huge_memory.c:split_huge_page_to_list_to_order @6.12, __folio_split @7.2;
mm/truncate.c:truncate_inode_partial_folio, try_folio_split_or_unmap`.  A folio of a file loses all
its mappings when it is split; faults bring them back.  Pieces behind the end of the file leave the
page cache.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from memdesc.kernels.kpageflags import KPF
from memdesc.mm.files.inode import AddressSpace
from memdesc.mm.files.page_cache import detach_private, remove_folio
from memdesc.mm.huge.file_pmd import unmap_file_folio
from memdesc.mm.huge.large_folio_loops import split_columns
from memdesc.model.compiled import array

if TYPE_CHECKING:
    from collections.abc import Iterator

    from memdesc.mm.kernel import Kernel

__all__ = ["cut_folio", "split_file_folio", "truncate_partial_folio"]


def split_file_folio(
    kernel: Kernel, pfn: int, new_order: int = 0, *, held: int = 0, evenly: bool = True
) -> str:
    """Split the folio of a file that has a frame: "", or why not, as an errno's name.

    `held`: references of the caller, which stay with the piece that has the frame. `evenly`: into
    pieces of 2^new_order; otherwise the half that has the frame is halved until it is so small.
    """
    head = kernel.head(pfn)
    order = kernel.order_of(head)
    mapping = kernel.mappings.get(int(kernel.f.mapping[head]))
    if not isinstance(mapping, AddressSpace) or kernel.flags(head) & KPF.WRITEBACK:
        return "EBUSY"
    if new_order >= order or (
        new_order and mapping.is_shmem and not kernel.rules.splits_shmem_to_order
    ):
        return "EINVAL"
    if not _release_buffers(kernel, head):
        kernel.say("filemap_release_folio: dirty buffers, the folio stays whole")
        return "EBUSY"
    if kernel.refs(head) != kernel.mapcount(head) + (1 << order) + held:
        kernel.say("can_split_folio: somebody else holds it")
        return "EAGAIN"
    unmap_file_folio(kernel, head)
    end = head + (1 << order)
    if evenly:
        _split(kernel, head, new_order)
    else:
        while (size := kernel.order_of(pfn)) > new_order:
            _split(kernel, kernel.head(pfn), size - 1)
    kernel.get(pfn, held)
    pieces = list(_pieces(kernel, head, end))
    kernel.say(f"__folio_split: {len(pieces)} folios")
    last = max(mapping.pages_in_size, mapping.fallocend if mapping.is_shmem else 0)
    for piece in pieces[1:]:
        if int(kernel.f.pgoff[piece]) >= last:
            _drop(kernel, mapping, piece)
    return ""


def truncate_partial_folio(
    kernel: Kernel, mapping: AddressSpace, pfn: int, first: int, end: int | None,
    *, at: int | None = None,
) -> bool:  # fmt: skip
    """truncate_inode_partial_folio() of the folio that has a frame, for pages [first, end).

    What lies in the range is zeroed, and the folio is split so that it can go. `at`: where the
    range begins, if that is in the middle of the page before. False where it could not be split and
    stays.
    """
    head = kernel.head(pfn)
    index, pages = int(kernel.f.pgoff[head]), 1 << kernel.order_of(head)
    low = max(0, first - index)
    high = pages if end is None else min(pages, end - index)
    if low == 0 and high == pages:
        _drop(kernel, mapping, head)
        return True
    array(kernel.f.content)[head + low : head + high] = 0
    if pages == 1:
        return True
    cut = low if at is None else max(0, at - index)
    if not _split_or_unmap(kernel, mapping, head + cut):
        if kernel.flags(head) & KPF.DIRTY:
            return False
        kernel.say("truncate_inode_partial_folio: clean, so all of it leaves the cache")
        _drop(kernel, mapping, head)
        return True
    if kernel.rules.splits_at_the_cut and high < pages and mapping.pages.get(index + high):
        other = head + high
        if kernel.order_of(other):
            _split_or_unmap(kernel, mapping, other)
    return True


def cut_folio(kernel: Kernel, mapping: AddressSpace, index: int) -> None:
    """Split the folio that has a page before `index` and the page at `index`, if there is one.

    It loses all its mappings, so that accesses behind the end of the file fault again. Whether it
    is split depends on its buffers: those of a dirty folio cannot be taken away.
    """
    pfn = mapping.pages.get(index)
    if pfn is not None and kernel.head(pfn) != pfn:
        _split_or_unmap(kernel, mapping, pfn)


# --- helpers -----------------------------------------------------------------------------


def _split_or_unmap(kernel: Kernel, mapping: AddressSpace, pfn: int) -> bool:
    """try_folio_split_or_unmap(); shmem that stays whole stays mapped as well."""
    if not split_file_folio(kernel, pfn, evenly=not kernel.rules.splits_at_the_cut):
        return True
    if not mapping.is_shmem:
        unmap_file_folio(kernel, kernel.head(pfn))
        kernel.say("try_folio_split_or_unmap: the folio stays whole, unmapped")
    return False


def _release_buffers(kernel: Kernel, head: int) -> bool:
    """filemap_release_folio(): buffers of a dirty folio cannot be taken away."""
    flags = kernel.flags(head)
    if flags & KPF.PRIVATE and flags & KPF.DIRTY:
        return False
    detach_private(kernel, head)
    return True


def _split(kernel: Kernel, head: int, new_order: int) -> None:
    """Pieces of one folio that nobody maps, each with the page cache's references."""
    end = head + (1 << kernel.order_of(head))
    if not kernel.machine.split(head, new_order):
        raise AssertionError("no memory for the descriptors of the pieces")
    split_columns(kernel.f, head, new_order)
    for piece in range(head, end, 1 << new_order):
        kernel.get(piece, 1 << new_order)


def _pieces(kernel: Kernel, head: int, end: int) -> Iterator[int]:
    while head < end:
        yield head
        head += 1 << kernel.order_of(head)


def _drop(kernel: Kernel, mapping: AddressSpace, head: int) -> None:
    """truncate_inode_folio(): unmapped, not to be written any more, out of the cache."""
    unmap_file_folio(kernel, head)
    kernel.clear_flags(head, KPF.DIRTY)
    remove_folio(kernel, mapping, head)
