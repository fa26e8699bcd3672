"""Every task of a kernel: processes, their threads, kernel threads and the idle tasks.

Found through the PIDs of the first PID namespace (`kernel/pid.c:init_pid_ns`, an IDR), which
knows each of them by a tree instead of a long list; the idle tasks, which have no PID of
their own, through the per-CPU variable `idle_threads` (`kernel/smpboot.c`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memdesc.errors import FaultError, LayoutError
from memdesc.kernels.type_info import Kind
from memdesc.structs.kernel import Kernel
from memdesc.structs.memmap import MemMap
from memdesc.structs.walk.view import View
from memdesc.structs.walk.xarray import xarray_entries

__all__ = ["Task", "Tasks", "find_tasks", "tasks_in"]


@dataclass(frozen=True, slots=True)
class Task:
    """One task_struct."""

    address: int
    pid: int
    """Of the thread, in the first PID namespace; 0 for the idle tasks."""
    tgid: int
    """Of the process."""
    comm: str
    mm: int
    """Address of its mm_struct; 0 for kernel threads and those that have left it."""
    active_mm: int
    stack: int
    """Lowest address of its kernel stack; 0 once that is gone (a zombie)."""
    stack_vm_area: int
    """vm_struct of the stack; 0 where stacks are not from vmalloc."""

    def __str__(self) -> str:
        return f"task {self.pid} ({self.comm})"


@dataclass(frozen=True)
class Tasks:
    """All tasks, by PID; idle tasks last."""

    tasks: tuple[Task, ...]
    torn: int = 0


def find_tasks(kernel: Kernel, memmap: MemMap) -> Tasks:
    """Every task. Raises LayoutError where the kernel's layout or symbols are not known."""
    return tasks_in(View.of(kernel, memmap))


def tasks_in(view: View) -> Tasks:
    """As `find_tasks`, with what `view` has already read."""
    head = view.symbol("init_pid_ns") + view.kernel.member("pid_namespace", "idr.idr_rt").offset
    pids, torn = xarray_entries(view, head)
    # PIDTYPE_PID is the first of enum pid_type (include/linux/pid_types.h).
    first = view.fields("pid", pids.values, "tasks[0].first")["tasks[0].first"]
    addresses = first[first != 0] - view.offset("task_struct", "pid_links[0]")
    number = pids.indices[first != 0]
    tasks, broken = _load(view, addresses, number)
    idle, broken_idle = _load(view, _idle(view), None)
    return Tasks((*tasks, *idle), torn + broken + broken_idle)


# --- helpers -----------------------------------------------------------------------------


def _idle(view: View) -> NDArray[np.uint64]:
    found = []
    try:
        slots = view.per_cpu(view.symbol("idle_threads"))
    except LayoutError:
        slots = {}
    for slot in slots.values():
        try:
            found.append(view.u64(slot))
        except FaultError:
            continue
    return np.unique(np.array([address for address in found if address], np.uint64))


def _load(
    view: View, addresses: NDArray[np.uint64], pids: NDArray[np.int64] | None
) -> tuple[list[Task], int]:
    """The tasks there whose PID is as expected, and how many were not."""
    vmapped = view.kernel.has("task_struct", "stack_vm_area")
    paths = ["pid", "tgid", "mm", "active_mm", "stack", *(["stack_vm_area"] if vmapped else [])]
    rows = view.fields("task_struct", addresses, *paths)
    is_task = rows.readable
    if pids is not None:
        is_task = is_task & (rows["pid"].astype(np.int64) == pids)
    if view.kernel.member("task_struct", "comm").type.kind is not Kind.ARRAY:
        raise LayoutError(f"task_struct.comm of {view.kernel.release} is no array")
    names = view.texts("task_struct", addresses, "comm")
    areas = rows["stack_vm_area"] if vmapped else np.zeros(addresses.size, np.uint64)
    found = [
        Task(
            int(addresses[index]),
            int(rows["pid"][index]),
            int(rows["tgid"][index]),
            names[index],
            int(rows["mm"][index]),
            int(rows["active_mm"][index]),
            int(rows["stack"][index]),
            int(areas[index]),
        )
        for index in np.flatnonzero(is_task).tolist()
    ]
    return found, int((~is_task).sum())
