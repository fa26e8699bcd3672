"""mincore(2): which pages are mapped, or in the page cache (`mm/mincore.c @6.12`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memdesc.mm import entries as e
from memdesc.mm.areas.vma import Vma
from memdesc.mm.files.filemap import is_cached
from memdesc.mm.files.inode import may_write
from memdesc.mm.process import Errno, Mm
from memdesc.mm.reclaim.swap_state import in_swap_cache

if TYPE_CHECKING:
    from memdesc.mm.kernel import Kernel

__all__ = ["mincore"]


def mincore(kernel: Kernel, mm: Mm, vpn_start: int, vpn_end: int) -> list[int]:
    """1 or 0 per page. Raises Errno where nothing is mapped.

    Of files that the process may not write it learns nothing (can_do_mincore): always 1.
    """
    found = []
    for vpn in range(vpn_start, vpn_end):
        vma = mm.vmas.find(vpn)
        if vma is None:
            raise Errno("ENOMEM")
        hidden = vma.file is not None and not may_write(mm, vma.file.mapping)
        found.append(int(hidden or _is_in_core(kernel, mm, vma, vpn)))
    return found


# --- helpers -----------------------------------------------------------------------------


def _is_in_core(kernel: Kernel, mm: Mm, vma: Vma, vpn: int) -> bool:
    """mincore_pte_range() of one page."""
    entry = mm.tables.entry(vpn)
    if e.is_present(entry):
        return True
    if entry == e.NONE_ENTRY or e.swap_type(entry) is e.SwapType.MARKER:
        if vma.file is None:
            return False
        return is_cached(kernel, vma.file, vma.index_of(vpn))
    if e.swap_type(entry) is e.SwapType.SWAP:
        return in_swap_cache(kernel, entry)
    return True  # on its way to another frame, or lost
