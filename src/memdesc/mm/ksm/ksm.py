"""KSM: pages of equal content become one that everybody maps read-only.

`mm/ksm.c @6.1, @6.12`.  ksmd goes through the areas that asked for it (MADV_MERGEABLE), address
space by address space.  A page is looked for in the stable tree, of pages that are shared already,
then in the unstable tree, of pages that ksmd met in this pass and that did not change since the
pass before.  Nothing else shares pages of different origin, so nobody ever takes a merged page
over: a write always copies.

Trees are by content here; what the kernel finds by comparing its way down a tree is found by one
look.  The trees themselves are in `ksm_tree`, merging in `ksm_merge`, settings and counters in
`ksm_sysfs`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from memdesc.kernels.kpageflags import KPF
from memdesc.mm import entries as e
from memdesc.mm.areas.vma import VM, Vma
from memdesc.mm.ksm.ksm_tree import MmSlot, RmapItem, items_of, zero_pages_of
from memdesc.mm.process import Mm

if TYPE_CHECKING:
    from memdesc.mm.kernel import Kernel

__all__ = [
    "fork_mm",
    "ksm_enable_merge_any",
    "ksm_madvise",
    "merge_any_flags",
    "scan",
    "stop_and_unmerge",
    "unmerge_range",
]

_CANNOT: Final = (
    VM.SHARED | VM.MAYSHARE | VM.PFNMAP | VM.IO | VM.DONTEXPAND | VM.HUGETLB | VM.MIXEDMAP
    | VM.DROPPABLE
)  # fmt: skip
"""vma_ksm_compatible()."""


# --- who takes part ------------------------------------------------------------------------------


def ksm_madvise(kernel: Kernel, mm: Mm, vma: Vma, vpn_start: int, vpn_end: int, advice: str) -> VM:
    """The flags that "mergeable" or "unmergeable" gives an area. Raises OutOfMemory.

    An area that cannot take part is left as it is, without an error.
    """
    if advice == "mergeable":
        if vma.flags & (_CANNOT | VM.MERGEABLE):
            return vma.flags
        _enter(kernel, mm)
        return vma.flags | VM.MERGEABLE
    if vma.flags & VM.MERGEABLE:
        unmerge_range(kernel, mm, vma, vpn_start, vpn_end)
    return vma.flags & ~VM.MERGEABLE


def ksm_enable_merge_any(kernel: Kernel, mm: Mm, *, enable: bool) -> None:
    """PR_SET_MEMORY_MERGE: all areas that can, now and later; or none of them."""
    if enable == mm.merge_any:
        return
    mm.merge_any = enable
    mm.may_have_mergeable = True  # flags change without a look at neighbours
    if enable:
        _enter(kernel, mm)
    for vma in mm.vmas:
        if enable:
            vma.flags |= merge_any_flags(mm, vma.flags)
        elif vma.flags & VM.MERGEABLE:
            unmerge_range(kernel, mm, vma, vma.vpn_start, vma.vpn_end)
            vma.flags &= ~VM.MERGEABLE


def merge_any_flags(mm: Mm, flags: VM) -> VM:
    """ksm_add_vma(): what a new area of such a process gets beside its own flags."""
    return VM.MERGEABLE if mm.merge_any and not flags & _CANNOT else VM(0)


def fork_mm(kernel: Kernel, source: Mm, target: Mm) -> None:
    """ksm_fork(): the child takes part if the parent does, after its areas were copied.

    What the parent counts of zero pages is added whole, though not every area may be copied.
    """
    if kernel.ksm.slot_of(source) is None:
        return
    if kernel.rules.fork_copies_ksm_counts:
        target.ksm_counted_before = items_of(kernel, source)
    _enter(kernel, target)
    if kernel.rules.ksm_marks_zero_pages:
        not_copied = zero_pages_of(kernel, source) - zero_pages_of(kernel, target)
        target.ksm_zero_uncopied += not_copied
        kernel.ksm.zero_uncopied += not_copied


def unmerge_range(kernel: Kernel, mm: Mm, vma: Vma, vpn_start: int, vpn_end: int) -> None:
    """unmerge_ksm_pages(): every merged page of a range gets a copy of its own.

    Raises OutOfMemory.
    """
    for low, high, pmd in mm.tables.runs(vpn_start, vpn_end):
        if pmd.table is None:
            continue
        for vpn in range(low, high):
            break_ksm(kernel, mm, vma, vpn)


def break_ksm(kernel: Kernel, mm: Mm, vma: Vma, vpn: int) -> None:
    """A fault that makes a merged page private again."""
    from memdesc.mm.faults.fault import handle_mm_fault

    entry = mm.tables.entry(vpn)
    if not e.is_present(entry):
        return
    if entry & e.SPECIAL:
        if not (entry & e.DIRTY and kernel.rules.ksm_marks_zero_pages):
            return
    elif not kernel.flags(e.pfn_of(entry)) & KPF.KSM:
        return
    unshare = kernel.rules.ksm_unshares
    handle_mm_fault(kernel, mm, vma, vpn, write=not unshare, unshare=unshare)


# --- ksmd ----------------------------------------------------------------------------------------


def scan(kernel: Kernel) -> None:
    """One full pass (`scan_get_next_rmap_item`, `ksm_do_scan`)."""
    from memdesc.mm.ksm.ksm_merge import cmp_and_merge_page

    ksm = kernel.ksm
    if not ksm.slots:
        return
    kernel.drain()
    ksm.unstable.clear()
    alive = {id(process.mm) for process in kernel.processes.values()}
    # The slot of an address space that ended waits in front of the others (__ksm_exit).
    for slot in sorted(ksm.slots, key=lambda slot: id(slot.mm) in alive):
        areas = [vma for vma in slot.mm.vmas if vma.flags & VM.MERGEABLE]
        if id(slot.mm) not in alive or not areas:
            _forget(kernel, slot)
            continue
        _Walk(kernel, slot).pages(areas, cmp_and_merge_page)
    ksm.full_scans += 1
    ksm.run = 0


def stop_and_unmerge(kernel: Kernel) -> None:
    """Writing 2 to `run`: every page is private again, and ksmd knows nothing.

    `unmerge_and_remove_all_rmap_items`. Raises OutOfMemory.
    """
    ksm = kernel.ksm
    ksm.run = 2
    alive = {id(process.mm) for process in kernel.processes.values()}
    for slot in tuple(ksm.slots):
        if id(slot.mm) not in alive:
            _forget(kernel, slot)
            continue
        for vma in slot.mm.vmas:
            if vma.flags & VM.MERGEABLE and vma.anon_vma is not None:
                unmerge_range(kernel, slot.mm, vma, vma.vpn_start, vma.vpn_end)
        _remove_items(kernel, slot.items)
        slot.items = []
    ksm.drop_all_nodes(kernel)
    ksm.full_scans = 0


# --- helpers -------------------------------------------------------------------------------------


class _Walk:
    """One address space in one pass: its pages, ascending, with what ksmd knows of each."""

    def __init__(self, kernel: Kernel, slot: MmSlot) -> None:
        self._kernel = kernel
        self._mm = slot.mm
        self._slot = slot
        self._known = slot.items
        """Of the pass before, ascending; what was passed is gone from it."""
        slot.items = []

    def pages(self, areas: list[Vma], visit: Callable[[Kernel, RmapItem, int], None]) -> None:
        """Visit every page that could be merged; then forget addresses that have none."""
        kernel = self._kernel
        for vma in areas:
            if vma.anon_vma is None:
                continue
            for low, high, _ in list(self._mm.tables.runs(vma.vpn_start, vma.vpn_end)):
                for vpn in range(low, high):
                    pfn = self._anon_page(vpn)
                    if pfn is None:
                        continue
                    item = self._item(vpn)
                    if self._skips(item, pfn):
                        continue
                    kernel.get(pfn)
                    try:
                        visit(kernel, item, pfn)
                    finally:
                        kernel.put(pfn)
        _remove_items(kernel, self._known)
        self._known = []

    def _anon_page(self, vpn: int) -> int | None:
        entry = self._mm.tables.entry(vpn)
        if not e.is_present(entry) or entry & e.SPECIAL:
            return None
        pfn = e.pfn_of(entry)
        return pfn if self._kernel.flags(pfn) & KPF.ANON else None

    def _item(self, vpn: int) -> RmapItem:
        """get_next_rmap_item(): items of addresses that were passed go."""
        passed = 0
        while passed < len(self._known) and self._known[passed].vpn < vpn:
            passed += 1
        _remove_items(self._kernel, self._known[:passed])
        del self._known[:passed]
        if self._known and self._known[0].vpn == vpn:
            item = self._known.pop(0)
        else:
            item = RmapItem(self._mm, vpn)
        self._slot.items.append(item)
        return item

    def _skips(self, item: RmapItem, pfn: int) -> bool:
        """should_skip_rmap_item() of smart_scan."""
        kernel = self._kernel
        if not kernel.rules.ksm_smart_scan or kernel.knobs["ksm_smart_scan"] == "0":
            return False
        if kernel.flags(pfn) & KPF.KSM:
            return False
        age = item.age
        item.age = min(255, age + 1)
        if age < 3:
            return False
        if not item.skips:
            item.skips = 1 if age <= 3 else 2 if age <= 5 else 4 if age <= 8 else 8
            return False
        kernel.ksm.skipped += 1
        item.skips -= 1
        kernel.ksm.remove_item(kernel, item)
        kernel.say("should_skip_rmap_item: did not merge for some passes, skipped")
        return True


def _enter(kernel: Kernel, mm: Mm) -> None:
    """__ksm_enter(): behind the cursor, which is at the list's head between passes."""
    if kernel.ksm.slot_of(mm) is None:
        kernel.ksm.slots.append(MmSlot(mm))


def _forget(kernel: Kernel, slot: MmSlot) -> None:
    _remove_items(kernel, slot.items)
    kernel.ksm.slots.remove(slot)


def _remove_items(kernel: Kernel, items: list[RmapItem]) -> None:
    for item in items:
        kernel.ksm.remove_item(kernel, item)
