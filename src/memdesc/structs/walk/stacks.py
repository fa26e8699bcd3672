"""Kernel stacks: of every task, and those kept for the next fork.

A task's stack is a vmalloc area of its own (CONFIG_VMAP_STACK; `task_struct.stack_vm_area`)
or lies in the direct map.  Each CPU keeps up to two stacks of tasks that have gone
(`kernel/fork.c:cached_stacks`).  An area that was made for a stack and belongs to neither
waits for a grace period before it is given back.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from memdesc.errors import FaultError, LayoutError
from memdesc.structs.kernel import Kernel
from memdesc.structs.memmap import MemMap
from memdesc.structs.owned import OwnedFrames
from memdesc.structs.walk.pagetables import frames_at, kernel_tables
from memdesc.structs.walk.tasks import Task, Tasks, tasks_in
from memdesc.structs.walk.view import View, Walked
from memdesc.structs.walk.vmap import VmapAreas, areas_in, frames_of
from memdesc.types import PAGE_SIZE_BYTES, MemoryType

__all__ = ["stack_frames", "walk_stacks"]

_CACHED_PER_CPU = 2
"""`kernel/fork.c:NR_CACHED_STACKS`."""
_STACK_PAGES = 4
"""`arch/x86/include/asm/page_64_types.h:THREAD_SIZE_ORDER`, where no other stack tells."""


def walk_stacks(kernel: Kernel, memmap: MemMap) -> Walked:
    """The frames of every kernel stack ("stack of task 1 (init)"), with the task_struct's
    address, or the vm_struct's for a stack without a task.

    The first idle task's stack is part of the kernel image; its frames are given as well.
    Raises LayoutError where tasks or areas cannot be found.
    """
    view = View.of(kernel, memmap)
    return stack_frames(view, areas_in(view), tasks_in(view))


def stack_frames(view: View, areas: VmapAreas, tasks: Tasks) -> Walked:
    """As `walk_stacks`, of areas and tasks that are already known."""
    torn = tasks.torn
    row_of = {int(vm): index for index, vm in enumerate(areas.vm.tolist()) if vm}
    owners: dict[int, tuple[str, int]] = {}
    direct: list[Task] = []
    for task in tasks.tasks:
        index = row_of.get(task.stack_vm_area)
        if index is not None:
            owners[index] = f"stack of {task}", task.address
        elif task.stack_vm_area:
            torn += 1
        elif task.stack:
            direct.append(task)
    of_tasks = np.array(list(owners), np.int64)
    for cpu, vm in _cached(view):
        index = row_of.get(vm)
        if index is None:
            torn += 1
        elif index not in owners:
            owners[index] = f"stack kept for the next fork on CPU {cpu}", vm
    for index in _like(areas, of_tasks):
        owners.setdefault(index, ("stack of no task", int(areas.vm[index])))

    chosen = np.array(list(owners), np.int64)
    pfns, of, broken = frames_of(view, areas, chosen)
    names = [name for name, _ in owners.values()]
    place = np.zeros(len(areas), np.uint32)
    place[chosen] = np.arange(chosen.size)
    addresses = np.array([address for _, address in owners.values()], np.uint64)
    rank = place[of]
    vmapped = OwnedFrames(MemoryType.KERNEL_STACK, pfns, rank, addresses[rank], names)
    usual = int(np.median(areas.nr_pages[of_tasks])) if of_tasks.size else _STACK_PAGES
    plain = _in_direct_map(view, direct, usual)
    return Walked((vmapped, *plain), torn + broken)


# --- helpers -----------------------------------------------------------------------------


def _cached(view: View) -> list[tuple[int, int]]:
    """(CPU, vm_struct) of the stacks that CPUs keep; none where the symbol is not known:
    they are then found as stacks of no task."""
    pointer = view.find_symbol("cached_stacks")
    if pointer is None:
        return []
    found = []
    for cpu, slots in view.per_cpu(pointer).items():
        for slot in range(_CACHED_PER_CPU):
            try:
                vm = view.u64(slots + slot * 8)
            except FaultError:
                continue
            if vm:
                found.append((cpu, vm))
    return found


def _like(areas: VmapAreas, of_tasks: NDArray[np.int64]) -> list[int]:
    """The areas that were made by the caller and with the size of tasks' stacks."""
    if not of_tasks.size:
        return []
    size = areas.va_end - areas.va_start
    kinds = np.unique(np.stack([areas.caller[of_tasks], size[of_tasks]], axis=1), axis=0)
    is_stack = np.zeros(len(areas), np.bool_)
    for caller, size_bytes in kinds.tolist():
        is_stack |= (areas.caller == np.uint64(caller)) & (size == np.uint64(size_bytes))
    return np.flatnonzero(is_stack).tolist()


def _in_direct_map(view: View, tasks: list[Task], nr_pages: int) -> list[OwnedFrames]:
    """Stacks that are no vmalloc areas: in the direct map, or in the kernel image."""
    if not tasks:
        return []
    steps = np.arange(nr_pages, dtype=np.uint64) * np.uint64(PAGE_SIZE_BYTES)
    try:
        tables = kernel_tables(view)
    except LayoutError:
        # Without page tables the kernel image cannot be placed; a stack there is a reserved
        # frame that no walk has to name.
        return []
    groups = []
    for task in tasks:
        pfns = frames_at(view, tables, np.uint64(task.stack) + steps)
        groups.append(
            OwnedFrames.of_one(
                MemoryType.KERNEL_STACK, pfns[pfns >= 0], f"stack of {task}", task.address
            )
        )
    return groups
