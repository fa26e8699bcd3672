"""Address spaces and processes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from memdesc.mm.page_tables import Tables
from memdesc.mm.vma import VM, VmaSet

if TYPE_CHECKING:
    from memdesc.mm.kernel import Kernel
    from memdesc.mm.userfaultfd import UserfaultfdCtx

__all__ = ["Errno", "Mm", "OutOfMemory", "Process", "Signal"]


class Errno(Exception):
    """A system call failed; `name` is the errno's, as "EINVAL"."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class Signal(Exception):
    """An access could not be resolved: "SIGSEGV" with "MAPERR" or "ACCERR", "SIGBUS" with "ADRERR"
    or "MCEERR_AR"."""

    def __init__(self, name: str, code: str) -> None:
        super().__init__(f"{name} {code}")
        self.name = name
        self.code = code


class OutOfMemory(Errno):
    """No frame could be had."""

    def __init__(self) -> None:
        super().__init__("ENOMEM")


class Mm:
    """An address space (`struct mm_struct`)."""

    def __init__(self, kernel: Kernel) -> None:
        self.vmas = VmaSet()
        self.tables = Tables(kernel)
        self.def_flags = VM(0)
        """Flags of new areas: LOCKED after mlockall(MCL_FUTURE)."""
        self.has_pinned = False
        """MMF_HAS_PINNED: some page was pinned at some time, so fork looks."""
        self.pinned_vm = 0
        """Pages that io_uring holds pinned (VmPin)."""
        self.thp_disabled = False
        """PR_SET_THP_DISABLE."""
        self.tables_at_first: int | None = None
        """Page-table pages when the process asked for them first."""
        self.may_have_mergeable = False
        """Something happened after which neighbours that could be one area stay two."""
        self.merge_any = False
        """PR_SET_MEMORY_MERGE: KSM may merge all areas that can."""
        self.huge_zero = False
        """MMF_HUGE_ZERO_PAGE: it holds the huge zero page from the first use to its end."""
        self.khugepaged = False
        """MMF_VM_HUGEPAGE: khugepaged looks at it."""


@dataclass(slots=True, eq=False)
class Process:
    """A process. Compared by identity."""

    name: str
    mm: Mm
    files: dict[str, Any] = field(default_factory=dict)
    """Open files by the scenario's name."""
    pins: dict[str, Any] = field(default_factory=dict)
    """Pipes and registered buffers that hold references to pages, by the scenario's name."""
    userfaults: list[UserfaultfdCtx] = field(default_factory=list)
    """Its userfaultfds, in the order in which they were made."""
    memlock_limit: int | None = None
    """RLIMIT_MEMLOCK in pages; None: none, as with CAP_IPC_LOCK."""
    parent: Process | None = None
    alive: bool = True
