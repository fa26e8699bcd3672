"""mmap, munmap and stacks where scenarios cannot look or would take too long."""

from __future__ import annotations

import pytest

from memdesc.mm.areas.mmap import RLIMIT_STACK, STACK_GUARD_GAP, exit_process, mmap, munmap
from memdesc.mm.areas.vma import VM
from memdesc.mm.check import check
from memdesc.mm.kernel import Kernel
from memdesc.mm.process import Errno, Signal
from memdesc.model.compiled import array
from memdesc.types import MemoryType

AT = 0x10000
RW = VM.READ | VM.WRITE


def test_the_end_of_a_process_leaves_no_frame() -> None:
    kernel = Kernel("6.12", memory_bytes=64 << 20)
    free = int((array(kernel.f.kind) == 0).sum())
    process = kernel.process("p")
    for number in range(20):
        mmap(kernel, process.mm, AT + 700 * number, 600, flags=VM.SHARED if number % 3 else VM(0))
        for vpn in range(AT + 700 * number, AT + 700 * number + 600, 37):
            kernel.write(process, vpn, 1)
    munmap(kernel, process.mm, AT + 1000, AT + 9000)
    check(kernel)
    exit_process(kernel, process)
    kernel.drain()
    assert int((array(kernel.f.kind) == 0).sum()) == free
    assert not kernel.mappings


@pytest.mark.parametrize(
    ("pages", "flags", "error"),
    [
        (0, VM(0), "EINVAL"),
        (1, VM.DROPPABLE | VM.LOCKED, "EINVAL"),
        (1, VM.SHARED | VM.GROWSDOWN, "EINVAL"),
        (1 << 30, VM(0), "ENOMEM"),
    ],
)
def test_refused(pages: int, flags: VM, error: str) -> None:
    kernel = Kernel("6.12", memory_bytes=64 << 20)
    process = kernel.process("p")
    with pytest.raises(Errno, match=error):
        mmap(kernel, process.mm, AT, pages, flags=flags)
    assert len(process.mm.vmas) == 0


def test_what_is_not_reserved_may_be_larger_than_memory() -> None:
    kernel = Kernel("6.12", memory_bytes=64 << 20)
    process = kernel.process("p")
    vma = mmap(kernel, process.mm, AT, 1 << 30, flags=VM.NORESERVE)
    assert not vma.flags & VM.ACCOUNT


def test_overcommit_2_does_not_listen_to_noreserve() -> None:
    kernel = Kernel("6.12", memory_bytes=64 << 20)
    kernel.set_knob("overcommit", "2")
    process = kernel.process("p")
    vma = mmap(kernel, process.mm, AT, 1, flags=VM.NORESERVE)
    assert vma.flags & (VM.ACCOUNT | VM.NORESERVE) == VM.ACCOUNT


def test_a_stack_grows_up_to_the_gap_and_to_its_limit() -> None:
    kernel = Kernel("6.12", memory_bytes=64 << 20)
    process = kernel.process("p")
    top = AT + 4 * RLIMIT_STACK
    mmap(kernel, process.mm, top - 1, 1, flags=VM.GROWSDOWN)
    kernel.write(process, top - RLIMIT_STACK, 1)
    with pytest.raises(Signal, match="MAPERR"):
        kernel.read(process, top - RLIMIT_STACK - 1)
    munmap(kernel, process.mm, AT, top - 1)
    wall = mmap(kernel, process.mm, top - 1000, 1, prot=VM.READ)
    kernel.read(process, wall.vpn_end + STACK_GUARD_GAP)
    with pytest.raises(Signal, match="MAPERR"):
        kernel.read(process, wall.vpn_end + STACK_GUARD_GAP - 1)
    check(kernel)


def test_replacing_a_part_frees_its_pages_and_keeps_one_area() -> None:
    kernel = Kernel("7.2", memory_bytes=64 << 20)
    process = kernel.process("p")
    mmap(kernel, process.mm, AT, 600)
    for vpn in range(AT, AT + 600):
        kernel.write(process, vpn, vpn)
    mmap(kernel, process.mm, AT + 10, 580, fixed=True)
    assert len(process.mm.vmas) == 1
    kernel.drain()
    folios = [
        pfn for pfn in range(array(kernel.f.kind).size) if kernel.type_at(pfn) is MemoryType.ANON
    ]
    assert len(folios) == 20
    assert [kernel.read(process, AT + at) for at in (9, 10, 589, 590)] == [AT + 9, 0, 0, AT + 590]
    check(kernel)
