r"""Numbers and names in words, the same on the screen and in the report.

Every name of a machine (host, cgroup, process, file) may come from somebody hostile:
`visible` shows what a name would hide, turn round, or tell a terminal to do.
"""

from __future__ import annotations

import unicodedata

__all__ = ["UNION_WORDS", "percent", "size", "visible"]

UNION_WORDS: dict[str, str] = {
    "kernel or per-CPU free, kind not visible": (
        "kernel stacks, vmalloc, per-CPU data, drivers, per-CPU free pages"
    ),
    "kernel, hole or device, not visible": (
        "kernel memory, or holes and device memory: /proc/iomem would tell"
    ),
    "kernel compound, kind not visible": (
        "larger kernel blocks: big kmalloc, network buffers, drivers"
    ),
    "kernel memory mapped to user space": (
        "kernel pages that a program sees: driver rings, vvar, zero-copy"
    ),
    "kernel memory mapped to user space, or zsmalloc": (
        "kernel pages that a program sees, or compressed memory (zsmalloc)"
    ),
    "kernel or in flight, kind not visible": (
        "kernel memory, per-CPU free pages, or pages being set up"
    ),
    "kernel compound or folio in the making": ("larger kernel blocks, or large pages being set up"),
    "kernel memory mapped to user space, or page cache": (
        "kernel pages that a program sees, or file pages being set up"
    ),
    "kernel, owner not known": "kernel or driver memory; its struct page names nobody",
    "kernel compound, owner not known": (
        "larger kernel or driver blocks; their struct pages name nobody"
    ),
    "kernel memory mapped to user space, owner not known": (
        "kernel pages a program sees; their struct pages name nobody"
    ),
    "not readable: any type": "the struct pages could not be read",
    "device memory": "memory of a device: which kind is not shown",
    "hole or device memory": "no memory at all, or memory of a device",
    "hole, device or uninitialised": "no memory, device memory, or not set up since boot",
}
"""What a union of types can be, by `TypeSet.family`, short enough for a line of a screen."""

_UNITS = ("KiB", "MiB", "GiB", "TiB", "PiB")
_NAME_LIMIT = 240


def size(size_bytes: float) -> str:
    """A size with its unit; exact below one KiB.

    >>> size(25769402368), size(-512), size(1048575)
    ('24.0 GiB', '-512 B', '1.0 MiB')
    """
    sign = "-" if size_bytes < 0 else ""
    amount = float(abs(size_bytes))
    if amount < 1024:
        return f"{sign}{amount:.0f} B"
    units = iter(_UNITS)
    unit = next(units)
    amount /= 1024
    while amount >= 1023.95 and unit != _UNITS[-1]:
        unit = next(units)
        amount /= 1024
    return f"{sign}{amount:.1f} {unit}"


def percent(part: float, whole: float) -> str:
    """A share: "12.3 %", "<0.1 %" for what is there and small, "-" of nothing."""
    if not whole:
        return "-"
    share = 100 * part / whole
    return "<0.1 %" if 0 < share < 0.05 else f"{share:.1f} %"


def visible(name: str) -> str:
    r"""`name` with everything written out that does not show or that reorders text.

    >>> visible("a\x1b[1m\u202eb")
    'a\\x1b[1m\\u202eb'
    """
    if len(name) > _NAME_LIMIT:
        half = _NAME_LIMIT // 2
        name = f"{name[:half]}\N{HORIZONTAL ELLIPSIS}{name[-half:]}"
    if name.isprintable():
        return name
    return "".join(_written(char) for char in name)


def _written(char: str) -> str:
    if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"):
        return char.encode("unicode_escape").decode("ascii")
    return char
