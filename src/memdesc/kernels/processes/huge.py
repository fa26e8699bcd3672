"""How kernel releases differ in large folios of anonymous memory: fault, reuse, split, collapse."""

from __future__ import annotations

from memdesc.kernels.processes.rule import ReleaseRules, rule

__all__ = ["HugeRules"]


class HugeRules(ReleaseRules):
    """Large folios of anonymous memory: fault, reuse, split, collapse."""

    @rule
    def copies_last_of_large(self) -> bool:
        """A write to the only page that still maps a large folio copies: `mm/memory.c:
        wp_can_reuse_anon_folio @7.2`; @6.12 large folios always copy; @6.1 one reference is
        enough."""
        return self.version >= (6, 15)

    @rule
    def large_folio_reuse(self) -> bool:
        """Large folios that are not shared are taken over: `__wp_can_reuse_large_anon_folio
        @7.2`."""
        return self.version >= (6, 15)

    @rule
    def small_folios_only_reuse(self) -> bool:
        """`mm/memory.c:wp_can_reuse_anon_folio @6.12`: folio_test_large is refused."""
        return (6, 9) <= self.version < (6, 15)

    @rule
    def huge_zero_becomes_huge(self) -> bool:
        """A write to the huge zero page gets a huge page: `mm/huge_memory.c:do_huge_zero_wp_pmd`,
        since 6.13; before, the PMD is split and one small page is copied."""
        return self.version >= (6, 13)

    @rule
    def large_anon_folios(self) -> bool:
        """Faults can take folios below PMD size: `mm/memory.c:alloc_anon_folio`, since 6.8."""
        return self.version >= (6, 8)

    @rule
    def knows_who_maps_large(self) -> bool:
        """CONFIG_MM_ID: a large folio knows whether two processes map it:
        `include/linux/mm.h:folio_maybe_mapped_shared`, since 6.15."""
        return self.version >= (6, 15)

    @rule
    def madvise_keeps_whole_folios(self) -> bool:
        """MADV_FREE and MADV_COLD of all of a large folio leave it whole where it is mapped by
        entries: `mm/madvise.c:madvise_folio_pte_batch`, since 6.10."""
        return self.version >= (6, 10)

    @rule
    def splits_at_a_page(self) -> bool:
        """debugfs split_huge_pages can split around one page of a folio (`in_folio_offset`), and
        leave the rest as large as it may be: `mm/huge_memory.c:folio_split`, since 6.15."""
        return self.version >= (6, 15)

    @rule
    def split_pieces_last_first(self) -> bool:
        """Reclaim that split a folio goes on with its last piece: each is added to the tail of the
        list that it takes from (`mm/huge_memory.c:__split_unmapped_folio`), since 6.15; before,
        they are added from the last to the second (`__split_huge_page @6.12`)."""
        return self.version >= (6, 15)

    @rule
    def split_drops_zero_pages(self) -> bool:
        """A page of zeroes becomes the shared zero page when its folio is split, and folios of
        which little is used are split under pressure: `mm/migrate.c:try_to_map_unused_to_zeropage`,
        `mm/huge_memory.c:thp_underused`, since 6.12."""
        return self.version >= (6, 12)

    @rule
    def collapse_wants_writable(self) -> bool:
        """A collapse fails where no entry is writable: `mm/khugepaged.c:hpage_collapse_scan_pmd`,
        until 6.18 or so."""
        return self.version < (6, 18)

    @rule
    def collapse_of_holes_is_busy(self) -> bool:
        """MADV_COLLAPSE where userfaultfd wants to fill empty entries is EBUSY:
        `mm/khugepaged.c:madvise_collapse_errno @6.12`; EINVAL @6.1."""
        return self.version >= (6, 12)

    @rule
    def collapses_to_any_size(self) -> bool:
        """khugepaged makes folios of the smaller sizes that are enabled: `mm/khugepaged.c:
        mthp_collapse @7.2`."""
        return self.version >= (7, 2)
