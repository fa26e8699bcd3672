"""vmsplice(2): a pipe holds the pages themselves.

`fs/splice.c:vmsplice_to_pipe, iter_to_pipe, wait_for_space; fs/pipe.c:round_pipe_size @6.12`.
Nothing is copied: pages are looked up with `get_user_pages_fast(FOLL_GET)`, sixteen at a time, and
each fills a slot of the pipe.  What the pages hold when the pipe is read is what a reader gets.
SPLICE_F_GIFT promises that the pages will not be written any more; today nobody who reads a pipe
takes pages out of it, so the promise changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from memdesc.mm.process import Errno, Process
from memdesc.mm.references.gup import get_user_pages_fast, put_pages
from memdesc.mm.references.pins import references_on
from memdesc.types import PAGE_SIZE_BYTES

if TYPE_CHECKING:
    from memdesc.mm.kernel import Kernel

__all__ = ["Pipe", "splice_more", "vmsplice"]

_BATCH: Final = 16
"""Pages that vmsplice gets at once."""


@dataclass(slots=True, eq=False)
class Pipe:
    """Pages of user memory in a pipe with room for `slots` of them."""

    pages: list[int] = field(default_factory=list)
    slots: int = 1
    accounted: int = 0

    def read(self, kernel: Kernel) -> tuple[int, ...]:
        """Contents of all pages; their references end. Raises Errno where the pipe is empty."""
        if not self.pages:
            raise Errno("EAGAIN")
        found = tuple(int(kernel.f.content[pfn]) for pfn in self.pages)
        self.release(kernel)
        return found

    def release(self, kernel: Kernel) -> None:
        """The pipe is closed, or was read."""
        put_pages(kernel, self.pages)
        self.pages = []

    def references(self, kernel: Kernel) -> Iterator[tuple[int, int]]:
        """(frame, references) of what it holds."""
        return references_on(self.pages)

    def pinned(self) -> Sequence[int]:
        """Nothing: these are ordinary references."""
        return ()


def vmsplice(
    kernel: Kernel, process: Process, vpn: int, count: int, *, times: int = 1, gift: bool = False
) -> Pipe:
    """vmsplice(2) into a new pipe that has room for the range, `times` over. Raises Errno.

    It ends early, without an error, at the first page that is not to be had.
    """
    pipe = Pipe(slots=1 << (count * times - 1).bit_length())
    if gift:
        kernel.say("vmsplice: SPLICE_F_GIFT, a promise that nobody reads")
    for again in range(times):
        if _fill(kernel, process, pipe, vpn, count, first=not again) < count:
            break
    return pipe


def splice_more(kernel: Kernel, process: Process, pipe: Pipe, vpn: int, count: int) -> int:
    """vmsplice(2) with SPLICE_F_NONBLOCK into a pipe that may be full: bytes. Raises Errno.

    A full pipe is found before any page is looked at; what does not fit any more was looked up with
    the sixteen that it belongs to, and stays faulted in.
    """
    if len(pipe.pages) >= pipe.slots:
        kernel.say("wait_for_space: the pipe is full, EAGAIN")
        raise Errno("EAGAIN")
    return PAGE_SIZE_BYTES * _fill(kernel, process, pipe, vpn, count, first=True)


# --- helpers -----------------------------------------------------------------------------


def _fill(
    kernel: Kernel, process: Process, pipe: Pipe, vpn: int, count: int, *, first: bool
) -> int:
    """iter_to_pipe(): pages that went in. Raises Errno where `first` and not one could be had."""
    done = 0
    while done < count:
        wanted = min(_BATCH, count - done)
        try:
            got = get_user_pages_fast(kernel, process.mm, vpn + done, wanted)
        except Errno:
            if first and not done:
                raise
            break
        room = pipe.slots - len(pipe.pages)
        pipe.pages += got[:room]
        done += min(room, len(got))
        if room < len(got):
            kernel.say(f"add_to_pipe: full, {len(got) - room} references go back")
            put_pages(kernel, got[room:])
            break
    return done
