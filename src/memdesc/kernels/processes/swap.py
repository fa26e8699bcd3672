"""How kernel releases differ in swap: slots, and how pages come back."""

from __future__ import annotations

from memdesc.kernels.processes.rule import ReleaseRules, rule

__all__ = ["SwapRules"]


class SwapRules(ReleaseRules):
    """Swap: slots, and how pages come back."""

    @rule
    def swap_begins_behind_header(self) -> bool:
        """The first slots that are given out share a cluster with the header of the device:
        `mm/swapfile.c:cluster_alloc_swap_entry`, since 6.13 or so; before, an untouched one is
        taken."""
        return self.version >= (6, 13)

    @rule
    def knows_pages_of_zeroes(self) -> bool:
        """A folio of nothing but zeroes is not written to its slots, only noted: `mm/page_io.c:
        swap_zeromap_folio_set`, since 6.12."""
        return self.version >= (6, 12)

    @rule
    def swaps_large_folios_by_entries(self) -> bool:
        """A large folio that entries map, all of it, is swapped out as a whole: `mm/vmscan.c:
        shrink_folio_list`, since 6.10; before only one that a PMD maps."""
        return self.version >= (6, 10)

    @rule
    def swaps_in_large_folios(self) -> bool:
        """Slots of fast swap that follow one another are read as one large folio, if its size is
        enabled: `mm/memory.c:alloc_swap_folio`, since 6.12."""
        return self.version >= (6, 12)

    @rule
    def swapin_skips_cache(self) -> bool:
        """A slot of fast swap that one entry names is read past the swap cache: `mm/memory.c:
        do_swap_page`, until the swap table of 7.0. With that, every page comes through the cache,
        and one from fast swap leaves it after it was mapped, if no entry names its slot
        (`should_try_to_free_swap @7.2`)."""
        return self.version < (7, 0)

    @rule
    def failed_swap_marks_pages(self) -> bool:
        """A page that swap did not take, or did not give, has PG_error: `mm/page_io.c:
        end_swap_bio_write, end_swap_bio_read @6.1`, until 6.6 or so."""
        return self.version < (6, 10)

    @rule
    def failed_swapin_leaves_marker(self) -> bool:
        """What swapoff cannot read becomes a marker, as after UFFDIO_POISON (SIGBUS MCEERR_AR):
        `mm/swapfile.c:unuse_pte`, since 6.2; before, an entry of its own kind (SIGBUS ADRERR)."""
        return self.version >= (6, 2)

    @rule
    def swapin_maps_writable(self) -> bool:
        """An exclusive page is mapped writable by a read fault too: `do_swap_page`, since 6.11."""
        return self.version >= (6, 11)

    @rule
    def swapin_leaves_unlocked(self) -> bool:
        """A page that is read from swap into a locked area is not mlocked, until reclaim comes
        across it: `mm/memory.c:do_swap_page` calls folio_add_new_anon_rmap, since 6.11."""
        return self.version >= (6, 11)
