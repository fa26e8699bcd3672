"""Which types a machine's own counters prove absent, so that honest unions get narrower.

A union such as "kernel, kind not visible" lists every kind that could be meant.  Where
a counter of the same machine says that a kind does not exist there at all, listing it
would only blur the answer.
"""

from __future__ import annotations

from collections.abc import Mapping

from memdesc.types import MemoryType

__all__ = ["absent_types"]

_BY_MEMINFO: Mapping[str, MemoryType] = {
    "Unaccepted": MemoryType.UNACCEPTED,
    "Balloon": MemoryType.BALLOON,
}
_BY_VMSTAT: Mapping[str, MemoryType] = {
    "nr_zspages": MemoryType.ZSMALLOC,
    "nr_unaccepted": MemoryType.UNACCEPTED,
}
"""Also those whose line is there exactly where the kernel was built to have the kind
(`include/linux/mmzone.h:zone_stat_item`: CONFIG_ZSMALLOC, CONFIG_UNACCEPTED_MEMORY)."""
_ALWAYS_THERE = "nr_free_pages"
"""A line of every /proc/vmstat: where it is, the others were read as well."""


def absent_types(
    *,
    meminfo: Mapping[str, int],
    vmstat: Mapping[str, int],
    cmdline: str | None,
) -> int:
    """Return the mask of types that cannot exist on this machine; 0 when nothing is known.

    `meminfo` in bytes, `vmstat` in the kernel's units, `cmdline` the kernel's command line
    or None where it could not be read. A missing line of meminfo proves nothing; one of vmstat
    does, where vmstat itself was read. Guard pages need
    `debug_guardpage_minorder=` (mm/debug_page_alloc.c @7.2).
    """
    mask = 0
    for counters, table in ((meminfo, _BY_MEMINFO), (vmstat, _BY_VMSTAT)):
        for name, kind in table.items():
            if counters.get(name) == 0:
                mask |= kind.bit
    if _ALWAYS_THERE in vmstat:
        for name, kind in _BY_VMSTAT.items():
            if name not in vmstat:
                mask |= kind.bit
    if cmdline is not None and "debug_guardpage_minorder" not in cmdline:
        mask |= MemoryType.GUARD.bit
    return mask
