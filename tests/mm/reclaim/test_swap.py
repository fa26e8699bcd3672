"""Swap: slots are counted, the swap cache is left when it should be, swapoff leaves nothing."""

from __future__ import annotations

import pytest

from memdesc.kernels.kpageflags import KPF
from memdesc.mm import entries as e
from memdesc.mm.areas.mmap import exit_process, mmap
from memdesc.mm.check import check
from memdesc.mm.faults.fork import fork
from memdesc.mm.kernel import Kernel
from memdesc.mm.process import Errno, Process, Signal
from memdesc.mm.reclaim.swap import copy_nonpresent, zap_swap_entry
from memdesc.mm.reclaim.swapfile import swapoff, swapon
from memdesc.mm.reclaim.vmscan import madvise_pageout

AT = 0x10000
SERIES = ("6.1", "6.12", "7.2")


def swapped(series: str, pages: int = 4) -> tuple[Kernel, Process]:
    """A process whose pages, of contents 1, 2, ..., are in swap."""
    kernel = Kernel(series, memory_bytes=64 << 20)
    swapon(kernel)
    process = kernel.process("p")
    vma = mmap(kernel, process.mm, AT, pages)
    for page in range(pages):
        kernel.write(process, AT + page, page + 1)
    madvise_pageout(kernel, process.mm, vma, AT, AT + pages)
    check(kernel)
    return kernel, process


@pytest.mark.parametrize("series", SERIES)
def test_slots_live_as_long_as_somebody_names_them(series: str) -> None:
    kernel, parent = swapped(series)
    assert kernel.swap is not None
    child = fork(kernel, parent, "c")
    assert sorted(kernel.swap.counts.values()) == [2, 2, 2, 2]
    assert [kernel.read(child, AT + page) for page in range(2)] == [1, 2]
    kernel.write(child, AT + 2, 9)
    exit_process(kernel, child)
    kernel.drain()
    check(kernel)
    assert sorted(kernel.swap.counts.values()) == [1, 1, 1, 1]
    assert [kernel.read(parent, AT + page) for page in range(4)] == [1, 2, 3, 4]
    exit_process(kernel, parent)
    kernel.drain()
    check(kernel)
    assert not kernel.swap.counts
    assert not kernel.swap.cache


@pytest.mark.parametrize("series", SERIES)
def test_swapoff_brings_everything_back_and_forgets_the_device(series: str) -> None:
    kernel, parent = swapped(series)
    child = fork(kernel, parent, "c")
    kernel.read(parent, AT)
    swapoff(kernel)
    kernel.drain()
    check(kernel)
    for process in (parent, child):
        entries = [process.mm.tables.entry(AT + page) for page in range(4)]
        assert all(e.is_present(entry) and not entry & e.RW for entry in entries)
        assert not any(kernel.flags(e.pfn_of(entry)) & KPF.SWAPCACHE for entry in entries)
        assert [kernel.read(process, AT + page) for page in range(4)] == [1, 2, 3, 4]
    with pytest.raises(Errno, match="EINVAL"):
        swapoff(kernel)


def test_a_full_device_leaves_the_rest_in_memory() -> None:
    kernel = Kernel("6.12", memory_bytes=64 << 20)
    swapon(kernel, pages=2)
    process = kernel.process("p")
    vma = mmap(kernel, process.mm, AT, 3)
    for page in range(3):
        kernel.write(process, AT + page, page + 1)
    madvise_pageout(kernel, process.mm, vma, AT, AT + 3)
    present = [e.is_present(process.mm.tables.entry(AT + page)) for page in range(3)]
    assert present == [False, False, True]
    # More than half of it is in use: a page that comes back gives its slot up at once.
    assert kernel.read(process, AT) == 1
    check(kernel)
    assert len(kernel.swap.counts) == 1


def test_entries_that_are_not_swap_keep_their_meaning() -> None:
    kernel = Kernel("7.2", memory_bytes=64 << 20)
    process = kernel.process("p")
    vma = mmap(kernel, process.mm, AT, 1)
    kernel.write(process, AT, 1)
    lost = e.not_present(e.SwapType.HWPOISON, kernel.zero_pfn)
    guard = e.not_present(e.SwapType.MARKER, e.Marker.GUARD)
    poisoned = e.not_present(e.SwapType.MARKER, e.Marker.POISONED)
    for entry, signal, code in (
        (lost, "SIGBUS", "MCEERR_AR"),
        (poisoned, "SIGBUS", "MCEERR_AR"),
        (guard, "SIGSEGV", "MAPERR"),
    ):
        process.mm.tables.set(AT + 0, entry)
        with pytest.raises(Signal) as caught:
            kernel.read(process, AT)
        assert (caught.value.name, caught.value.code) == (signal, code)
        assert copy_nonpresent(kernel, process.mm, AT, entry) == entry
        assert zap_swap_entry(kernel, vma, entry, even_cows=True)
    assert not zap_swap_entry(kernel, vma, guard, even_cows=True, drop_markers=False)
    assert not zap_swap_entry(kernel, vma, lost, even_cows=False)
