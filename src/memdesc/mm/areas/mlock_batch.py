"""What mlock has to do still: the CPU's batch of folios that become locked or unlocked.

`mm/mlock.c:mlock_fbatch @6.12`. `mm.mlock` works on it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

__all__ = ["MlockBatch", "MlockOp"]


class MlockOp(Enum):
    """Why a folio is in the batch."""

    NEW = "mlock_new_folio"
    MLOCK = "mlock_folio"
    MUNLOCK = "munlock_folio"


@dataclass(slots=True)
class MlockBatch:
    """What waits in the CPU's batch, and `mlock_count` of folios on the unevictable list."""

    waiting: list[tuple[int, MlockOp]] = field(default_factory=list)
    """Folios by their first frame; each is held by a reference."""
    counts: dict[int, int] = field(default_factory=dict)
    """First frame -> locked areas that map it; of use only while it is UNEVICTABLE."""
