"""How kernel releases differ in userfaultfd."""

from __future__ import annotations

from memdesc.kernels.processes.rule import ReleaseRules, rule

__all__ = ["UserfaultRules"]


class UserfaultRules(ReleaseRules):
    """Userfaultfd."""

    @rule
    def uffd_wp_async(self) -> bool:
        """UFFD_FEATURE_WP_ASYNC, and with it markers for empty entries of anonymous memory
        (UFFD_FEATURE_WP_UNPOPULATED): since 6.7."""
        return self.version >= (6, 7)

    @rule
    def uffd_poison(self) -> bool:
        """UFFDIO_POISON: since 6.6."""
        return self.version >= (6, 6)

    @rule
    def uffd_wp_several_areas(self) -> bool:
        """UFFDIO_WRITEPROTECT may cross areas: `mm/userfaultfd.c:mwriteprotect_range`, since
        6.4."""
        return self.version >= (6, 4)

    @rule
    def uffd_unprotect_asks(self) -> bool:
        """UFFDIO_WRITEPROTECT makes entries writable only where no fault would do more:
        `mm/userfaultfd.c:uffd_wp_range`, since 6.2; @6.1 as the area's protection has it."""
        return self.version >= (6, 2)

    @rule
    def uffd_continue_protects(self) -> bool:
        """UFFDIO_CONTINUE_MODE_WP: since 6.4."""
        return self.version >= (6, 4)

    @rule
    def uffd_continue_has_one_error(self) -> bool:
        """UFFDIO_CONTINUE beyond the end of a file is EFAULT as in a hole, where it was EINVAL:
        `mm/userfaultfd.c:mfill_atomic_pte_continue @7.2`."""
        return self.version >= (7, 2)

    @rule
    def uffd_move(self) -> bool:
        """UFFDIO_MOVE: since 6.8."""
        return self.version >= (6, 8)

    @rule
    def uffd_move_marks_swapped(self) -> bool:
        """An entry of a swapped page that UFFDIO_MOVE moves becomes soft-dirty:
        `mm/userfaultfd.c:move_swap_pte`, since 6.17."""
        return self.version >= (6, 17)

    @rule
    def uffd_allocates_first(self) -> bool:
        """UFFDIO_COPY beyond the end of shared memory is ENOMEM, as no folio is to be had there;
        EFAULT @6.12, where the size is asked for last (`mm/shmem.c:shmem_mfill_atomic_pte`)."""
        return self.version >= (7, 2)
