"""How kernel releases differ in batches, LRU lists, mlock, and lost pages."""

from __future__ import annotations

from memdesc.kernels.processes.rule import ReleaseRules, rule

__all__ = ["ListRules"]


class ListRules(ReleaseRules):
    """Batches, LRU lists, mlock, and lost pages."""

    @rule
    def lru_batch(self) -> int:
        """Folios of a per-CPU batch: `include/linux/pagevec.h:PAGEVEC_SIZE` (`PAGEVEC_SIZE` 15
        @6.1, 31 since 6.9)."""
        return 31 if self.version >= (6, 9) else 15

    @rule
    def unmap_drains(self) -> bool:
        """munmap, exit and MADV_DONTNEED empty the CPU's batches: `mm/mmap.c:unmap_region`,
        `mm/madvise.c` and `mm/swap_state.c:free_pages_and_swap_cache`, until 6.18 or so."""
        return self.version < (7, 0)

    @rule
    def lru_gen_marks(self) -> int:
        """What the multi-generational LRU does to REFERENCED: 1 nothing (6.1); 2: a folio loses it
        on its list (`include/linux/mm_inline.h:lru_gen_add_folio @6.12`); 3: a folio that a fault
        brings has it (`mm/swap.c:folio_add_lru @7.2`). The values of `mm.frames.C_LRU_GEN`."""
        return 1 if self.version < (6, 2) else 2 if self.version < (6, 14) else 3

    @rule
    def mlock_of_mapped_large(self) -> bool:
        """Large folios that are mapped by entries are locked, if they lie inside the area:
        `mm/mlock.c:allow_mlock_munlock`, since 6.7; before, `mlock_pte_range` leaves them out."""
        return self.version >= (6, 7)

    @rule
    def held_lazyfree_is_kept(self) -> bool:
        """A page that MADV_FREE gave up and somebody holds counts as written when reclaim finds it:
        `mm/rmap.c:try_to_unmap_one`, until 6.14."""
        return self.version < (6, 15)

    @rule
    def injected_error_is_urgent(self) -> bool:
        """MADV_HWPOISON passes MF_ACTION_REQUIRED, so the caller gets SIGBUS in the call:
        `mm/madvise.c:madvise_inject_error @6.12`; not @6.1."""
        return self.version >= (6, 2)
