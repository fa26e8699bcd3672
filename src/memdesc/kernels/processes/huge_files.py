"""How kernel releases differ in large folios of files, in memory and on disk."""

from __future__ import annotations

from memdesc.kernels.processes.rule import ReleaseRules, rule

__all__ = ["HugeFileRules"]


class HugeFileRules(ReleaseRules):
    """Large folios of files, in memory and on disk."""

    @rule
    def ext4_large_folios(self) -> bool:
        """Regular files of ext4 have large folios: `fs/ext4/inode.c:ext4_set_inode_mapping_order`,
        since 6.16."""
        return self.version >= (6, 16)

    @rule
    def large_folios_of_two(self) -> bool:
        """Folios of two pages in the page cache: `mm/readahead.c:page_cache_ra_order`, since
        6.10."""
        return self.version >= (6, 10)

    @rule
    def readahead_starts_large(self) -> bool:
        """A file's readahead begins with folios of 4 pages: `mm/readahead.c:page_cache_ra_order`,
        until 6.15 or so; since then with single pages, and they grow when the reader comes after
        them."""
        return self.version < (6, 16)

    @rule
    def writes_take_large_folios(self) -> bool:
        """write(2) to a file that may have large folios takes one as large as it can:
        `mm/filemap.c:__filemap_get_folio` with `fgf_set_order`, since 6.6."""
        return self.version >= (6, 6)

    @rule
    def faults_map_whole_folios(self) -> bool:
        """A fault maps all pages of a large folio of a file: `mm/memory.c:finish_fault @7.2`; @6.12
        only of anonymous shared memory."""
        return self.version >= (7, 2)

    @rule
    def faults_map_whole_shmem(self) -> bool:
        """A fault maps all pages of a large folio of a memfd or of shared anonymous memory:
        `mm/memory.c:finish_fault @6.12`, since 6.11."""
        return self.version >= (6, 11)

    @rule
    def shmem_sizes(self) -> bool:
        """Settings per size for shared memory (`hugepages-64kB/shmem_enabled`), and a large folio
        of a file in memory must lie in the area that faults:
        `mm/shmem.c:shmem_allowable_huge_orders, shmem_suitable_orders`, since 6.11; before, there
        are huge pages only, wherever the area is."""
        return self.version >= (6, 11)

    @rule
    def shmem_size_counts_write(self) -> bool:
        """`within_size` looks at where a write will end too:
        `mm/shmem.c:shmem_huge_global_enabled`, since 6.12."""
        return self.version >= (6, 12)

    @rule
    def tmpfs_takes_all_sizes(self) -> bool:
        """tmpfs with huge= makes the largest folio that fits, not only huge pages: since 6.14."""
        return self.version >= (6, 14)

    @rule
    def no_file_pmd_where_disabled(self) -> bool:
        """MADV_NOHUGEPAGE and PR_SET_THP_DISABLE also forbid to map a file's huge page by a PMD:
        `mm/memory.c:do_set_pmd`, since 6.12."""
        return self.version >= (6, 12)

    @rule
    def pmd_of_file_is_locked(self) -> bool:
        """A file's huge page that a PMD maps into a locked area is mlocked: `mm/rmap.c:
        page_add_file_rmap @6.1, __folio_add_file_rmap @7.2`; not @6.12, where large folios are left
        to reclaim."""
        return self.version < (6, 8) or self.version >= (6, 18)

    @rule
    def whole_file_folio_is_locked(self) -> bool:
        """A large folio of a file that one fault maps as a whole into a locked area is mlocked:
        `mm/rmap.c:__folio_add_file_rmap @7.2`, since 6.18."""
        return self.version >= (6, 18)

    @rule
    def pmd_zap_marks_accessed(self) -> bool:
        """Unmapping a file's huge page that was used marks it accessed, as small pages always were:
        `mm/huge_memory.c:zap_huge_pmd_folio @7.2`."""
        return self.version >= (6, 15)

    @rule
    def splits_at_the_cut(self) -> bool:
        """A truncation splits a large folio only around the cut: `mm/truncate.c:
        truncate_inode_partial_folio` calls folio_split, since 6.15; before, into single pages."""
        return self.version >= (6, 15)

    @rule
    def splits_shmem_to_order(self) -> bool:
        """Folios of files in memory may be split into large pieces: `mm/huge_memory.c:
        split_huge_page_to_list_to_order` refuses it @6.12."""
        return self.version >= (6, 15)

    @rule
    def shmem_swaps_whole(self) -> bool:
        """A large folio of shared memory is swapped out as a whole: `mm/shmem.c:shmem_writepage`,
        since 6.12; before, reclaim splits it."""
        return self.version >= (6, 12)

    @rule
    def shmem_swaps_in_whole(self) -> bool:
        """It comes back from fast swap as a whole: `mm/shmem.c:shmem_swap_alloc_folio`, since
        6.14."""
        return self.version >= (6, 14)

    @rule
    def collapses_large_folios_of_files(self) -> bool:
        """A collapse of a file takes large folios too: `mm/khugepaged.c:collapse_file`, since
        6.11."""
        return self.version >= (6, 11)

    @rule
    def collapse_drains_swapins(self) -> bool:
        """A collapse of a file empties the CPU's batch after it read a page from swap, without
        which the page is on no list: `mm/khugepaged.c:collapse_file`, since 6.3."""
        return self.version >= (6, 3)

    @rule
    def collapse_retracts_all(self) -> bool:
        """MADV_COLLAPSE of a file takes the tables of every process away, and maps the huge page
        where no table was: `mm/khugepaged.c:retract_page_tables, collapse_pte_mapped_thp`, since
        6.6; before, others' tables are left to khugepaged, and without a table of its own the call
        fails."""
        return self.version >= (6, 6)

    @rule
    def collapse_allocates_pmd_table(self) -> bool:
        """It also maps the huge page where not even a PMD table was:
        `mm/khugepaged.c:set_huge_pmd`, since 6.17 or so."""
        return self.version >= (6, 17)

    @rule
    def collapses_files_on_disk(self) -> bool:
        """Files whose file system has large folios can be collapsed:
        `mm/huge_memory.c:file_thp_enabled @7.2`; before, only with CONFIG_READ_ONLY_THP_FOR_FS,
        which Debian does not set."""
        return self.version >= (7, 0)
