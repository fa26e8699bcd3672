"""How kernel releases differ in references to pages: get, pin, and who takes them."""

from __future__ import annotations

from memdesc.kernels.processes.rule import ReleaseRules, rule

__all__ = ["ReferenceRules"]


class ReferenceRules(ReleaseRules):
    """References to pages: get, pin, and who takes them."""

    @rule
    def unshares_cache_pages(self) -> bool:
        """Long-term read pins copy page-cache pages of private mappings first: `gup_must_unshare`,
        since 6.2."""
        return self.version >= (6, 2)

    @rule
    def refuses_longterm_file_writes(self) -> bool:
        """Long-term pins for writing on shared mappings of file systems that track writes are
        EFAULT: `mm/gup.c:writable_file_mapping_allowed`, since 6.5; before, io_uring itself refuses
        every file that is not in memory only."""
        return self.version >= (6, 5)

    @rule
    def forced_hugetlb_writes(self) -> bool:
        """FOLL_FORCE may write to private hugetlb memory: `mm/gup.c:check_vma_flags @7.2`."""
        return self.version >= (7, 0)

    @rule
    def direct_io_pins(self) -> bool:
        """O_DIRECT takes FOLL_PIN: `lib/iov_iter.c:iov_iter_extract_pages`, since 6.4; before,
        FOLL_GET."""
        return self.version >= (6, 4)

    @rule
    def fixed_buffers_pinned_fast(self) -> bool:
        """io_uring pins by pin_user_pages_fast: `io_uring/memmap.c:io_pin_pages`, since 6.5."""
        return self.version >= (6, 5)

    @rule
    def fixed_buffer_pins_per_only_folio(self) -> bool:
        """Of a fixed buffer that lies in one large folio a single pin stays:
        `io_uring/rsrc.c:io_sqe_buffer_register`, since 6.4."""
        return self.version >= (6, 4)

    @rule
    def fixed_buffer_pins_per_folio(self) -> bool:
        """Of each large folio of a fixed buffer a single pin stays: `io_uring/rsrc.c:
        io_coalesce_buffer`, since 6.12."""
        return self.version >= (6, 12)

    @rule
    def device_io_pages(self) -> int:
        """`bdi->io_pages` of zram, on which scenarios have their ext4."""
        return 0
