"""Page-table entries of x86-64, as the model keeps them.

Present entries are the processor's: frame number and bits at their places
(`arch/x86/include/asm/pgtable_types.h`), without NX.  Entries that are not present carry a type
and an offset; the kernel's own packing, with its inverted offsets, is of no interest here.

>>> entry = present(0x1234, RW | DIRTY)
>>> hex(pfn_of(entry)), is_present(entry), bool(entry & RW)
('0x1234', True, True)
>>> swap = not_present(SwapType.HWPOISON, 0x1234)
>>> is_present(swap), swap_type(swap), hex(swap_offset(swap))
(False, <SwapType.HWPOISON: 3>, '0x1234')
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from memdesc.kernels.pagemap_words import PTE

__all__ = [
    "ACCESSED", "DIRTY", "EXCLUSIVE_SWAP", "HUGE", "NONE_ENTRY", "PFN_MASK", "PFN_SHIFT",
    "PRESENT", "PROTNONE", "RW",
    "SOFT_DIRTY", "SOFT_DIRTY_SWAP", "SPECIAL", "UFFD_WP", "UFFD_WP_SWAP", "USER", "Marker",
    "SwapType", "is_present", "marker", "move_offset", "not_present", "pfn_of", "present",
    "swap_offset", "swap_type",
]  # fmt: skip

NONE_ENTRY: Final = 0
PRESENT: Final = PTE.PRESENT
RW: Final = PTE.RW
USER: Final = PTE.USER
ACCESSED: Final = PTE.ACCESSED
DIRTY: Final = PTE.DIRTY
HUGE: Final = PTE.HUGE
PROTNONE: Final = PTE.PROTNONE
SPECIAL: Final = PTE.SPECIAL
UFFD_WP: Final = PTE.UFFD_WP
SOFT_DIRTY: Final = PTE.SOFT_DIRTY
PFN_MASK: Final = PTE.PFN
PFN_SHIFT: Final = PTE.PFN_SHIFT

SOFT_DIRTY_SWAP: Final = PTE.SOFT_DIRTY_SWAP
UFFD_WP_SWAP: Final = PTE.UFFD_WP_SWAP
EXCLUSIVE_SWAP: Final = PTE.EXCLUSIVE_SWAP
"""Bits of entries that are not present."""

_OFFSET_SHIFT: Final = 14
_OFFSET_MASK: Final = (1 << 43) - 1
_TYPE_SHIFT: Final = 57


class SwapType(IntEnum):
    """What an entry that is not present stands for (`include/linux/swap.h`)."""

    SWAP = 1
    """A slot of the swap device; the offset is the slot."""
    MIGRATION = 2
    """The offset is the frame."""
    HWPOISON = 3
    """The offset is the frame."""
    MARKER = 4
    """The offset is a `Marker`."""


class Marker(IntEnum):
    """PTE markers (`include/linux/swapops.h:PTE_MARKER_...`)."""

    UFFD_WP = 1
    POISONED = 2
    GUARD = 4
    SWAPIN_ERROR = 8
    """No marker, but a kind of entry of its own (SWP_SWAPIN_ERROR, until 6.1)."""


def marker(which: Marker) -> int:
    """make_pte_marker()."""
    return not_present(SwapType.MARKER, which)


def present(pfn: int, bits: int) -> int:
    """A present entry with USER set."""
    return pfn << PFN_SHIFT | PRESENT | USER | bits


def is_present(entry: int) -> bool:
    """pte_present(): also where PROT_NONE hides it from the processor."""
    return entry & (PRESENT | PROTNONE) != 0


def pfn_of(entry: int) -> int:
    """The frame of a present entry."""
    return (entry & PFN_MASK) >> PFN_SHIFT


def not_present(kind: SwapType, offset: int, bits: int = 0) -> int:
    """An entry that is not empty and not present."""
    return int(kind) << _TYPE_SHIFT | offset << _OFFSET_SHIFT | bits


def swap_type(entry: int) -> SwapType:
    """What an entry that is not present stands for."""
    return SwapType(entry >> _TYPE_SHIFT)


def swap_offset(entry: int) -> int:
    """Its offset: a slot, a frame or a marker."""
    return entry >> _OFFSET_SHIFT & _OFFSET_MASK


def move_offset(entry: int, by: int) -> int:
    """pte_move_swp_offset(): the same entry for a slot so many further."""
    return entry + (by << _OFFSET_SHIFT)
