"""Of a mapped frame: is it a file's, and is it mapped exactly once?

These two are all that a page-table entry does not say itself. They are worked out for whole
chunks of the memory map and kept, a byte per frame.

Sources: `include/linux/mm.h:page_mapcount,folio_precise_page_mapcount`,
`mm/util.c:__page_mapcount` @6.1, `fs/proc/internal.h` @6.12, @7.2.
"""

from __future__ import annotations

import time
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from memdesc.errors import FaultError
from memdesc.structs.kernel import Kernel
from memdesc.structs.memmap import MemMap
from memdesc.structs.walk.snapshot import read_many

__all__ = ["FrameUse"]

_T = TypeVar("_T", bound=np.generic)
_U = np.uint64
_CHUNK: Final = 1 << 13
"""Frames looked up together: 512 KiB of struct pages."""
_FRESH_SECONDS: Final = 1.0
"""Frames of a live machine change hands: what was read longer ago is read again."""
_FILE: Final = 1
_ONCE: Final = 2
_FIRST_MASK: Final = (1 << 64) - (1 << 32)
"""`memdesc.kernels.layout.head_address`: no struct page lies above it."""


class FrameUse:
    """Looks frames up in the memory map. Not safe for several threads."""

    def __init__(self, kernel: Kernel, memmap: MemMap) -> None:
        self.memmap = memmap
        self.layout = memmap.layout
        self._end = max((high for _, high in (*memmap.sections, *memmap.offline)), default=0)
        self._is_live = kernel.is_live
        self._read_at = 0.0
        self._chunks: dict[int, NDArray[np.uint8]] = {}
        shared = kernel.find_member("ptdesc", "pt_share_count.counter")
        self._share_count = None if shared is None else shared.offset

    def look_up(self, pfns: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """bool[n], bool[n]: whether a frame's folio is not anonymous, and whether the frame is
        mapped exactly once. Both false where it has no struct page that can be read."""
        codes = np.zeros(pfns.size, np.uint8)
        known = np.flatnonzero(pfns < self._end)
        if known.size:
            numbers, row = np.unique(pfns[known] // _CHUNK, return_inverse=True)
            chunks = np.stack([self._chunk(number) for number in numbers.tolist()])
            codes[known] = chunks[row, pfns[known] % _CHUNK]
        return (codes & _FILE) != 0, (codes & _ONCE) != 0

    def shared_tables(self, pfns: NDArray[np.int64]) -> NDArray[np.bool_]:
        """bool[n]: which page tables of huge pages several processes share
        (hugetlb_pmd_shared(): the count of their frame, or `ptdesc.pt_share_count`)."""
        at, more_than = self.layout.refcount, 1
        if self._share_count is not None:
            at, more_than = self._share_count, 0
        addresses = self.memmap.page_address(pfns)
        data, readable = read_many(self.memmap.kernel.memory, addresses, self.layout.size_bytes)
        return readable & (_column(data, at, np.int32) > more_than)

    def refresh(self) -> None:
        """On a live machine, forget what was read a while ago. Called for each process."""
        now = time.monotonic()
        if self._is_live and now - self._read_at > _FRESH_SECONDS:
            self._chunks.clear()
            self._read_at = now

    def _chunk(self, number: int) -> NDArray[np.uint8]:
        codes = self._chunks.get(number)
        if codes is None:
            codes = self._chunks[number] = self._codes(number * _CHUNK)
        return codes

    def _codes(self, first: int) -> NDArray[np.uint8]:
        """uint8[size]: `_FILE` and `_ONCE` of the frames from `first` on."""
        codes = np.zeros(_CHUNK, np.uint8)
        for low, high in (*self.memmap.sections, *self.memmap.offline):
            low, high = max(low, first), min(high, first + _CHUNK)
            if low < high:
                try:
                    codes[low - first : high - first] = self._of_pages(low, high - low)
                except FaultError:
                    continue
        return codes

    def _of_pages(self, first: int, count: int) -> NDArray[np.uint8]:
        layout = self.layout
        pages = self.memmap.read_pages(first, count)
        words, ints = pages.view(_U), pages.view(np.int32)
        own = ints[:, layout.page_type // 4].astype(np.int64) + 1
        own[own < 0] = 0  # the word holds a page type
        heads = self._heads(words[:, layout.compound // 8], first)
        tails = np.flatnonzero(heads != np.arange(count))
        head_flag = _U(layout.flag("head"))
        large = np.concatenate(
            [np.flatnonzero(words[:, layout.flags // 8] & head_flag != 0), tails]
        )
        mapping = words[:, layout.mapping // 8].copy()
        entire = np.zeros(count, np.int64)
        of_heads, where = np.unique(heads[large], return_inverse=True)
        head_mapping, head_entire = self._folios(first + of_heads)
        mapping[large] = head_mapping[where]
        entire[large] = head_entire[where]
        file = (mapping & _U(1)) == 0
        once = own + entire == 1
        codes: NDArray[np.uint8] = np.where(file, np.uint8(_FILE), np.uint8(0))
        codes |= np.where(once, np.uint8(_ONCE), np.uint8(0))
        return codes

    def _folios(self, heads: NDArray[np.int64]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """(`mapping`, map count of the folio as a whole) of folios by their first frames."""
        layout = self.layout
        addresses = self.memmap.page_address(heads)
        # A head and the two pages behind it, where what counts the folio lies.
        data, readable = read_many(self.memmap.kernel.memory, addresses, 3 * layout.size_bytes)
        mapping = _column(data, layout.mapping, _U)
        at = layout.folio_entire_mapcount
        whole = np.zeros(heads.size, np.int64)
        if at is not None:
            whole = _column(data, at, np.int32).astype(np.int64) + 1
        double = layout.flag("double_map")
        if double:
            # 6.1 counts a mapping of a whole file folio in each of its frames already, and
            # one of a doubly mapped anonymous folio as well (__page_mapcount()).
            assert layout.folio_dtor is not None
            is_hugetlb = data[:, layout.folio_dtor] == (layout.dtor_hugetlb or 0)
            flags = _column(data, layout.folio_flags_1, _U)
            whole -= (flags & _U(double) != 0) & ~is_hugetlb
            whole[((mapping & _U(1)) == 0) & ~is_hugetlb] = 0
        whole[~readable] = 0
        return mapping, whole

    def _heads(self, compound: NDArray[np.uint64], first: int) -> NDArray[np.int64]:
        """int64[n]: the head of each page, counted from `first`; itself where it is no tail."""
        heads = np.arange(compound.size)
        memmap = self.memmap
        tails = np.flatnonzero(compound & _U(1))
        if tails.size:
            links = compound[tails] - _U(1)
            addresses = memmap.page_address(first + tails)
            # As `head_address`, for columns: a mask is told from an address by its content.
            is_mask = links >= _U(_FIRST_MASK)
            if self.layout.compound_may_be_mask:
                links = np.where(is_mask, addresses & links, links)
            pfns = memmap.pfn_of(links)
            # A head lies before its tails; anything else is torn.
            good = (pfns >= 0) & (pfns < first + tails)
            heads[tails[good]] = pfns[good] - first
        return heads


def _column(data: NDArray[np.uint8], offset: int, dtype: type[_T]) -> NDArray[_T]:
    """One number of every row."""
    size = np.dtype(dtype).itemsize
    return np.ascontiguousarray(data[:, offset : offset + size]).view(dtype)[:, 0]
