"""How kernel releases differ in areas, and the calls that make, change and advise them."""

from __future__ import annotations

from memdesc.kernels.processes.rule import ReleaseRules, rule

__all__ = ["AreaRules"]


class AreaRules(ReleaseRules):
    """Areas, and the calls that make, change and advise them."""

    @rule
    def mmap_prefers_next(self) -> bool:
        """A new mapping first joins the area behind it, and the one before only if the anon_vmas of
        both agree: `mm/mmap.c:mmap_region`, until 6.11."""
        return self.version < (6, 12)

    @rule
    def names_shared_memory(self) -> bool:
        """PR_SET_VMA_ANON_NAME takes shared anonymous memory too: since 6.2."""
        return self.version >= (6, 2)

    @rule
    def anon_vma_names(self) -> bool:
        """CONFIG_ANON_VMA_NAME: PR_SET_VMA_ANON_NAME. Debian's builds do not have it."""
        return False

    @rule
    def merges_unfaulted_neighbours(self) -> bool:
        """A range without anon_vma absorbs a faulted one, and the other way round:
        `mm/vma.c:is_mergeable_anon_vma @7.2`."""
        return self.version >= (6, 16)

    @rule
    def mprotect_wants_dirty(self) -> bool:
        """A private entry becomes writable at once only if it is dirty:
        `mm/mprotect.c:can_change_pte_writable @6.1`."""
        return self.version < (6, 2)

    @rule
    def mprotect_unaccounts(self) -> bool:
        """A private area that no page was ever written in gives its reservation back when it
        becomes read-only: `mm/mprotect.c:mprotect_fixup`, since 6.6."""
        return self.version >= (6, 6)

    @rule
    def mremap_several_areas(self) -> bool:
        """A pure move takes all areas of a range, and nothing is unmapped at the new place before
        the arguments were checked: `mm/mremap.c:remap_move`, since 6.17."""
        return self.version >= (6, 17)

    @rule
    def mremap_realigns(self) -> bool:
        """A move that begins behind a table's first page may take the table whole:
        `mm/mremap.c:try_realign_addr`, since 6.7."""
        return self.version >= (6, 7)

    @rule
    def close_forbids_merge(self) -> bool:
        """A neighbour with a `close` operation never merges: `mm/mmap.c:is_mergeable_vma @6.1`."""
        return self.version < (6, 8)

    @rule
    def sticky_soft_dirty(self) -> bool:
        """VM_SOFTDIRTY survives merges: `mm/vma.c:VM_STICKY @7.2`."""
        return self.version >= (6, 19)

    @rule
    def frees_empty_tables(self) -> bool:
        """CONFIG_PT_RECLAIM: MADV_DONTNEED of whole 2 MiB frees the table. `mm/pt_reclaim.c
        @7.2`."""
        return self.version >= (6, 14)

    @rule
    def guard_regions(self) -> bool:
        """MADV_GUARD_INSTALL and MADV_GUARD_REMOVE: since 6.13."""
        return self.version >= (6, 13)

    @rule
    def guards_in_files(self) -> bool:
        """Guards in mappings of files: `mm/madvise.c:is_valid_guard_vma`, since 6.15."""
        return self.version >= (6, 15)

    @rule
    def areas_remember_guards(self) -> bool:
        """An area that has had guards is marked VM_MAYBE_GUARD ("gu"), so that fork copies its
        tables: since 6.19; before, it gets an anon_vma for that, also where a file is mapped."""
        return self.version >= (6, 19)

    @rule
    def droppable(self) -> bool:
        """MAP_DROPPABLE: since 6.11."""
        return self.version >= (6, 11)

    @rule
    def weighted_interleave(self) -> bool:
        """MPOL_WEIGHTED_INTERLEAVE: since 6.9."""
        return self.version >= (6, 9)

    @rule
    def mseal(self) -> bool:
        """mseal(2): since 6.10."""
        return self.version >= (6, 10)

    @rule
    def seals_exec(self) -> bool:
        """F_SEAL_EXEC and MFD_NOEXEC_SEAL: since 6.3."""
        return self.version >= (6, 3)

    @rule
    def pages_out_copies_of_others_files(self) -> bool:
        """MADV_PAGEOUT of a private mapping takes the process's copies, also where the file is
        another user's: `mm/madvise.c:can_do_file_pageout`, since 6.2; @6.1 can_do_pageout refuses
        it all."""
        return self.version >= (6, 2)

    @rule
    def process_madvise_of_own(self) -> bool:
        """process_madvise(2) of one's own memory takes any advice: since 6.13."""
        return self.version >= (6, 13)

    @rule
    def process_madvise_of_own_unprivileged(self) -> bool:
        """process_madvise(2) of one's own memory takes no CAP_SYS_NICE: since 6.12."""
        return self.version >= (6, 12)

    @rule
    def locks_areas(self) -> bool:
        """A fault first tries with the lock of its area alone: `arch/x86/mm/fault.c:
        do_user_addr_fault`, since 6.4."""
        return self.version >= (6, 4)

    @rule
    def pat_marks_areas(self) -> bool:
        """An area that maps physical memory as a whole has VM_PAT ("ar"):
        `arch/x86/mm/pat/memtype.c: track_pfn_remap`, until 6.15; since then the area's
        `pfnmap_track_ctx` knows."""
        return self.version < (6, 16)

    @rule
    def sockets_are_noexec(self) -> bool:
        """What is mapped of a socket can never be executed: sockfs has SB_I_NOEXEC @7.2, not
        @6.12."""
        return self.version >= (7, 0)
