"""How kernel releases differ in what /proc shows of processes' pages."""

from __future__ import annotations

from memdesc.kernels.processes.rule import ReleaseRules, rule
from memdesc.kernels.release import behaviour_of

__all__ = ["ShownRules"]


class ShownRules(ReleaseRules):
    """What /proc shows of processes' pages."""

    @rule
    def tails_have_own_flags(self) -> bool:
        """/proc/kpageflags reads a tail's own flag word: `fs/proc/page.c:stable_page_flags
        @6.1`."""
        return behaviour_of(self.release).tails_show_own_flags

    @rule
    def ksm_shown_for_all_anon(self) -> bool:
        """The test of `fs/proc/page.c:stable_page_flags @6.12` also passes for any anonymous
        page."""
        return behaviour_of(self.release).ksm_bit_on_all_anon

    @rule
    def pagemap_asks_each_page(self) -> bool:
        """pagemap's bit 56 of a page that a PMD maps is its own, not that of the PMD's first page:
        `fs/proc/task_mmu.c:pagemap_pmd_range @6.12`; @6.1 and @7.2 it is the first page's."""
        return (6, 11) <= self.version < (6, 15)

    @rule
    def smaps_shows_protnone_huge(self) -> bool:
        """smaps counts huge pages behind PROT_NONE: `mm/huge_memory.c:follow_trans_huge_pmd @6.1`
        does not find them."""
        return self.version >= (6, 6)

    @rule
    def smaps_shows_ksm(self) -> bool:
        """smaps has a line KSM: since 6.6."""
        return self.version >= (6, 6)

    @rule
    def smaps_shares_lost_pages(self) -> bool:
        """smaps counts a poisoned entry as shared, since it looks at the map count of entries that
        are present only: `fs/proc/task_mmu.c:smaps_account @6.12`; as private @6.1."""
        return self.version >= (6, 2)

    @rule
    def smaps_names_lock_on_fault(self) -> bool:
        """VmFlags of smaps has "lf" for VM_LOCKONFAULT; 6.1 writes "??" for a flag without a name
        (`fs/proc/task_mmu.c:show_smap_vma_flags`)."""
        return self.version >= (6, 2)

    @rule
    def smaps_walks_pfnmap(self) -> bool:
        """smaps counts the pages that were copied in an area of a device:
        `mm/pagewalk.c:walk_page_vma @6.12` asks nothing; `walk_page_test` leaves such areas out
        @6.1."""
        return self.version >= (6, 2)

    @rule
    def device_private(self) -> bool:
        """CONFIG_DEVICE_PRIVATE in Debian's build: it moves the numbers of swap types."""
        return self.version >= (6, 18)

    @rule
    def counts_large_folios(self) -> bool:
        """Counters per size of large folios (`hugepages-64kB/stats`): since 6.10."""
        return self.version >= (6, 10)

    @rule
    def counts_large_swapin(self) -> bool:
        """The counter `swpin` per size: since 6.13."""
        return self.version >= (6, 13)

    @rule
    def cachestat(self) -> bool:
        """cachestat(2): since 6.5."""
        return self.version >= (6, 5)

    @rule
    def pagemap_scan(self) -> bool:
        """The ioctl PAGEMAP_SCAN of /proc/PID/pagemap: `fs/proc/task_mmu.c`, since 6.7."""
        return self.version >= (6, 7)

    @rule
    def pages_stat_walks(self) -> bool:
        """move_pages(2) without nodes looks at entries itself, so memory that nobody touched is
        absent and no error; before it asked `follow_page` with FOLL_DUMP:
        `mm/migrate.c:do_pages_stat_array`, since 6.12."""
        return self.version >= (6, 12)
