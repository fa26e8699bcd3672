"""Folios under write-back, for as long as a device keeps what it was given.

`mm/page-writeback.c:__folio_start_writeback, folio_end_writeback, folio_wait_writeback,
folio_wait_stable @6.12`.  A device that answers at once writes while the call that asked runs, so
nobody ever sees PG_writeback.  One that is told to hold lets it be seen: the folio is clean, may be
read, mapped and unmapped, and whoever wants to change it, or to take it from its cache, waits.
There is nobody here who would let the device go on meanwhile, so such a step is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from typing import TYPE_CHECKING

from memdesc.errors import MemdescError
from memdesc.kernels.kpageflags import KPF
from memdesc.mm.check import INVARIANTS

if TYPE_CHECKING:
    from memdesc.mm.kernel import Kernel

__all__ = [
    "Answers",
    "end_writeback",
    "start_writeback",
    "wait_for_disk",
    "wait_stable",
    "wait_writeback",
]


class Answers(Enum):
    """What a device does with what it is asked for."""

    OK = "ok"
    FAIL = "fail"
    HOLD = "hold"


def start_writeback(kernel: Kernel, head: int) -> None:
    """__folio_start_writeback(): the device has it, and says nothing yet."""
    kernel.set_flags(head, KPF.WRITEBACK)
    kernel.say("folio_start_writeback: the device keeps it")


def end_writeback(kernel: Kernel, head: int) -> None:
    """folio_end_writeback(): what reclaim waited for is the next that it looks at."""
    rotates = kernel.flags(head) & KPF.RECLAIM
    kernel.clear_flags(head, KPF.WRITEBACK | KPF.RECLAIM)
    kernel.say(f"folio_end_writeback: {'reclaim waited for it' if rotates else 'done'}")


def wait_writeback(kernel: Kernel, pfn: int, who: str) -> None:
    """folio_wait_writeback(). Raises MemdescError where it would wait."""
    if kernel.flags(pfn) & KPF.WRITEBACK:
        _refuse(f"{who} waits for the end of write-back")


def wait_stable(kernel: Kernel, pfn: int, who: str) -> None:
    """folio_wait_stable(): before a page is changed, on a device that cannot have it change.

    zram compresses what it is given, so it is one of them (BLK_FEAT_STABLE_WRITES), and device
    mapper says the same of itself. Raises MemdescError where it would wait.
    """
    wait_writeback(kernel, pfn, who)


def wait_for_disk(kernel: Kernel, who: str) -> None:
    """Something must be read or written before a call returns. Raises MemdescError."""
    if kernel.disk.answers is Answers.HOLD:
        _refuse(f"{who} waits for the disk")


# --- helpers -----------------------------------------------------------------------------


def _refuse(what: str) -> None:
    raise MemdescError(
        f"{what}, which the device holds: it would never return",
        hint="put `disk ok` (of a page in swap: `swap ok`) before this step",
    )


def _waiting(kernel: Kernel) -> Iterator[int]:
    yield from (head for _, head, _ in kernel.disk.waiting)
    if kernel.swap is not None:
        yield from kernel.swap.waiting


def _check_marks(kernel: Kernel) -> None:
    """Exactly what a device keeps is under write-back, and no folio is there twice."""
    waiting = list(_waiting(kernel))
    assert len(waiting) == len(set(waiting)), "a folio is written twice at a time"
    for head in waiting:
        assert kernel.flags(head) & KPF.WRITEBACK, f"frame {head:#x}: not under write-back"


INVARIANTS.append(_check_marks)
