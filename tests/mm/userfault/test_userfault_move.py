"""UFFDIO_MOVE: the same frame at another address, and why it may not be."""

from __future__ import annotations

import pytest

from memdesc.errors import MemdescError
from memdesc.mm import entries as e
from memdesc.mm.areas.mmap import mmap
from memdesc.mm.check import check
from memdesc.mm.faults.fork import fork
from memdesc.mm.kernel import Kernel
from memdesc.mm.process import Errno, Process
from memdesc.mm.references.gup import FOLL, pin_user_pages, unpin_user_pages
from memdesc.mm.rmap import mappings_of
from memdesc.mm.userfault import userfaultfd as uffd
from memdesc.mm.userfault.userfault_move import move_pages
from memdesc.mm.userfault.userfaultfd import UserfaultfdCtx

FROM, TO, HUGE = 0x10000, 0x20000, 512


def world(pages: int, *, thp: str = "never") -> tuple[Kernel, Process, UserfaultfdCtx]:
    """Written pages, and as many missing ones that a userfaultfd has."""
    kernel = Kernel("6.12", memory_bytes=64 << 20)
    kernel.set_knob("thp", thp)
    process = kernel.process("p")
    mmap(kernel, process.mm, FROM, pages)
    mmap(kernel, process.mm, TO, pages)
    ctx = uffd.userfaultfd(kernel, "missing")
    uffd.register(kernel, process.mm, ctx, TO, TO + pages)
    for page in range(pages):
        kernel.write(process, FROM + page, 10 + page)
    kernel.drain()
    return kernel, process, ctx


def test_a_moved_page_is_found_by_reverse_mapping_at_its_new_address() -> None:
    kernel, process, ctx = world(2)
    pfn = e.pfn_of(process.mm.tables.entry(FROM + 1))
    move_pages(kernel, process.mm, ctx, TO, FROM + 1, 1, holes=False)
    assert [vpn for _, _, vpn in mappings_of(kernel, pfn)] == [TO]
    assert kernel.read(process, TO) == 11
    assert process.mm.tables.entry(FROM + 1) == e.NONE_ENTRY
    check(kernel)


def test_what_was_moved_before_an_error_stays_moved() -> None:
    kernel, process, ctx = world(3)
    pinned = pin_user_pages(kernel, process.mm, FROM + 1, 1, FOLL.WRITE)
    with pytest.raises(Errno, match="EAGAIN"):
        move_pages(kernel, process.mm, ctx, TO, FROM, 3, holes=False)
    assert (kernel.read(process, TO), kernel.read(process, FROM + 1)) == (10, 11)
    with pytest.raises(Errno, match="EBUSY"):
        move_pages(kernel, process.mm, ctx, TO + 1, FROM + 1, 2, holes=False)
    unpin_user_pages(kernel, pinned)
    move_pages(kernel, process.mm, ctx, TO + 1, FROM + 1, 2, holes=False)
    check(kernel)


def test_a_shared_page_stays_until_it_was_written() -> None:
    kernel, process, ctx = world(1)
    fork(kernel, process, "c")
    with pytest.raises(Errno, match="EBUSY"):
        move_pages(kernel, process.mm, ctx, TO, FROM, 1, holes=False)
    kernel.write(process, FROM, 5)
    move_pages(kernel, process.mm, ctx, TO, FROM, 1, holes=False)
    assert kernel.read(process, TO) == 5
    check(kernel)


@pytest.mark.parametrize("offset", [0, 1])
def test_a_huge_page_moves_whole_only_where_both_ends_fit(offset: int) -> None:
    kernel, process, ctx = world(HUGE, thp="always")
    count = HUGE - offset
    before = process.mm.tables.tables
    move_pages(kernel, process.mm, ctx, TO, FROM + offset, count, holes=False)
    pfn = e.pfn_of(process.mm.tables.entry(TO))
    assert kernel.order_of(pfn) == (0 if offset else 9)
    # With the huge entry goes the table deposited for it; entries need one at both places.
    assert process.mm.tables.tables - before == (1 if offset else 0)
    assert kernel.read(process, TO + 5) == 15 + offset
    check(kernel)


def test_a_part_of_a_held_huge_page_is_said_to_be_tried_for_ever() -> None:
    kernel, process, ctx = world(HUGE, thp="always")
    pin_user_pages(kernel, process.mm, FROM, 1, FOLL.WRITE)
    with pytest.raises(MemdescError, match="for ever") as caught:
        move_pages(kernel, process.mm, ctx, TO, FROM + 1, 1, holes=False)
    assert caught.value.hint
