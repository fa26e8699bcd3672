"""madvise(2): which advice goes where, area by area, and the advice about pages themselves.

`mm/madvise.c:do_madvise, madvise_walk_vmas, madvise_vma_behavior @6.12`.  Advice that only sets
flags of areas splits and merges them; what throws pages away or ages them is done by
`madvise_pages`; huge pages, KSM, reclaim and files are done by the modules of their names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from memdesc.mm.areas.guard import guard_install, guard_remove
from memdesc.mm.areas.madvise_pages import cold, dontneed, free
from memdesc.mm.areas.mseal import check_advice
from memdesc.mm.areas.vma import VM, VM_SPECIAL, Vma
from memdesc.mm.areas.vma_modify import vma_modify_flags
from memdesc.mm.faults.populate import madvise_populate
from memdesc.mm.files.filemap import madvise_willneed
from memdesc.mm.files.truncate import punch_hole
from memdesc.mm.huge.huge_advice import hugepage_madvise
from memdesc.mm.huge.khugepaged import madvise_collapse
from memdesc.mm.ksm.ksm import ksm_madvise
from memdesc.mm.memory_failure import inject
from memdesc.mm.process import Errno, OutOfMemory, Process
from memdesc.mm.reclaim.swap import madvise_willneed as swap_in
from memdesc.mm.reclaim.vmscan import madvise_pageout

if TYPE_CHECKING:
    from memdesc.mm.kernel import Kernel

__all__ = ["madvise"]

Advisor = Callable[["Kernel", Process, Vma, int, int], None]


def madvise(kernel: Kernel, process: Process, vpn_start: int, vpn_end: int, advice: str) -> None:
    """Give advice, by the name of MADV_* in lower case, about a range of pages.

    What is not mapped is left out, and the call fails with ENOMEM in the end (`madvise_walk_vmas`).
    Raises Errno.
    """
    mm = process.mm
    if advice.startswith("guard_") and not kernel.rules.guard_regions:
        raise Errno("EINVAL")
    if advice in ("hwpoison", "soft_offline"):
        inject(kernel, process, vpn_start, vpn_end, soft=advice == "soft_offline")
        return
    if vpn_end <= vpn_start:
        return
    if advice in ("populate_read", "populate_write"):
        madvise_populate(kernel, mm, vpn_start, vpn_end, write=advice == "populate_write")
        return
    _walk(kernel, process, vpn_start, vpn_end, advice)


def new_flags(vma: Vma, advice: str) -> VM:
    """What an area's flags become by advice that changes only them. Raises Errno."""
    flags = vma.flags
    match advice:
        case "normal":
            return flags & ~(VM.RAND_READ | VM.SEQ_READ)
        case "sequential":
            return flags & ~VM.RAND_READ | VM.SEQ_READ
        case "random":
            return flags & ~VM.SEQ_READ | VM.RAND_READ
        case "dontfork":
            return flags | VM.DONTCOPY
        case "dofork":
            if flags & VM.IO:
                raise Errno("EINVAL")
            return flags & ~VM.DONTCOPY
        case "wipeonfork":
            if vma.file is not None or flags & VM.SHARED:
                raise Errno("EINVAL")
            return flags | VM.WIPEONFORK
        case "keeponfork":
            if flags & VM.DROPPABLE:
                raise Errno("EINVAL")
            return flags & ~VM.WIPEONFORK
        case "dontdump":
            return flags | VM.DONTDUMP
        case "dodump":
            special = not flags & VM.HUGETLB and flags & VM_SPECIAL
            if special or flags & VM.DROPPABLE:
                raise Errno("EINVAL")
            return flags & ~VM.DONTDUMP
    raise AssertionError(advice)


# --- helpers -----------------------------------------------------------------------------


def _walk(kernel: Kernel, process: Process, vpn_start: int, vpn_end: int, advice: str) -> None:
    """madvise_walk_vmas(): the advice for each area's part of the range."""
    vmas = process.mm.vmas
    vpn, unmapped = vpn_start, False
    while vpn < vpn_end:
        vma = vmas.find(vpn) or vmas.after(vpn)
        if vma is None or vma.vpn_start >= vpn_end:
            raise Errno("ENOMEM")
        unmapped |= vpn < vma.vpn_start
        vpn = max(vpn, vma.vpn_start)
        end = min(vma.vpn_end, vpn_end)
        check_advice(kernel, vma, advice)
        _ADVICE[advice](kernel, process, vma, vpn, end)
        vpn = end
    if unmapped:
        raise Errno("ENOMEM")


def _flags(advice: str) -> Advisor:
    """The advisor of advice that only sets flags (madvise_update_vma)."""

    def advise(kernel: Kernel, process: Process, vma: Vma, vpn_start: int, vpn_end: int) -> None:
        _update(kernel, process, vma, vpn_start, vpn_end, new_flags(vma, advice))

    return advise


def _update(
    kernel: Kernel, process: Process, vma: Vma, vpn_start: int, vpn_end: int, flags: VM
) -> None:
    """madvise_update_vma(); madvise_vma_behavior() tells of a lack of memory as EAGAIN."""
    try:
        vma_modify_flags(kernel, process.mm, vma, vpn_start, vpn_end, flags)
    except OutOfMemory:
        raise Errno("EAGAIN") from None


def _dontneed_locked(
    kernel: Kernel, process: Process, vma: Vma, vpn_start: int, vpn_end: int
) -> None:
    dontneed(kernel, process, vma, vpn_start, vpn_end, locked=True)


def _huge(advice: str) -> Advisor:
    def advise(kernel: Kernel, process: Process, vma: Vma, vpn_start: int, vpn_end: int) -> None:
        flags = hugepage_madvise(kernel, process.mm, vma, advice)
        _update(kernel, process, vma, vpn_start, vpn_end, flags)

    return advise


def _ksm(advice: str) -> Advisor:
    def advise(kernel: Kernel, process: Process, vma: Vma, vpn_start: int, vpn_end: int) -> None:
        flags = ksm_madvise(kernel, process.mm, vma, vpn_start, vpn_end, advice)
        _update(kernel, process, vma, vpn_start, vpn_end, flags)

    return advise


def _collapse(kernel: Kernel, process: Process, vma: Vma, vpn_start: int, vpn_end: int) -> None:
    madvise_collapse(kernel, process.mm, vma, vpn_start, vpn_end)


def _pageout(kernel: Kernel, process: Process, vma: Vma, vpn_start: int, vpn_end: int) -> None:
    madvise_pageout(kernel, process.mm, vma, vpn_start, vpn_end)


def _remove(kernel: Kernel, process: Process, vma: Vma, vpn_start: int, vpn_end: int) -> None:
    """madvise_remove(): punch a hole into the file behind a shared mapping."""
    if vma.flags & VM.LOCKED or vma.file is None:
        raise Errno("EINVAL")
    if vma.flags & (VM.SHARED | VM.MAYWRITE) != VM.SHARED | VM.MAYWRITE:
        raise Errno("EACCES")
    first = vma.index_of(vpn_start)
    punch_hole(kernel, vma.file, first, first + vpn_end - vpn_start)


def _willneed(kernel: Kernel, process: Process, vma: Vma, vpn_start: int, vpn_end: int) -> None:
    if vma.file is None:
        swap_in(kernel, process.mm, vpn_start, vpn_end)
        return
    madvise_willneed(kernel, vma, vpn_start, vpn_end)


def _guard_install(
    kernel: Kernel, process: Process, vma: Vma, vpn_start: int, vpn_end: int
) -> None:
    guard_install(kernel, process.mm, vma, vpn_start, vpn_end)


def _guard_remove(kernel: Kernel, process: Process, vma: Vma, vpn_start: int, vpn_end: int) -> None:
    guard_remove(kernel, process.mm, vma, vpn_start, vpn_end)


_OF_FLAGS: Final = (
    "normal", "random", "sequential", "dontfork", "dofork", "dontdump", "dodump", "wipeonfork",
    "keeponfork",
)  # fmt: skip

_ADVICE: Final[Mapping[str, Advisor]] = MappingProxyType(
    {
        **{advice: _flags(advice) for advice in _OF_FLAGS},
        **{advice: _huge(advice) for advice in ("hugepage", "nohugepage")},
        **{advice: _ksm(advice) for advice in ("mergeable", "unmergeable")},
        "dontneed": dontneed,
        "dontneed_locked": _dontneed_locked,
        "free": free,
        "cold": cold,
        "pageout": _pageout,
        "collapse": _collapse,
        "remove": _remove,
        "willneed": _willneed,
        "guard_install": _guard_install,
        "guard_remove": _guard_remove,
    }
)
"""Advice -> what is done for each area."""
