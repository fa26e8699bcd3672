"""Who takes references to user pages, and what each takes: io_uring, debuggers, direct I/O.

`io_uring/rsrc.c:io_sqe_buffer_register, mm/process_vm_access.c:process_vm_rw_single_vec,
mm/memory.c:__access_remote_vm, block/bio.c:bio_iov_iter_get_pages @6.12`.

    vmsplice (`splice`)   FOLL_GET, fast, read     until the pipe is read or closed
    MSG_ZEROCOPY (`zerocopy`)  FOLL_GET, fast, read  until the receiver has it
    io_uring buffers      FOLL_PIN, LONGTERM, WRITE  until they are unregistered
    AF_XDP (`xdp_umem`)   FOLL_PIN, LONGTERM, WRITE  until the socket is closed; dirties
    process_vm_readv      FOLL_PIN, remote         as long as the copy takes; writev dirties
    /proc/PID/mem         FOLL_GET, FORCE, remote  one page at a time; a write dirties
    O_DIRECT              FOLL_PIN (6.1: FOLL_GET) as long as the I/O takes; a read dirties
    futex (`futex`)       FOLL_GET, fast, write    for the look-up of a shared key

What user space holds by a descriptor is in `Process.pins`, and ends with the process at the latest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from memdesc.kernels.kpageflags import KPF
from memdesc.mm.areas.mmap import expand_stack
from memdesc.mm.check import HOLDERS, INVARIANTS
from memdesc.mm.frames import PIN_BIAS
from memdesc.mm.process import Errno, Mm, Process, ptrace_may_access
from memdesc.mm.references.device_mapping import physical_page
from memdesc.mm.references.gup import (
    FOLL,
    get_user_pages,
    get_user_pages_fast,
    pin_user_pages,
    pin_user_pages_fast,
    put_pages,
    unpin_user_pages,
)
from memdesc.model.compiled import array
from memdesc.types import PAGE_SIZE_BYTES

if TYPE_CHECKING:
    from memdesc.mm.kernel import Kernel

__all__ = [
    "FixedBuffer",
    "Held",
    "access_remote_vm",
    "account",
    "direct_io_pages",
    "hand_over",
    "pins_on",
    "process_vm_readv",
    "process_vm_writev",
    "references_on",
    "register_buffer",
]


class Held(Protocol):
    """What a process holds by a descriptor."""

    @property
    def accounted(self) -> int:
        """Pages that count against RLIMIT_MEMLOCK (`struct user_struct.locked_vm`)."""

    def release(self, kernel: Kernel) -> None:
        """The references end."""

    def references(self, kernel: Kernel) -> Iterator[tuple[int, int]]:
        """(frame, references) of what it holds."""

    def pinned(self) -> Sequence[int]:
        """Frames on which it has a pin each."""


def pins_on(kernel: Kernel, pages: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(frame, references) of a pin on each: 1,024 of a small page, one of a large folio.

    The zero page is not pinned (`mm/gup.c:try_grab_folio @6.12`).
    """
    for pfn in pages:
        if pfn != kernel.zero_pfn:
            yield pfn, 1 if kernel.order_of(pfn) else PIN_BIAS


def references_on(pages: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(frame, references) of an ordinary reference to each."""
    return ((pfn, 1) for pfn in pages)


@dataclass(slots=True, eq=False)
class FixedBuffer:
    """A registered buffer of an io_uring: reads and writes go past every page table."""

    pages: list[int]
    held: list[int]
    """Those that are still pinned: of a buffer inside one large folio, a single one."""
    accounted: int = 0
    """Of a process without CAP_IPC_LOCK: the whole of each large folio, once."""

    def write(self, kernel: Kernel, contents: Sequence[int]) -> int:
        """IORING_OP_READ_FIXED: as a device would write. Bytes."""
        for pfn, content in zip(self.pages, contents, strict=True):
            kernel.f.content[pfn] = content
        kernel.say("io_uring: written to the pinned pages, whatever is mapped now")
        return PAGE_SIZE_BYTES * len(self.pages)

    def read(self, kernel: Kernel) -> tuple[int, ...]:
        """IORING_OP_WRITE_FIXED: contents of the pinned pages."""
        return tuple(int(kernel.f.content[pfn]) for pfn in self.pages)

    def release(self, kernel: Kernel) -> None:
        """IORING_UNREGISTER_BUFFERS: unpinned, and never dirtied (`io_buffer_unmap`)."""
        unpin_user_pages(kernel, self.held)
        self.pages, self.held, self.accounted = [], [], 0

    def references(self, kernel: Kernel) -> Iterator[tuple[int, int]]:
        """(frame, references) of what it holds."""
        return pins_on(kernel, self.held)

    def pinned(self) -> Sequence[int]:
        """Frames on which it has a pin each."""
        return self.held


def register_buffer(kernel: Kernel, process: Process, vpn: int, count: int) -> FixedBuffer:
    """IORING_REGISTER_BUFFERS of one buffer: all of its pages or none. Raises Errno."""
    flags = FOLL.WRITE | FOLL.LONGTERM
    if kernel.rules.fixed_buffers_pinned_fast:
        pages = pin_user_pages_fast(kernel, process.mm, vpn, count, flags)
    else:
        pages = pin_user_pages(kernel, process.mm, vpn, count, flags)
    error = "EFAULT" if len(pages) < count else _refused_file(kernel, process.mm, vpn, count)
    if error:
        unpin_user_pages(kernel, pages)
        raise Errno(error)
    heads = list(dict.fromkeys(kernel.head(pfn) for pfn in pages))
    accounted = account(kernel, process, sum(1 << kernel.order_of(head) for head in heads))
    if accounted is None:
        unpin_user_pages(kernel, pages)
        kernel.say("io_buffer_account_pin: over RLIMIT_MEMLOCK, ENOMEM")
        raise Errno("ENOMEM")
    held = pages
    if kernel.rules.fixed_buffer_pins_per_folio or (
        len(heads) == 1 and kernel.rules.fixed_buffer_pins_per_only_folio
    ):
        held = _coalesced(kernel, pages)
    return FixedBuffer(pages, held, accounted)


def account(kernel: Kernel, process: Process, pages: int) -> int | None:
    """__io_account_mem(), mm_account_pinned_pages(): of a user, over all processes.

    How many are counted, none with CAP_IPC_LOCK; None where there would be too many.
    """
    limit = process.memlock_limit
    if limit is None:
        return 0
    user = process.mm.limits.uid
    used = sum(
        held.accounted
        for each in kernel.processes.values()
        if each.mm.limits.uid == user
        for held in each.pins.values()
    )
    return None if used + pages > limit else pages


def hand_over(process: Process, other: Process, name: str) -> None:
    """A descriptor goes to another process, with the references behind it: they are nobody's
    address space's any more, and outlive the one in which they were taken."""
    other.pins[name] = process.pins.pop(name)
    other.received.add(name)


def process_vm_readv(
    kernel: Kernel, caller: Process, target: Process, vpn: int, count: int
) -> tuple[int, ...]:
    """process_vm_readv(2) of another address space, as many pages as can be had. Raises Errno.

    The pin makes what is not exclusive exclusive first, so that reading copies.
    """
    _check_access(kernel, caller, target)
    pages = _pin_remote(kernel, target.mm, vpn, count, FOLL.NONE)
    found = tuple(int(kernel.f.content[pfn]) for pfn in pages)
    unpin_user_pages(kernel, pages)
    return found


def process_vm_writev(
    kernel: Kernel, caller: Process, target: Process, vpn: int, contents: Sequence[int]
) -> int:
    """process_vm_writev(2): bytes written. What was written is dirty. Raises Errno."""
    _check_access(kernel, caller, target)
    pages = _pin_remote(kernel, target.mm, vpn, len(contents), FOLL.WRITE)
    for pfn, content in zip(pages, contents, strict=False):
        kernel.f.content[pfn] = content
    unpin_user_pages(kernel, pages, dirty=True)
    return PAGE_SIZE_BYTES * len(pages)


def access_remote_vm(
    kernel: Kernel, caller: Process, target: Process, vpn: int, count: int,
    contents: Sequence[int] | None = None,
) -> tuple[int, ...]:  # fmt: skip
    """read(2) or write(2) of /proc/PID/mem: contents of the pages that could be had.

    `contents`: what to write. Raises Errno where not even the first page could be had. A stack
    grows down to where it begins, as for the processor (`mm/memory.c:__access_remote_vm`).
    """
    _check_access(kernel, caller, target)
    mm = target.mm
    found: list[int] = []
    if mm.vmas.find(vpn) is None:
        expand_stack(kernel, mm, vpn)
    for at in range(count):
        write = FOLL.NONE if contents is None else FOLL.WRITE
        try:
            pages = get_user_pages(kernel, mm, vpn + at, 1, write | FOLL.FORCE | FOLL.REMOTE)
        except Errno as error:
            pfn = _driver_page(kernel, mm, vpn + at, write=contents is not None)
            if pfn is not None:
                found.append(int(kernel.f.content[pfn]))
                continue
            if not found:
                raise Errno("EIO") from error
            break
        if contents is not None:
            kernel.f.content[pages[0]] = contents[at]
        found.append(int(kernel.f.content[pages[0]]))
        put_pages(kernel, pages, dirty=contents is not None)
    return tuple(found)


def direct_io_pages(
    kernel: Kernel, process: Process, vpn: int, count: int, *, to_memory: bool
) -> list[int]:
    """Pages of the buffer of an O_DIRECT read (`to_memory`) or write. Raises Errno.

    Give them back with `direct_io_done`.
    """
    write = FOLL.WRITE if to_memory else FOLL.NONE
    if kernel.rules.direct_io_pins:
        return pin_user_pages_fast(kernel, process.mm, vpn, count, write)
    return get_user_pages_fast(kernel, process.mm, vpn, count, write)


def direct_io_done(kernel: Kernel, pages: Sequence[int], *, to_memory: bool) -> None:
    """bio_release_pages(): what a device wrote to is dirty."""
    if kernel.rules.direct_io_pins:
        unpin_user_pages(kernel, pages, dirty=to_memory)
    else:
        put_pages(kernel, pages, dirty=to_memory)


# --- helpers -----------------------------------------------------------------------------


def _check_access(kernel: Kernel, caller: Process, target: Process) -> None:
    """mm_access() and ptrace_attach(), which tell of a lack of rights alike."""
    if not ptrace_may_access(caller, target):
        kernel.say("ptrace_may_access: another user, or one with more rights")
        raise Errno("EPERM")


def _pin_remote(kernel: Kernel, mm: Mm, vpn: int, count: int, flags: FOLL) -> list[int]:
    try:
        return pin_user_pages(kernel, mm, vpn, count, flags | FOLL.TOUCH | FOLL.REMOTE)
    except Errno as error:
        raise Errno("EFAULT") from error


def _driver_page(kernel: Kernel, mm: Mm, vpn: int, *, write: bool) -> int | None:
    """`vm_ops->access` of an area that get_user_pages refuses: a frame that the driver reads."""
    vma = mm.vmas.find(vpn)
    return None if vma is None else physical_page(kernel, mm, vma, vpn, write=write)


def _refused_file(kernel: Kernel, mm: Mm, vpn: int, count: int) -> str:
    """io_uring's own test of areas, before get_user_pages had one."""
    if kernel.rules.refuses_longterm_file_writes:
        return ""
    for vma in mm.vmas.overlapping(vpn, vpn + count):
        if vma.file is None:
            continue
        mapping = vma.file.mapping
        if not mapping.is_shmem and mapping.fs.name != "hugetlbfs":
            kernel.say("io_pin_pages: a file that is not in memory only, EOPNOTSUPP")
            return "EOPNOTSUPP"
    return ""


def _coalesced(kernel: Kernel, pages: Sequence[int]) -> list[int]:
    """One pin for each large folio in a row is enough; the others go back."""
    held: list[int] = []
    spare: list[int] = []
    for pfn in pages:
        again = (
            bool(held) and kernel.order_of(pfn) > 0 and kernel.head(held[-1]) == kernel.head(pfn)
        )
        (spare if again else held).append(pfn)
    unpin_user_pages(kernel, spare)
    if spare:
        kernel.say(f"io_uring: {len(spare)} pins given back, one per large folio is enough")
    return held


def _held(kernel: Kernel) -> Iterator[tuple[int, int]]:
    for process in kernel.processes.values():
        for held in process.pins.values():
            yield from held.references(kernel)


def _check_pins(kernel: Kernel) -> None:
    """`_pincount` of large folios is what buffers hold, and what is pinned was pinned in a marked
    address space and still is nobody else's."""
    counts: Counter[int] = Counter()
    for process in kernel.processes.values():
        for name, held in process.pins.items():
            assert process.mm.has_pinned or name in process.received or not held.pinned()
            for pfn in held.pinned():
                head = kernel.head(pfn)
                counts[head] += 1 if kernel.order_of(head) else 0
                if kernel.flags(head) & KPF.ANON and kernel.f.maps[pfn]:
                    assert kernel.f.maps[pfn] == 1, f"frame {pfn:#x}: pinned and shared"
    pins = array(kernel.f.pins)
    for head in {*np.flatnonzero(pins).tolist(), *counts}:
        assert int(pins[head]) == counts[head], f"frame {head:#x}: {pins[head]} pins"


HOLDERS.append(_held)
INVARIANTS.append(_check_pins)
