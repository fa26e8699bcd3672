"""Reclaim: second chances on the lists, and who is spared."""

from __future__ import annotations

import pytest

from memdesc.mm import entries as e
from memdesc.mm.areas.mmap import mmap
from memdesc.mm.areas.vma import VM
from memdesc.mm.check import check
from memdesc.mm.kernel import Kernel
from memdesc.mm.process import Errno, Process
from memdesc.mm.reclaim.shrink_lruvec import shrink_all, shrink_lists
from memdesc.mm.reclaim.swapfile import swapon
from memdesc.mm.reclaim.vmscan import madvise_pageout
from memdesc.mm.references.gup import FOLL, pin_user_pages, unpin_user_pages

AT = 0x10000


def written(pages: int) -> tuple[Kernel, Process]:
    kernel = Kernel("6.12", memory_bytes=64 << 20)
    swapon(kernel)
    process = kernel.process("p")
    mmap(kernel, process.mm, AT, pages)
    for page in range(pages):
        kernel.write(process, AT + page, page + 1)
    kernel.drain()
    return kernel, process


def present(process: Process, pages: int) -> list[bool]:
    return [e.is_present(process.mm.tables.entry(AT + page)) for page in range(pages)]


def test_a_page_that_was_touched_gets_a_second_chance() -> None:
    kernel, process = written(4)
    # Every page was written, so the first look only takes the accessed bits.
    assert shrink_lists(kernel, anon=4) == 0
    assert present(process, 4) == [True] * 4
    kernel.read(process, AT + 1)
    assert shrink_lists(kernel, anon=4) == 3
    assert present(process, 4) == [False, True, False, False]
    check(kernel)
    # What comes back at once is active, so the one that was spared before goes first.
    kernel.read(process, AT)
    assert shrink_lists(kernel, anon=1) == 1
    assert present(process, 2) == [True, False]
    check(kernel)


def test_without_swap_the_lists_of_anonymous_memory_are_left_alone() -> None:
    kernel, process = written(2)
    kernel.swap = None
    assert shrink_lists(kernel, anon=2) == 0
    assert shrink_lists(kernel, anon=2) == 0
    assert present(process, 2) == [True, True]


def test_a_pinned_page_gets_no_slot() -> None:
    kernel, process = written(2)
    vma = process.mm.vmas.find(AT)
    assert vma is not None
    assert kernel.swap is not None
    pages = pin_user_pages(kernel, process.mm, AT, 1, FOLL.WRITE)
    madvise_pageout(kernel, process.mm, vma, AT, AT + 2)
    assert present(process, 2) == [True, False]
    assert len(kernel.swap.counts) == 1
    unpin_user_pages(kernel, pages)
    madvise_pageout(kernel, process.mm, vma, AT, AT + 2)
    assert present(process, 2) == [False, False]
    check(kernel)


def test_locked_areas_are_refused() -> None:
    kernel, process = written(1)
    vma = process.mm.vmas.find(AT)
    assert vma is not None
    vma.flags |= VM.LOCKED
    with pytest.raises(Errno, match="EINVAL"):
        madvise_pageout(kernel, process.mm, vma, AT, AT + 1)
    vma.flags &= ~VM.LOCKED


def test_reclaim_without_end_takes_all_but_what_is_pinned() -> None:
    kernel, process = written(4)
    pins = pin_user_pages(kernel, process.mm, AT + 2, 1, FOLL.WRITE)
    assert shrink_all(kernel) == 3
    assert present(process, 4) == [False, False, True, False]
    unpin_user_pages(kernel, pins)
    assert shrink_all(kernel) == 1
    assert [kernel.read(process, AT + page) for page in range(4)] == [1, 2, 3, 4]
    check(kernel)
