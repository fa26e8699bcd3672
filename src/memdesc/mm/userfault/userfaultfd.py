"""userfaultfd: a process decides itself what comes of faults in a part of its memory.

`fs/userfaultfd.c:userfaultfd_register, userfaultfd_unregister, handle_userfault @6.12`.  Nobody
waits here: the descriptors have UFFD_FEATURE_SIGBUS, so a fault that would wake a handler brings
SIGBUS, or UFFD_FEATURE_WP_ASYNC, which ends the protection of a page by itself when it is written
to.  What a descriptor does with memory is in `userfault_ops`, `userfault_move` and `userfault_wp`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NoReturn

from memdesc.mm.areas.vma import VM, VM_UFFD, Vma
from memdesc.mm.areas.vma_modify import vma_modify_uffd
from memdesc.mm.files.inode import AddressSpace
from memdesc.mm.frames import TABLE_ENTRIES
from memdesc.mm.process import Errno, Mm, Signal
from memdesc.mm.userfault.userfault_wp import wp_range

if TYPE_CHECKING:
    from memdesc.mm.kernel import Kernel

__all__ = [
    "UserfaultfdCtx", "handle_userfault", "mremap_userfaultfd_prep", "register", "shmem_fault",
    "unregister", "userfaultfd", "wp_fault",
]  # fmt: skip

_MODES: Final = {
    "missing": VM.UFFD_MISSING,
    "wp": VM.UFFD_WP,
    "wp_async": VM.UFFD_WP,
    "minor": VM.UFFD_MINOR,
}
"""What a descriptor is for -> flags of the areas that are registered with it."""


@dataclass(slots=True, eq=False)
class UserfaultfdCtx:
    """One userfaultfd (`struct userfaultfd_ctx`). Compared by identity."""

    mode: str
    """"missing", "wp", "wp_async" or "minor"."""
    ranges: list[tuple[int, int]] = field(default_factory=list)
    """What its owner registered with it, in pages."""

    @property
    def wp_async(self) -> bool:
        """UFFD_FEATURE_WP_ASYNC: a write ends the protection, and nobody is asked.

        It implies UFFD_FEATURE_WP_UNPOPULATED: also empty entries of anonymous memory can be
        protected, by markers.
        """
        return self.mode == "wp_async"


# --- system calls ----------------------------------------------------------------------------


def userfaultfd(kernel: Kernel, mode: str) -> UserfaultfdCtx:
    """userfaultfd(2) and UFFDIO_API with the features that a mode needs. Raises Errno."""
    if mode == "wp_async" and not kernel.rules.uffd_wp_async:
        raise Errno("EINVAL")
    return UserfaultfdCtx(mode)


def register(kernel: Kernel, mm: Mm, ctx: UserfaultfdCtx, vpn_start: int, vpn_end: int) -> None:
    """UFFDIO_REGISTER: all areas of a range, of which gaps are left out. Raises Errno."""
    wanted = _MODES[ctx.mode]
    areas = mm.vmas.overlapping(vpn_start, vpn_end)
    if not areas:
        raise Errno("EINVAL")
    _check_start(mm, vpn_start)
    for vma in areas:
        if not _can_userfault(vma, wanted, wp_async=ctx.wp_async):
            raise Errno("EINVAL")
        if not vma.flags & VM.MAYWRITE:
            raise Errno("EPERM")
        if vma.flags & VM.HUGETLB and vpn_end <= vma.vpn_end and vpn_end % TABLE_ENTRIES:
            raise Errno("EINVAL")
        if vma.uffd not in (None, ctx):
            kernel.say("userfaultfd_register: another userfaultfd has the area")
            raise Errno("EBUSY")
    for vma in areas:
        if vma.uffd is ctx and vma.flags & wanted:
            continue
        start, end = max(vma.vpn_start, vpn_start), min(vma.vpn_end, vpn_end)
        flags = vma.flags & ~VM_UFFD | wanted
        vma_modify_uffd(kernel, mm, vma, start, end, flags, ctx)
        kernel.say("userfaultfd_register: faults there are the descriptor's now")


def unregister(kernel: Kernel, mm: Mm, ctx: UserfaultfdCtx, vpn_start: int, vpn_end: int) -> None:
    """UFFDIO_UNREGISTER: an area as before, without any protection left. Raises Errno."""
    areas = mm.vmas.overlapping(vpn_start, vpn_end)
    if not areas:
        raise Errno("EINVAL")
    _check_start(mm, vpn_start)
    for vma in areas:
        if not _can_userfault(vma, vma.flags & VM_UFFD, wp_async=ctx.wp_async):
            raise Errno("EINVAL")
    for vma in areas:
        if vma.uffd is None:
            continue
        start, end = max(vma.vpn_start, vpn_start), min(vma.vpn_end, vpn_end)
        if vma.flags & VM.UFFD_WP:
            wp_range(kernel, mm, vma, start, end, protect=False)
        vma_modify_uffd(kernel, mm, vma, start, end, vma.flags & ~VM_UFFD, None)
        kernel.say("userfaultfd_unregister: faults are the kernel's again")


# --- faults ----------------------------------------------------------------------------------


def handle_userfault(kernel: Kernel, why: str) -> NoReturn:
    """A fault that is the descriptor's. Raises Signal (UFFD_FEATURE_SIGBUS)."""
    kernel.say(f"handle_userfault: {why}, SIGBUS as the descriptor asked for it")
    raise Signal("SIGBUS", "ADRERR")


def wp_fault(kernel: Kernel, vma: Vma) -> None:
    """A write to a protected entry: returns where its protection ends by itself. Raises Signal."""
    assert vma.uffd is not None
    if not vma.uffd.wp_async:
        handle_userfault(kernel, "write-protected")
    kernel.say("userfaultfd_wp_async: the protection ends with the first write")


def shmem_fault(kernel: Kernel, vma: Vma, mapping: AddressSpace, index: int) -> None:
    """shmem_get_folio_gfp() with an area: pages that are there and not mapped ("minor"), or not
    there ("missing"), are the descriptor's. Raises Signal."""
    there = index in mapping.pages or index in mapping.swapped
    if there and vma.flags & VM.UFFD_MINOR:
        handle_userfault(kernel, "in the page cache, and not mapped")
    if not there and vma.flags & VM.UFFD_MISSING:
        handle_userfault(kernel, "a hole in the file")


# --- mremap ----------------------------------------------------------------------------------


def mremap_userfaultfd_prep(kernel: Kernel, vma: Vma) -> None:
    """Without UFFD_FEATURE_EVENT_REMAP an area that moved is not registered any more."""
    if vma.uffd is not None:
        vma.flags &= ~VM_UFFD
        vma.uffd = None
        kernel.say("mremap_userfaultfd_prep: the moved area is not registered any more")


# --- helpers ---------------------------------------------------------------------------------


def _check_start(mm: Mm, vpn: int) -> None:
    """A range that begins in huge pages begins with one. Raises Errno."""
    first = mm.vmas.find(vpn)
    if first is not None and first.flags & VM.HUGETLB and vpn % TABLE_ENTRIES:
        raise Errno("EINVAL")


def _can_userfault(vma: Vma, wanted: VM, *, wp_async: bool) -> bool:
    """vma_can_userfault()."""
    if vma.flags & VM.DROPPABLE:
        return False
    shmem = vma.file is not None and vma.file.mapping.is_shmem
    file = shmem or bool(vma.flags & VM.HUGETLB)
    if wanted & VM.UFFD_MINOR and not file:
        return False
    return file or vma.is_anonymous or (wp_async and wanted == VM.UFFD_WP)
