"""Facts that may not be visible: how does a field say that its source cannot see it?

A `Fact` is a value, or `NotVisible` with the reason.  It is never None, and never a 0
that nobody has read.  `Nobody` is something else: a known absence.

>>> count: Fact[int] = NotVisible("/proc does not show reference counts")
>>> str(count)
'not visible: /proc does not show reference counts'
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeAlias, TypeVar

__all__ = ["NOT_LOOKED", "Fact", "Nobody", "NotVisible"]


@dataclass(frozen=True, slots=True)
class NotVisible:
    """A field that exists and that this source cannot see; `reason` is for people."""

    reason: str

    def __str__(self) -> str:
        return f"not visible: {self.reason}"


@dataclass(frozen=True, slots=True)
class Nobody:
    """A known absence: charged to no cgroup, owned by no process."""

    def __str__(self) -> str:
        return "nobody"


_T = TypeVar("_T")

Fact: TypeAlias = _T | NotVisible
"""A value, or the reason why the source cannot see it. Never None, never a made-up 0."""

NOT_LOOKED: Final = NotVisible("the source did not look")
"""The default of every `Fact`: this source does not fill the field."""
