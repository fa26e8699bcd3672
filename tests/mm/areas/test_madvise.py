"""Advice: what stays of a page, an entry and a table, inside of one call."""

from __future__ import annotations

import pytest

from memdesc.kernels.kpageflags import KPF
from memdesc.mm import entries as e
from memdesc.mm.areas.madvise import madvise
from memdesc.mm.areas.mmap import mmap, munmap
from memdesc.mm.check import check
from memdesc.mm.faults.fork import fork
from memdesc.mm.kernel import Kernel
from memdesc.mm.process import Errno, Process, Signal
from memdesc.types import MemoryType

AT = 0x10000
SERIES = ("6.1", "6.12", "7.2")


def written(pages: int, series: str = "6.12") -> tuple[Kernel, Process]:
    """A process with so many pages, content 1, 2, ..."""
    kernel = Kernel(series, memory_bytes=64 << 20)
    process = kernel.process("p")
    mmap(kernel, process.mm, AT, pages)
    for page in range(pages):
        kernel.write(process, AT + page, page + 1)
    return kernel, process


def frame(process: Process, vpn: int) -> int:
    return e.pfn_of(process.mm.tables.entry(vpn))


def test_dontneed_gives_the_frame_back() -> None:
    kernel, process = written(2)
    pfn = frame(process, AT)
    madvise(kernel, process, AT, AT + 1, "dontneed")
    kernel.drain()
    assert kernel.type_at(pfn) is MemoryType.FREE
    check(kernel)


@pytest.mark.parametrize("series", SERIES)
def test_only_kernels_that_reclaim_tables_free_an_empty_one(series: str) -> None:
    kernel, process = written(512, series)
    before = process.mm.tables.tables
    madvise(kernel, process, AT, AT + 511, "dontneed")
    assert process.mm.tables.tables == before, "not the whole range of the table"
    kernel.write(process, AT, 1)
    madvise(kernel, process, AT, AT + 512, "dontneed")
    gone = before - process.mm.tables.tables
    assert gone == (1 if series == "7.2" else 0)
    assert kernel.read(process, AT) == 0
    check(kernel)


def test_lazyfree_waits_for_the_batch_and_a_store_before_it_does_not_undo_it() -> None:
    kernel, process = written(1)
    kernel.drain()
    madvise(kernel, process, AT, AT + 1, "free")
    pfn = frame(process, AT)
    assert kernel.flags(pfn) & KPF.SWAPBACKED
    assert kernel.refs(pfn) == 2
    assert not process.mm.tables.entry(AT) & (e.DIRTY | e.ACCESSED)
    kernel.write(process, AT, 9)
    kernel.drain()
    assert not kernel.flags(pfn) & KPF.SWAPBACKED
    assert process.mm.tables.entry(AT) & e.DIRTY
    check(kernel)


def test_errors_stop_after_what_was_done_before() -> None:
    kernel, process = written(4)
    munmap(kernel, process.mm, AT + 1, AT + 2)
    with pytest.raises(Errno, match="ENOMEM"):
        madvise(kernel, process, AT, AT + 4, "populate_read")
    with pytest.raises(Errno, match="ENOMEM"):
        madvise(kernel, process, AT, AT + 3, "dontneed")
    present = [e.is_present(process.mm.tables.entry(AT + page)) for page in range(4)]
    assert present == [False, False, False, True], "dontneed goes on behind a hole"


@pytest.mark.parametrize("series", SERIES)
def test_a_poisoned_frame_is_never_handed_out_again(series: str) -> None:
    kernel, process = written(1, series)
    pfn = frame(process, AT)
    fork(kernel, process, "c")
    if series == "6.1":
        madvise(kernel, process, AT, AT + 1, "hwpoison")
    else:
        with pytest.raises(Signal, match="SIGBUS MCEERR_AR"):
            madvise(kernel, process, AT, AT + 1, "hwpoison")
    for name in ("p", "c"):
        with pytest.raises(Signal, match="SIGBUS MCEERR_AR"):
            kernel.read(kernel.processes[name], AT)
        madvise(kernel, kernel.processes[name], AT, AT + 1, "dontneed")
        munmap(kernel, kernel.processes[name].mm, AT, AT + 1)
    kernel.drain()
    assert kernel.refs(pfn) == 1
    assert not kernel.flags(pfn) & KPF.LRU
    check(kernel)


def test_soft_offlining_refuses_a_page_that_somebody_holds() -> None:
    kernel, process = written(1)
    pfn = frame(process, AT)
    kernel.drain()
    kernel.get(pfn)
    with pytest.raises(Errno, match="EBUSY"):
        madvise(kernel, process, AT, AT + 1, "soft_offline")
    assert frame(process, AT) == pfn
    assert not kernel.poisoned
    kernel.put(pfn)
    madvise(kernel, process, AT, AT + 1, "soft_offline")
    assert frame(process, AT) != pfn
    assert kernel.read(process, AT) == 1
    assert kernel.poisoned == {pfn}
    check(kernel)
