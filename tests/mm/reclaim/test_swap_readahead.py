"""Readahead from swap: what is read beside the page that a fault is about."""

from __future__ import annotations

import pytest

from memdesc.mm import entries as e
from memdesc.mm.areas.madvise import madvise
from memdesc.mm.areas.mmap import mmap
from memdesc.mm.check import check
from memdesc.mm.faults.fork import fork
from memdesc.mm.kernel import Kernel
from memdesc.mm.process import Process
from memdesc.mm.reclaim.swapfile import swapoff, swapon

AT = 0x10000
PAGES = 64


def swapped(series: str, *, cluster: int, is_synchronous: bool) -> tuple[Kernel, Process]:
    kernel = Kernel(series, memory_bytes=64 << 20)
    swapon(kernel, is_synchronous=is_synchronous)
    kernel.set_knob("page_cluster", str(cluster))
    process = kernel.process("p")
    mmap(kernel, process.mm, AT, PAGES)
    for page in range(PAGES):
        kernel.write(process, AT + page, page + 1)
    madvise(kernel, process, AT, AT + PAGES, "pageout")
    return kernel, process


def cached(kernel: Kernel, process: Process) -> list[int]:
    """Pages that are in the swap cache, or were read from it."""
    assert kernel.swap is not None
    found = []
    for page in range(PAGES):
        entry = process.mm.tables.entry(AT + page)
        if e.is_present(entry) or e.swap_offset(entry) in kernel.swap.cache:
            found.append(page)
    return found


@pytest.mark.parametrize("series", ["6.1", "6.12", "7.2"])
def test_the_window_grows_with_good_guesses_and_shrinks_without(series: str) -> None:
    kernel, process = swapped(series, cluster=4, is_synchronous=False)
    kernel.read(process, AT + 32)
    assert cached(kernel, process) == list(range(29, 37))  # 8 around: it begins with four hits
    for page in (33, 34, 35, 36):
        assert kernel.read(process, AT + page) == page + 1
    kernel.read(process, AT + 37)
    assert cached(kernel, process)[-1] == 44  # four hits: 8 from the page on
    kernel.read(process, AT + 10)
    assert [page for page in cached(kernel, process) if page < 29] == [9, 10, 11, 12]  # half of it
    kernel.read(process, AT + 60)
    assert [page for page in cached(kernel, process) if page > 44] == [60, 61]
    check(kernel)
    swapoff(kernel)
    assert [kernel.read(process, AT + page) for page in range(PAGES)] == list(range(1, PAGES + 1))
    check(kernel)


def test_fast_swap_reads_ahead_only_what_two_entries_name_before_the_swap_table() -> None:
    for series, ahead in (("6.1", 7), ("6.12", 7), ("7.2", 0)):
        kernel, process = swapped(series, cluster=3, is_synchronous=True)
        kernel.read(process, AT + 20)
        assert kernel.events["swap_ra"] == 0
        child = fork(kernel, process, "c")
        kernel.read(child, AT + 40)
        assert kernel.events["swap_ra"] == ahead
        check(kernel)
