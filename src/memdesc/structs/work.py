"""One chunk of struct pages on its way to columns: what its steps share.

Facts that every frame has are bits of one byte (`B_*`); what few frames have is kept as
offsets into the chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from memdesc.kernels.layout import MAPPING_KIND_MASK, MappingKind, PageLayout

__all__ = [
    "B_ACCOUNTED",
    "B_EMPTY",
    "B_EMPTY_MASK",
    "B_HAS_MAPPING",
    "B_IN_FREE_BLOCK",
    "B_MAPPED",
    "B_MAPPING_MASK",
    "B_MAPPING_SHIFT",
    "B_MOVABLE",
    "B_TAIL",
    "B_UNREFERENCED",
    "I64",
    "U64",
    "Chunk",
    "Special",
    "Work",
]

U64: TypeAlias = NDArray[np.uint64]
I64: TypeAlias = NDArray[np.int64]

B_MAPPED: Final = 1 << 0
B_UNREFERENCED: Final = 1 << 1
B_TAIL: Final = 1 << 2
B_HAS_MAPPING: Final = 1 << 3
B_ACCOUNTED: Final = 1 << 4
B_MAPPING_SHIFT: Final = 5
B_MAPPING_MASK: Final = MAPPING_KIND_MASK << B_MAPPING_SHIFT
B_IN_FREE_BLOCK: Final = 1 << 7
B_MOVABLE: Final = B_HAS_MAPPING | MappingKind.MOVABLE << B_MAPPING_SHIFT
B_EMPTY: Final = B_MAPPED | B_UNREFERENCED
"""A map count of one without a reference: only a struct page of zeroes reads so."""
B_EMPTY_MASK: Final = 0xFF & ~B_IN_FREE_BLOCK


@dataclass(frozen=True, slots=True)
class Special:
    """Frames that the kernel's variables name; empty ranges where they are not known."""

    zero: range = range(0)
    huge_zero: range = range(0)
    is_huge_zero: Callable[[int], bool] | None = None
    """Asked for the head of each folio that could be the huge zero one, where the kernel's
    variable is not known; there are few."""


@dataclass(slots=True)
class Chunk:
    """What a chunk of struct pages says, one element per frame."""

    pfn_start: int
    signatures: U64
    mapcounts: U64 | None = None
    """As kpagecount shows them."""
    memcgs: U64 | None = None
    """Address of the mem_cgroup or obj_cgroup charged, low bits as in memcg_data; 0: none."""
    owners: U64 | None = None
    """Index into `Pointers.owner_names`; 0: nothing."""
    references: NDArray[np.int8] | None = None
    """As `MemoryMap.references`."""
    torn: int = 0
    """Tails whose head cannot be."""


@dataclass(slots=True)
class Work:
    """A chunk in the making: its words, and what is known so far."""

    layout: PageLayout
    pfn_start: int
    pages: NDArray[np.uint8]
    """uint8[n, page_size], contiguous."""
    words: U64
    """uint64[n, page_size // 8], the same bytes."""
    flags: NDArray[np.uint32]
    """uint32[n]: each frame's own PG_* bits."""
    packed: NDArray[np.uint8]
    """uint8[n]: the bits `B_*`."""
    counts: NDArray[np.uint32]
    """uint32[n]: `_mapcount` + 1, where the word holds no type."""
    links: NDArray[np.uint8]
    """uint8[n]: lowest byte of the word that is a tail's link, or a page_pool's magic."""
    signatures: U64 = field(default_factory=lambda: np.zeros(0, np.uint64))
    typed: I64 = field(default_factory=lambda: np.zeros(0, np.int64))
    """Offsets of frames with a page type."""
    codes: NDArray[np.uint8] = field(default_factory=lambda: np.zeros(0, np.uint8))
    """Their `TypeCode`."""
    blank: I64 = field(default_factory=lambda: np.zeros(0, np.int64))
    """Offsets of struct pages of zeroes."""
    heads: I64 = field(default_factory=lambda: np.zeros(0, np.int64))
    """Offsets of heads."""
    tails: I64 = field(default_factory=lambda: np.zeros(0, np.int64))
    """Offsets of tails."""
    heads_of: I64 = field(default_factory=lambda: np.zeros(0, np.int64))
    """Their heads' offsets, or -1 for one outside the chunk or torn."""
    foreign: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    """Head outside the chunk -> (signature, whole-folio map count, memcg_data)."""
    foreign_of: I64 = field(default_factory=lambda: np.zeros(0, np.int64))
    """Frame of the head, of every tail whose head lies outside; -1 for others."""

    @property
    def size(self) -> int:
        return len(self.pages)

    def folio_byte(self, heads: I64, offset: int) -> NDArray[np.uint8]:
        """uint8: the byte at `offset` of the folios that begin at `heads`."""
        row, column = divmod(offset, self.layout.size_bytes)
        found: NDArray[np.uint8] = self.pages[heads + row, column]
        return found

    def folio_int(self, heads: I64, offset: int) -> NDArray[np.int32]:
        """int32: the int at `offset` of the folios that begin at `heads`."""
        row, column = divmod(offset, self.layout.size_bytes)
        found: NDArray[np.int32] = self.pages.view(np.int32)[heads + row, column // 4]
        return found

    def entire(self, heads: I64) -> I64:
        """int64: mappings of each folio as a whole."""
        offset = self.layout.folio_entire_mapcount
        if offset is None:
            return np.zeros(heads.size, np.int64)
        return self.folio_int(heads, offset).astype(np.int64) + 1
