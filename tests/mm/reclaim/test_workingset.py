"""Shadows: who leaves one, who forgets it, and what it is worth when a page comes back."""

from __future__ import annotations

import pytest

from memdesc.kernels.kpageflags import KPF
from memdesc.mm import entries as e
from memdesc.mm.areas.mmap import mmap
from memdesc.mm.check import check
from memdesc.mm.faults.populate import madvise_populate
from memdesc.mm.kernel import Kernel
from memdesc.mm.process import Process
from memdesc.mm.reclaim.shrink_lruvec import shrink_all
from memdesc.mm.reclaim.swapfile import swapoff, swapon
from memdesc.mm.reclaim.vmscan import madvise_pageout
from memdesc.mm.reclaim.workingset import Shadow, is_recent

AT = 0x10000


def paged_out(kernel: Kernel, pages: int) -> Process:
    swapon(kernel)
    process = kernel.process("p")
    area = mmap(kernel, process.mm, AT, pages)
    for page in range(pages):
        kernel.write(process, AT + page, page + 1)
    madvise_pageout(kernel, process.mm, area, AT, AT + pages)
    return process


def flags_at(kernel: Kernel, process: Process, vpn: int) -> int:
    kernel.drain()
    return kernel.flags(e.pfn_of(process.mm.tables.entry(vpn)))


def test_a_page_that_comes_back_is_active_and_its_slot_has_no_shadow() -> None:
    kernel = Kernel("6.12", memory_bytes=64 << 20)
    process = paged_out(kernel, 3)
    assert kernel.swap is not None
    assert len(kernel.swap.shadows) == 3
    assert kernel.read(process, AT) == 1
    assert flags_at(kernel, process, AT) & KPF.ACTIVE
    assert len(kernel.swap.shadows) == 2
    assert kernel.events["workingset_refault_anon"] == 1
    check(kernel)
    # Reading everything back counts each page once, and nothing is remembered afterwards.
    swapoff(kernel)
    assert kernel.events["workingset_refault_anon"] == 3


def test_a_group_that_has_little_left_asks_its_own_lists() -> None:
    kernel = Kernel("6.12", memory_bytes=64 << 20)
    process = paged_out(kernel, 4)
    assert [kernel.read(process, AT + page) for page in range(4)] == [1, 2, 3, 4]
    kernel.drain()  # four active pages, which count for files as well while there is swap
    now = kernel.workingset.nonresident_age
    assert is_recent(kernel, Shadow(now - 4, False, True), file=True)
    assert not is_recent(kernel, Shadow(now - 5, False, True), file=True)
    assert is_recent(kernel, Shadow(now - 5, False, False), file=True)
    assert shrink_all(kernel) == 4
    assert not is_recent(kernel, Shadow(now - 4, False, True), file=True)


@pytest.mark.parametrize(("series", "full"), [("6.1", 15), ("6.12", 31)])
def test_a_full_batch_ends_the_mark_of_new_pages(series: str, full: int) -> None:
    kernel = Kernel(series, memory_bytes=64 << 20)
    kernel.set_knob("lru_gen", "1")
    process = kernel.process("p")
    mmap(kernel, process.mm, AT, full)
    for page in range(full - 1):
        kernel.write(process, AT + page, 1)
    table = process.mm.tables
    first = e.pfn_of(table.entry(AT))
    assert kernel.flags(first) & (KPF.ACTIVE | KPF.LRU) == KPF.ACTIVE
    kernel.write(process, AT + full - 1, 1)
    for page in range(full):
        flags = kernel.flags(e.pfn_of(table.entry(AT + page)))
        assert flags & (KPF.ACTIVE | KPF.LRU) == KPF.LRU
    madvise_populate(kernel, process.mm, AT, AT + 1, write=True)
    assert kernel.flags(first) & KPF.REFERENCED
    check(kernel)
