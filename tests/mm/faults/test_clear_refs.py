"""/proc/PID/clear_refs: which bits go, and which pages are left alone."""

from __future__ import annotations

import pytest

from memdesc.kernels.kpageflags import KPF
from memdesc.mm import entries as e
from memdesc.mm.areas.mmap import mmap
from memdesc.mm.check import check
from memdesc.mm.faults.clear_refs import clear_refs
from memdesc.mm.faults.populate import mm_populate
from memdesc.mm.kernel import Kernel
from memdesc.mm.process import Errno, Process
from memdesc.mm.references.gup import FOLL, pin_user_pages, unpin_user_pages

AT = 0x10000


def mapped(pages: int) -> tuple[Kernel, Process]:
    kernel = Kernel("6.12", memory_bytes=64 << 20)
    process = kernel.process("p")
    mmap(kernel, process.mm, AT, pages)
    mm_populate(kernel, process.mm, AT, AT + pages)
    return kernel, process


def test_a_store_after_clearing_is_seen_and_copies_nothing() -> None:
    kernel, process = mapped(2)
    tables = process.mm.tables
    pfn = e.pfn_of(tables.entry(AT))
    clear_refs(kernel, process.mm, 4)
    assert not any(tables.entry(AT + page) & (e.RW | e.SOFT_DIRTY) for page in range(2))
    kernel.write(process, AT, 1)
    assert tables.entry(AT) & e.SOFT_DIRTY
    assert not tables.entry(AT + 1) & e.SOFT_DIRTY
    assert e.pfn_of(tables.entry(AT)) == pfn
    check(kernel)


def test_a_pinned_page_stays_writable_and_soft_dirty() -> None:
    kernel, process = mapped(2)
    pages = pin_user_pages(kernel, process.mm, AT, 1, FOLL.WRITE)
    clear_refs(kernel, process.mm, 4)
    kept = e.RW | e.SOFT_DIRTY
    assert process.mm.tables.entry(AT) & kept == kept
    assert not process.mm.tables.entry(AT + 1) & kept
    unpin_user_pages(kernel, pages)


def test_accessed_bits_go_and_dirty_ones_stay() -> None:
    kernel, process = mapped(1)
    pfn = e.pfn_of(process.mm.tables.entry(AT))
    assert kernel.flags(pfn) & KPF.REFERENCED
    clear_refs(kernel, process.mm, 3)
    assert kernel.flags(pfn) & KPF.REFERENCED, "3 is for mappings of files"
    clear_refs(kernel, process.mm, 1)
    assert not kernel.flags(pfn) & KPF.REFERENCED
    assert process.mm.tables.entry(AT) & (e.ACCESSED | e.DIRTY) == e.DIRTY
    for value in (0, 6):
        with pytest.raises(Errno, match="EINVAL"):
            clear_refs(kernel, process.mm, value)
