"""Pages that mlock keeps: the CPU's batch of folios that become locked or unlocked.

`mm/mlock.c:mlock_fbatch, mlock_vma_folio @6.12`.  A folio on the unevictable list counts how many
locked areas map it; only the last of them lets it go.  `mlock` is about areas, this about pages.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from memdesc.kernels.kpageflags import KPF
from memdesc.mm.areas.vma import VM, VM_SPECIAL, Vma
from memdesc.mm.check import HOLDERS
from memdesc.mm.files.inode import SECRETMEM, AddressSpace

if TYPE_CHECKING:
    from memdesc.mm.kernel import Kernel

__all__ = [
    "MlockBatch", "MlockOp", "add", "drain", "evictable", "mlock_new_folio", "mlock_vma_folio",
    "munlock_vma_folio",
]  # fmt: skip


class MlockOp(Enum):
    """Why a folio is in the batch."""

    NEW = "mlock_new_folio"
    MLOCK = "mlock_folio"
    MUNLOCK = "munlock_folio"


@dataclass(slots=True)
class MlockBatch:
    """What waits in the CPU's batch, and `mlock_count` of folios on the unevictable list."""

    waiting: list[tuple[int, MlockOp]] = field(default_factory=list)
    """Folios by their first frame; each is held by a reference."""
    counts: dict[int, int] = field(default_factory=dict)
    """First frame -> locked areas that map it; of use only while it is UNEVICTABLE."""


def mlock_vma_folio(kernel: Kernel, vma: Vma, pfn: int, *, whole: bool = False) -> None:
    """A page that is there already was mapped into an area: it counts if that is locked.

    Large folios are left to mlock(2) itself and to reclaim (`mm/rmap.c:folio_add_anon_rmap_ptes`),
    unless the `whole` of a file's folio was mapped.
    """
    large = kernel.order_of(pfn) and not whole
    if vma.flags & (VM.LOCKED | VM_SPECIAL) == VM.LOCKED and not large:
        add(kernel, kernel.head(pfn), MlockOp.MLOCK)


def mlock_new_folio(kernel: Kernel, vma: Vma, pfn: int) -> None:
    """A new page was mapped into an area (folio_add_lru_vma)."""
    if vma.flags & (VM.LOCKED | VM_SPECIAL) == VM.LOCKED:
        add(kernel, kernel.head(pfn), MlockOp.NEW)
        kernel.say("mlock_new_folio: the area is locked")


def munlock_vma_folio(kernel: Kernel, vma: Vma, pfn: int, *, compound: bool = False) -> None:
    """An entry of an area that mapped a page goes. `compound`: an entry of the PMD level."""
    if vma.flags & (VM.LOCKED | VM_SPECIAL) != VM.LOCKED:
        return
    if compound or kernel.rules.mlock_of_mapped_large or not kernel.order_of(pfn):
        add(kernel, kernel.head(pfn), MlockOp.MUNLOCK)


def add(kernel: Kernel, head: int, operation: MlockOp) -> None:
    """mlock_folio(), mlock_new_folio(), munlock_folio(): into the batch."""
    if not kernel.flags(head) & KPF.UNEVICTABLE:
        kernel.mlock.counts.pop(head, None)  # of an earlier folio in this frame
    if operation is not MlockOp.MUNLOCK:
        kernel.set_flags(head, int(KPF.MLOCKED))
    kernel.get(head)
    kernel.mlock.waiting.append((head, operation))
    if len(kernel.mlock.waiting) >= kernel.rules.lru_batch or kernel.order_of(head):
        drain(kernel)


def drain(kernel: Kernel) -> None:
    """mlock_drain_local(): after the other batches, so that folios are on their lists."""
    while kernel.mlock.waiting:
        waiting, kernel.mlock.waiting = kernel.mlock.waiting, []
        for head, operation in waiting:
            _OPERATIONS[operation](kernel, head)
        for head, _ in waiting:
            kernel.put(head)


def holders(kernel: Kernel) -> Iterator[tuple[int, int]]:
    """References that the batch holds, for `check`."""
    for head, _ in kernel.mlock.waiting:
        yield head, 1


HOLDERS.append(holders)


def evictable(kernel: Kernel, head: int) -> bool:
    """folio_evictable(): neither locked, nor of a file whose pages must not go."""
    mapping = kernel.mappings.get(int(kernel.f.mapping[head]))
    must_stay = isinstance(mapping, AddressSpace) and (
        mapping.fs is SECRETMEM or mapping.unevictable
    )
    return not (kernel.flags(head) & KPF.MLOCKED or must_stay)


# --- helpers -----------------------------------------------------------------------------


def _do_new(kernel: Kernel, head: int) -> None:
    """__mlock_new_folio(): the folio is on no list yet."""
    if not evictable(kernel, head):
        kernel.relist(head, set_flags=int(KPF.UNEVICTABLE), clear_flags=int(KPF.ACTIVE))
        kernel.mlock.counts[head] = int(bool(kernel.flags(head) & KPF.MLOCKED))


def _do_mlock(kernel: Kernel, head: int) -> None:
    """__mlock_folio()."""
    flags, counts = kernel.flags(head), kernel.mlock.counts
    if not flags & KPF.LRU:
        return
    if evictable(kernel, head):
        if flags & KPF.UNEVICTABLE:
            kernel.relist(head, clear_flags=int(KPF.UNEVICTABLE))
        return
    if flags & KPF.UNEVICTABLE:
        if flags & KPF.MLOCKED:
            counts[head] = counts.get(head, 0) + 1
        return
    kernel.relist(head, set_flags=int(KPF.UNEVICTABLE), clear_flags=int(KPF.ACTIVE))
    counts[head] = int(bool(flags & KPF.MLOCKED))
    kernel.say("__mlock_folio: to the unevictable list")


def _do_munlock(kernel: Kernel, head: int) -> None:
    """__munlock_folio()."""
    flags, counts = kernel.flags(head), kernel.mlock.counts
    on_list = bool(flags & KPF.LRU)
    if on_list and flags & KPF.UNEVICTABLE:
        counts[head] = max(0, counts.get(head, 0) - 1)
        if counts[head]:
            kernel.say(f"__munlock_folio: {counts[head]} locked areas still map it")
            return
    kernel.clear_flags(head, int(KPF.MLOCKED))
    if on_list and flags & KPF.UNEVICTABLE and evictable(kernel, head):
        kernel.relist(head, clear_flags=int(KPF.UNEVICTABLE))
        counts.pop(head, None)
        kernel.say("__munlock_folio: back to the inactive list")


_OPERATIONS = {MlockOp.NEW: _do_new, MlockOp.MLOCK: _do_mlock, MlockOp.MUNLOCK: _do_munlock}
