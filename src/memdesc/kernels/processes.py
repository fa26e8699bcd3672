"""How the memory of processes differs between kernel releases: faults, fork, batches, calls.

Sources: `mm/` of 6.1.192, 6.12.117 (Debian's build, with what was ported back) and 7.2.13; these
three are what the rules were held against (`scenarios/`).  A rule that differs between two of them
changed somewhere between: the release that `process_rules` compares with is the one in which the
kernel's history is believed to have it, and nobody has tried that on the releases in between.

>>> process_rules(KernelRelease.parse("6.12.117")).lru_batch
31
>>> process_rules(KernelRelease.parse("6.1.192")).guard_regions
False
"""

from __future__ import annotations

from dataclasses import dataclass

from memdesc.kernels.release import KernelRelease, behaviour_of

__all__ = ["ProcessRules", "is_modelled", "process_rules"]


@dataclass(frozen=True, slots=True)
class ProcessRules:
    """One kernel's handling of processes' memory."""

    release: KernelRelease

    lru_batch: int
    """Folios of a per-CPU batch: `include/linux/pagevec.h:PAGEVEC_SIZE` (`PAGEVEC_SIZE` 15 @6.1,
    31 since 6.9)."""

    unmap_drains: bool
    """munmap, exit and MADV_DONTNEED empty the CPU's batches: `mm/mmap.c:unmap_region`,
    `mm/madvise.c` and `mm/swap_state.c:free_pages_and_swap_cache`, until 6.18 or so."""

    tails_have_own_flags: bool
    """/proc/kpageflags reads a tail's own flag word: `fs/proc/page.c:stable_page_flags @6.1`."""

    ksm_shown_for_all_anon: bool
    """The test of `fs/proc/page.c:stable_page_flags @6.12` also passes for any anonymous page."""

    copies_last_of_large: bool
    """A write to the only page that still maps a large folio copies: `mm/memory.c:
    wp_can_reuse_anon_folio @7.2`; @6.12 large folios always copy; @6.1 one reference is enough."""

    large_folio_reuse: bool
    """Large folios that are not shared are taken over: `__wp_can_reuse_large_anon_folio @7.2`."""

    small_folios_only_reuse: bool
    """`mm/memory.c:wp_can_reuse_anon_folio @6.12`: folio_test_large is refused."""

    huge_zero_becomes_huge: bool
    """A write to the huge zero page gets a huge page: `mm/huge_memory.c:do_huge_zero_wp_pmd`, since
    6.13; before, the PMD is split and one small page is copied."""

    large_anon_folios: bool
    """Faults can take folios below PMD size: `mm/memory.c:alloc_anon_folio`, since 6.8."""

    counts_large_folios: bool
    """Counters per size of large folios (`hugepages-64kB/stats`): since 6.10."""

    counts_large_swapin: bool
    """The counter `swpin` per size: since 6.13."""

    collapses_to_any_size: bool
    """khugepaged makes folios of the smaller sizes that are enabled: `mm/khugepaged.c:
    mthp_collapse @7.2`."""

    splits_at_a_page: bool
    """debugfs split_huge_pages can split around one page of a folio (`in_folio_offset`), and leave
    the rest as large as it may be: `mm/huge_memory.c:folio_split`, since 6.15."""

    swaps_in_large_folios: bool
    """Slots of fast swap that follow one another are read as one large folio, if its size is
    enabled: `mm/memory.c:alloc_swap_folio`, since 6.12."""

    knows_pages_of_zeroes: bool
    """A folio of nothing but zeroes is not written to its slots, only noted: `mm/page_io.c:
    swap_zeromap_folio_set`, since 6.12."""

    swap_begins_behind_header: bool
    """The first slots that are given out share a cluster with the header of the device:
    `mm/swapfile.c:cluster_alloc_swap_entry`, since 6.13 or so; before, an untouched one is taken.
    """

    knows_who_maps_large: bool
    """CONFIG_MM_ID: a large folio knows whether two processes map it:
    `include/linux/mm.h:folio_maybe_mapped_shared`, since 6.15."""

    madvise_keeps_whole_folios: bool
    """MADV_FREE and MADV_COLD of all of a large folio leave it whole where it is mapped by entries:
    `mm/madvise.c:madvise_folio_pte_batch`, since 6.10."""

    pagemap_asks_each_page: bool
    """pagemap's bit 56 of a page that a PMD maps is its own, not that of the PMD's first page:
    `fs/proc/task_mmu.c:pagemap_pmd_range @6.12`; @6.1 and @7.2 it is the first page's."""

    split_drops_zero_pages: bool
    """A page of zeroes becomes the shared zero page when its folio is split, and folios of which
    little is used are split under pressure: `mm/migrate.c:try_to_map_unused_to_zeropage`,
    `mm/huge_memory.c:thp_underused`, since 6.12."""

    collapse_wants_writable: bool
    """A collapse fails where no entry is writable: `mm/khugepaged.c:hpage_collapse_scan_pmd`, until
    6.18 or so."""

    collapse_of_holes_is_busy: bool
    """MADV_COLLAPSE where userfaultfd wants to fill empty entries is EBUSY:
    `mm/khugepaged.c:madvise_collapse_errno @6.12`; EINVAL @6.1."""

    frees_empty_tables: bool
    """CONFIG_PT_RECLAIM: MADV_DONTNEED of whole 2 MiB frees the table. `mm/pt_reclaim.c @7.2`."""

    guard_regions: bool
    """MADV_GUARD_INSTALL and MADV_GUARD_REMOVE: since 6.13."""

    mprotect_wants_dirty: bool
    """A private entry becomes writable at once only if it is dirty:
    `mm/mprotect.c:can_change_pte_writable @6.1`."""

    unshares_cache_pages: bool
    """Long-term read pins copy page-cache pages of private mappings first: `gup_must_unshare`,
    since 6.2."""

    refuses_longterm_file_writes: bool
    """Long-term pins for writing on shared mappings of file systems that track writes are EFAULT:
    `mm/gup.c:writable_file_mapping_allowed`, since 6.5; before, io_uring itself refuses every file
    that is not in memory only."""

    forced_hugetlb_writes: bool
    """FOLL_FORCE may write to private hugetlb memory: `mm/gup.c:check_vma_flags @7.2`."""

    direct_io_pins: bool
    """O_DIRECT takes FOLL_PIN: `lib/iov_iter.c:iov_iter_extract_pages`, since 6.4; before,
    FOLL_GET."""

    tmpfs_takes_direct: bool
    """Files of tmpfs may be opened with O_DIRECT: `mm/shmem.c:shmem_file_open`, since 6.6."""

    fixed_buffers_pinned_fast: bool
    """io_uring pins by pin_user_pages_fast: `io_uring/memmap.c:io_pin_pages`, since 6.5."""

    fixed_buffer_pins_per_only_folio: bool
    """Of a fixed buffer that lies in one large folio a single pin stays:
    `io_uring/rsrc.c:io_sqe_buffer_register`, since 6.4."""

    fixed_buffer_pins_per_folio: bool
    """Of each large folio of a fixed buffer a single pin stays: `io_uring/rsrc.c:
    io_coalesce_buffer`, since 6.12."""

    sticky_soft_dirty: bool
    """VM_SOFTDIRTY survives merges: `mm/vma.c:VM_STICKY @7.2`."""

    merges_unfaulted_neighbours: bool
    """A range without anon_vma absorbs a faulted one, and the other way round:
    `mm/vma.c:is_mergeable_anon_vma @7.2`."""

    hugetlb_cache_counts_pages: bool
    """The page cache holds a reference per 4 KiB of a hugetlb page: `mm/filemap.c:
    __filemap_add_folio`, since 6.7; one per huge page before."""

    hugetlb_restores_reserve: bool
    """A private page that its owner unmaps is reserved again: `mm/hugetlb.c:
    __unmap_hugepage_range`, since 6.8."""

    hugetlb_child_stays_protected: bool
    """Entries of a child keep the protection of its parent's userfaultfd, which nobody can end, so
    that writes fault for ever: `mm/hugetlb.c:copy_hugetlb_page_range @6.1`, until 6.4."""

    hugetlb_copy_says_exists: bool
    """UFFDIO_COPY is EEXIST where the pool has nothing left, as the entry's table exists; ENOMEM
    before: `mm/hugetlb.c:hugetlb_mfill_atomic_pte @7.2`."""

    hugetlb_reads_around_lost: bool
    """read(2) of a file of huge pages fails only at the 4 KiB that were lost:
    `fs/hugetlbfs/inode.c:adjust_range_hwpoison`, since 6.6; before, for the whole huge page."""

    smaps_shows_protnone_huge: bool
    """smaps counts huge pages behind PROT_NONE: `mm/huge_memory.c:follow_trans_huge_pmd @6.1` does
    not find them."""

    smaps_shows_ksm: bool
    """smaps has a line KSM: since 6.6."""

    device_private: bool
    """CONFIG_DEVICE_PRIVATE in Debian's build: it moves the numbers of swap types."""

    smaps_shares_lost_pages: bool
    """smaps counts a poisoned entry as shared, since it looks at the map count of entries that are
    present only: `fs/proc/task_mmu.c:smaps_account @6.12`; as private @6.1."""

    smaps_names_lock_on_fault: bool
    """VmFlags of smaps has "lf" for VM_LOCKONFAULT; 6.1 writes "??" for a flag without a name
    (`fs/proc/task_mmu.c:show_smap_vma_flags`)."""

    lru_gen_marks: int
    """What the multi-generational LRU does to REFERENCED: 1 nothing (6.1); 2: a folio loses it on
    its list (`include/linux/mm_inline.h:lru_gen_add_folio @6.12`); 3: a folio that a fault brings
    has it (`mm/swap.c:folio_add_lru @7.2`). The values of `mm.frames.C_LRU_GEN`."""

    injected_error_is_urgent: bool
    """MADV_HWPOISON passes MF_ACTION_REQUIRED, so the caller gets SIGBUS in the call:
    `mm/madvise.c:madvise_inject_error @6.12`; not @6.1."""

    mlock_of_mapped_large: bool
    """Large folios that are mapped by entries are locked, if they lie inside the area:
    `mm/mlock.c:allow_mlock_munlock`, since 6.7; before, `mlock_pte_range` leaves them out."""

    memory_merge: bool
    """PR_SET_MEMORY_MERGE: since 6.4."""

    close_forbids_merge: bool
    """A neighbour with a `close` operation never merges: `mm/mmap.c:is_mergeable_vma @6.1`."""

    droppable: bool
    """MAP_DROPPABLE: since 6.11."""

    anon_vma_names: bool
    """CONFIG_ANON_VMA_NAME: PR_SET_VMA_ANON_NAME. Debian's builds do not have it."""

    mmap_prefers_next: bool
    """A new mapping first joins the area behind it, and the one before only if the anon_vmas of
    both agree: `mm/mmap.c:mmap_region`, until 6.11."""

    names_shared_memory: bool
    """PR_SET_VMA_ANON_NAME takes shared anonymous memory too: since 6.2."""

    mprotect_unaccounts: bool
    """A private area that no page was ever written in gives its reservation back when it becomes
    read-only: `mm/mprotect.c:mprotect_fixup`, since 6.6."""

    mremap_several_areas: bool
    """A pure move takes all areas of a range, and nothing is unmapped at the new place before the
    arguments were checked: `mm/mremap.c:remap_move`, since 6.17."""

    mremap_realigns: bool
    """A move that begins behind a table's first page may take the table whole:
    `mm/mremap.c:try_realign_addr`, since 6.7."""

    uffd_wp_async: bool
    """UFFD_FEATURE_WP_ASYNC, and with it markers for empty entries of anonymous memory
    (UFFD_FEATURE_WP_UNPOPULATED): since 6.7."""

    uffd_poison: bool
    """UFFDIO_POISON: since 6.6."""

    uffd_wp_several_areas: bool
    """UFFDIO_WRITEPROTECT may cross areas: `mm/userfaultfd.c:mwriteprotect_range`, since 6.4."""

    uffd_unprotect_asks: bool
    """UFFDIO_WRITEPROTECT makes entries writable only where no fault would do more:
    `mm/userfaultfd.c:uffd_wp_range`, since 6.2; @6.1 as the area's protection has it."""

    uffd_continue_protects: bool
    """UFFDIO_CONTINUE_MODE_WP: since 6.4."""

    uffd_continue_has_one_error: bool
    """UFFDIO_CONTINUE beyond the end of a file is EFAULT as in a hole, where it was EINVAL:
    `mm/userfaultfd.c:mfill_atomic_pte_continue @7.2`."""

    uffd_move: bool
    """UFFDIO_MOVE: since 6.8."""

    uffd_move_marks_swapped: bool
    """An entry of a swapped page that UFFDIO_MOVE moves becomes soft-dirty:
    `mm/userfaultfd.c:move_swap_pte`, since 6.17."""

    uffd_allocates_first: bool
    """UFFDIO_COPY beyond the end of shared memory is ENOMEM, as no folio is to be had there; EFAULT
    @6.12, where the size is asked for last (`mm/shmem.c:shmem_mfill_atomic_pte`)."""

    cachestat: bool
    """cachestat(2): since 6.5."""

    weighted_interleave: bool
    """MPOL_WEIGHTED_INTERLEAVE: since 6.9."""

    pages_out_copies_of_others_files: bool
    """MADV_PAGEOUT of a private mapping takes the process's copies, also where the file is another
    user's: `mm/madvise.c:can_do_file_pageout`, since 6.2; @6.1 can_do_pageout refuses it all."""

    process_madvise_of_own: bool
    """process_madvise(2) of one's own memory takes any advice: since 6.13."""

    process_madvise_of_own_unprivileged: bool
    """process_madvise(2) of one's own memory takes no CAP_SYS_NICE: since 6.12."""

    mseal: bool
    """mseal(2): since 6.10."""

    seals_exec: bool
    """F_SEAL_EXEC and MFD_NOEXEC_SEAL: since 6.3."""

    swapin_skips_cache: bool
    """A slot of fast swap that one entry names is read past the swap cache: `mm/memory.c:
    do_swap_page`, until the swap table of 7.0. With that, every page comes through the cache, and
    one from fast swap leaves it after it was mapped, if no entry names its slot
    (`should_try_to_free_swap @7.2`)."""

    held_lazyfree_is_kept: bool
    """A page that MADV_FREE gave up and somebody holds counts as written when reclaim finds it:
    `mm/rmap.c:try_to_unmap_one`, until 6.14."""

    swapin_leaves_unlocked: bool
    """A page that is read from swap into a locked area is not mlocked, until reclaim comes across
    it: `mm/memory.c:do_swap_page` calls folio_add_new_anon_rmap, since 6.11."""

    swaps_large_folios_by_entries: bool
    """A large folio that entries map, all of it, is swapped out as a whole: `mm/vmscan.c:
    shrink_folio_list`, since 6.10; before only one that a PMD maps."""

    swapin_maps_writable: bool
    """An exclusive page is mapped writable by a read fault too: `do_swap_page`, since 6.11."""

    ksm_checksum_first: bool
    """A page must be unchanged for a pass before the stable tree is searched:
    `mm/ksm.c:cmp_and_merge_page`, since 6.11."""

    ksm_unshares: bool
    """KSM is broken by FAULT_FLAG_UNSHARE, which leaves entries clean: `mm/ksm.c:break_ksm`,
    since 6.2; before by a write."""

    ksm_marks_zero_pages: bool
    """Entries that KSM made the zero page are dirty, counted and undone: since 6.6."""

    ksm_smart_scan: bool
    """Pages that did not merge are skipped for some passes: since 6.7."""

    fork_copies_ksm_counts: bool
    """A child begins with its parent's counts of KSM's items and merged pages: `kernel/fork.c:
    mm_init @6.1`; `include/linux/ksm.h:ksm_fork @6.12` clears them."""

    ksm_collapses_chains: bool
    """A chain with one shared page left is none any more at the next look; before, only if it is
    time to prune it: `mm/ksm.c:stable_node_dup`, since 6.11."""

    full_readahead_marks_half: bool
    """A read that is as long as its window marks the middle of it; before, the next window was
    joined to it: `mm/readahead.c:page_cache_sync_ra`, since 6.11 or so."""

    readahead_ends_aligned: bool
    """A file's readahead has folios that grow, and its windows end at their multiples:
    `mm/readahead.c:page_cache_async_ra`, since 6.16."""

    device_io_pages: int
    """`bdi->io_pages` of zram, on which scenarios have their ext4."""

    failed_writes_fill_blocks: bool
    """A block that was allocated for a write that failed counts as written, and shows what the disk
    has there: `fs/ext4/page-io.c:ext4_end_io_end`, until 6.15; since then it stays a hole."""

    failed_writes_mark_pages: bool
    """A page that could not be written has PG_error: `fs/ext4/page-io.c:ext4_finish_bio @6.1`,
    until 6.10."""

    writes_take_large_folios: bool
    """write(2) to a file that may have large folios takes one as large as it can:
    `mm/filemap.c:__filemap_get_folio` with `fgf_set_order`, since 6.6."""

    readahead_starts_large: bool
    """A file's readahead begins with folios of 4 pages: `mm/readahead.c:page_cache_ra_order`, until
    6.15 or so; since then with single pages, and they grow when the reader comes after them."""

    large_folios_of_two: bool
    """Folios of two pages in the page cache: `mm/readahead.c:page_cache_ra_order`, since 6.10."""

    iomap_tracks_blocks: bool
    """iomap knows which blocks of a folio are dirty: `iomap_dirty_folio`, since 6.6."""

    locks_areas: bool
    """A fault first tries with the lock of its area alone: `arch/x86/mm/fault.c:
    do_user_addr_fault`, since 6.4."""

    executable_reads_on: bool
    """A fault in an executable area reads from its page on, to the end of the area at most:
    `mm/filemap.c:do_sync_mmap_readahead`, since 6.16."""

    iomap_zeroing_flushes: bool
    """What is dirty where a file of xfs grows is written first: `fs/iomap/buffered-io.c:
    iomap_zero_iter_flush_and_stale @6.12`; @7.2 such folios are found and zeroed."""

    xfs_writes_new_end: bool
    """What is dirty at the new end is written before a file of xfs becomes smaller:
    `fs/xfs/xfs_iops.c:xfs_setattr_size`, until 6.11 or so."""

    ext4_large_folios: bool
    """Regular files of ext4 have large folios: `fs/ext4/inode.c:ext4_set_inode_mapping_order`,
    since 6.16."""

    faults_map_whole_folios: bool
    """A fault maps all pages of a large folio of a file: `mm/memory.c:finish_fault @7.2`; @6.12
    only of anonymous shared memory."""

    faults_map_whole_shmem: bool
    """A fault maps all pages of a large folio of a memfd or of shared anonymous memory:
    `mm/memory.c:finish_fault @6.12`, since 6.11."""

    shmem_sizes: bool
    """Settings per size for shared memory (`hugepages-64kB/shmem_enabled`), and a large folio of a
    file in memory must lie in the area that faults: `mm/shmem.c:shmem_allowable_huge_orders,
    shmem_suitable_orders`, since 6.11; before, there are huge pages only, wherever the area is."""

    shmem_size_counts_write: bool
    """`within_size` looks at where a write will end too: `mm/shmem.c:shmem_huge_global_enabled`,
    since 6.12."""

    tmpfs_takes_all_sizes: bool
    """tmpfs with huge= makes the largest folio that fits, not only huge pages: since 6.14."""

    no_file_pmd_where_disabled: bool
    """MADV_NOHUGEPAGE and PR_SET_THP_DISABLE also forbid to map a file's huge page by a PMD:
    `mm/memory.c:do_set_pmd`, since 6.12."""

    pmd_of_file_is_locked: bool
    """A file's huge page that a PMD maps into a locked area is mlocked: `mm/rmap.c:
    page_add_file_rmap @6.1, __folio_add_file_rmap @7.2`; not @6.12, where large folios are left to
    reclaim."""

    whole_file_folio_is_locked: bool
    """A large folio of a file that one fault maps as a whole into a locked area is mlocked:
    `mm/rmap.c:__folio_add_file_rmap @7.2`, since 6.18."""

    pmd_zap_marks_accessed: bool
    """Unmapping a file's huge page that was used marks it accessed, as small pages always were:
    `mm/huge_memory.c:zap_huge_pmd_folio @7.2`."""

    splits_at_the_cut: bool
    """A truncation splits a large folio only around the cut: `mm/truncate.c:
    truncate_inode_partial_folio` calls folio_split, since 6.15; before, into single pages."""

    splits_shmem_to_order: bool
    """Folios of files in memory may be split into large pieces: `mm/huge_memory.c:
    split_huge_page_to_list_to_order` refuses it @6.12."""

    shmem_swaps_whole: bool
    """A large folio of shared memory is swapped out as a whole: `mm/shmem.c:shmem_writepage`, since
    6.12; before, reclaim splits it."""

    shmem_swaps_in_whole: bool
    """It comes back from fast swap as a whole: `mm/shmem.c:shmem_swap_alloc_folio`, since 6.14."""

    collapses_large_folios_of_files: bool
    """A collapse of a file takes large folios too: `mm/khugepaged.c:collapse_file`, since 6.11."""

    collapse_drains_swapins: bool
    """A collapse of a file empties the CPU's batch after it read a page from swap, without which
    the page is on no list: `mm/khugepaged.c:collapse_file`, since 6.3."""

    collapse_retracts_all: bool
    """MADV_COLLAPSE of a file takes the tables of every process away, and maps the huge page where
    no table was: `mm/khugepaged.c:retract_page_tables, collapse_pte_mapped_thp`, since 6.6; before,
    others' tables are left to khugepaged, and without a table of its own the call fails."""

    collapse_allocates_pmd_table: bool
    """It also maps the huge page where not even a PMD table was: `mm/khugepaged.c:set_huge_pmd`,
    since 6.17 or so."""

    collapses_files_on_disk: bool
    """Files whose file system has large folios can be collapsed: `mm/huge_memory.c:file_thp_enabled
    @7.2`; before, only with CONFIG_READ_ONLY_THP_FOR_FS, which Debian does not set."""

    pat_marks_areas: bool
    """An area that maps physical memory as a whole has VM_PAT ("ar"): `arch/x86/mm/pat/memtype.c:
    track_pfn_remap`, until 6.15; since then the area's `pfnmap_track_ctx` knows."""

    sockets_are_noexec: bool
    """What is mapped of a socket can never be executed: sockfs has SB_I_NOEXEC @7.2, not @6.12."""

    smaps_walks_pfnmap: bool
    """smaps counts the pages that were copied in an area of a device: `mm/pagewalk.c:walk_page_vma
    @6.12` asks nothing; `walk_page_test` leaves such areas out @6.1."""


def is_modelled(release: KernelRelease) -> bool:
    """Whether a release is not older than the oldest whose sources were read."""
    return (release.major, release.minor) >= (6, 1)


def process_rules(release: KernelRelease) -> ProcessRules:
    """The rules of a release."""
    version = (release.major, release.minor)
    return ProcessRules(
        release=release,
        lru_batch=31 if version >= (6, 9) else 15,
        unmap_drains=version < (7, 0),
        tails_have_own_flags=behaviour_of(release).tails_show_own_flags,
        ksm_shown_for_all_anon=behaviour_of(release).ksm_bit_on_all_anon,
        copies_last_of_large=version >= (6, 15),
        large_folio_reuse=version >= (6, 15),
        small_folios_only_reuse=(6, 9) <= version < (6, 15),
        huge_zero_becomes_huge=version >= (6, 13),
        large_anon_folios=version >= (6, 8),
        counts_large_folios=version >= (6, 10),
        counts_large_swapin=version >= (6, 13),
        collapses_to_any_size=version >= (7, 2),
        splits_at_a_page=version >= (6, 15),
        swaps_in_large_folios=version >= (6, 12),
        knows_pages_of_zeroes=version >= (6, 12),
        swap_begins_behind_header=version >= (6, 13),
        knows_who_maps_large=version >= (6, 15),
        madvise_keeps_whole_folios=version >= (6, 10),
        pagemap_asks_each_page=(6, 11) <= version < (6, 15),
        split_drops_zero_pages=version >= (6, 12),
        collapse_wants_writable=version < (6, 18),
        collapse_of_holes_is_busy=version >= (6, 12),
        frees_empty_tables=version >= (6, 14),
        guard_regions=version >= (6, 13),
        mprotect_wants_dirty=version < (6, 2),
        unshares_cache_pages=version >= (6, 2),
        refuses_longterm_file_writes=version >= (6, 5),
        forced_hugetlb_writes=version >= (7, 0),
        direct_io_pins=version >= (6, 4),
        tmpfs_takes_direct=version >= (6, 6),
        fixed_buffers_pinned_fast=version >= (6, 5),
        fixed_buffer_pins_per_only_folio=version >= (6, 4),
        fixed_buffer_pins_per_folio=version >= (6, 12),
        sticky_soft_dirty=version >= (6, 19),
        merges_unfaulted_neighbours=version >= (6, 16),
        hugetlb_cache_counts_pages=version >= (6, 7),
        hugetlb_restores_reserve=version >= (6, 8),
        hugetlb_child_stays_protected=version < (6, 4),
        hugetlb_copy_says_exists=version >= (7, 0),
        hugetlb_reads_around_lost=version >= (6, 6),
        smaps_shows_protnone_huge=version >= (6, 6),
        smaps_shows_ksm=version >= (6, 6),
        device_private=version >= (6, 18),
        smaps_shares_lost_pages=version >= (6, 2),
        smaps_names_lock_on_fault=version >= (6, 2),
        lru_gen_marks=1 if version < (6, 2) else 2 if version < (6, 14) else 3,
        injected_error_is_urgent=version >= (6, 2),
        mlock_of_mapped_large=version >= (6, 7),
        memory_merge=version >= (6, 4),
        close_forbids_merge=version < (6, 8),
        droppable=version >= (6, 11),
        anon_vma_names=False,
        mmap_prefers_next=version < (6, 12),
        names_shared_memory=version >= (6, 2),
        mprotect_unaccounts=version >= (6, 6),
        mremap_several_areas=version >= (6, 17),
        mremap_realigns=version >= (6, 7),
        uffd_wp_async=version >= (6, 7),
        uffd_poison=version >= (6, 6),
        uffd_wp_several_areas=version >= (6, 4),
        uffd_unprotect_asks=version >= (6, 2),
        uffd_continue_protects=version >= (6, 4),
        uffd_continue_has_one_error=version >= (7, 2),
        uffd_move=version >= (6, 8),
        uffd_move_marks_swapped=version >= (6, 17),
        uffd_allocates_first=version >= (7, 2),
        cachestat=version >= (6, 5),
        weighted_interleave=version >= (6, 9),
        pages_out_copies_of_others_files=version >= (6, 2),
        process_madvise_of_own_unprivileged=version >= (6, 12),
        process_madvise_of_own=version >= (6, 13),
        mseal=version >= (6, 10),
        seals_exec=version >= (6, 3),
        swapin_skips_cache=version < (7, 0),
        held_lazyfree_is_kept=version < (6, 15),
        swapin_leaves_unlocked=version >= (6, 11),
        swaps_large_folios_by_entries=version >= (6, 10),
        swapin_maps_writable=version >= (6, 11),
        ksm_checksum_first=version >= (6, 11),
        ksm_unshares=version >= (6, 2),
        ksm_marks_zero_pages=version >= (6, 6),
        ksm_smart_scan=version >= (6, 7),
        fork_copies_ksm_counts=version < (6, 12),
        ksm_collapses_chains=version >= (6, 11),
        full_readahead_marks_half=version >= (6, 12),
        readahead_ends_aligned=version >= (6, 16),
        device_io_pages=0,
        failed_writes_fill_blocks=version < (6, 15),
        failed_writes_mark_pages=version < (6, 10),
        writes_take_large_folios=version >= (6, 6),
        readahead_starts_large=version < (6, 16),
        large_folios_of_two=version >= (6, 10),
        iomap_tracks_blocks=version >= (6, 6),
        locks_areas=version >= (6, 4),
        executable_reads_on=version >= (6, 16),
        iomap_zeroing_flushes=(6, 12) <= version < (6, 19),
        xfs_writes_new_end=version < (6, 12),
        ext4_large_folios=version >= (6, 16),
        faults_map_whole_folios=version >= (7, 2),
        pat_marks_areas=version < (6, 16),
        smaps_walks_pfnmap=version >= (6, 2),
        sockets_are_noexec=version >= (7, 0),
        faults_map_whole_shmem=version >= (6, 11),
        shmem_sizes=version >= (6, 11),
        shmem_size_counts_write=version >= (6, 12),
        tmpfs_takes_all_sizes=version >= (6, 14),
        no_file_pmd_where_disabled=version >= (6, 12),
        pmd_of_file_is_locked=version < (6, 8) or version >= (6, 18),
        whole_file_folio_is_locked=version >= (6, 18),
        pmd_zap_marks_accessed=version >= (6, 15),
        splits_at_the_cut=version >= (6, 15),
        splits_shmem_to_order=version >= (6, 15),
        shmem_swaps_whole=version >= (6, 12),
        shmem_swaps_in_whole=version >= (6, 14),
        collapses_large_folios_of_files=version >= (6, 11),
        collapse_drains_swapins=version >= (6, 3),
        collapse_retracts_all=version >= (6, 6),
        collapse_allocates_pmd_table=version >= (6, 17),
        collapses_files_on_disk=version >= (7, 0),
    )
