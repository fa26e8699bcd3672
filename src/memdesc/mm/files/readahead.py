"""Readahead: which pages of a file are read before they are asked for.

`mm/readahead.c:page_cache_sync_ra, page_cache_async_ra, page_cache_ra_order, force_page_cache_ra;
mm/filemap.c:do_sync_mmap_readahead, filemap_readahead @6.12`.  An open file remembers its window in
`ra` (`struct file_ra_state`); one page of the window is marked, and its use starts the next.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from memdesc.kernels.kpageflags import KPF
from memdesc.mm.areas.vma import VM
from memdesc.mm.files.aops import MAX_ORDER, large_folios, read_folio
from memdesc.mm.files.inode import AddressSpace, OpenFile
from memdesc.types import PAGE_SIZE_BYTES

if TYPE_CHECKING:
    from memdesc.mm.areas.vma import Vma
    from memdesc.mm.kernel import Kernel

__all__ = [
    "fadvise",
    "filemap_get_pages",
    "force_readahead",
    "mmap_readahead",
]

_MARKER: Final = int(KPF.RECLAIM)
"""PG_readahead is the bit of PG_reclaim."""
_LOTS_OF_MISSES: Final = 100
"""MMAP_LOTSAMISS."""


def filemap_get_pages(kernel: Kernel, file: OpenFile, first: int, end: int) -> None:
    """read(2) of pages [first, end): what is not cached is read, and what may come next."""
    mapping, ra = file.mapping, _state(kernel, file)
    for index in range(first, end):
        pfn = mapping.pages.get(index)
        if pfn is None:
            _sync(kernel, file, index, end - index)
        elif kernel.flags(pfn) & _MARKER:
            _async(kernel, file, index, end - index)
    if end > first:
        ra["prev"] = end


def mmap_readahead(kernel: Kernel, vma: Vma, index: int) -> None:
    """A fault at a page: read around it if it is not cached, or on if it is the marked one.

    Where it waits for the disk it drops the lock, and the whole fault is done again (`retry`).
    """
    file = vma.file
    assert file is not None
    mapping, ra = file.mapping, _state(kernel, file)
    ra["retry"] = 0
    if vma.flags & VM.RAND_READ or not ra["pages"]:
        return
    pfn = mapping.pages.get(index)
    if pfn is not None:
        ra["misses"] = max(0, ra["misses"] - 1)
        if kernel.flags(pfn) & _MARKER:
            _async(kernel, file, index, ra["pages"])
            ra["retry"] = 1
            if kernel.rules.locks_areas:
                # Done again with the lock of the whole address space, and not as a second try.
                ra["misses"] = max(0, ra["misses"] - 1)
        return
    ra["retry"] = 1
    if vma.flags & VM.SEQ_READ:
        _sync(kernel, file, index, ra["pages"])
        return
    ra["misses"] = min(10 * _LOTS_OF_MISSES, ra["misses"] + 1)
    if ra["misses"] > _LOTS_OF_MISSES:
        return
    if vma.flags & VM.EXEC and kernel.rules.executable_reads_on:
        ra["start"], ra["async"], ra["order"] = index, 0, 0
        ra["size"] = min(ra["pages"], vma.pgoff + vma.pages - index)
        kernel.say("do_sync_mmap_readahead: executable, from the fault on to the end of the area")
    else:
        ra["start"] = max(0, index - ra["pages"] // 2)
        ra["size"], ra["async"], ra["order"] = ra["pages"], ra["pages"] // 4, 0
        kernel.say("do_sync_mmap_readahead: read around the fault")
    _submit(kernel, mapping, ra)


def force_readahead(kernel: Kernel, file: OpenFile, first: int, pages: int) -> None:
    """force_page_cache_ra(): what readahead(2) and POSIX_FADV_WILLNEED read, page by page."""
    _read(kernel, file.mapping, first, pages, 0)


def fadvise(kernel: Kernel, file: OpenFile, first: int, pages: int, advice: str) -> None:
    """posix_fadvise(2), except DONTNEED (`mm/fadvise.c:generic_fadvise @6.12`)."""
    if not file.mapping.fs.has_device:
        return
    if advice == "willneed":
        force_readahead(kernel, file, first, pages)
    elif advice == "noreuse":
        file.noreuse = kernel.rules.fadvise_noreuse
    else:
        file.random = advice == "random"
        file.noreuse = file.noreuse and advice != "normal"
        if advice != "random":
            usual = _ra_pages(kernel)
            _state(kernel, file)["pages"] = usual * 2 if advice == "sequential" else usual


# --- helpers -----------------------------------------------------------------------------


def _ra_pages(kernel: Kernel) -> int:
    return int(kernel.knobs["read_ahead"]) * 1024 // PAGE_SIZE_BYTES


def _state(kernel: Kernel, file: OpenFile) -> dict[str, int]:
    """struct file_ra_state, as file_ra_state_init() left it."""
    if not file.ra:
        file.ra.update(
            pages=_ra_pages(kernel),
            prev=-2,
            start=0,
            size=0,
            order=0,
            misses=0,
            retry=0,
            **{"async": 0},
        )
    return file.ra


def _sync(kernel: Kernel, file: OpenFile, index: int, wanted: int) -> None:
    """page_cache_sync_ra(): a page that is not cached is needed now."""
    mapping, ra = file.mapping, _state(kernel, file)
    limit = ra["pages"]
    if not limit or file.random:
        force_readahead(kernel, file, index, wanted if file.random and limit else 1)
        return
    limit = max(limit, min(wanted, kernel.rules.device_io_pages))
    if index == 0 or wanted > limit or 0 <= index - ra["prev"] <= 1:
        ra["start"], ra["size"] = index, _first_size(wanted, limit)
        rest = ra["size"] - wanted
        ra["async"] = rest if rest > 0 else ra["size"] >> kernel.rules.full_readahead_marks_half
    else:
        cached = 0
        while cached < limit and index - 1 - cached in mapping.pages:
            cached += 1
        if cached <= wanted:
            kernel.say("page_cache_sync_ra: a random read, as it is")
            _read(kernel, mapping, index, wanted, 0)
            return
        if cached == index:
            cached *= 2
        ra["start"], ra["size"], ra["async"] = index, min(cached + wanted, limit), 1
    if ra["size"] == ra["async"] and not kernel.rules.full_readahead_marks_half:
        # The read would hit its own marker: the next window is joined to this one.
        more = _next_size(ra["size"], limit)
        if ra["size"] + more <= limit:
            ra["async"], ra["size"] = more, ra["size"] + more
        else:
            ra["size"], ra["async"] = limit, limit >> 1
    ra["order"] = 0
    kernel.say("page_cache_sync_ra: a window from here on")
    _submit(kernel, mapping, ra)


def _async(kernel: Kernel, file: OpenFile, index: int, wanted: int) -> None:
    """page_cache_async_ra(): the marked page is used, so the next window is read."""
    mapping, ra = file.mapping, _state(kernel, file)
    pfn = mapping.pages[index]
    if not ra["pages"] or kernel.flags(pfn) & KPF.WRITEBACK:
        return
    kernel.clear_flags(pfn, _MARKER)
    head_index = int(kernel.f.pgoff[kernel.head(pfn)])
    order = kernel.order_of(pfn)
    limit = max(ra["pages"], min(wanted, kernel.rules.device_io_pages))
    if head_index == (ra["start"] + ra["size"] - ra["async"]) >> order << order:
        ra["start"] += ra["size"]
        ra["size"] = ra["async"] = _next_size(ra["size"], limit)
    else:
        start = head_index + 1
        while start in mapping.pages and start - head_index <= limit:
            start += 1
        if start - head_index > limit:
            return
        ra["start"] = start
        ra["size"] = ra["async"] = _next_size(start - head_index + wanted, limit)
    if kernel.rules.readahead_starts_large:
        ra["order"] = order
    if kernel.rules.readahead_ends_aligned:
        ra["order"] += 2
        end = ra["start"] + ra["size"]
        aligned = end >> ra["order"] << ra["order"]
        if aligned > ra["start"]:
            ra["size"] = ra["async"] = aligned - ra["start"]
    kernel.say("page_cache_async_ra: the marker was used, the next window")
    _submit(kernel, mapping, ra)


def _submit(kernel: Kernel, mapping: AddressSpace, ra: dict[str, int]) -> None:
    """page_cache_ra_order(): read the window, in folios of `order` where the file may have them."""
    last = mapping.pages_in_size - 1
    starts_large = kernel.rules.readahead_starts_large and ra["size"] >= 4
    if not large_folios(kernel, mapping) or not (starts_large or ra["order"]):
        _read(kernel, mapping, ra["start"], ra["size"], ra["async"])
        return
    index, mark = ra["start"], ra["start"] + ra["size"] - ra["async"]
    last = min(last, index + ra["size"] - 1)
    wanted = ra["order"] + 2 * starts_large
    ra["order"] = min(wanted, MAX_ORDER, ra["size"].bit_length() - 1)
    while index <= last:
        order = ra["order"]
        if index:
            order = min(order, (index & -index).bit_length() - 1)
        while order and index + (1 << order) - 1 > last:
            order -= 1
        if order == 1 and not kernel.rules.large_folios_of_two:
            order = 0
        if any(index + at in mapping.pages for at in range(1 << order)):
            _read(kernel, mapping, index, ra["size"] - (index - ra["start"]), ra["async"])
            return
        pfn = read_folio(kernel, mapping, index, order)
        if index == mark >> order << order:
            kernel.set_flags(pfn, _MARKER)
        index += 1 << order


def _read(kernel: Kernel, mapping: AddressSpace, first: int, pages: int, lookahead: int) -> None:
    """do_page_cache_ra(): single pages, as far as the file goes; one of them is marked."""
    pages = min(pages, mapping.pages_in_size - first)
    for index in range(first, first + pages):
        if index in mapping.pages:
            continue
        pfn = read_folio(kernel, mapping, index)
        if lookahead and index == first + pages - lookahead:
            kernel.set_flags(pfn, _MARKER)


def _first_size(wanted: int, limit: int) -> int:
    """get_init_ra_size()."""
    size = 1 << (wanted - 1).bit_length()
    if size <= limit // 32:
        return size * 4
    return size * 2 if size <= limit // 4 else limit


def _next_size(size: int, limit: int) -> int:
    """get_next_ra_size()."""
    if size < limit // 16:
        return 4 * size
    return 2 * size if size <= limit // 2 else limit
