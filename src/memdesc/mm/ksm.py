"""KSM: equal pages become one. (Being written.)"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from memdesc.mm.kernel import Kernel


@dataclass(slots=True)
class Ksm:
    """What ksmd knows."""

    run: int = 0


def counters(kernel: Kernel) -> dict[str, int]:
    """The files of /sys/kernel/mm/ksm."""
    return {}
