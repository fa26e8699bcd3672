"""brk(2): the heap as one end that moves, and the area below it.

`mm/mmap.c:brk, mm/vma.c:do_brk_flags @6.12`.  What comes is ordinary private memory, which joins
the area of the heap if there is one; what goes is unmapped.  The call has no error: it returns
where the end is, and a C library calls it ENOMEM where that is not what was asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from memdesc.mm.areas.accounting import check_commit, check_expand, check_lock_more
from memdesc.mm.areas.mmap import STACK_GUARD_GAP, munmap
from memdesc.mm.areas.vma import VM, Vma
from memdesc.mm.areas.vma_modify import Proposed, most_areas, vma_merge_new_range
from memdesc.mm.faults.populate import mm_populate
from memdesc.mm.ksm.ksm import merge_any_flags
from memdesc.mm.process import Errno, Mm, OutOfMemory

if TYPE_CHECKING:
    from memdesc.mm.kernel import Kernel

__all__ = ["brk", "set_start_brk"]

_HEAP = VM.READ | VM.WRITE | VM.MAYREAD | VM.MAYWRITE | VM.MAYEXEC | VM.ACCOUNT


def set_start_brk(mm: Mm, vpn: int) -> None:
    """PR_SET_MM_START_BRK and PR_SET_MM_BRK: an empty heap begins there."""
    mm.start_brk = mm.brk = vpn


def brk(kernel: Kernel, mm: Mm, pages: int) -> None:
    """Let the heap have so many pages. Raises Errno where its end stays as it was."""
    if not mm.start_brk:
        raise Errno("EINVAL")
    end = mm.start_brk + pages
    if end < mm.brk:
        _shrink(kernel, mm, end)
    elif end > mm.brk:
        _grow(kernel, mm, end)
    mm.brk = end


# --- helpers -----------------------------------------------------------------------------


def _shrink(kernel: Kernel, mm: Mm, end: int) -> None:
    if mm.vmas.find(mm.brk - 1) is None:
        kernel.say("brk: no area of the heap lies below its end")
        raise OutOfMemory
    try:
        munmap(kernel, mm, end, mm.brk)
    except Errno:
        raise OutOfMemory from None


def _grow(kernel: Kernel, mm: Mm, end: int) -> None:
    """do_brk_flags(), after the room was looked at."""
    start, pages = mm.brk, end - mm.brk
    flags = _HEAP | mm.def_flags
    try:
        check_lock_more(kernel, mm, flags, pages)
    except Errno:
        raise OutOfMemory from None
    following = mm.vmas.find(start) or mm.vmas.after(start)
    if following is not None and end + 1 > _start_with_gap(following):
        kernel.say("brk: too near to the next area")
        raise OutOfMemory
    check_expand(kernel, mm, flags, pages)
    if len(mm.vmas) > most_areas(kernel):
        raise OutOfMemory
    check_commit(kernel, pages)
    if kernel.rules.ksm_decides_before_merging:
        flags |= merge_any_flags(mm, flags)
    before = mm.vmas.before(start)
    vma = None
    if before is not None and before.vpn_end == start and start > mm.start_brk:
        vma = vma_merge_new_range(kernel, mm, Proposed(start, end, flags, start))
    if vma is None:
        vma = Vma(start, end, flags | merge_any_flags(mm, flags), start)
        mm.vmas.insert(vma)
    vma.flags |= VM.SOFTDIRTY
    kernel.say("do_brk_flags: the heap grows")
    if flags & VM.LOCKED:
        mm_populate(kernel, mm, start, end)


def _start_with_gap(vma: Vma) -> int:
    """vm_start_gap()."""
    return vma.vpn_start - (STACK_GUARD_GAP if vma.flags & VM.GROWSDOWN else 0)
