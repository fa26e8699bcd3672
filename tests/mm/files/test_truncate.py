"""What a truncation and a hole take, and what they leave."""

from __future__ import annotations

import pytest

from memdesc.kernels.kpageflags import KPF
from memdesc.mm.areas.mmap import mmap
from memdesc.mm.areas.vma import VM
from memdesc.mm.check import check
from memdesc.mm.files.inode import PARTLY, OpenFile, memfd_create, open_file
from memdesc.mm.files.page_cache import pread, pwrite
from memdesc.mm.files.truncate import fallocate, ftruncate, punch_hole
from memdesc.mm.files.writeback import writeback_range
from memdesc.mm.kernel import Kernel
from memdesc.mm.process import Process, Signal
from memdesc.types import PAGE_SIZE_BYTES

SHARED, OWN = 0x10000, 0x20000
SERIES = ("6.1", "6.12", "7.2")


def mapped_twice(series: str, where: str) -> tuple[Kernel, Process, OpenFile]:
    """Four pages of a file, mapped shared and privately, with a private copy of page 2."""
    kernel = Kernel(series, memory_bytes=64 << 20)
    process = kernel.process("p")
    if where == "memfd":
        file = memfd_create(kernel, process, "f")
    else:
        file = open_file(kernel, process, "f", where, "name", create=True)
    for index in range(4):
        pwrite(kernel, file, index, [index + 1])
    mmap(kernel, process.mm, SHARED, 4, flags=VM.SHARED, file=file, pgoff=0)
    mmap(kernel, process.mm, OWN, 4, file=file, pgoff=0)
    for index in range(4):
        kernel.read(process, SHARED + index)
        kernel.read(process, OWN + index)
    kernel.write(process, OWN + 2, 9)
    kernel.drain()
    return kernel, process, file


def present(process: Process, vpn: int) -> list[bool]:
    """Which of four pages have an entry."""
    return [bool(process.mm.tables.entry(vpn + index)) for index in range(4)]


@pytest.mark.parametrize("series", SERIES)
@pytest.mark.parametrize("where", ["memfd", "ext4"])
def test_truncation_takes_private_copies_and_a_hole_does_not(series: str, where: str) -> None:
    kernel, process, file = mapped_twice(series, where)
    punch_hole(kernel, file, 1, 3)
    check(kernel)
    assert present(process, SHARED) == [True, False, False, True]
    assert present(process, OWN) == [True, False, True, True]
    assert [kernel.read(process, SHARED + index) for index in range(4)] == [1, 0, 0, 4]
    assert kernel.read(process, OWN + 2) == 9
    ftruncate(kernel, file, 2 * PAGE_SIZE_BYTES)
    kernel.drain()
    check(kernel)
    assert present(process, OWN) == [True, False, False, False]
    with pytest.raises(Signal, match="SIGBUS"):
        kernel.read(process, OWN + 2)
    ftruncate(kernel, file, 4 * PAGE_SIZE_BYTES)
    assert [kernel.read(process, OWN + index) for index in range(4)] == [1, 0, 0, 0]


def test_the_end_inside_a_page_clears_its_rest() -> None:
    kernel, process, file = mapped_twice("6.12", "ext4")
    writeback_range(kernel, file.mapping)
    ftruncate(kernel, file, PAGE_SIZE_BYTES + 100)
    pfn = file.mapping.pages[1]
    assert int(kernel.f.content[pfn]) == 2 | PARTLY
    assert kernel.flags(pfn) & KPF.DIRTY
    assert process.mm.tables.entry(SHARED + 1)


@pytest.mark.parametrize("clean", [False, True])
@pytest.mark.parametrize("cut", [1, 3, 4, 5, 6])
def test_a_large_folio_is_split_where_it_is_cut_unless_dirty(cut: int, clean: bool) -> None:
    kernel = Kernel("7.2", memory_bytes=64 << 20)
    process = kernel.process("p")
    file = open_file(kernel, process, "f", "ext4", "name", create=True)
    pwrite(kernel, file, 0, list(range(1, 9)))
    assert kernel.order_of(file.mapping.pages[0]) == 3
    mmap(kernel, process.mm, SHARED, 8, flags=VM.SHARED, file=file, pgoff=0)
    kernel.read(process, SHARED)
    assert present(process, SHARED) == [True] * 4, "a fault maps the whole folio"
    if clean:
        writeback_range(kernel, file.mapping)
    ftruncate(kernel, file, cut * PAGE_SIZE_BYTES)
    kernel.drain()
    check(kernel)
    assert not any(present(process, SHARED))
    orders = [kernel.order_of(file.mapping.pages[index]) for index in range(cut)]
    # The pieces before the cut are the binary digits of its place, largest first.
    digits = [bit for bit in (2, 1, 0) if cut >> bit & 1]
    assert orders == ([bit for bit in digits for _ in range(1 << bit)] if clean else [3] * cut)
    ftruncate(kernel, file, 8 * PAGE_SIZE_BYTES)
    assert pread(kernel, file, 0, 8) == (*range(1, cut + 1), *(0,) * (8 - cut))
    check(kernel)


def test_ranges_of_ext4_move_what_lies_behind_them() -> None:
    kernel, process, file = mapped_twice("6.12", "ext4")
    fallocate(kernel, file, 1, 1, "collapse")
    assert pread(kernel, file, 0, 4) == (1, 3, 4)
    fallocate(kernel, file, 1, 2, "insert")
    assert pread(kernel, file, 0, 8) == (1, 0, 0, 3, 4)
    fallocate(kernel, file, 3, 1, "zero")
    assert pread(kernel, file, 0, 8) == (1, 0, 0, 0, 4)
    assert [kernel.read(process, SHARED + index) for index in range(4)] == [1, 0, 0, 0]
    kernel.drain()
    check(kernel)
