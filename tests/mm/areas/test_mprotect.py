"""mprotect at the entries, whose permissions scenarios only see by what happens next."""

from __future__ import annotations

import pytest

from memdesc.mm import entries as e
from memdesc.mm.areas.mmap import exit_process, mmap
from memdesc.mm.areas.mprotect import mprotect
from memdesc.mm.areas.vma import VM
from memdesc.mm.check import check
from memdesc.mm.faults.clear_refs import clear_refs
from memdesc.mm.faults.fork import fork
from memdesc.mm.kernel import Kernel
from memdesc.mm.process import Errno, Process

AT = 0x10000
R, RW, NONE = VM.READ, VM.READ | VM.WRITE, VM(0)


def started(series: str) -> tuple[Kernel, Process]:
    kernel = Kernel(series, memory_bytes=64 << 20)
    process = kernel.process("p")
    mmap(kernel, process.mm, AT, 4)
    kernel.write(process, AT, 1)
    kernel.read(process, AT + 1)
    return kernel, process


def protect(kernel: Kernel, process: Process, *prots: VM) -> None:
    for prot in prots:
        mprotect(kernel, process.mm, AT, AT + 4, prot)
        check(kernel)


@pytest.mark.parametrize("series", ["6.1", "6.12", "7.2"])
def test_exclusive_pages_become_writable_at_once(series: str) -> None:
    kernel, process = started(series)
    protect(kernel, process, R)
    assert not process.mm.tables.entry(AT) & e.RW
    protect(kernel, process, RW)
    assert process.mm.tables.entry(AT) & e.RW
    assert not process.mm.tables.entry(AT + 1) & e.RW  # the zero page
    kernel.fired.clear()
    kernel.write(process, AT, 2)
    assert not kernel.fired


def test_a_page_that_a_child_has_waits_for_the_write() -> None:
    kernel, process = started("6.12")
    child = fork(kernel, process, "c")
    protect(kernel, process, R, RW)
    assert not process.mm.tables.entry(AT) & e.RW
    exit_process(kernel, child)
    # The only one that has it, but not marked as exclusive yet.
    protect(kernel, process, R, RW)
    assert not process.mm.tables.entry(AT) & e.RW
    kernel.write(process, AT, 2)
    protect(kernel, process, R, RW)
    assert process.mm.tables.entry(AT) & e.RW


@pytest.mark.parametrize(("series", "writable"), [("6.1", False), ("6.12", True), ("7.2", True)])
def test_clean_exclusive_pages(series: str, writable: bool) -> None:
    kernel, process = started(series)
    process.mm.tables.set(AT, process.mm.tables.entry(AT) & ~e.DIRTY)
    protect(kernel, process, R, RW)
    assert bool(process.mm.tables.entry(AT) & e.RW) is writable


def test_soft_dirty_tracking_wants_the_fault() -> None:
    kernel, process = started("6.12")
    protect(kernel, process, R)
    clear_refs(kernel, process.mm, 4)
    protect(kernel, process, RW)
    assert not process.mm.tables.entry(AT) & e.RW
    kernel.write(process, AT, 2)
    assert process.mm.tables.entry(AT) & e.SOFT_DIRTY


def test_none_and_back_keeps_every_other_bit() -> None:
    kernel, process = started("6.12")
    before = [process.mm.tables.entry(AT + at) for at in range(4)]
    protect(kernel, process, NONE)
    hidden = [process.mm.tables.entry(AT + at) for at in range(4)]
    assert [e.is_present(entry) for entry in hidden] == [True, True, False, False]
    assert not any(entry & (e.PRESENT | e.RW) for entry in hidden)
    assert [e.pfn_of(entry) for entry in hidden] == [e.pfn_of(entry) for entry in before]
    protect(kernel, process, RW)
    assert [process.mm.tables.entry(AT + at) for at in range(4)] == before


def test_what_may_never_be_allowed() -> None:
    kernel, process = started("6.12")
    area = process.mm.vmas.find(AT)
    assert area is not None
    area.flags &= ~VM.MAYWRITE
    protect(kernel, process, R)
    with pytest.raises(Errno, match="EACCES"):
        protect(kernel, process, RW)
