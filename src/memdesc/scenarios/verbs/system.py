"""The whole system: its settings, its daemons, its disks and file systems."""

from __future__ import annotations

from typing import Final

from memdesc.scenarios.knobs import KNOBS
from memdesc.scenarios.language import FILE_SYSTEMS, Kind, Parameter, choice, flag, value
from memdesc.scenarios.verbs.parts import RANGE, row, word

__all__ = ["SYSTEM"]

_MOST_PASSES: Final = 100
_STATES: Final = "whether accesses fail, wait for the next `fail` or `ok`, or go on"
"""Of a device that device mapper hides."""

_WHERE: Final = Parameter("where", Kind.WORD, "which file system", choices=FILE_SYSTEMS)

SYSTEM: Final = (
    row(
        "knob",
        (Parameter("name", Kind.WORD, choices=tuple(KNOBS)), Parameter("value", Kind.TEXT)),
        "a setting of the system",
        "write(2) to a file of /proc/sys or /sys",
        by_process=False,
        changes_system=True,
    ),
    row(
        "ksm",
        (word("action", "scan run"), Parameter("value", Kind.COUNT, most=_MOST_PASSES)),
        "`scan N`: N full passes over all memory; `run N`: write N to `run`",
        "/sys/kernel/mm/ksm",
        by_process=False,
        changes_system=True,
    ),
    row(
        "khugepaged",
        (Parameter("passes", Kind.COUNT, most=_MOST_PASSES),),
        "let khugepaged look at every process that may have huge pages, so many times",
        "/sys/kernel/mm/transparent_hugepage/khugepaged",
        by_process=False,
        changes_system=True,
    ),
    row(
        "swap",
        (word("state", "on off fail hold ok", f"on or off; of a mapped device, {_STATES}"),),
        "swap to compressed memory",
        "swapon(2) of zram; a table of device mapper with the target `error`, a suspended device",
        value("pages", "so many slots; 64 MiB if not given", Parameter("pages", Kind.COUNT)),
        flag("mapped", "by way of device mapper: the kernel does not know that it is fast"),
        by_process=False,
        changes_system=True,
    ),
    row(
        "shrink",
        (),
        "take from all processes whatever can be taken",
        "memory.reclaim of their control group",
        by_process=False,
        changes_system=True,
    ),
    row("sync", (), "write back everything", "sync(2)", by_process=False, changes_system=True),
    row(
        "dropcaches",
        (Parameter("value", Kind.COUNT, "1: page cache, 2: slabs, 3: both"),),
        "drop what is clean",
        "/proc/sys/vm/drop_caches",
        by_process=False,
        changes_system=True,
    ),
    row(
        "disk",
        (word("state", "fail hold ok", f"of data on the devices, {_STATES}"),),
        "let the disks below file systems fail or stop; what describes files can still be accessed",
        "a table of device mapper with the target `error`, a suspended device",
        by_process=False,
        changes_system=True,
    ),
    row(
        "drain",
        (),
        "put what waits in per-CPU batches on the LRU lists",
        "madvise(2) with MADV_COLD of another page",
        choice("state", "now off on", "off: no longer after every step; on: again"),
        by_process=False,
    ),
    row(
        "split",
        (RANGE,),
        "split the large folios there",
        "debugfs split_huge_pages",
        value("order", "into folios of that order (6.9)", Parameter("order", Kind.COUNT, most=63)),
        value(
            "around",
            "only around that page of each folio, which else stays as large as it may be (6.15)",
            Parameter("around", Kind.COUNT),
        ),
        changes_system=True,
    ),
    row(
        "filesystem",
        (
            _WHERE,
            Parameter(
                "state", Kind.WORD, "what it becomes", ("readonly", "writable", "frozen", "thawed")
            ),
        ),
        "remount a file system, or freeze it",
        "mount(2) with MS_REMOUNT, ioctl(2) with FIFREEZE and FITHAW",
        by_process=False,
        changes_system=True,
    ),
    row(
        "fill",
        (_WHERE, Parameter("pages", Kind.COUNT)),
        "fill a disk until so many pages are left",
        "fallocate(2) of another file",
        by_process=False,
        changes_system=True,
    ),
)
"""The whole system."""
