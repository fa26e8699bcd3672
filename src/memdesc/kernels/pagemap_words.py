"""Page-table entries of x86-64, and the /proc/PID/pagemap words that they become.

Bits are the processor's and the kernel's own; both are macros, which no type information
holds. What differs between releases in the words is in `ProcRules`.

Sources: `arch/x86/include/asm/pgtable_types.h`, `pgtable_64.h`, `pgtable-invert.h`,
`include/linux/swapops.h`, `fs/proc/task_mmu.c:pte_to_pagemap_entry,pagemap_pmd_range,
pagemap_hugetlb_range` @6.1, @6.12, @7.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from memdesc.kernels.pagemap import PM, EntryKind, SwapConfig, swap_meanings
from memdesc.kernels.release import KernelRelease

__all__ = [
    "PTE",
    "ProcRules",
    "SwapKinds",
    "has_entry",
    "is_present",
    "pfns_of",
    "swap_words",
]


class PTE:
    """Bits of a page-table entry, at every level."""

    PRESENT: Final = 1 << 0
    RW: Final = 1 << 1
    USER: Final = 1 << 2
    ACCESSED: Final = 1 << 5
    DIRTY: Final = 1 << 6
    UFFD_WP_SWAP: Final = 1 << 2
    """Of an entry that is not present: _PAGE_SWP_UFFD_WP."""
    SOFT_DIRTY_SWAP: Final = 1 << 1
    """_PAGE_SWP_SOFT_DIRTY."""
    HUGE: Final = 1 << 7
    """_PAGE_PSE: an entry above the lowest level that maps memory itself."""
    PROTNONE: Final = 1 << 8
    """Of an entry that is not PRESENT: the page is there and may not be touched."""
    SPECIAL: Final = 1 << 9
    """No struct page, or one that is not to be looked at: vm_normal_page() is NULL."""
    UFFD_WP: Final = 1 << 10
    SOFT_DIRTY: Final = 1 << 11
    PFN: Final = ((1 << 52) - 1) & ~0xFFF
    PFN_SHIFT: Final = 12
    EXCLUSIVE_SWAP: Final = 1 << 3
    """_PAGE_SWP_EXCLUSIVE."""
    ERRATUM: Final = ACCESSED | DIRTY
    """Accessed and dirty: some processors set them in an empty entry (_PAGE_KNL_ERRATUM_MASK)."""


_U = np.uint64
_SWAP_TYPE_SHIFT: Final = 59
_SWAP_OFFSET_SHIFT: Final = 14
_SWAP_TYPE_BITS: Final = 5


@dataclass(frozen=True, slots=True)
class ProcRules:
    """What this release's /proc/PID/{pagemap,maps} make of entries and areas. `of` decides."""

    exclusive_by_page: bool
    """Each page of a huge entry shows its own map count; before, all show the first page's."""
    swap_is_exclusive: bool
    """An entry that is not present can show PM_MMAP_EXCLUSIVE: of the page it names."""
    shows_guard: bool
    """Bit 58 for guard markers."""
    heap_has_edges: bool
    """An area that only touches the heap is called [heap] as well (vma_is_initial_heap())."""
    fmode_backing: int
    """FMODE_BACKING of `file.f_mode`, a macro that moved (`include/linux/fs.h`): such a file
    lies inside a struct backing_file, which names the file that the user opened (overlayfs)."""

    @classmethod
    def of(cls, release: KernelRelease) -> ProcRules:
        version = (release.major, release.minor)
        return cls(
            exclusive_by_page=version >= (6, 11),
            swap_is_exclusive=version < (6, 11),
            shows_guard=version >= (6, 15),
            heap_has_edges=version < (6, 6),
            fmode_backing=1 << 24 if version >= (6, 14) else 1 << 25,
        )


def has_entry(entries: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which entries are not empty (!pte_none())."""
    found: NDArray[np.bool_] = np.not_equal(entries & ~_U(PTE.ERRATUM), 0)
    return found


def is_present(entries: NDArray[np.uint64], *, huge: bool = False) -> NDArray[np.bool_]:
    """pte_present(), or pmd_present() and pud_present() of `huge` ones."""
    mask = PTE.PRESENT | PTE.PROTNONE | (PTE.HUGE if huge else 0)
    found: NDArray[np.bool_] = np.not_equal(entries & _U(mask), 0)
    return found


def pfns_of(entries: NDArray[np.uint64], physical_mask: int) -> NDArray[np.int64]:
    """Frames of present entries.

    An entry without PRESENT (PROT_NONE) holds its frame inverted, so that a processor with
    L1TF never reads it (`protnone_mask()`). `physical_mask` leaves out an encryption bit.
    """
    inverted = (entries & _U(PTE.PRESENT)) == 0
    values = np.where(inverted, ~entries, entries)
    return ((values & _U(PTE.PFN & physical_mask)) >> _U(12)).astype(np.int64)


def swap_words(
    entries: NDArray[np.uint64], pfn_bits: int
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """(pagemap words of entries that hold a swap entry, their swap types).

    The offset is stored inverted (__swp_offset()). Bits above `pfn_bits` (SWP_PFN_BITS) are
    the young and dirty bits of a migration entry and are not shown. Cutting them off
    everywhere is right: a swap area has fewer than 2**32 slots (`swap_header.info.last_page`).
    """
    types = entries >> _U(_SWAP_TYPE_SHIFT)
    offset = (~entries << _U(_SWAP_TYPE_BITS)) >> _U(_SWAP_OFFSET_SHIFT)
    offset &= _U((1 << pfn_bits) - 1)
    words = types | offset << _U(_SWAP_TYPE_BITS) | _U(PM.SWAP)
    words |= np.where(entries & _U(PTE.SOFT_DIRTY_SWAP), _U(PM.SOFT_DIRTY), _U(0))
    words |= np.where(entries & _U(PTE.UFFD_WP_SWAP), _U(PM.UFFD_WP), _U(0))
    return words, types.astype(np.int64)


@dataclass(frozen=True, slots=True)
class SwapKinds:
    """Which swap types name a frame, and which is the marker. bool[32] each."""

    has_page: NDArray[np.bool_]
    is_migration: NDArray[np.bool_]
    is_marker: NDArray[np.bool_]

    @classmethod
    def of(cls, release: KernelRelease, config: SwapConfig | None) -> SwapKinds:
        """Types with several possible meanings name nothing."""
        kinds = [{item.kind for item in swap_meanings(n, release, config)} for n in range(32)]
        # is_pfn_swap_entry(); of hwpoison from 6.9 on, and in the updates of 6.1 and 6.6.
        naming = {
            EntryKind.MIGRATION,
            EntryKind.DEVICE_PRIVATE,
            EntryKind.DEVICE_EXCLUSIVE,
            EntryKind.HWPOISON,
        }
        return cls(
            has_page=np.array([found <= naming for found in kinds], np.bool_),
            is_migration=np.array([found == {EntryKind.MIGRATION} for found in kinds], np.bool_),
            is_marker=np.array([found == {EntryKind.MARKER} for found in kinds], np.bool_),
        )
