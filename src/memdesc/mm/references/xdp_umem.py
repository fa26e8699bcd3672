"""AF_XDP: memory that a network device fills with packets.

`net/xdp/xdp_umem.c:xdp_umem_reg, xdp_umem_pin_pages, xdp_umem_unpin_pages @6.12`.  Pinned for long
and for writing, as io_uring's buffers are, but without the fast path; and marked dirty when it is
given back, since a device may have written to any of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from memdesc.mm.process import Errno, Process
from memdesc.mm.references.gup import FOLL, pin_user_pages, unpin_user_pages
from memdesc.mm.references.pins import pins_on

if TYPE_CHECKING:
    from memdesc.mm.kernel import Kernel

__all__ = ["Umem", "xdp_umem_reg"]


@dataclass(slots=True, eq=False)
class Umem:
    """Room for packets."""

    pages: list[int]
    accounted: int = 0
    """None: who may have such a socket has mostly CAP_IPC_LOCK, too."""

    def release(self, kernel: Kernel) -> None:
        """xdp_umem_unpin_pages(): every page is dirtied."""
        kernel.say("xdp_umem_unpin_pages: dirtied and unpinned")
        unpin_user_pages(kernel, self.pages, dirty=True)
        self.pages = []

    def references(self, kernel: Kernel) -> Iterator[tuple[int, int]]:
        """(frame, references) of what it holds."""
        return pins_on(kernel, self.pages)

    def pinned(self) -> Sequence[int]:
        """Frames on which it has a pin each."""
        return self.pages


def xdp_umem_reg(kernel: Kernel, process: Process, vpn: int, count: int) -> Umem:
    """setsockopt(2) with XDP_UMEM_REG. Raises Errno.

    What could be pinned is given back where something is missing, dirtied too.
    """
    if not process.mm.limits.capable:
        kernel.say("xsk_create: no CAP_NET_RAW, EPERM")
        raise Errno("EPERM")
    pages = pin_user_pages(kernel, process.mm, vpn, count, FOLL.WRITE | FOLL.LONGTERM)
    if len(pages) < count:
        kernel.say(f"xdp_umem_pin_pages: {len(pages)} of {count} pages, ENOMEM")
        unpin_user_pages(kernel, pages, dirty=True)
        raise Errno("ENOMEM")
    return Umem(pages)
