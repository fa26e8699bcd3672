"""How kernel releases differ in huge pages of the pool."""

from __future__ import annotations

from memdesc.kernels.processes.rule import ReleaseRules, rule

__all__ = ["HugetlbRules"]


class HugetlbRules(ReleaseRules):
    """Huge pages of the pool."""

    @rule
    def hugetlb_cache_counts_pages(self) -> bool:
        """The page cache holds a reference per 4 KiB of a hugetlb page: `mm/filemap.c:
        __filemap_add_folio`, since 6.7; one per huge page before."""
        return self.version >= (6, 7)

    @rule
    def hugetlb_restores_reserve(self) -> bool:
        """A private page that its owner unmaps is reserved again: `mm/hugetlb.c:
        __unmap_hugepage_range`, since 6.8."""
        return self.version >= (6, 8)

    @rule
    def hugetlb_child_stays_protected(self) -> bool:
        """Entries of a child keep the protection of its parent's userfaultfd, which nobody can end,
        so that writes fault for ever: `mm/hugetlb.c:copy_hugetlb_page_range @6.1`, until 6.4."""
        return self.version < (6, 4)

    @rule
    def hugetlb_copy_says_exists(self) -> bool:
        """UFFDIO_COPY is EEXIST where the pool has nothing left, as the entry's table exists;
        ENOMEM before: `mm/hugetlb.c:hugetlb_mfill_atomic_pte @7.2`."""
        return self.version >= (7, 0)

    @rule
    def hugetlb_reads_around_lost(self) -> bool:
        """read(2) of a file of huge pages fails only at the 4 KiB that were lost:
        `fs/hugetlbfs/inode.c:adjust_range_hwpoison`, since 6.6; before, for the whole huge page."""
        return self.version >= (6, 6)
