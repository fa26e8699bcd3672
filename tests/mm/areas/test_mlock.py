"""Locked pages: the batch of mlock, and how many areas lock a page."""

from __future__ import annotations

from memdesc.kernels.kpageflags import KPF
from memdesc.mm import entries as e
from memdesc.mm.areas.mlock import mlock, mlockall, munlock
from memdesc.mm.areas.mmap import exit_process, mmap, munmap
from memdesc.mm.areas.mprotect import mprotect
from memdesc.mm.areas.vma import VM
from memdesc.mm.check import check
from memdesc.mm.faults.fork import fork
from memdesc.mm.kernel import Kernel
from memdesc.mm.process import Process

AT = 0x10000
LOCKED = int(KPF.MLOCKED | KPF.UNEVICTABLE)


def mapped(pages: int) -> tuple[Kernel, Process]:
    kernel = Kernel("6.12", memory_bytes=64 << 20)
    process = kernel.process("p")
    mmap(kernel, process.mm, AT, pages)
    return kernel, process


def frame(process: Process, vpn: int) -> int:
    return e.pfn_of(process.mm.tables.entry(vpn))


def test_a_page_that_comes_to_a_locked_area_waits_in_the_batch_of_mlock() -> None:
    kernel, process = mapped(1)
    mlock(kernel, process.mm, AT, AT + 1, on_fault=True)
    kernel.write(process, AT, 1)
    pfn = frame(process, AT)
    assert kernel.flags(pfn) & LOCKED == KPF.MLOCKED
    assert kernel.refs(pfn) > 1
    check(kernel)
    kernel.drain()
    assert kernel.flags(pfn) & LOCKED == LOCKED
    assert kernel.refs(pfn) == 1
    check(kernel)


def test_a_full_batch_empties_itself() -> None:
    kernel, process = mapped(100)
    mlock(kernel, process.mm, AT, AT + 100, on_fault=True)
    for page in range(100):
        kernel.write(process, AT + page, 1)
    assert len(kernel.mlock.waiting) < kernel.rules.lru_batch
    assert kernel.flags(frame(process, AT)) & LOCKED == LOCKED
    check(kernel)


def test_a_page_counts_its_locked_areas() -> None:
    kernel, process = mapped(1)
    kernel.write(process, AT, 1)
    mprotect(kernel, process.mm, AT, AT + 1, VM.READ)
    pfn = frame(process, AT)
    for name in ("c", "d"):
        child = fork(kernel, process, name)
        mlock(kernel, child.mm, AT, AT + 1)
    assert kernel.mlock.counts[pfn] == 2
    munlock(kernel, kernel.processes["c"].mm, AT, AT + 1)
    assert kernel.flags(pfn) & LOCKED == LOCKED
    exit_process(kernel, kernel.processes["d"])
    kernel.drain()
    assert not kernel.flags(pfn) & LOCKED
    assert kernel.flags(pfn) & KPF.LRU
    check(kernel)


def test_the_count_of_a_frame_ends_with_its_page() -> None:
    kernel, process = mapped(1)
    mlock(kernel, process.mm, AT, AT + 1)
    pfn = frame(process, AT)
    kernel.mlock.counts[pfn] = 5  # as if five areas had it locked
    munmap(kernel, process.mm, AT, AT + 1)
    kernel.drain()
    kernel.mlock.counts[pfn] = 5
    mmap(kernel, process.mm, AT, 64)
    mlockall(kernel, process.mm, current=True, future=False)
    assert pfn in {frame(process, AT + page) for page in range(64)}
    assert kernel.mlock.counts[pfn] == 1
    check(kernel)
