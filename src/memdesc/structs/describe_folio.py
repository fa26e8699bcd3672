"""The struct pages of one folio, read once: flags, counts and words, as this kernel lays them.

Every number of a descriptor comes from one reading, so that its fields fit each other even
where the kernel goes on running.  A frame that is part of nothing larger is a folio of one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Final, TypeVar

import numpy as np

from memdesc.errors import FaultError, LayoutError
from memdesc.fact import NotVisible
from memdesc.kernels.layout import MAPPING_KIND_MASK, MappingKind
from memdesc.kernels.page_types import PageType, TypedWord
from memdesc.structs.memmap import MemMap
from memdesc.types import PfnRange

__all__ = ["CHANGED", "FolioPages", "seen"]

_T = TypeVar("_T")

CHANGED: Final = NotVisible("the frame became something else since the map was read")

_PIN_BIAS: Final = 1 << 10
"""What one pin adds to the reference count of a single frame
(`include/linux/mm.h`: GUP_PIN_COUNTING_BIAS @6.1, @7.2; a macro)."""

_READ_PAGES: Final = 4
"""Struct pages that a `struct folio` lies over (`include/linux/mm_types.h` @7.2)."""


def seen(read: Callable[[], _T | NotVisible]) -> _T | NotVisible:
    """The value of `read`, or why it cannot be had: memory that is not there, or a layout that
    is not known. The reason carries no kernel address."""
    try:
        return read()
    except FaultError:
        return NotVisible("the kernel memory that holds it cannot be read, or changed meanwhile")
    except LayoutError as error:
        return NotVisible(str(error))


class FolioPages:
    """A folio's struct pages. Everything raises FaultError where they cannot be read, and the
    counts where they are no whole folio any more."""

    def __init__(self, memmap: MemMap, pages: PfnRange) -> None:
        self.kernel = memmap.kernel
        self.layout = memmap.layout
        self.pages = pages
        self.address = memmap.page_address(pages.pfn_start)

    # --- words of the first page ---------------------------------------------------------

    @property
    def flags(self) -> int:
        """The flags proper, without the node, zone and other fields above them."""
        return self._u64(self.layout.flags) & self.layout.flag_mask

    def has_flag(self, name: str) -> bool:
        """Whether the flag `name` (without PG_) is set; False where this kernel has none."""
        return bool(self.flags & self.layout.flag(name))

    def flag_names(self) -> frozenset[str]:
        """The kernel's names of the flags that are set, in lower case, without PG_."""
        return frozenset(self.layout.names_of(self.flags))

    @property
    def refcount(self) -> int:
        return self._s32(self.layout.refcount)

    @property
    def mapping_kind(self) -> MappingKind:
        return MappingKind(self._u64(self.layout.mapping) & MAPPING_KIND_MASK)

    @property
    def mapping(self) -> int:
        """Address that `mapping` holds, without its low bits; 0 for none."""
        return self._u64(self.layout.mapping) & ~MAPPING_KIND_MASK

    @property
    def index(self) -> int:
        return self._u64(self.layout.index)

    @property
    def private(self) -> int:
        return self._u64(self.layout.private)

    @property
    def type_word(self) -> int:
        """The 32 bits that hold the page type, or the map count minus one."""
        return self._s32(self.layout.page_type) & 0xFFFFFFFF

    def is_type(self, page_type: PageType) -> bool:
        """Whether the first page is marked as `page_type`."""
        word = self.layout.types.decode(self.type_word)
        return isinstance(word, TypedWord) and word.page_type is page_type

    @property
    def memcg_data(self) -> int:
        """Raises LayoutError where this kernel was built without memory cgroups."""
        if self.layout.memcg_data is None:
            raise LayoutError("this kernel was built without memory cgroups")
        return self._u64(self.layout.memcg_data)

    # --- counts of the folio -------------------------------------------------------------

    @property
    def is_large(self) -> bool:
        return self.pages.nr_pages > 1

    def mapcount(self) -> int:
        """User page-table entries of the whole folio: `folio_mapcount`
        (`include/linux/mm.h` @6.12, @7.2; `mm/util.c` @6.1)."""
        layout = self.layout
        if not self.is_large:
            return self.mapcount_of(self.pages.pfn_start)
        self._check_whole()
        if not layout.has_subpage_mapcounts_only:
            if layout.folio_large_mapcount is None:
                raise LayoutError("the map count of a large folio is nowhere that was read")
            return self._s32(layout.folio_large_mapcount) + 1
        entire = self.entire_mapcount()
        if self._dtor == layout.dtor_hugetlb:
            return entire
        nr_pages = self.pages.nr_pages
        count = entire + int(np.maximum(self._own_mapcounts + 1, 0).sum())
        if self.mapping_kind is not MappingKind.ANON:
            # Of a file, each frame's own count includes the mappings of the whole.
            return count - entire * nr_pages
        return count - nr_pages if self._is_double_mapped else count

    def entire_mapcount(self) -> int:
        """Mappings of the folio as a whole, by one entry of a higher table."""
        if not self.is_large or self.layout.folio_entire_mapcount is None:
            return 0
        return self._s32(self.layout.folio_entire_mapcount) + 1

    def mapcount_of(self, pfn: int) -> int:
        """The `_mapcount` of one frame plus one; 0 where its word is a page type."""
        if pfn == self.pages.pfn_start:
            return max(self._s32(self.layout.page_type) + 1, 0)
        return max(int(self._own_mapcounts[pfn - self.pages.pfn_start]) + 1, 0)

    def pins(self) -> int:
        """What `folio_maybe_dma_pinned` looks at (`include/linux/mm.h` @6.1, @7.2): the pin
        count of a large folio; of a single frame, at most so many, as references count too."""
        if self.is_large and self.layout.folio_pincount is not None:
            self._check_whole()
            return self._s32(self.layout.folio_pincount)
        return max(self.refcount, 0) // _PIN_BIAS

    def order(self) -> int:
        """log2 of the frames, as the folio itself says; 0 for a single frame."""
        return self._bytes[self.layout.folio_order] if self.is_large else 0

    def raw(self) -> Mapping[str, int]:
        """The words of the first struct page by name, unsigned."""
        layout = self.layout
        words = {
            "flags": self._u64(layout.flags),
            "compound": self._u64(layout.compound),
            "mapping": self._u64(layout.mapping),
            "index": self._u64(layout.index),
            "private": self._u64(layout.private),
            "page_type": self.type_word,
            "refcount": self.refcount & 0xFFFFFFFF,
        }
        if layout.memcg_data is not None:
            words["memcg_data"] = self._u64(layout.memcg_data)
        return words

    # --- helpers -------------------------------------------------------------------------

    def _check_whole(self) -> None:
        """Raises FaultError where these frames are no compound page of their size (any more):
        the counts in the second page would be something else's."""
        if not self.has_flag("head") or 1 << self.order() != self.pages.nr_pages:
            raise FaultError(f"frames {self.pages} are no whole folio", self.address)

    @cached_property
    def _bytes(self) -> bytes:
        nr_pages = min(self.pages.nr_pages, _READ_PAGES)
        return self.kernel.memory.read(self.address, nr_pages * self.layout.size_bytes)

    @cached_property
    def _own_mapcounts(self) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
        """int32[nr_pages]: `_mapcount` of each frame, minus one as it is stored."""
        size = self.layout.size_bytes
        raw = self.kernel.memory.read(self.address, self.pages.nr_pages * size)
        words = np.frombuffer(raw, np.int32).reshape(-1, size // 4)
        counts: np.ndarray[tuple[int], np.dtype[np.int32]] = words[:, self.layout.page_type // 4]
        return counts

    @property
    def _dtor(self) -> int | None:
        return None if self.layout.folio_dtor is None else self._bytes[self.layout.folio_dtor]

    @property
    def _is_double_mapped(self) -> bool:
        """Mapped both whole and by its frames (6.1: PG_double_map of the second page)."""
        return bool(self._u64(self.layout.folio_flags_1) & self.layout.flag("double_map"))

    def _u64(self, offset: int) -> int:
        return int.from_bytes(self._bytes[offset : offset + 8], "little")

    def _s32(self, offset: int) -> int:
        return int.from_bytes(self._bytes[offset : offset + 4], "little", signed=True)
