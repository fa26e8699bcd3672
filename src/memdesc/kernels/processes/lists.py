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
    def migration_drains(self) -> bool:
        """A mapped folio that moved to another frame is put on its list at once:
        `mm/migrate.c:__unmap_and_move @6.1`; since 6.7 only one that was locked in memory
        (`mm/migrate.c:migrate_folio_move`, PAGE_WAS_MLOCKED)."""
        return self.version < (6, 7)

    @rule
    def lru_gen_marks(self) -> int:
        """How the multi-generational LRU marks a folio that a fault brings: 1: ACTIVE, until it is
        on its list (6.1); 2: so as well, and there it loses REFERENCED
        (`include/linux/mm_inline.h:lru_gen_add_folio @6.12`); 3: REFERENCED, which it keeps
        (`mm/swap.c:folio_add_lru @7.2`). The values of `mm.frames.C_LRU_GEN`."""
        return 1 if self.version < (6, 2) else 2 if self.version < (6, 14) else 3

    @rule
    def only_sequential_has_no_recency(self) -> bool:
        """Accessed bits count unless MADV_SEQUENTIAL: `mm/memory.c:zap_pte_range,
        mm/rmap.c:folio_referenced_one @6.1`. Since 6.3 nor do they with MADV_RANDOM
        (`include/linux/mm_inline.h:vma_has_recency`)."""
        return self.version < (6, 3)

    @rule
    def fadvise_noreuse(self) -> bool:
        """POSIX_FADV_NOREUSE says that accessed bits of a file's mappings do not count:
        `mm/fadvise.c:generic_fadvise`, FMODE_NOREUSE, since 6.3; before, it does nothing."""
        return self.version >= (6, 3)

    @rule
    def lru_gen_activates_refaults(self) -> bool:
        """The multi-generational LRU counts pages that come back as workingset_activate:
        `mm/workingset.c:lru_gen_refault @6.12`; not @6.1, and @7.2 only what had been a workingset
        page."""
        return (6, 3) <= self.version < (6, 14)

    @rule
    def lru_gen_restores_faults(self) -> bool:
        """It counts those that a fault brings back as workingset_restore:
        `mm/workingset.c:lru_gen_refault @6.1, @6.12`; not @7.2."""
        return self.version < (6, 14)

    @rule
    def advice_remembers_active(self) -> bool:
        """MADV_COLD and MADV_PAGEOUT note that a page was active (PG_workingset):
        `mm/madvise.c:madvise_cold_or_pageout_pte_range @6.12`; not @6.1."""
        return self.version >= (6, 2)

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
