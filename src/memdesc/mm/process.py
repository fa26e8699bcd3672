"""Address spaces and processes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from memdesc.mm.areas.vma import VM, VmaSet
from memdesc.mm.page_tables import Tables

if TYPE_CHECKING:
    from memdesc.mm.kernel import Kernel
    from memdesc.mm.userfault.userfaultfd import UserfaultfdCtx

__all__ = [
    "NOBODY",
    "Descriptors",
    "Errno",
    "Limits",
    "Mm",
    "OutOfMemory",
    "Process",
    "Signal",
    "ptrace_may_access",
]


NOBODY: Final = 65534
"""The user without rights."""


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


@dataclass(slots=True)
class Limits:
    """Resource limits in pages (None: unlimited), and the rights with which they are asked for."""

    address_space: int | None = None
    """RLIMIT_AS."""
    data: int | None = None
    """RLIMIT_DATA."""
    memlock: int | None = 2048
    """RLIMIT_MEMLOCK."""
    capable: bool = True
    """Has all capabilities, as root begins with."""
    uid: int = 0

    @property
    def locked(self) -> int | None:
        """How many pages may be locked: RLIMIT_MEMLOCK means nothing with CAP_IPC_LOCK."""
        return None if self.capable else self.memlock


class Mm:
    """An address space (`struct mm_struct`)."""

    def __init__(self, kernel: Kernel) -> None:
        self.vmas = VmaSet()
        self.tables = Tables(kernel)
        self.limits = Limits()
        """Those of its process (of which it has one)."""
        self.start_brk = 0
        self.brk = 0
        """Where the heap of brk(2) begins, and its end."""
        self.def_flags = VM(0)
        """Flags of new areas: LOCKED after mlockall(MCL_FUTURE)."""
        self.has_pinned = False
        """MMF_HAS_PINNED: some page was pinned at some time, so fork looks."""
        self.pkru = 0
        """What the thread that runs may not do, two bits per protection key."""
        self.pkeys: set[int] = set()
        """Protection keys that are taken, beside 0."""
        self.thp_disabled = False
        """PR_SET_THP_DISABLE."""
        self.tables_at_first: int | None = None
        """Page-table pages when the process asked for them first."""
        self.may_have_mergeable = False
        """Something happened after which neighbours that could be one area stay two."""
        self.merge_any = False
        """PR_SET_MEMORY_MERGE: KSM may merge all areas that can."""
        self.ksm_counted_before = (0, 0)
        """`ksm_rmap_items` and `ksm_merging_pages` of the parent, which a fork copied."""
        self.ksm_zero_uncopied = 0
        """Zero pages that KSM counts since a fork, of areas that fork did not copy."""
        self.huge_zero = False
        """MMF_HUGE_ZERO_PAGE: it holds the huge zero page from the first use to its end."""
        self.khugepaged = False
        """MMF_VM_HUGEPAGE: khugepaged looks at it."""


class Descriptors(dict[str, Any]):
    """What a process has open, by name; EBADF for a name that it failed to open."""

    def __missing__(self, name: str) -> Any:
        raise Errno("EBADF")

    def take(self, name: str) -> Any:
        """Forget it; the caller closes it."""
        found = self[name]
        del self[name]
        return found


@dataclass(slots=True, eq=False)
class Process:
    """A process. Compared by identity."""

    name: str
    mm: Mm
    files: Descriptors = field(default_factory=Descriptors)
    """Open files by the scenario's name."""
    pins: Descriptors = field(default_factory=Descriptors)
    """`pins.Held`: pipes, buffers, sockets that hold references to pages, by scenario's name."""
    received: set[str] = field(default_factory=set)
    """Those of them that another process took, and handed over."""
    userfaults: list[UserfaultfdCtx] = field(default_factory=list)
    """Its userfaultfds, in the order in which they were made."""
    fsize_limit: int | None = None
    """RLIMIT_FSIZE in pages: no file grows beyond it by this process; None: none."""
    parent: Process | None = None
    alive: bool = True

    @property
    def memlock_limit(self) -> int | None:
        """RLIMIT_MEMLOCK in pages; None: none, as with CAP_IPC_LOCK."""
        return self.mm.limits.locked


def ptrace_may_access(caller: Process, target: Process) -> bool:
    """The same user with no rights more than one has oneself, or root's."""
    mine, theirs = caller.mm.limits, target.mm.limits
    return mine.capable or (mine.uid == theirs.uid and not theirs.capable)
