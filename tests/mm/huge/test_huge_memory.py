"""Huge pages: when there are any, what splits them, and what describes the pieces."""

from __future__ import annotations

import pytest

from memdesc.mm import entries as e
from memdesc.mm.areas.mmap import exit_process, mmap, munmap
from memdesc.mm.areas.vma import VM
from memdesc.mm.check import check
from memdesc.mm.faults.fork import fork
from memdesc.mm.faults.zap import zap_range
from memdesc.mm.frames import C_HUGE_ZERO_PFN
from memdesc.mm.huge.huge_memory import shrink_huge_zero
from memdesc.mm.huge.large_folio import deferred_split_scan, likely_mapped_shared, split_folio
from memdesc.mm.kernel import Kernel
from memdesc.mm.process import Process
from memdesc.model.check_slab import check_described
from memdesc.model.designs import DESIGNS, MEMDESC_8, Design
from memdesc.types import MemoryType

AT = 0x10000
HUGE = 512


def kernel_with(thp: str = "always", release: str = "6.12", **knobs: str) -> Kernel:
    kernel = Kernel(release, memory_bytes=64 << 20)
    for name, value in {"thp": thp, **knobs}.items():
        kernel.set_knob(name, value)
    return kernel


def huge_process(kernel: Kernel, pages: int = HUGE) -> Process:
    """A process whose first page of a huge page is written."""
    process = kernel.process("p")
    mmap(kernel, process.mm, AT, pages)
    kernel.write(process, AT, 1)
    return process


def leave_no_huge_page(kernel: Kernel) -> None:
    """Take all huge pages there are, then give every second small page of some back."""
    machine, taken = kernel.machine, []
    while (pfn := machine.alloc(MemoryType.DRIVER, 9)) is not None:
        taken.append(pfn)
    for pfn in taken[:8]:
        assert machine.split(pfn)
        for page in range(0, HUGE, 2):
            machine.free(pfn + page)


def pfn_at(process: Process, page: int = 0) -> int:
    return e.pfn_of(process.mm.tables.entry(AT + page))


@pytest.mark.parametrize(
    ("thp", "flags", "first", "pages", "huge"),
    [
        ("always", VM(0), AT, HUGE, True),
        ("always", VM.NOHUGEPAGE, AT, HUGE, False),
        ("always", VM(0), AT + 1, HUGE, False),
        ("always", VM(0), AT, HUGE - 1, False),
        ("madvise", VM(0), AT, HUGE, False),
        ("madvise", VM.HUGEPAGE, AT, HUGE, True),
        ("never", VM.HUGEPAGE, AT, HUGE, False),
    ],
)
def test_when_a_write_gets_a_huge_page(
    thp: str, flags: VM, first: int, pages: int, huge: bool
) -> None:
    kernel = kernel_with(thp)
    process = kernel.process("p")
    vma = mmap(kernel, process.mm, first, pages)
    vma.flags |= flags
    kernel.write(process, first, 1)
    assert kernel.order_of(e.pfn_of(process.mm.tables.entry(first))) == (9 if huge else 0)
    check(kernel)


@pytest.mark.parametrize(
    ("defrag", "flags", "effort"),
    [
        ("always", VM(0), "direct reclaim and compaction"),
        ("defer", VM.HUGEPAGE, "kswapd"),
        ("defer+madvise", VM(0), "kswapd"),
        ("defer+madvise", VM.HUGEPAGE, "direct reclaim and compaction"),
        ("madvise", VM(0), "none"),
        ("madvise", VM.HUGEPAGE, "direct reclaim and compaction"),
        ("never", VM.HUGEPAGE, "none"),
    ],
)
def test_without_a_free_huge_page_the_fault_is_small(defrag: str, flags: VM, effort: str) -> None:
    kernel = kernel_with(thp_defrag=defrag)
    process = kernel.process("p")
    mmap(kernel, process.mm, AT, HUGE).flags |= flags
    leave_no_huge_page(kernel)
    kernel.write(process, AT, 1)
    assert kernel.order_of(pfn_at(process)) == 0
    assert any(rule.endswith(f"effort that defrag allows: {effort}") for rule in kernel.fired)
    check(kernel)


def test_the_huge_zero_page_goes_with_its_last_process() -> None:
    kernel = kernel_with()
    pages = kernel.machine.pages
    free = pages.counters()["nr_free_pages"]
    one, other = kernel.process("p"), kernel.process("q")
    for process in (one, other):
        mmap(kernel, process.mm, AT, HUGE)
        assert kernel.read(process, AT + 3) == 0
    assert pfn_at(one) == pfn_at(other) == kernel.f.cell[C_HUGE_ZERO_PFN]
    assert kernel.type_at(pfn_at(one, 5)) is MemoryType.HUGE_ZERO
    munmap(kernel, one.mm, AT, AT + HUGE)
    exit_process(kernel, one)
    shrink_huge_zero(kernel)
    assert kernel.f.cell[C_HUGE_ZERO_PFN] >= 0
    exit_process(kernel, other)
    shrink_huge_zero(kernel)
    assert kernel.f.cell[C_HUGE_ZERO_PFN] == -1
    pages.drain()
    assert pages.counters()["nr_free_pages"] == free
    check_described(kernel.machine)


@pytest.mark.parametrize("release", ["6.1", "6.12", "7.2"])
@pytest.mark.parametrize("design", DESIGNS.values(), ids=lambda design: design.id)
def test_pieces_of_a_shared_folio_have_descriptors_and_counts(design: Design, release: str) -> None:
    kernel = Kernel(release, memory_bytes=64 << 20, design=design)
    kernel.set_knob("thp", "always")
    parent = huge_process(kernel)
    for page in range(HUGE):
        kernel.write(parent, AT + page, page + 1)
    child = fork(kernel, parent, "c")
    kernel.write(child, AT + 7, 9999)
    check(kernel)
    zap_range(kernel, parent.mm, parent.mm.vmas.find(AT), AT + 7, AT + 9)  # type: ignore[arg-type]
    check(kernel)
    assert split_folio(kernel, pfn_at(parent)) == ""
    check(kernel)
    check_described(kernel.machine)
    assert kernel.refs(pfn_at(parent, 3)) == kernel.mapcount(pfn_at(parent, 3)) == 2
    assert kernel.refs(pfn_at(child, 8)) == 1
    assert [kernel.read(child, AT + page) for page in (0, 7, 8, 511)] == [1, 9999, 9, 512]
    exit_process(kernel, parent)
    exit_process(kernel, child)
    check(kernel)
    check_described(kernel.machine)


def test_a_split_without_memory_for_descriptors_fails_whole() -> None:
    kernel = Kernel("6.12", memory_bytes=64 << 20, design=MEMDESC_8)
    kernel.set_knob("thp", "always")
    process = huge_process(kernel)
    while kernel.machine.alloc(MemoryType.DRIVER) is not None:
        pass
    assert split_folio(kernel, pfn_at(process)) == "ENOMEM"
    assert kernel.order_of(pfn_at(process)) == 9
    check(kernel)
    check_described(kernel.machine)


def test_why_a_folio_is_not_split() -> None:
    kernel = kernel_with()
    process = huge_process(kernel)
    pfn = pfn_at(process)
    kernel.get(pfn)
    assert split_folio(kernel, pfn) == "EAGAIN"
    assert process.mm.tables.pmd_of(AT).huge  # type: ignore[union-attr]
    assert split_folio(kernel, pfn, held=1) == ""
    assert kernel.refs(pfn) == 2
    kernel.put(pfn)
    assert split_folio(kernel, pfn) == "EINVAL"
    check(kernel)


def test_what_waits_on_the_deferred_split_list() -> None:
    kernel = kernel_with(max_ptes_none="500")
    process = huge_process(kernel, 3 * HUGE)
    for page in range(HUGE):
        kernel.write(process, AT + HUGE + page, 2)
        kernel.write(process, AT + 2 * HUGE + page, 3)
    vma = process.mm.vmas.find(AT)
    assert vma is not None
    zap_range(kernel, process.mm, vma, AT + 2 * HUGE, AT + 2 * HUGE + 1)
    held = pfn_at(process, 2 * HUGE + 1)
    kernel.get(held)
    deferred_split_scan(kernel)
    orders = [kernel.order_of(pfn_at(process, page)) for page in (0, HUGE, 2 * HUGE + 1)]
    assert orders == [0, 9, 9], "underused, in full use, held"
    kernel.put(held)
    deferred_split_scan(kernel)
    assert kernel.order_of(pfn_at(process, 2 * HUGE + 1)) == 0
    check(kernel)


def test_who_counts_as_sharing_a_folio() -> None:
    """Per release: this page's count; a guess by the first page's; the processes themselves."""
    found = {}
    for release in ("6.1", "6.12", "7.2"):
        kernel = kernel_with(release=release)
        parent = huge_process(kernel)
        child = fork(kernel, parent, "c")
        kernel.write(child, AT, 2)
        kernel.write(parent, AT, 3)
        pfn = pfn_at(parent, 1) - 1
        assert kernel.order_of(pfn) == 9
        found[release] = [likely_mapped_shared(kernel, pfn + page) for page in (0, 1)]
        check(kernel)
    assert found == {"6.1": [False, True], "6.12": [True, True], "7.2": [True, True]}


def test_a_third_process_is_not_remembered() -> None:
    """7.2 has two slots per folio; who has none stays "maybe shared" when it is alone."""
    kernel = kernel_with(release="7.2")
    parent = huge_process(kernel)
    second, third = fork(kernel, parent, "c"), fork(kernel, parent, "d")
    pfn = pfn_at(parent)
    exit_process(kernel, second)
    exit_process(kernel, parent)
    assert likely_mapped_shared(kernel, pfn)
    fourth = fork(kernel, third, "e")
    exit_process(kernel, third)
    assert not likely_mapped_shared(kernel, pfn), "a slot was free when it came"
    exit_process(kernel, fourth)
    check(kernel)
