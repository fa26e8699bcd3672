"""How the kernel adds up /proc/PID/smaps: what our sums by process are compared with.

Rss counts each present entry whose page `vm_normal_page` returns: not the zero page, nor
the huge zero page, nor VM_PFNMAP areas and special entries.  hugetlb is left out and has
its own two fields.  Migration and device-private entries count as well, although pagemap
shows no frame for them.

Pss divides each page by its map count, which counts every process of the machine, also
those that a reader may not open.  The quotient is rounded down per page in fixed point
with `PSS_SHIFT` fraction bits; the sum is rounded down to kB.

"Private" means a map count of 1 (and, since 6.1, a reference count of 1 counts as
private without looking at map counts).  With CONFIG_NO_PAGE_MAPCOUNT (since 6.15) the
count of a large folio is an average, so Pss is an estimate there.

Sources: `fs/proc/task_mmu.c:smaps_account`, `smaps_pte_entry`, `smaps_pmd_entry`,
`smaps_hugetlb_range`, `__show_smap` @6.1, @6.12, @7.2.
"""

from __future__ import annotations

from typing import Final

__all__ = ["PSS_SHIFT"]

PSS_SHIFT: Final = 12
"""Fraction bits of a page's proportional share."""
