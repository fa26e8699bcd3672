"""What each virtual page of a process holds, as the words of /proc/PID/pagemap.

The tables of one address space are found level by level, only where a VMA is; the entries
of the lowest level are read when they are asked for.  All of it is numpy over whole tables:
4096 bytes, 512 entries.

    space = AddressSpace(UserPages(kernel, memmap), pgd, areas, torn)
    space.words(address >> 12, 1)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from memdesc.kernels.pagemap import PM, SwapConfig
from memdesc.kernels.pagemap_words import (
    PTE,
    ProcRules,
    SwapKinds,
    has_entry,
    is_present,
    pfns_of,
    swap_words,
)
from memdesc.structs.frame_use import FrameUse
from memdesc.structs.kernel import Kernel
from memdesc.structs.memmap import MemMap
from memdesc.structs.torn import Torn
from memdesc.structs.vmas import Area, VmaFlags
from memdesc.structs.walk.pagetables import frame_mask, level_count
from memdesc.structs.walk.snapshot import read_many
from memdesc.types import PAGE_SHIFT, PAGE_SIZE_BYTES

__all__ = ["AddressSpace", "UserPages", "swap_config"]

_U = np.uint64
_ENTRIES: Final = 512
_USER_ENTRIES: Final = 256
"""The upper half of a top table is the kernel's."""
_USER_END: Final = 1 << 63
_MOST_SHARED: Final = 1 << 12
"""Tables of huge pages that one process may map twice: 4 TiB."""
_PHYSICAL_BITS: Final = 52
_CHUNK: Final = 256
"""Tables read in one go: 1 MiB."""

_Huge: TypeAlias = tuple[NDArray[np.int64], NDArray[np.uint64], int, NDArray[np.bool_]]
"""First pages, entries, pages that each covers, whether its table is shared."""


class UserPages:
    """What all address spaces of one kernel share."""

    def __init__(self, kernel: Kernel, memmap: MemMap) -> None:
        self.kernel = kernel
        self.memmap = memmap
        self.flags = VmaFlags.of(kernel)
        self.rules = ProcRules.of(kernel.release)
        self.kinds = SwapKinds.of(kernel.release, swap_config(kernel))
        self.frames = FrameUse(kernel, memmap)
        self.nr_levels = level_count(memmap)
        self.frame_mask = frame_mask(kernel)
        # MAX_PHYSMEM_BITS - PAGE_SHIFT (`arch/x86/include/asm/sparsemem.h`).
        self.swap_pfn_bits = 40 if self.nr_levels == 5 else 34

        # One frame may be mapped often, the huge zero page above all.
        self.most_huge_pages = 16 * memmap.pfn_end + (1 << 24)

    def root(self, pgd: int) -> int | None:
        """The frame of the top table at kernel address `pgd`; None where it cannot be one."""
        base = self.memmap.direct_map_address(0)
        inside = base <= pgd < base + (1 << _PHYSICAL_BITS) and pgd % PAGE_SIZE_BYTES == 0
        return (pgd - base) >> PAGE_SHIFT if inside else None

    def tables(
        self, pfns: NDArray[np.int64], torn: Torn
    ) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
        """uint64[n, 512]: the page tables in frames `pfns`, and bool[n], which were readable."""
        addresses = _U(self.memmap.direct_map_address(0)) + (pfns.astype(_U) << _U(PAGE_SHIFT))
        data, readable = read_many(self.kernel.memory, addresses, PAGE_SIZE_BYTES)
        torn.add_all(
            f"page table in frame {pfn:#x} cannot be read" for pfn in pfns[~readable].tolist()
        )
        return np.ascontiguousarray(data).view(_U).reshape(-1, _ENTRIES), readable


class AddressSpace:
    """The page tables of one process, below its VMAs."""

    def __init__(self, shared: UserPages, pgd: int, areas: Sequence[Area], torn: Torn) -> None:
        """`pgd` is the kernel address of the top table. Reads all but the lowest level.

        Tables that cannot be read, or that are met twice, are left out and said in `torn`.
        """
        self.shared = shared
        self.torn = torn
        user = [area for area in areas if area.end <= _USER_END]
        self.start = np.array([area.start >> PAGE_SHIFT for area in user], np.int64)
        self.end = np.array([area.end >> PAGE_SHIFT for area in user], np.int64)
        self.flags = np.array([area.flags for area in user], _U)
        order = np.argsort(self.start, kind="stable")
        self.start, self.end, self.flags = self.start[order], self.end[order], self.flags[order]
        self.is_walked = (self.flags & _U(shared.flags.pfnmap)) == 0
        self.is_hugetlb = (self.flags & _U(shared.flags.hugetlb)) != 0
        self.table_page = np.zeros(0, np.int64)
        """int64[t]: first virtual page of each lowest table, rising."""
        self.table_pfn = np.zeros(0, np.int64)
        self.huge_page = np.zeros(0, np.int64)
        """int64[h]: first virtual page of each huge entry, rising."""
        self.huge_pages = np.zeros(0, np.int64)
        self.huge_entry = np.zeros(0, _U)
        self.huge_is_shared = np.zeros(0, np.bool_)
        """The table that holds it is another process' too (hugetlb_pmd_shared())."""
        self._find(pgd)

    # --- asking --------------------------------------------------------------------------

    def words(self, page: int, nr_pages: int, *, area_flags: bool = True) -> NDArray[np.uint64]:
        """uint64[nr_pages]: the pagemap words from virtual page `page` on.

        Without `area_flags`, bit 55 (soft-dirty) is left out where only the VMA says it.
        """
        words = np.zeros(nr_pages, _U)
        pages, entries = self._entries(page, nr_pages)
        self._fill(words, page, pages, entries)
        self._fill_huge(words, page, nr_pages)
        if area_flags:
            dirty = (self.flags & _U(self.shared.flags.soft_dirty)) != 0
            inside = dirty & (self.end > page) & (self.start < page + nr_pages)
            for low, high in zip(self.start[inside], self.end[inside], strict=True):
                words[max(low - page, 0) : high - page] |= _U(PM.SOFT_DIRTY)
        return words

    def populated(self, page: int, end: int) -> list[tuple[int, int]]:
        """Ranges of pages in [page, end) that have a lowest table or a huge entry, rising."""
        low = np.concatenate([self.table_page, self.huge_page])
        size = np.concatenate([np.full(self.table_page.size, _ENTRIES), self.huge_pages])
        inside = (low < end) & (low + size > page)
        pairs = sorted(zip(low[inside].tolist(), (low + size)[inside].tolist(), strict=True))
        joined: list[tuple[int, int]] = []
        for first, last in pairs:
            start, stop = max(first, page), min(last, end)
            if joined and start <= joined[-1][1]:
                start, stop = joined[-1][0], max(stop, joined.pop()[1])
            joined.append((start, stop))
        return joined

    # --- finding the tables --------------------------------------------------------------

    def _find(self, pgd: int) -> None:
        """Walk from the top table to the second lowest level."""
        if not self.start.size:
            return
        root = self.shared.root(pgd)
        if root is None:
            self.torn.add(f"the top page table cannot be at {pgd:#x}")
            return
        pages, pfns = np.zeros(1, np.int64), np.array([root], np.int64)
        top = self.shared.nr_levels
        seen: set[int] = set()
        huge: list[_Huge] = []
        for level in range(top, 1, -1):
            step = _ENTRIES ** (level - 1)
            pfns, pages = self._unseen(pfns, pages, step * _ENTRIES, seen)
            found = [
                self._level(pfns[at : at + _CHUNK], pages[at : at + _CHUNK], level, huge)
                for at in range(0, pfns.size, _CHUNK)
            ]
            pages = np.concatenate([item[0] for item in found]) if found else pages[:0]
            pfns = np.concatenate([item[1] for item in found]) if found else pfns[:0]
            if level == top:
                user = pages < _USER_ENTRIES * step
                pages, pfns = pages[user], pfns[user]
        self.table_pfn, self.table_page = self._unseen(pfns, pages, _ENTRIES, seen)
        if huge:
            huge = self._bounded(huge)
            first = np.concatenate([item[0] for item in huge])
            order = np.argsort(first, kind="stable")
            self.huge_page = first[order]
            self.huge_entry = np.concatenate([item[1] for item in huge])[order]
            sizes = np.concatenate([np.full(item[0].size, item[2]) for item in huge])
            self.huge_pages = sizes[order]
            self.huge_is_shared = np.concatenate([item[3] for item in huge])[order]

    def _bounded(self, huge: list[_Huge]) -> list[_Huge]:
        """Leave out what exceeds all memory many times over: no huge entries, but garbage."""
        left = self.shared.most_huge_pages
        kept: list[_Huge] = []
        for first, entries, step, is_shared in huge:
            count = min(entries.size, left // step)
            if count < entries.size:
                self.torn.add("its huge entries map far more than all memory")
            kept.append((first[:count], entries[:count], step, is_shared[:count]))
            left -= count * step
        return kept

    def _level(
        self,
        pfns: NDArray[np.int64],
        pages: NDArray[np.int64],
        level: int,
        huge: list[_Huge],
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Read tables of one level: (first pages, frames) of the tables they lead to."""
        step = _ENTRIES ** (level - 1)
        tables, _ = self.shared.tables(pfns, self.torn)
        row, column = np.nonzero(has_entry(tables))
        entries = tables[row, column]
        first = pages[row] + column * step
        wanted = self._areas_in(first, step)
        row, entries, first = row[wanted], entries[wanted], first[wanted]
        # What is neither present nor empty (a migration entry) holds a page, not a table.
        leaf = (entries & _U(PTE.HUGE) != 0) | (entries & _U(PTE.PRESENT) == 0)
        if level > 3:
            entries, first, leaf = entries[~leaf], first[~leaf], leaf[~leaf]
        if leaf.any():
            is_shared = np.zeros(pfns.size, np.bool_)
            if self.is_hugetlb.any():
                is_shared = self.shared.frames.shared_tables(pfns)
            huge.append((first[leaf], entries[leaf], step, is_shared[row[leaf]]))
        down = ~leaf
        return first[down], pfns_of(entries[down], self.shared.frame_mask)

    def _areas_in(self, first: NDArray[np.int64], step: int) -> NDArray[np.bool_]:
        """Which stretches [first, first + step) any VMA lies in."""
        index = np.searchsorted(self.end, first, "right")
        inside = index < self.end.size
        inside[inside] = self.start[index[inside]] < first[inside] + step
        return inside

    def _unseen(
        self, pfns: NDArray[np.int64], pages: NDArray[np.int64], span: int, seen: set[int]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Leave out tables that this address space has already: a loop.

        Two hugetlb areas of one process may share the table of their huge entries
        (huge_pmd_share()).
        """
        keep = np.ones(pfns.size, np.bool_)
        may_share = _MOST_SHARED if span == _ENTRIES**2 else 0
        for index, (pfn, page) in enumerate(zip(pfns.tolist(), pages.tolist(), strict=True)):
            if pfn not in seen:
                seen.add(pfn)
            elif may_share and self._is_hugetlb(page, span):
                may_share -= 1
            else:
                keep[index] = False
                self.torn.add(f"page table in frame {pfn:#x} is met twice")
        return pfns[keep], pages[keep]

    def _is_hugetlb(self, page: int, span: int) -> bool:
        low = int(np.searchsorted(self.end, page, "right"))
        high = int(np.searchsorted(self.start, page + span))
        return high > low and bool(self.is_hugetlb[low:high].all())

    # --- words ---------------------------------------------------------------------------

    def _entries(self, page: int, nr_pages: int) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
        """(virtual pages, entries) of all that is not empty in the lowest tables."""
        low = int(np.searchsorted(self.table_page, page - _ENTRIES, "right"))
        high = int(np.searchsorted(self.table_page, page + nr_pages))
        if low >= high:
            return np.zeros(0, np.int64), np.zeros(0, _U)
        tables, _ = self.shared.tables(self.table_pfn[low:high], self.torn)
        row, column = np.nonzero(has_entry(tables))
        pages = self.table_page[low:high][row] + column
        inside = (pages >= page) & (pages < page + nr_pages)
        return pages[inside], tables[row[inside], column[inside]]

    def _area_of(self, pages: NDArray[np.int64]) -> NDArray[np.int64]:
        """Index of the VMA of each page; -1 where there is none or pagemap does not look."""
        index = np.searchsorted(self.start, pages, "right") - 1
        inside = index >= 0
        inside[inside] = pages[inside] < self.end[index[inside]]
        inside[inside] = self.is_walked[index[inside]]
        return np.where(inside, index, -1)

    def _fill(
        self,
        words: NDArray[np.uint64],
        base: int,
        pages: NDArray[np.int64],
        entries: NDArray[np.uint64],
    ) -> None:
        """Entries of the lowest level: pte_to_pagemap_entry()."""
        inside = self._area_of(pages) >= 0
        pages, entries = pages[inside], entries[inside]
        there = is_present(entries)
        words[pages[there] - base] = self._present(entries[there])
        words[pages[~there] - base] = self._absent(entries[~there])

    def _present(self, entries: NDArray[np.uint64]) -> NDArray[np.uint64]:
        pfns = pfns_of(entries, self.shared.frame_mask)
        words = self._flags(entries) | pfns.astype(_U)
        file, once = self.shared.frames.look_up(pfns)
        normal = (entries & _U(PTE.SPECIAL)) == 0
        words |= np.where(file & normal, _U(PM.FILE), _U(0))
        words |= np.where(once & normal, _U(PM.EXCLUSIVE), _U(0))
        return words

    def _flags(self, entries: NDArray[np.uint64]) -> NDArray[np.uint64]:
        words = np.full(entries.size, PM.PRESENT, _U)
        words |= np.where(entries & _U(PTE.SOFT_DIRTY), _U(PM.SOFT_DIRTY), _U(0))
        words |= np.where(entries & _U(PTE.UFFD_WP), _U(PM.UFFD_WP), _U(0))
        return words

    def _absent(self, entries: NDArray[np.uint64]) -> NDArray[np.uint64]:
        shared = self.shared
        words, types = swap_words(entries, shared.swap_pfn_bits)
        named = np.flatnonzero(shared.kinds.has_page[types])
        if named.size:
            pfns = ((words[named] & _U(PM.FRAME)) >> _U(5)).astype(np.int64)
            file, once = shared.frames.look_up(pfns)
            words[named] |= np.where(file, _U(PM.FILE), _U(0))
            if shared.rules.swap_is_exclusive:
                once &= ~shared.kinds.is_migration[types[named]]
                words[named] |= np.where(once, _U(PM.EXCLUSIVE), _U(0))
        marker = shared.kinds.is_marker[types]
        # Bits of a marker: 1 uffd-wp, 2 poisoned, 4 guard (`include/linux/swapops.h`).
        bits = (words >> _U(5)) & _U(7)
        words |= np.where(marker & (bits & _U(1) != 0), _U(PM.UFFD_WP), _U(0))
        if shared.rules.shows_guard:
            words |= np.where(marker & (bits & _U(4) != 0), _U(PM.GUARD), _U(0))
        return words

    def _fill_huge(self, words: NDArray[np.uint64], base: int, nr_pages: int) -> None:
        """Huge entries: pagemap_pmd_range() and pagemap_hugetlb_range()."""
        meets = (self.huge_page < base + nr_pages) & (self.huge_page + self.huge_pages > base)
        for index in np.flatnonzero(meets).tolist():
            page, size = int(self.huge_page[index]), int(self.huge_pages[index])
            low, high = max(page, base), min(page + size, base + nr_pages)
            pages = np.arange(low, high)
            area = self._area_of(pages)
            if area.max() < 0:
                continue
            entry = self.huge_entry[index : index + 1]
            hugetlb = bool(self.is_hugetlb[area.max()])
            if is_present(entry, huge=not hugetlb)[0]:
                found = self._huge_present(entry, low - page, pages.size, hugetlb=hugetlb)
                if hugetlb and self.huge_is_shared[index]:
                    found &= ~_U(PM.EXCLUSIVE)
            elif hugetlb:
                continue  # pagemap_hugetlb_range() shows nothing of other entries
            else:
                found = self._absent(entry) + (
                    np.arange(low - page, high - page).astype(_U) << _U(5)
                )
            words[low - base : high - base] = np.where(area >= 0, found, _U(0))

    def _huge_present(
        self, entry: NDArray[np.uint64], skip: int, count: int, *, hugetlb: bool
    ) -> NDArray[np.uint64]:
        first = int(pfns_of(entry & ~_U(_PAT_HUGE), self.shared.frame_mask)[0])
        pfns = np.arange(first + skip, first + skip + count)
        words: NDArray[np.uint64] = pfns.astype(_U) | self._flags(entry)[0]
        file, once = self.shared.frames.look_up(pfns)
        if not hugetlb and not self.shared.rules.exclusive_by_page:
            once[:] = self.shared.frames.look_up(np.array([first]))[1][0]
        words |= np.where(file, _U(PM.FILE), _U(0)) | np.where(once, _U(PM.EXCLUSIVE), _U(0))
        return words


def swap_config(kernel: Kernel) -> SwapConfig | None:
    """The options that number special entries, from what only kernels with them have.

    None where the kernel's symbols are not known. MEMORY_FAILURE has the page flag hwpoison,
    MIGRATION and DEVICE_PRIVATE have functions (`mm/migrate.c`, `mm/rmap.c:
    make_device_exclusive`, ..._range up to 6.14).
    """
    known = kernel.symbols.address_of
    if known("init_task") is None:
        return None
    device = any(known(name) for name in ("make_device_exclusive", "make_device_exclusive_range"))
    return SwapConfig(
        memory_failure=kernel.types.find_enumerator("PG_hwpoison") is not None,
        migration=known("migrate_pages") is not None,
        device_private=device,
    )


# --- helpers -----------------------------------------------------------------------------

_PAT_HUGE: Final = 1 << 12
"""_PAGE_PAT_LARGE: in a huge entry this is no bit of the frame."""
