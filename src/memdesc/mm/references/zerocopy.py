"""MSG_ZEROCOPY: a socket's queue holds the pages that were sent.

`net/core/skbuff.c:skb_zerocopy_iter_stream, __zerocopy_sg_from_iter; net/ipv4/tcp.c:
tcp_sendmsg_locked @6.12`.  References are ordinary ones (FOLL_GET), until the receiver has
acknowledged what was sent, or the connection ends.  What is written to the pages meanwhile is what
is sent: nothing protects them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from memdesc.mm.process import Errno, Process
from memdesc.mm.references.gup import get_user_pages_fast, put_pages
from memdesc.mm.references.pins import account, references_on

if TYPE_CHECKING:
    from memdesc.mm.kernel import Kernel

__all__ = ["SentPages", "send_zerocopy"]

_WORST: Final = 2
"""Pages that a message may touch more than its length says."""


@dataclass(slots=True, eq=False)
class SentPages:
    """Pages of user memory in the queue of a TCP socket."""

    pages: list[int]
    accounted: int = 0

    def receive(self, kernel: Kernel) -> tuple[int, ...]:
        """What the other side gets: what the pages hold when they are delivered."""
        found = tuple(int(kernel.f.content[pfn]) for pfn in self.pages)
        self.release(kernel)
        return found

    def release(self, kernel: Kernel) -> None:
        """The queue is empty, or the connection gone."""
        put_pages(kernel, self.pages)
        self.pages, self.accounted = [], 0

    def references(self, kernel: Kernel) -> Iterator[tuple[int, int]]:
        """(frame, references) of what it holds."""
        return references_on(self.pages)

    def pinned(self) -> Sequence[int]:
        """Nothing: these are ordinary references."""
        return ()


def send_zerocopy(kernel: Kernel, process: Process, vpn: int, count: int) -> SentPages:
    """sendmsg(2) with MSG_ZEROCOPY: pages up to the first that is not to be had. Raises Errno."""
    accounted = account(kernel, process, count + _WORST)
    if accounted is None:
        kernel.say("mm_account_pinned_pages: over RLIMIT_MEMLOCK, ENOBUFS")
        raise Errno("ENOBUFS")
    pages: list[int] = []
    while len(pages) < count:
        try:
            pages += get_user_pages_fast(kernel, process.mm, vpn + len(pages), count - len(pages))
        except Errno:
            if not pages:
                raise
            kernel.say(f"skb_zerocopy_iter_stream: {len(pages)} of {count} pages are sent")
            break
    return SentPages(pages, accounted)
