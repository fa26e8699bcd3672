"""Errors of writeback, and who learns of them: `lib/errseq.c`, `mm/filemap.c @6.12`.

A value counts errors and remembers the last one, and whether anybody has seen it.  A file that
is opened takes the value as its own if it was seen; an error that nobody has seen yet is still
news to files opened later.

>>> inode = 0
>>> early = sample(inode)
>>> inode = set_error(inode, "EIO")
>>> late = sample(inode)
>>> inode, early, told = check_and_advance(inode, early)
>>> told, check_and_advance(inode, late)[2], check_and_advance(inode, early)[2]
('EIO', 'EIO', '')
>>> check_and_advance(inode, sample(inode))[2]
''
"""

from __future__ import annotations

import errno
from typing import Final

__all__ = ["SEEN", "check", "check_and_advance", "sample", "set_error"]

_ERRNO_MASK: Final = 4095
SEEN: Final = 1 << 12
"""Somebody was told of the error."""
_ONE: Final = 1 << 13
_MASK: Final = (1 << 32) - 1


def set_error(value: int, name: str) -> int:
    """errseq_set(): the value after an error. It counts one further only if the old was seen."""
    number: int = getattr(errno, name)
    new = value & ~(_ERRNO_MASK | SEEN) | number
    if value & SEEN:
        new += _ONE
    return new & _MASK


def sample(value: int) -> int:
    """errseq_sample(): what a file remembers that is opened now."""
    return value if value & SEEN else 0


def check(value: int, since: int) -> str:
    """errseq_check(): name of the error since a sample, "" for none."""
    return "" if value == since else errno.errorcode[value & _ERRNO_MASK]


def check_and_advance(value: int, since: int) -> tuple[int, int, str]:
    """errseq_check_and_advance(): the value, the file's sample, and the error it is told of."""
    if value == since:
        return value, since, ""
    seen = value | SEEN
    return seen, seen, errno.errorcode[value & _ERRNO_MASK]
