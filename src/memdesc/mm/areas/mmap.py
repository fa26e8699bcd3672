"""mmap, munmap, stacks that grow, and the end of an address space.

`mm/mmap.c:do_mmap`, `mm/vma.c:__mmap_region, vms_gather_munmap_vmas, vms_complete_munmap_vmas,
expand_downwards @6.12` (all of it in `mm/mmap.c @6.1`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from memdesc.mm.areas.accounting import (
    check_commit,
    check_expand,
    check_lock_more,
    check_may_lock,
    may_expand,
)
from memdesc.mm.areas.mseal import check_modify
from memdesc.mm.areas.vma import VM, VM_ACCESS, VM_SPECIAL, Vma
from memdesc.mm.areas.vma_modify import (
    Proposed,
    detach,
    most_areas,
    split_at,
    vma_merge_new_range,
    vma_modify_name,
)
from memdesc.mm.faults.zap import zap_range
from memdesc.mm.files.inode import HUGETLBFS, flags_of_file, shmem_zero_setup
from memdesc.mm.frames import TABLE_ENTRIES as HUGE_PAGES
from memdesc.mm.huge.shmem_huge import khugepaged_enter_vma
from memdesc.mm.hugetlb.hugetlb_pool import hugetlb_reserve
from memdesc.mm.ksm.ksm import merge_any_flags
from memdesc.mm.process import Errno, Mm, OutOfMemory, Process
from memdesc.mm.rmap import anon_vma_prepare
from memdesc.types import PAGE_SIZE_BYTES

if TYPE_CHECKING:
    from memdesc.mm.files.filemap import OpenFile
    from memdesc.mm.kernel import Kernel

__all__ = ["exit_process", "expand_stack", "mmap", "munmap", "set_anon_name"]

TASK_SIZE: Final = (1 << 35) - 1
"""Pages of an address space: up to the last below 128 TiB, which nobody gets
(`arch/x86/include/asm/page_64.h:task_size_max`)."""
STACK_GUARD_GAP: Final = 256
"""Pages that stay free between a stack and what lies below (`mm/mmap.c:stack_guard_gap`)."""
RLIMIT_STACK: Final = 2048
"""Pages that a stack may have: 8 MiB, as the kernel sets it for its first process."""
HUGETLB_ANON: Final = "/anon_hugepage (deleted)"
"""Name of the file behind MAP_HUGETLB without a file."""
SHARED_ANON: Final = "/dev/zero (deleted)"
"""Name of the file behind shared anonymous memory, as maps shows it."""

_NONE = VM(0)
_MAY = VM.MAYREAD | VM.MAYWRITE | VM.MAYEXEC


def mmap(
    kernel: Kernel,
    mm: Mm,
    vpn: int,
    pages: int,
    *,
    prot: VM = VM.READ | VM.WRITE,
    flags: VM = _NONE,
    file: OpenFile | None = None,
    pgoff: int | None = None,
    fixed: bool = False,
    populate: bool = False,
    driver: Callable[[Vma], None] | None = None,
) -> Vma:
    """Map pages at an address. Raises Errno.

    `flags`: more flags of the area, as SHARED, LOCKED, NORESERVE. `pgoff`: first page of the file.
    `fixed`: MAP_FIXED, what lies there goes; without it that is an error (MAP_FIXED_NOREPLACE).
    `driver`: a device's own mmap operation, which sets flags of the area and enters pages.
    Returns the area that the pages are part of, which may be larger.
    """
    if pages <= 0:
        raise Errno("EINVAL")
    if len(mm.vmas) > most_areas(kernel):
        raise OutOfMemory
    if not 0 <= vpn <= TASK_SIZE - pages:
        raise Errno("ENOMEM")  # get_unmapped_area()
    if not fixed and mm.vmas.overlapping(vpn, vpn + pages):
        raise Errno("EEXIST")
    if pgoff is None:
        pgoff = 0 if flags & VM.SHARED else vpn
    if file is not None and file.mapping.fs is HUGETLBFS:
        if file.path == HUGETLB_ANON:
            pages = -(-pages // HUGE_PAGES) * HUGE_PAGES
        if (vpn | pgoff | pages) % HUGE_PAGES:
            raise Errno("EINVAL")
    if flags & VM.LOCKED:
        check_may_lock(kernel, mm)
    check_lock_more(kernel, mm, flags | mm.def_flags, pages)
    # Not of secret memory, whose areas lock themselves after this was decided.
    populate |= bool((flags | mm.def_flags) & VM.LOCKED)
    flags = _flags_of(kernel, mm, prot, flags, file)
    if kernel.rules.ksm_decides_before_merging:
        flags |= merge_any_flags(mm, flags)
    if not may_expand(mm, flags, pages):
        replaced = sum(
            min(vpn + pages, vma.vpn_end) - max(vpn, vma.vpn_start)
            for vma in mm.vmas.overlapping(vpn, vpn + pages)
        )
        check_expand(kernel, mm, flags, pages - replaced)
    areas = _gather(kernel, mm, vpn, vpn + pages)
    if _is_accountable(flags):
        freed = sum(vma.pages for vma in areas if vma.flags & VM.ACCOUNT)
        check_commit(kernel, pages - freed)
        flags |= VM.ACCOUNT
    elif file is None and flags & VM.SHARED and not flags & VM.NORESERVE:
        check_commit(kernel, pages)
    _unmap(kernel, mm, areas)
    resv = None
    if flags & VM.HUGETLB:
        assert file is not None
        resv = hugetlb_reserve(kernel, flags, file.mapping, pgoff, pgoff + pages)
        if flags & VM.WRITE:
            # hugetlbfs_file_mmap(): a file grows to what is mapped of it.
            file.mapping.size = max(file.mapping.size, (pgoff + pages) * PAGE_SIZE_BYTES)
    vma = _new_area(kernel, mm, Proposed(vpn, vpn + pages, flags, pgoff, file))
    vma.flags |= VM.SOFTDIRTY
    if driver is not None:
        driver(vma)
    if flags & VM.HUGETLB:
        vma.resv = resv
    if vma.flags & VM.LOCKED and vma.flags & (VM_SPECIAL | VM.HUGETLB):
        vma.flags &= ~(VM.LOCKED | VM.LOCKONFAULT)
    if populate:
        from memdesc.mm.faults.populate import mm_populate

        mm_populate(kernel, mm, vpn, vpn + pages)
    return vma


def munmap(kernel: Kernel, mm: Mm, vpn_start: int, vpn_end: int) -> None:
    """Unmap a range; what is not mapped does not matter. Raises Errno."""
    if vpn_end <= vpn_start or vpn_start < 0 or vpn_end > TASK_SIZE:
        raise Errno("EINVAL")
    _unmap(kernel, mm, _gather(kernel, mm, vpn_start, vpn_end))


def expand_stack(kernel: Kernel, mm: Mm, vpn: int) -> Vma | None:
    """expand_downwards(): let the next area above grow down to a page, if it is a stack.

    It gets an anon_vma, also where the access is a read. None where it may not grow.
    """
    vma = mm.vmas.after(vpn)
    if vma is None or not vma.flags & VM.GROWSDOWN:
        return None
    below = mm.vmas.before(vpn)
    if (
        below is not None
        and not below.flags & VM.GROWSDOWN
        and below.flags & VM_ACCESS
        and vpn - below.vpn_end < STACK_GUARD_GAP
    ):
        kernel.say("expand_downwards: too near to the area below")
        return None
    anon_vma_prepare(kernel, mm, vma)
    if vma.vpn_end - vpn > RLIMIT_STACK or vma.vpn_start - vpn > vma.pgoff:
        kernel.say("expand_downwards: above RLIMIT_STACK")
        return None
    try:
        _check_growth(kernel, mm, vma, vma.vpn_start - vpn)
    except Errno:
        return None
    mm.vmas.resize(vma, vpn, vma.vpn_end)
    kernel.say("expand_downwards: the stack grows")
    return vma


def set_anon_name(kernel: Kernel, mm: Mm, vpn_start: int, vpn_end: int, name: str) -> None:
    """PR_SET_VMA_ANON_NAME, `mm/madvise.c:madvise_set_anon_name @6.12`. Raises Errno.

    As with madvise(2), what is not mapped is left out and the call fails with ENOMEM in the end.
    """
    if not kernel.rules.anon_vma_names:
        raise Errno("EINVAL")
    complete = True
    vpn = vpn_start
    for vma in mm.vmas.overlapping(vpn_start, vpn_end):
        complete &= vma.vpn_start <= vpn
        start, end = max(vpn, vma.vpn_start), min(vma.vpn_end, vpn_end)
        vpn = end
        if vma.file is not None and not (
            kernel.rules.names_shared_memory and vma.file.path == SHARED_ANON
        ):
            raise Errno("EBADF")
        vma_modify_name(kernel, mm, vma, start, end, name)
    if not complete or vpn < vpn_end:
        raise Errno("ENOMEM")


def exit_process(kernel: Kernel, process: Process) -> None:
    """exit_mmap(), and the files are closed."""
    mm = process.mm
    if kernel.rules.unmap_drains:
        kernel.drain()
    _unmap(kernel, mm, list(mm.vmas))
    mm.tables.free_all()
    for held in process.pins.values():
        held.release(kernel)
    for file in process.files.values():
        file.closed(kernel)
    process.files.clear()
    process.alive = False
    del kernel.processes[process.name]


# --- helpers -----------------------------------------------------------------------------


def _flags_of(kernel: Kernel, mm: Mm, prot: VM, flags: VM, file: OpenFile | None) -> VM:
    """The part of do_mmap() that makes flags of an area. Raises Errno."""
    if flags & VM.DROPPABLE:
        if not kernel.rules.droppable or flags & (VM.LOCKED | VM.HUGETLB | VM.GROWSDOWN):
            raise Errno("EINVAL")
        # It can go away at any time: nothing to reserve, to inherit or to dump.
        flags |= VM.NORESERVE | VM.WIPEONFORK | VM.DONTDUMP
    if file is None and flags & VM.SHARED and flags & VM.GROWSDOWN:
        raise Errno("EINVAL")
    if flags & VM.NORESERVE and kernel.knobs["overcommit"] == "2" and not flags & VM.DROPPABLE:
        flags &= ~VM.NORESERVE
    may = _MAY | (VM.MAYSHARE if flags & VM.SHARED else _NONE)
    flags |= prot | may | mm.def_flags
    if file is None:
        return flags
    if file.mapping.fs is HUGETLBFS:
        flags |= VM.HUGETLB | VM.DONTEXPAND
    return flags_of_file(kernel, file, flags)


def _new_area(kernel: Kernel, mm: Mm, new: Proposed) -> Vma:
    """The part of __mmap_region() after everything was checked and cleared."""
    vma = vma_merge_new_range(kernel, mm, new, next_first=kernel.rules.mmap_prefers_next)
    if vma is not None:
        return vma
    file = new.file
    if file is None and new.flags & VM.SHARED:
        file = shmem_zero_setup(kernel, new.pages)
        file.mapping.reserved = 0 if new.flags & VM.NORESERVE else new.pages
    vma = Vma(new.vpn_start, new.vpn_end, new.flags, new.pgoff, file)
    mm.vmas.insert(vma)
    if file is not None:
        file.mapped(mm, vma)
        if new.file is None:
            file.closed(kernel)
        khugepaged_enter_vma(kernel, mm, vma)
    vma.flags |= merge_any_flags(mm, vma.flags)
    return vma


def _check_growth(kernel: Kernel, mm: Mm, vma: Vma, pages: int) -> None:
    """acct_stack_growth(). Raises Errno."""
    check_expand(kernel, mm, vma.flags, pages)
    check_lock_more(kernel, mm, vma.flags, pages)
    if vma.flags & VM.ACCOUNT:
        check_commit(kernel, pages)


def _is_accountable(flags: VM) -> bool:
    """accountable_mapping(): private, writable, not hugetlb, and somebody wants it counted."""
    wanted = VM.NORESERVE | VM.SHARED | VM.WRITE | VM.HUGETLB
    return flags & wanted == VM.WRITE


def _gather(kernel: Kernel, mm: Mm, vpn_start: int, vpn_end: int) -> list[Vma]:
    """vms_gather_munmap_vmas(): areas that lie wholly in a range, after splits. Raises Errno."""
    areas = mm.vmas.overlapping(vpn_start, vpn_end)
    if not areas:
        return []
    first = areas[0]
    if first.vpn_start < vpn_start:
        if vpn_end < first.vpn_end and len(mm.vmas) >= most_areas(kernel):
            raise OutOfMemory
        check_modify(kernel, first)
        split_at(kernel, mm, first, vpn_start)
        kernel.say("munmap: splits the area in which it begins")
    for vma in mm.vmas.overlapping(vpn_start, vpn_end):
        if vma.flags & VM.SEALED:
            mm.may_have_mergeable = True
        check_modify(kernel, vma)
    last = mm.vmas.overlapping(vpn_start, vpn_end)[-1]
    if last.vpn_end > vpn_end:
        split_at(kernel, mm, last, vpn_end)
        kernel.say("munmap: splits the area in which it ends")
    return mm.vmas.overlapping(vpn_start, vpn_end)


def _unmap(kernel: Kernel, mm: Mm, areas: list[Vma]) -> None:
    """vms_complete_munmap_vmas(): pages, areas, then tables that nothing is near to any more."""
    if not areas:
        return
    if kernel.rules.unmap_drains:
        kernel.drain()
    for vma in areas:
        zap_range(kernel, mm, vma, vma.vpn_start, vma.vpn_end)
    for vma in areas:
        detach(kernel, mm, vma)
    for vma in areas:
        before, after = mm.vmas.before(vma.vpn_start), mm.vmas.after(vma.vpn_end)
        mm.tables.free_range(
            vma.vpn_start, vma.vpn_end,
            before.vpn_end if before else 0, after.vpn_start if after else 0,
        )  # fmt: skip
