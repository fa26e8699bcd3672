"""Limits of what a process may map, lock and promise, and of what all promise together.

`mm/mmap.c:may_expand_vm, mm/mlock.c:can_do_mlock, mm/util.c:__vm_enough_memory,
mm/mmap.c:mlock_future_ok @6.12`.  Limits of a process are counted when it maps, not when it
touches: RLIMIT_AS all of its areas, RLIMIT_DATA private writable ones, RLIMIT_MEMLOCK locked ones.
Who has CAP_IPC_LOCK locks as much as it likes.  How much all processes may promise together is
`vm.overcommit_memory`; the model counts what they promised, which is what areas marked ACCOUNT and
shared memory have.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from memdesc.mm.areas.vma import VM
from memdesc.mm.files.page_cache import file_mappings
from memdesc.mm.process import Errno, Mm, OutOfMemory
from memdesc.model.compiled import array

if TYPE_CHECKING:
    from memdesc.mm.kernel import Kernel

__all__ = [
    "check_commit", "check_expand", "check_lock_more", "check_may_lock", "committed", "may_expand",
    "may_lock_pages", "set_limit",
]  # fmt: skip


def set_limit(mm: Mm, name: str, pages: int) -> None:
    """setrlimit(2): "memlock", or of "as" and "data" how many pages may come yet."""
    match name:
        case "as":
            mm.limits.address_space = pages + sum(vma.pages for vma in mm.vmas)
        case "data":
            mm.limits.data = pages + sum(vma.pages for vma in mm.vmas if _is_data(vma.flags))
        case "memlock":
            mm.limits.memlock = pages
        case _:
            raise AssertionError(name)


def may_expand(mm: Mm, flags: VM, pages: int) -> bool:
    """may_expand_vm(): RLIMIT_AS, and RLIMIT_DATA for private writable areas that are no stack."""
    limits = mm.limits
    most = limits.address_space
    if most is not None and sum(vma.pages for vma in mm.vmas) + pages > most:
        return False
    if limits.data is None or not _is_data(flags):
        return True
    return sum(vma.pages for vma in mm.vmas if _is_data(vma.flags)) + pages <= limits.data


def check_expand(kernel: Kernel, mm: Mm, flags: VM, pages: int) -> None:
    """may_expand_vm() where a call fails without. Raises OutOfMemory."""
    if not may_expand(mm, flags, pages):
        kernel.say("may_expand_vm: more than RLIMIT_AS or RLIMIT_DATA")
        raise OutOfMemory


def check_may_lock(kernel: Kernel, mm: Mm) -> None:
    """can_do_mlock(). Raises Errno where nothing may be locked at all."""
    if mm.limits.locked == 0:
        kernel.say("can_do_mlock: no CAP_IPC_LOCK, and RLIMIT_MEMLOCK is 0")
        raise Errno("EPERM")


def check_lock_more(kernel: Kernel, mm: Mm, flags: VM, pages: int) -> None:
    """mlock_future_ok(): for an area that will be locked as it comes. Raises Errno."""
    limit = mm.limits.locked
    if flags & VM.LOCKED and limit is not None and locked_pages(mm) + pages > limit:
        kernel.say("mlock_future_ok: more than RLIMIT_MEMLOCK")
        raise Errno("EAGAIN")


def may_lock_pages(mm: Mm, vpn_start: int, vpn_end: int) -> bool:
    """Whether do_mlock() may lock a range; what is locked there already counts once."""
    limit = mm.limits.locked
    if limit is None:
        return True
    already = sum(
        min(vpn_end, vma.vpn_end) - max(vpn_start, vma.vpn_start)
        for vma in mm.vmas.overlapping(vpn_start, vpn_end)
        if vma.flags & VM.LOCKED
    )
    return vpn_end - vpn_start + locked_pages(mm) - already <= limit


def locked_pages(mm: Mm) -> int:
    """mm->locked_vm: pages of locked areas, present or not."""
    return sum(vma.pages for vma in mm.vmas if vma.flags & VM.LOCKED)


def check_commit(kernel: Kernel, pages: int) -> None:
    """__vm_enough_memory(): whether so many pages more may be promised. Raises OutOfMemory.

    Mode 1 refuses nothing; 0 what can never be; 2 what goes beyond CommitLimit, where a scenario
    has set it (`knob commit_room`).
    """
    mode = kernel.knobs["overcommit"]
    if mode == "1":
        return
    most = int(array(kernel.f.flags).size)
    if mode == "2" and kernel.commit_limit is not None:
        most = kernel.commit_limit - committed(kernel)
    if pages > most:
        kernel.say(f"__vm_enough_memory: overcommit {mode}, refused")
        raise OutOfMemory


def committed(kernel: Kernel) -> int:
    """Committed_AS, in pages: what may yet have to be there."""
    areas = sum(
        vma.pages
        for process in kernel.processes.values()
        for vma in process.mm.vmas
        if vma.flags & VM.ACCOUNT
    )
    return areas + sum(
        file.reserved or len(file.pages) for file in file_mappings(kernel) if file.is_shmem
    )


# --- helpers -----------------------------------------------------------------------------


def _is_data(flags: VM) -> bool:
    """is_data_mapping()."""
    return flags & (VM.WRITE | VM.SHARED | VM.GROWSDOWN) == VM.WRITE
