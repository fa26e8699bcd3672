"""Readahead: which pages of a file are read before they are asked for.

`mm/readahead.c:page_cache_ra_order, force_page_cache_ra; mm/filemap.c:do_sync_mmap_readahead
@6.12`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from memdesc.mm.page_cache import read_page

if TYPE_CHECKING:
    from memdesc.mm.files import OpenFile
    from memdesc.mm.kernel import Kernel
    from memdesc.mm.vma import Vma

__all__ = ["filemap_get_pages", "force_readahead", "sync_mmap_readahead"]


def filemap_get_pages(kernel: Kernel, file: OpenFile, first: int, end: int) -> None:
    """read(2) of pages [first, end)."""


def sync_mmap_readahead(kernel: Kernel, vma: Vma, index: int) -> None:
    """A fault at a page that may not be cached."""


def force_readahead(kernel: Kernel, file: OpenFile, first: int, pages: int) -> None:
    """force_page_cache_ra(): what readahead(2) and POSIX_FADV_WILLNEED read."""
    mapping = file.mapping
    for index in range(first, min(first + pages, mapping.pages_in_size)):
        read_page(kernel, mapping, index)


def fadvise(kernel: Kernel, file: OpenFile, first: int, pages: int, advice: str) -> None:
    """posix_fadvise(2), except DONTNEED (`mm/fadvise.c:generic_fadvise @6.12`)."""
    if not file.mapping.fs.has_device:
        return
    if advice == "willneed":
        force_readahead(kernel, file, first, pages)
    elif advice != "noreuse":
        file.random = advice == "random"
        file.ra["pages"] = 2 * int(kernel.knobs["read_ahead"]) // 4 if advice == "sequential" else 0
