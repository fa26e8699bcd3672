"""mremap of more than scenarios can observe in reasonable time, and of failures in the middle."""

from __future__ import annotations

import random

import pytest

from memdesc.mm.areas.mmap import mmap
from memdesc.mm.areas.mremap import mremap
from memdesc.mm.areas.vma import VM
from memdesc.mm.check import check
from memdesc.mm.kernel import Kernel
from memdesc.mm.process import Errno, Process, Signal

AT = 0x1000000
GIB = 1 << 18


def contents(kernel: Kernel, process: Process, at: int, pages: int) -> list[int | None]:
    """What lies there, without faulting anything in."""
    found: list[int | None] = []
    for vpn in range(at, at + pages):
        entry = process.mm.tables.entry(vpn)
        found.append(int(kernel.f.content[entry >> 12 & (1 << 40) - 1]) if entry else None)
    return found


def test_a_gibibyte_moves_with_its_tables() -> None:
    kernel = Kernel("6.12", memory_bytes=64 << 20)
    process = kernel.process("p")
    at, to = 4 * GIB, 9 * GIB
    mmap(kernel, process.mm, at, GIB + 600, flags=VM.NORESERVE)
    written = (0, 511, 512, GIB - 1, GIB, GIB + 599)
    for number, page in enumerate(written, start=1):
        kernel.write(process, at + page, number)
    tables = process.mm.tables.tables
    kernel.fired.clear()
    mremap(kernel, process.mm, at, GIB + 600, GIB + 600, to=to)
    assert kernel.fired.count("move_normal_pud: the tables of 1 GiB move as they are") == 1
    check(kernel)
    assert process.mm.tables.tables == tables
    assert [kernel.read(process, to + page) for page in written] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("series", ["6.1", "6.12", "7.2"])
def test_any_move_there_and_back_keeps_contents_and_tables_fit(series: str) -> None:
    kernel = Kernel(series, memory_bytes=64 << 20)
    process = kernel.process("p")
    chance = random.Random(7)
    mmap(kernel, process.mm, AT, 2000)
    for vpn in range(AT, AT + 2000, 3):
        kernel.write(process, vpn, vpn - AT + 1)
    before = contents(kernel, process, AT, 2000)
    for _ in range(40):
        first = chance.randrange(1999)
        pages = chance.randrange(1, min(1200, 2000 - first) + 1)
        # Half of them lie alike in their tables, so that whole tables can move.
        to = AT + 8192 + first + chance.choice((0, chance.randrange(512)))
        mremap(kernel, process.mm, AT + first, pages, pages, to=to)
        check(kernel)
        assert contents(kernel, process, to, pages) == before[first : first + pages]
        mremap(kernel, process.mm, to, pages, pages, to=AT + first)
        check(kernel)
        assert len(process.mm.vmas) == 1
    assert contents(kernel, process, AT, 2000) == before


@pytest.mark.parametrize("series", ["6.12", "7.2"])
def test_a_refused_move_and_what_lay_at_the_new_place(series: str) -> None:
    kernel = Kernel(series, memory_bytes=64 << 20)
    process = kernel.process("p")
    mmap(kernel, process.mm, AT, 2)
    mmap(kernel, process.mm, AT + 2, 2, prot=VM.READ)
    mmap(kernel, process.mm, AT + 100, 8)
    kernel.write(process, AT + 100, 9)
    # It shall become longer, so this is no pure move on any release.
    with pytest.raises(Errno, match="EFAULT"):
        mremap(kernel, process.mm, AT, 4, 5, to=AT + 100)
    if kernel.rules.mremap_several_areas:
        assert kernel.read(process, AT + 100) == 9
    else:
        with pytest.raises(Signal):
            kernel.read(process, AT + 100)
    check(kernel)


def test_a_move_that_becomes_part_of_the_old_area() -> None:
    """Empty memory that moves behind itself merges with what is left of it (copy_vma)."""
    kernel = Kernel("6.12", memory_bytes=64 << 20)
    process = kernel.process("p")
    mmap(kernel, process.mm, AT, 4)
    mremap(kernel, process.mm, AT, 2, 2, to=AT + 4)
    assert [(v.vpn_start - AT, v.vpn_end - AT) for v in process.mm.vmas] == [(2, 6)]
    mremap(kernel, process.mm, AT + 2, 4, 4, to=AT + 6, dontunmap=True)
    assert [(v.vpn_start - AT, v.vpn_end - AT) for v in process.mm.vmas] == [(2, 10)]
    check(kernel)
