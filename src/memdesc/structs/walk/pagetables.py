"""x86-64 page tables: from a kernel address to its frame.

Tables are read through the direct map, all that are needed on one level together.  Four or
five levels, huge leaves of 2 MiB and 1 GiB (`arch/x86/include/asm/pgtable_types.h`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memdesc.errors import FaultError
from memdesc.structs.kernel import Kernel
from memdesc.structs.memmap import MemMap
from memdesc.structs.walk.view import View

__all__ = ["PageTables", "frame_mask", "kernel_tables", "level_count", "translate"]

PRESENT = 1 << 0
LARGE = 1 << 7
"""_PAGE_PSE of an upper level; the PAT bit of a lowest one."""
FRAME_BITS = ((1 << 52) - 1) & ~0xFFF
_FIVE_LEVEL_PAGE_OFFSET_END = 0xFFFF800000000000
"""With five levels the direct map lies below where the upper half of four levels begins."""


@dataclass(frozen=True)
class PageTables:
    """How this kernel's tables are laid out, and where its own root is."""

    root: int
    """Kernel virtual address of the kernel's top table."""
    nr_levels: int
    frame_mask: int
    """Bits of an entry that hold the frame's address: without those of memory encryption."""


def kernel_tables(view: View) -> PageTables:
    """The kernel's own tables (`init_mm.pgd`). Raises LayoutError where no symbol says where
    they are."""
    return PageTables(_root(view), level_count(view.memmap), frame_mask(view.kernel))


def level_count(memmap: MemMap) -> int:
    """Levels of all page tables of this kernel: 4, or 5 with LA57."""
    return 5 if memmap.direct_map_address(0) < _FIVE_LEVEL_PAGE_OFFSET_END else 4


def frame_mask(kernel: Kernel) -> int:
    """The bits of an entry that hold a frame's address: without those of memory encryption
    (`arch/x86/include/asm/page_types.h:__PHYSICAL_MASK`, the variable physical_mask)."""
    address = kernel.symbols.address_of("physical_mask")
    if address is None:
        return FRAME_BITS
    try:
        return kernel.u64(address) & FRAME_BITS or FRAME_BITS
    except FaultError:
        return FRAME_BITS


def _root(view: View) -> int:
    """The kernel's top table; where no symbol leads to it, that of process 1, whose upper
    half is the same (`arch/x86/mm/pgtable.c:pgd_ctor`)."""
    for name in ("init_top_pgt", "swapper_pg_dir"):
        symbol = view.find_symbol(name)
        if symbol is not None:
            return symbol
    namespace = view.kernel.load("pid_namespace", view.symbol("init_pid_ns"))
    init = view.kernel.load("task_struct", namespace["child_reaper"])
    return view.kernel.load("mm_struct", init["mm"])["pgd"]


def translate(kernel: Kernel, memmap: MemMap, addresses: NDArray[np.uint64]) -> NDArray[np.int64]:
    """The frame that each kernel virtual address (uint64[n]) is mapped to; -1 where none is.

    Raises LayoutError where the kernel's page tables cannot be found.
    """
    view = View.of(kernel, memmap)
    return frames_at(view, kernel_tables(view), addresses)


def frames_at(view: View, tables: PageTables, addresses: NDArray[np.uint64]) -> NDArray[np.int64]:
    """As `translate`, with tables that are already known."""
    pfns = np.full(addresses.size, -1, np.int64)
    left = np.arange(addresses.size)
    table = np.full(addresses.size, tables.root, np.uint64)
    base = np.uint64(view.memmap.direct_map_address(0))
    mask = np.uint64(tables.frame_mask)
    for level in range(tables.nr_levels, 0, -1):
        shift = np.uint64(12 + 9 * (level - 1))
        slot = addresses[left] >> shift & np.uint64(511)
        entries, readable = view.words(table + slot * np.uint64(8))
        present = readable & (entries & np.uint64(PRESENT) != 0)
        is_leaf = present & ((entries & np.uint64(LARGE) != 0) if 1 < level < 4 else level == 1)
        # Within a huge leaf the low bits of the address count on.
        within = (np.uint64(1) << shift) - np.uint64(1)
        target = (entries & mask & ~within) | (addresses[left] & within)
        pfns[left[is_leaf]] = (target[is_leaf] >> np.uint64(12)).astype(np.int64)
        deeper = present & ~is_leaf
        left = left[deeper]
        table = base + (entries[deeper] & mask)
    return pfns
