"""How the memory of processes differs between kernel releases: faults, fork, batches, calls.

Sources: `mm/` of 6.1.192, 6.12.117 (Debian's build, with what was ported back) and 7.2.13.  A
release between those that were read counts as the nearest older one.

>>> process_rules(KernelRelease.parse("6.12.117")).lru_batch
31
>>> process_rules(KernelRelease.parse("6.1.192")).guard_regions
False
"""

from __future__ import annotations

from dataclasses import dataclass

from memdesc.kernels.release import KernelRelease

__all__ = ["ProcessRules", "process_rules"]


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

    sticky_soft_dirty: bool
    """VM_SOFTDIRTY survives merges: `mm/vma.c:VM_STICKY @7.2`."""

    merges_unfaulted_neighbours: bool
    """A range without anon_vma absorbs a faulted one, and the other way round:
    `mm/vma.c:is_mergeable_anon_vma @7.2`."""

    smaps_shows_ksm: bool
    """smaps has a line KSM: since 6.6."""

    device_private: bool
    """CONFIG_DEVICE_PRIVATE in Debian's build: it moves the numbers of swap types."""

    close_forbids_merge: bool
    """A neighbour with a `close` operation never merges: `mm/mmap.c:is_mergeable_vma @6.1`."""


def process_rules(release: KernelRelease) -> ProcessRules:
    """The rules of a release."""
    version = (release.major, release.minor)
    return ProcessRules(
        release=release,
        lru_batch=31 if version >= (6, 9) else 15,
        unmap_drains=version < (7, 0),
        tails_have_own_flags=version < (6, 9),
        ksm_shown_for_all_anon=(6, 10) <= version < (7, 2),
        copies_last_of_large=version >= (6, 15),
        large_folio_reuse=version >= (6, 15),
        small_folios_only_reuse=(6, 9) <= version < (6, 15),
        frees_empty_tables=version >= (6, 14),
        guard_regions=version >= (6, 13),
        mprotect_wants_dirty=version < (6, 2),
        unshares_cache_pages=version >= (6, 2),
        sticky_soft_dirty=version >= (6, 19),
        merges_unfaulted_neighbours=version >= (6, 16),
        smaps_shows_ksm=version >= (6, 6),
        device_private=version >= (6, 18),
        close_forbids_merge=version < (6, 8),
    )
