"""How kernel releases differ in KSM."""

from __future__ import annotations

from memdesc.kernels.processes.rule import ReleaseRules, rule

__all__ = ["KsmRules"]


class KsmRules(ReleaseRules):
    """KSM."""

    @rule
    def memory_merge(self) -> bool:
        """PR_SET_MEMORY_MERGE: since 6.4."""
        return self.version >= (6, 4)

    @rule
    def ksm_decides_before_merging(self) -> bool:
        """PR_SET_MEMORY_MERGE marks the flags of a new area before a neighbour is looked for that
        could grow: `mm/vma.c:ksm_vma_flags`, since 6.17; before, `ksm_add_vma` marks what was made,
        which never merges then, as its neighbour is marked and it is not."""
        return self.version >= (6, 17)

    @rule
    def ksm_checksum_first(self) -> bool:
        """A page must be unchanged for a pass before the stable tree is searched:
        `mm/ksm.c:cmp_and_merge_page`, since 6.11."""
        return self.version >= (6, 11)

    @rule
    def ksm_unshares(self) -> bool:
        """KSM is broken by FAULT_FLAG_UNSHARE, which leaves entries clean: `mm/ksm.c:break_ksm`,
        since 6.2; before by a write."""
        return self.version >= (6, 2)

    @rule
    def ksm_marks_zero_pages(self) -> bool:
        """Entries that KSM made the zero page are dirty, counted and undone: since 6.6."""
        return self.version >= (6, 6)

    @rule
    def ksm_smart_scan(self) -> bool:
        """Pages that did not merge are skipped for some passes: since 6.7."""
        return self.version >= (6, 7)

    @rule
    def ksm_collapses_chains(self) -> bool:
        """A chain with one shared page left is none any more at the next look; before, only if it
        is time to prune it: `mm/ksm.c:stable_node_dup`, since 6.11."""
        return self.version >= (6, 11)

    @rule
    def fork_copies_ksm_counts(self) -> bool:
        """A child begins with its parent's counts of KSM's items and merged pages: `kernel/fork.c:
        mm_init @6.1`; `include/linux/ksm.h:ksm_fork @6.12` clears them."""
        return self.version < (6, 12)
