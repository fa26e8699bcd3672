"""Mappings, of memory, files and devices, and the advice that they get."""

from __future__ import annotations

from typing import Final

from memdesc.scenarios.language import Kind, Parameter, Result, choice, flag, value
from memdesc.scenarios.verbs.parts import RANGE, row, word

__all__ = ["ADVICE", "MAPPINGS"]

ADVICE: Final = tuple(
    "normal random sequential willneed dontneed free remove dontfork dofork mergeable "  # noqa: SIM905
    "unmergeable hugepage nohugepage dontdump dodump wipeonfork keeponfork cold pageout "
    "populate_read populate_write dontneed_locked collapse guard_install guard_remove "
    "hwpoison soft_offline".split()
)
"""MADV_* in lower case (`include/uapi/asm-generic/mman-common.h`)."""

_PROT: Final = "rw r none rx rwx w x"
_PROT_OF_MAP: Final = choice("prot", _PROT, "PROT_READ, PROT_WRITE, PROT_EXEC; rw if not given")
_AT: Final = value("at", "exactly there, and not in a slot", Parameter("at", Kind.PLACE))

MAPPINGS: Final = (
    row(
        "map",
        (Parameter("range", Kind.NEW), Parameter("pages", Kind.COUNT)),
        "map pages into a slot of their own, at the same address in every run",
        "mmap(2) with MAP_FIXED_NOREPLACE",
        choice("sharing", "private shared", "MAP_PRIVATE or MAP_SHARED; private if not given"),
        choice("backing", "anon hugetlb", "MAP_ANONYMOUS (with MAP_HUGETLB); anon if not given"),
        value(
            "file",
            "pages of an open file, from its page PAGE on",
            Parameter("file", Kind.FILE),
            Parameter("page", Kind.COUNT, default=0),
        ),
        _PROT_OF_MAP,
        flag("populate", "MAP_POPULATE"),
        flag("locked", "MAP_LOCKED"),
        flag("noreserve", "MAP_NORESERVE"),
        flag("growsdown", "MAP_GROWSDOWN, as a stack"),
        flag("droppable", "MAP_DROPPABLE (6.11)"),
        flag("fixed", "MAP_FIXED: replaces what lies there (with `at`)", needs="at"),
        _AT,
        value(
            "offset",
            "begin so many pages behind a multiple of 2 MiB",
            Parameter("offset", Kind.COUNT),
        ),
    ),
    row("unmap", (RANGE,), "remove the mapping of pages", "munmap(2)"),
    row("protect", (RANGE, word("prot", _PROT)), "change what may be done", "mprotect(2)"),
    row(
        "remap",
        (RANGE,),
        "move pages to another address, or let a mapping grow or shrink where it is",
        "mremap(2)",
        value("to", "move to a place of that name", Parameter("to", Kind.NEW)),
        value("pages", "new size", Parameter("new_pages", Kind.COUNT)),
        flag("dontunmap", "MREMAP_DONTUNMAP: leave the old area, empty; with `to`", needs="to"),
        _AT,
    ),
    row(
        "advise",
        (RANGE, word("advice", " ".join(ADVICE), "MADV_* in lower case")),
        "tell or ask the kernel about pages",
        "madvise(2)",
    ),
    row(
        "reclaim",
        (RANGE,),
        "`advise pageout`",
        "madvise(2) with MADV_PAGEOUT",
        alias=("advise", {"advice": "pageout"}),
    ),
    row(
        "collapse",
        (RANGE,),
        "`advise collapse`",
        "madvise(2) with MADV_COLLAPSE",
        alias=("advise", {"advice": "collapse"}),
    ),
    row(
        "lock",
        (RANGE,),
        "keep in memory",
        "mlock2(2)",
        flag("onfault", "MLOCK_ONFAULT: as pages are touched"),
    ),
    row("unlock", (RANGE,), "no longer keep in memory", "munlock(2)"),
    row(
        "lockall",
        (),
        "keep everything in memory",
        "mlockall(2)",
        flag("current", "MCL_CURRENT"),
        flag("future", "MCL_FUTURE"),
        flag("onfault", "MCL_ONFAULT"),
    ),
    row("unlockall", (), "end `lockall`", "munlockall(2)"),
    row(
        "name_area",
        (RANGE, Parameter("text", Kind.TEXT)),
        "name an anonymous area: areas of different names do not merge",
        "prctl(2) with PR_SET_VMA_ANON_NAME",
    ),
    row(
        "mincore",
        (RANGE,),
        "which pages are in memory or page cache: 1 or 0 per page",
        "mincore(2)",
        result=Result.NUMBERS,
    ),
    row(
        "tables",
        (),
        "page-table pages that came since the process asked first",
        "VmPTE of /proc/PID/status",
        result=Result.NUMBER,
    ),
    row(
        "key",
        (
            RANGE,
            Parameter(
                "rights",
                Kind.WORD,
                "what the process denies itself; `open`: the key that all memory begins with",
                choices=("no_access", "no_write", "open"),
            ),
        ),
        "give readable and writable pages a protection key, a new one each time",
        "pkey_alloc(2), pkey_mprotect(2)",
    ),
    row(
        "map_device",
        (
            Parameter("range", Kind.NEW),
            Parameter("pages", Kind.COUNT, most=1 << 12),
            Parameter(
                "device",
                Kind.WORD,
                "the firmware's memory below 1 MiB, private; pages of a packet socket, shared",
                choices=("firmware", "packets"),
            ),
        ),
        "map memory of a device (VM_PFNMAP) or of a driver (VM_MIXEDMAP)",
        "mmap(2) of /dev/mem; of an AF_PACKET socket with PACKET_RX_RING",
        choice("prot", "rw r none", "PROT_READ, PROT_WRITE; rw if not given"),
        changes_system=True,
    ),
)
"""Mappings, and those of drivers."""
