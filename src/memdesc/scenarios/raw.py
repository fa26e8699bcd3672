"""What is seen of processes after a step, in the kernel's own words.

The model and real kernels both give these; `observation` makes of them what is compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

__all__ = ["RawPage", "RawVma", "Seen"]


@dataclass(frozen=True, slots=True)
class RawPage:
    """One virtual page in the kernel's words."""

    entry: int
    """/proc/PID/pagemap."""
    flags: int = 0
    """/proc/kpageflags of the frame; 0 where none is present."""
    mapcount: int = 0
    """/proc/kpagecount."""
    refs: int | None = None
    """The folio's reference count, where it can be seen."""
    content: int | None = None
    """First word of the page; None where nothing is present or it could not be read."""
    huge: bool | None = None
    """Mapped by a PMD; None where this cannot be seen."""
    aliased: bool = False
    """The page's words are not all the same."""
    head_flags: int = 0
    """Of a tail: /proc/kpageflags of its folio's first frame, which may be mapped nowhere."""


@dataclass(frozen=True, slots=True)
class RawVma:
    """One virtual memory area, of /proc/PID/smaps."""

    start: int
    end: int
    """Addresses, half-open."""
    perms: str
    """"rw-p"."""
    offset: int
    """Bytes, as shown."""
    path: str
    """Name of the file, "" for anonymous memory; [heap] and such as the kernel writes them."""
    flags: tuple[str, ...]
    """VmFlags, two letters each."""
    sizes: Mapping[str, int]
    """Fields in kB: Rss, Pss, Shared_Clean, ..., Locked."""


@dataclass(frozen=True, slots=True)
class Seen:
    """Everything seen after one step: what a runner returns."""

    pages: Mapping[str, Mapping[str, Sequence[RawPage]]]
    """process -> mapping's name -> its pages, for every process that lives."""
    vmas: Mapping[str, Sequence[RawVma]]
    """process -> areas that lie where the scenario places mappings, ascending."""
    counters: Mapping[str, int] = field(default_factory=dict)
    """System counters by name, as "ksm.pages_shared" or "vmstat.thp_fault_alloc"."""
    frames: Mapping[str, Sequence[RawPage]] = field(default_factory=dict)
    """Name of remembered frames -> what they are now, of those that rows ask about; their entries
    only say which frames they are."""
