"""futex(2) with a key that others can share: the page behind the address decides.

`kernel/futex/core.c:get_futex_key @6.12`.  Two waiters meet if they have the same key.  A private
futex is named by its address; a shared one by the file and the page of it, so the kernel takes a
reference to the page for the time of the look-up.  It asks for the page as for writing: untouched
memory is allocated, and a page that is shared since fork is copied.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from memdesc.kernels.kpageflags import KPF
from memdesc.mm.process import Errno, Process
from memdesc.mm.references.gup import FOLL, get_user_pages_fast, put_pages

if TYPE_CHECKING:
    from memdesc.mm.kernel import Kernel

__all__ = ["FutexKey", "futex_key", "futex_wake"]

FutexKey: TypeAlias = tuple[str, int, int]
"""("private", id of the address space, page) or ("shared", number of the file, page of it)."""


def futex_key(kernel: Kernel, process: Process, vpn: int, *, shared: bool = True) -> FutexKey:
    """get_futex_key(): what two waiters must have in common. Raises Errno.

    A shared futex in private memory belongs to the address space, too: only a file's page is the
    same for others. Where memory is read-only, its page must be a file's: an anonymous one could
    be another the next time.
    """
    if not shared:
        return "private", id(process.mm), vpn
    read_only = False
    try:
        pages = get_user_pages_fast(kernel, process.mm, vpn, 1, FOLL.WRITE)
    except Errno:
        pages = get_user_pages_fast(kernel, process.mm, vpn, 1)
        read_only = True
    pfn = pages[0]
    head = kernel.head(pfn)
    try:
        if kernel.flags(pfn) & KPF.ANON:
            if read_only:
                kernel.say("get_futex_key: read-only and anonymous, EFAULT")
                raise Errno("EFAULT")
            return "private", id(process.mm), vpn
        mapping = int(kernel.f.mapping[head])
        if not mapping:
            kernel.say("get_futex_key: a page of no file, EFAULT")
            raise Errno("EFAULT")
        return "shared", mapping, int(kernel.f.pgoff[head]) + pfn - head
    finally:
        put_pages(kernel, pages)


def futex_wake(kernel: Kernel, process: Process, vpn: int, *, shared: bool = True) -> int:
    """FUTEX_WAKE: how many waiters were woken. Nobody waits in the model. Raises Errno."""
    key = futex_key(kernel, process, vpn, shared=shared)
    kernel.say(f"futex_wake: nobody waits for {key[0]} key of page {key[2]:#x}")
    return 0
