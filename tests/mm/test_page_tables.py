"""Page tables: which there are after any faults and unmaps, and that they are frames."""

from __future__ import annotations

import random

from memdesc.mm.areas.mmap import exit_process, mmap, munmap
from memdesc.mm.check import check
from memdesc.mm.kernel import Kernel
from memdesc.mm.process import Mm
from memdesc.model.compiled import array
from memdesc.types import MemoryType

AT = 7 << 27  # the beginning of a PUD table's range
GIB = 1 << 18


def frames_of_tables(kernel: Kernel) -> int:
    return sum(
        kernel.type_at(pfn) is MemoryType.PAGE_TABLE for pfn in range(array(kernel.f.kind).size)
    )


def wanted(mm: Mm, touched: set[int]) -> int:
    """Lowest tables that free_pgtables() leaves: touched, and some area is in their range."""
    return sum(
        bool(mm.vmas.overlapping(key << 9, (key + 1) << 9)) for key in {vpn >> 9 for vpn in touched}
    )


def test_tables_are_allocated_on_the_way_down_and_counted_once() -> None:
    kernel = Kernel("6.12", memory_bytes=64 << 20)
    process = kernel.process("p")
    before = frames_of_tables(kernel)
    mmap(kernel, process.mm, AT + GIB - 1, 2)
    assert process.mm.tables.tables == 0
    kernel.read(process, AT + GIB - 1)
    assert process.mm.tables.tables == 3
    kernel.read(process, AT + GIB)  # another middle table, another lowest one
    assert process.mm.tables.tables == 5
    assert frames_of_tables(kernel) == before + 5
    munmap(kernel, process.mm, AT + GIB - 1, AT + GIB)
    assert process.mm.tables.tables == 3
    exit_process(kernel, process)
    assert frames_of_tables(kernel) == before - 1  # and the PGD


def test_any_order_of_unmaps_leaves_the_tables_that_areas_are_near_to() -> None:
    kernel = Kernel("6.12", memory_bytes=64 << 20)
    process = kernel.process("p")
    chance = random.Random(3)
    for _ in range(8):
        pages = 6000
        mmap(kernel, process.mm, AT, pages, fixed=True)
        touched = {AT + chance.randrange(pages) for _ in range(60)}
        for vpn in touched:
            kernel.write(process, vpn, 1)
        for _ in range(25):
            first = chance.randrange(pages)
            munmap(kernel, process.mm, AT + first, AT + first + chance.randrange(1, 700))
            check(kernel)
            lowest = sum(pmd.table is not None for pmd in process.mm.tables.pmds.values())
            assert lowest <= wanted(process.mm, touched)
            still = {vpn for vpn in touched if process.mm.vmas.find(vpn)}
            assert all(process.mm.tables.place(vpn) is not None for vpn in still)
        munmap(kernel, process.mm, AT, AT + pages + 700)
        assert process.mm.tables.tables == 0
