"""Processes, as the kernel's own memory tells them: who they are and what they map.

    table = ProcessTable(kernel, memmap)
    process = table.process(pid)
    areas = table.areas(process)
    table.space(process, areas).words(address >> 12, 1)

What is asked here is what /proc shows of a process: thread group leaders by their pid in the
first PID namespace, areas by rising address, words of pagemap.

Sources: `fs/proc/array.c:proc_pid_status`, `kernel/cgroup/cgroup.c:proc_cgroup_show`,
`fs/proc/task_mmu.c` @6.1, @6.12, @7.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from memdesc.errors import FaultError, QuestionError
from memdesc.map.attribution import NO_UID
from memdesc.structs.kernel import Kernel
from memdesc.structs.memmap import MemMap
from memdesc.structs.paths import Paths, kernfs_path
from memdesc.structs.torn import Torn
from memdesc.structs.user_pages import AddressSpace, UserPages
from memdesc.structs.vmas import Area, AreaReader
from memdesc.structs.walk.tasks import find_tasks

__all__ = ["KernelProcess", "ProcessTable"]

_DEAD: Final = 0x10 | 0x20
"""EXIT_DEAD, EXIT_ZOMBIE (`include/linux/sched.h`: macros)."""


@dataclass(frozen=True, slots=True)
class KernelProcess:
    """A thread group leader."""

    pid: int
    ppid: int
    uid: int
    """Real user id in the first user namespace, `NO_UID` where it could not be read."""
    comm: str
    is_zombie: bool
    cgroup: str
    """Lines as in /proc/PID/cgroup, of the memory controller and of the unified tree."""
    mm: int
    """Address of its mm_struct; 0 for kernel threads and zombies."""
    torn: tuple[str, ...] = ()
    """What of this could not be read."""


@dataclass
class ProcessTable:
    """The processes of one kernel. Everything is read when it is asked for, tasks once."""

    kernel: Kernel
    memmap: MemMap
    torn_tasks: int = 0
    """Links to tasks that led nowhere: processes may be missing."""
    _tasks: dict[int, int] = field(default_factory=dict, repr=False)
    """pid -> address of the task_struct."""

    def __post_init__(self) -> None:
        """Find the tasks. Raises LayoutError for a kernel whose symbols are not known."""
        found = find_tasks(self.kernel, self.memmap)
        self.torn_tasks = found.torn
        self._tasks = {
            task.pid: task.address for task in found.tasks if task.pid and task.pid == task.tgid
        }
        self._pages = UserPages(self.kernel, self.memmap)
        self._reader = AreaReader(self.kernel, Paths(self.kernel, self._root()))

    def pids(self) -> list[int]:
        """Of every process, rising."""
        return sorted(self._tasks)

    def process(self, pid: int) -> KernelProcess:
        """The process `pid`. Raises QuestionError where there is none, FaultError where its
        task cannot be read."""
        if pid not in self._tasks:
            raise QuestionError(
                f"there is no process {pid} in {self.kernel.name}",
                hint="pids are those of the first PID namespace; `memdesc who` lists them",
            )
        task = self.kernel.load("task_struct", self._tasks[pid])
        torn = Torn()
        ppid, uid, cgroup = 0, NO_UID, ""
        try:
            parent = task.follow("real_parent")
            ppid = parent["tgid"] if parent is not None else 0
        except FaultError as error:
            torn.add(f"parent: {error}")
        try:
            credentials = task.follow("real_cred")
            uid = credentials["uid.val"] if credentials is not None else NO_UID
        except FaultError as error:
            torn.add(f"credentials: {error}")
        try:
            cgroup = self._cgroup(task.get("cgroups") or 0)
        except FaultError as error:
            torn.add(f"cgroup: {error}")
        return KernelProcess(
            pid=pid,
            ppid=ppid & 0xFFFFFFFF,
            uid=uid & 0xFFFFFFFF,
            comm=task.text("comm"),
            is_zombie=bool(task["exit_state"] & _DEAD),
            cgroup=cgroup,
            mm=0 if task["exit_state"] & _DEAD else task["mm"],
            torn=torn.reasons,
        )

    def areas(self, process: KernelProcess, torn: Torn) -> list[Area]:
        """The VMAs of `process`; none for one without memory.

        Raises FaultError where its mm_struct cannot be read; lesser damage is said in `torn`.
        """
        if not process.mm:
            return []
        mm = self.kernel.load("mm_struct", process.mm)
        return self._reader.areas(mm, torn)

    def space(self, process: KernelProcess, areas: Sequence[Area], torn: Torn) -> AddressSpace:
        """The page tables of `process` below its `areas`. Raises FaultError as `areas`."""
        self._pages.frames.refresh()
        pgd = self.kernel.load("mm_struct", process.mm)["pgd"]
        return AddressSpace(self._pages, pgd, areas, torn)

    # --- helpers -------------------------------------------------------------------------

    def _root(self) -> tuple[int, int] | None:
        """Where the first process' paths begin: (vfsmount, dentry)."""
        first = self._tasks.get(1)
        if first is None:
            return None
        try:
            files = self.kernel.load("task_struct", first).follow("fs")
            return None if files is None else (files["root.mnt"], files["root.dentry"])
        except FaultError:
            return None

    def _cgroup(self, css_set: int) -> str:
        """Lines "ID:CONTROLLERS:PATH" of the memory controller and the unified hierarchy."""
        kernel = self.kernel
        if not css_set:
            return ""
        sets = kernel.load("css_set", css_set)
        lines: list[str] = []
        number = kernel.types.find_enumerator("memory_cgrp_id")
        if number is not None:
            state = sets.follow(f"subsys[{number}]", "cgroup_subsys_state")
            group = state.follow("cgroup") if state is not None else None
            root = group.follow("root") if group is not None else None
            # The unified hierarchy has the number 0 (cgroup_init_root_id()).
            if group is not None and root is not None and root["hierarchy_id"]:
                path = kernfs_path(kernel, group["kn"])
                lines.append(f"{root['hierarchy_id']}:memory:{path}\n")
        group = sets.follow("dfl_cgrp")
        if group is not None:
            lines.append(f"0::{kernfs_path(kernel, group['kn'])}\n")
        return "".join(lines)
