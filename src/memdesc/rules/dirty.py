"""Whom must the kernel tell when this frame is dirtied?

set_page_dirty(), for example after a driver has written to pages that it had pinned, goes
from the frame to its folio and asks the folio's address space: a file system accounts the
folio and queues its inode for write-back, shared memory only sets a flag, anonymous memory
has nobody to tell.  For memory that has no folio at all the call writes into a flag word
that means something else there.

Source: `mm/page-writeback.c:folio_mark_dirty` @6.1, @6.12, @7.2.
"""

from __future__ import annotations

from dataclasses import dataclass

from memdesc.kernels.dirtying import dirty_callback
from memdesc.kernels.kpageflags import KPF
from memdesc.kernels.type_cells import Dirtying
from memdesc.rules.subject import Knowledge, Ruling, Subject
from memdesc.types import Certainty, MemoryType

__all__ = ["DirtyOutcome", "Dirtying", "dirtied"]

T = MemoryType


@dataclass(frozen=True, slots=True)
class DirtyOutcome:
    """One answer."""

    tells: Dirtying
    callback: str
    """The function that is called; "" where none is."""
    reason: str


def dirtied(
    subject: Subject, kernel: Knowledge, *, file_system: str | None = None
) -> Ruling[DirtyOutcome]:
    """What folio_mark_dirty() does for `subject`; `file_system` names a file page's, if known."""
    kind = subject.kind
    if kind is T.SWAP_CACHE or (kind is T.ANON and subject.has(KPF.SWAPCACHE)):
        return _exact(_flag("noop_dirty_folio", "in the swap cache, whose callback sets the flag"))
    if kind in (T.ANON, T.KSM):
        reason = "no address space: the flag alone is set"
        if kind is T.KSM:
            reason += "; writing to a merged page through a pin is a bug, others share it"
        return _exact(_flag("", reason))
    if kind is T.FILE:
        return _file(kernel, file_system)
    if kind in (T.SHMEM, T.SECRETMEM, T.HUGETLB, T.GUEST_MEMFD, T.FS_DAX, T.DEVICE_DAX):
        return _exact(_flag("noop_dirty_folio", "its address space's callback sets the flag"))
    if kind in _NO_OWNER_OF_DIRT:
        return _exact(_flag("", "no address space: the flag is set and nobody looks at it"))
    if kind is T.HOLE:
        return _exact(DirtyOutcome(Dirtying.MUST_NOT, "", "there is no frame"))
    if kind in _ITS_OWNERS_ALONE:
        return _exact(
            DirtyOutcome(
                Dirtying.MUST_NOT, "", "no process maps it, so nobody has a reason to dirty it"
            )
        )
    return _exact(
        DirtyOutcome(
            Dirtying.MUST_NOT, "", "the flag word means something else for this kind of memory"
        )
    )


# --- helpers -----------------------------------------------------------------------------

_SOURCE = "mm/page-writeback.c:folio_mark_dirty @6.1, @6.12, @7.2"
_NO_OWNER_OF_DIRT = frozenset(
    [
        *(T.ZERO, T.HUGE_ZERO, T.RESERVED, T.DRIVER_MAPPED, T.VMALLOC, T.NET_POOL, T.PAGE_FRAG),
        *(T.DEVICE_PRIVATE, T.DEVICE_COHERENT, T.PCI_P2PDMA),
    ]
)
"""Memory without an address space that can be mapped to a process, and so be pinned."""
_ITS_OWNERS_ALONE = frozenset(
    [T.DRIVER, T.EXACT_ALLOC, T.RAM_DISK, T.ACCOUNTED, T.PERCPU, T.KERNEL_STACK]
)
"""Never mapped to a process: a caller that got here has the wrong frame."""


def _file(kernel: Knowledge, file_system: str | None) -> Ruling[DirtyOutcome]:
    if file_system is None:
        return Ruling(
            (
                DirtyOutcome(Dirtying.FILE_SYSTEM, "", "its file system's dirty_folio is called"),
                _flag("noop_dirty_folio", "ramfs and DAX files only set the flag"),
            ),
            Certainty.NOT_VISIBLE,
            _SOURCE,
        )
    callback = dirty_callback(file_system, kernel.behaviour.release)
    if callback is None:
        return Ruling(
            (
                DirtyOutcome(
                    Dirtying.FILE_SYSTEM, "", f"the dirty_folio of {file_system}, not in the table"
                ),
            ),
            Certainty.INFERRED,
            _SOURCE,
        )
    if callback == "noop_dirty_folio":
        return _exact(_flag(callback, f"{file_system} has nothing to write back"))
    reason = "accounts the folio and queues its inode for write-back"
    return _exact(DirtyOutcome(Dirtying.FILE_SYSTEM, callback, f"{file_system}: {reason}"))


def _flag(callback: str, reason: str) -> DirtyOutcome:
    return DirtyOutcome(Dirtying.FLAG_ONLY, callback, reason)


def _exact(outcome: DirtyOutcome) -> Ruling[DirtyOutcome]:
    return Ruling((outcome,), Certainty.EXACT, _SOURCE)
