"""Copy or reuse: the order of the tests, and what a batch does to it."""

from __future__ import annotations

import pytest

from memdesc.mm import entries as e
from memdesc.mm.areas.mmap import exit_process, mmap
from memdesc.mm.areas.vma import VM
from memdesc.mm.check import check
from memdesc.mm.faults.fault import handle_mm_fault
from memdesc.mm.faults.fork import fork
from memdesc.mm.kernel import Kernel
from memdesc.mm.process import Process

AT = 0x10000


def forked(series: str = "6.12") -> tuple[Kernel, Process, Process]:
    """Parent and child that share one page, still in the batch of new pages."""
    kernel = Kernel(series, memory_bytes=64 << 20)
    process = kernel.process("p")
    mmap(kernel, process.mm, AT, 1)
    kernel.write(process, AT, 7)
    return kernel, process, fork(kernel, process, "c")


def unshare(kernel: Kernel, process: Process) -> None:
    area = process.mm.vmas.find(AT)
    assert area is not None
    handle_mm_fault(kernel, process.mm, area, AT, unshare=True)


def test_the_batch_is_drained_before_its_reference_counts() -> None:
    kernel, process, child = forked()
    exit_process(kernel, child)
    pfn = e.pfn_of(process.mm.tables.entry(AT))
    kernel.write(process, AT, 8)
    assert e.pfn_of(process.mm.tables.entry(AT)) == pfn
    assert "do_wp_page: reused, the only reference" in kernel.fired
    check(kernel)


@pytest.mark.parametrize("extra", [1, 5])
def test_any_other_reference_forces_a_copy(extra: int) -> None:
    kernel, process, child = forked()
    exit_process(kernel, child)
    pfn = e.pfn_of(process.mm.tables.entry(AT))
    kernel.drain()
    kernel.get(pfn, extra)
    kernel.write(process, AT, 8)
    assert e.pfn_of(process.mm.tables.entry(AT)) != pfn
    assert int(kernel.f.content[pfn]) == 7
    kernel.put(pfn, extra)
    check(kernel)


def test_unshare_copies_read_only_and_clean() -> None:
    kernel, process, _ = forked()
    unshare(kernel, process)
    entry = process.mm.tables.entry(AT)
    assert not entry & (e.RW | e.DIRTY)
    assert kernel.exclusive(e.pfn_of(entry))
    assert kernel.read(process, AT) == 7
    kernel.write(process, AT, 8)
    assert e.pfn_of(process.mm.tables.entry(AT)) == e.pfn_of(entry)


def test_unshare_of_the_only_user_leaves_the_entry() -> None:
    kernel, process, child = forked()
    exit_process(kernel, child)
    before = process.mm.tables.entry(AT)
    unshare(kernel, process)
    assert process.mm.tables.entry(AT) == before
    assert kernel.exclusive(e.pfn_of(before))


def test_a_forced_write_is_dirty_and_stays_read_only() -> None:
    kernel, process, _ = forked()
    area = process.mm.vmas.find(AT)
    assert area is not None
    area.flags &= ~VM.WRITE
    handle_mm_fault(kernel, process.mm, area, AT, write=True)
    entry = process.mm.tables.entry(AT)
    assert entry & e.DIRTY
    assert not entry & e.RW
