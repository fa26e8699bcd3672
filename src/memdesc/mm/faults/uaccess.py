"""copy_to_user() and copy_from_user(): the kernel touches user memory where it is mapped.

No reference to any page: an access at the user's address with the page tables of the process that
runs, so it faults, copies on write and dirties as user code does, and works on whatever is mapped,
also without a struct page.  Where user code would get a signal, the exception table ends the
copy, and the caller learns how much is missing (`lib/usercopy.c, arch/x86/lib/copy_user_64.S,
arch/x86/mm/fault.c:kernelmode_fixup_or_oops @6.12`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from memdesc.mm.faults.fault import access
from memdesc.mm.process import Errno, Process, Signal

if TYPE_CHECKING:
    from memdesc.mm.kernel import Kernel

__all__ = ["copy_from_user", "copy_to_user"]


def copy_to_user(kernel: Kernel, process: Process, vpn: int, contents: Sequence[int]) -> int:
    """Fill pages, as read(2) does: how many were done. Raises Errno where none was."""
    for done, content in enumerate(contents):
        try:
            pfn = access(kernel, process.mm, vpn + done, write=True)
        except Signal as signal:
            _fixup(kernel, "copy_to_user", signal, done, len(contents))
            return done
        kernel.f.content[pfn] = content
    return len(contents)


def copy_from_user(kernel: Kernel, process: Process, vpn: int, count: int) -> tuple[int, ...]:
    """Contents of pages, as write(2) gets them: those before the first that cannot be read.

    Raises Errno where none could.
    """
    found: list[int] = []
    for at in range(count):
        try:
            pfn = access(kernel, process.mm, vpn + at, write=False)
        except Signal as signal:
            _fixup(kernel, "copy_from_user", signal, at, count)
            break
        found.append(int(kernel.f.content[pfn]))
    return tuple(found)


# --- helpers -----------------------------------------------------------------------------


def _fixup(kernel: Kernel, what: str, signal: Signal, done: int, count: int) -> None:
    """fixup_exception(): no signal, the copy ends here."""
    if signal.name == "SIGKILL":
        raise signal
    kernel.say(f"{what}: {signal.name} {signal.code} becomes {count - done} pages not copied")
    if not done:
        raise Errno("EFAULT")
