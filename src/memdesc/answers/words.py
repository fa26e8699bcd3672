r"""Numbers and names in words, the same on the screen and in the report.

Every name of a machine (host, cgroup, process, file) may come from somebody hostile:
`visible` shows what a name would hide, turn round, or tell a terminal to do.
"""

from __future__ import annotations

import unicodedata

__all__ = ["percent", "size", "visible"]

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
