"""What a row below `expect` asks for: read by `reader`, checked by `expect`.

The words of a row are kept as they were written, spread to one per page; what they mean is known
when there is something to check them against.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

__all__ = ["GONE", "WAITS", "AreaCheck", "Check", "Subject"]

GONE: Final = "gone"
"""Instead of permissions: there is no area."""
WAITS: Final = ("...",)
"""Cells of a row, or words behind ->, that a run is to fill in (`record`)."""


class Subject(enum.Enum):
    """What a row is about: the word that stands behind the pages."""

    PAGE = "page"
    """One letter per page (`observation.LETTERS`)."""
    FRAME = "frame"
    """Identity: the same word is the same frame, over all rows of one `expect`; . for none."""
    CONTENT = "content"
    MAPCOUNT = "mapcount"
    REFS = "refs"
    SOFT_DIRTY = "softdirty"
    """1 or 0 per page: pagemap's bit 55."""
    FLAGS = "flags"
    """Names of kpageflags: exactly these, or +NAME and -NAME."""
    VMAS = "vmas"
    """Areas with their permissions and flags: exactly these."""
    SMAPS = "smaps"
    """Field=kB, added up over the areas."""
    COUNT = "count"
    """A counter of the system."""

    @property
    def is_per_page(self) -> bool:
        return self in _PER_PAGE


_PER_PAGE = frozenset(
    {
        Subject.PAGE,
        Subject.FRAME,
        Subject.CONTENT,
        Subject.MAPCOUNT,
        Subject.REFS,
        Subject.SOFT_DIRTY,
    }
)


@dataclass(frozen=True, slots=True)
class AreaCheck:
    """One area: pages of a mapping, what may be done, flags that must (not) be there."""

    name: str
    first: int
    pages: int
    perms: str
    """"rw" or "rw-p": as much as was written."""
    flags: tuple[str, ...] = ()
    """+lo or -mg: two-letter VmFlags."""


@dataclass(frozen=True, slots=True)
class Check:
    """One row."""

    line: int
    text: str
    subject: Subject
    group: int = 0
    """Rows of one `expect` have the same number: frames are named within it."""
    process: str = ""
    """"" of a row about remembered frames, and of COUNT."""
    name: str = ""
    first: int = 0
    pages: int = 0
    cells: tuple[str, ...] = ()
    """One per page; of FLAGS, the names."""
    areas: tuple[AreaCheck, ...] = ()
    waits: bool = False
    """Not recorded yet."""
    fields: Mapping[str, int] = field(default_factory=dict)
    """Of SMAPS: field -> kB. Of COUNT: counter -> number."""

    @property
    def is_of_frames(self) -> bool:
        """About frames that `remember` named, whoever maps them."""
        return not self.process and bool(self.name)
