"""khugepaged's limits, and the errors of MADV_COLLAPSE."""

from __future__ import annotations

import pytest

from memdesc.mm import entries as e
from memdesc.mm.areas.mmap import exit_process, mmap
from memdesc.mm.areas.vma import VM, Vma
from memdesc.mm.check import check
from memdesc.mm.faults.fork import fork
from memdesc.mm.huge.khugepaged import khugepaged_pass, madvise_collapse
from memdesc.mm.kernel import Kernel
from memdesc.mm.process import Errno, Process
from memdesc.model.check_slab import check_described
from memdesc.model.designs import MEMDESC_8
from memdesc.types import MemoryType

AT = 0x10000
HUGE = 512


def written(pages: int, release: str = "6.12") -> tuple[Kernel, Process, Vma]:
    """An area of 2 MiB of which so many small pages are written."""
    kernel = Kernel(release, memory_bytes=64 << 20, design=MEMDESC_8)
    process = kernel.process("p")
    vma = mmap(kernel, process.mm, AT, HUGE)
    for page in range(pages):
        kernel.write(process, AT + page, page + 1)
    kernel.set_knob("thp", "always")
    process.mm.khugepaged = True
    return kernel, process, vma


def is_huge(process: Process) -> bool:
    pmd = process.mm.tables.pmd_of(AT)
    return pmd is not None and bool(pmd.huge)


@pytest.mark.parametrize(("limit", "huge"), [(412, True), (411, False)])
def test_max_ptes_none(limit: int, huge: bool) -> None:
    kernel, process, _ = written(100)
    kernel.set_knob("max_ptes_none", str(limit))
    khugepaged_pass(kernel)
    assert is_huge(process) == huge
    assert [kernel.read(process, AT + page) for page in (0, 99, 100)] == [1, 100, 0]
    check(kernel)
    check_described(kernel.machine)


@pytest.mark.parametrize(("limit", "huge"), [(10, True), (9, False)])
def test_max_ptes_shared(limit: int, huge: bool) -> None:
    kernel, process, _ = written(10)
    child = fork(kernel, process, "c")
    kernel.write(process, AT + 20, 7)
    kernel.set_knob("max_ptes_shared", str(limit))
    khugepaged_pass(kernel)
    assert is_huge(process) == huge
    assert kernel.read(child, AT) == 1
    check(kernel)
    exit_process(kernel, process)
    exit_process(kernel, child)
    check(kernel)
    check_described(kernel.machine)


def test_a_page_must_have_been_used_lately() -> None:
    kernel, process, vma = written(2)
    tables = process.mm.tables
    for page in range(2):
        tables.set(AT + page, tables.entry(AT + page) & ~e.ACCESSED)
    khugepaged_pass(kernel)
    assert not is_huge(process)
    madvise_collapse(kernel, process.mm, vma, AT, AT + HUGE)
    assert is_huge(process)


def test_only_registered_processes_that_may_are_looked_at() -> None:
    kernel, process, vma = written(2)
    process.mm.khugepaged = False
    khugepaged_pass(kernel)
    assert not is_huge(process)
    process.mm.khugepaged = True
    vma.flags |= VM.NOHUGEPAGE
    khugepaged_pass(kernel)
    assert not is_huge(process)


@pytest.mark.parametrize(
    ("release", "what", "error"),
    [
        ("6.12", "nothing", "EINVAL"),
        ("6.12", "read-only", "EINVAL"),
        ("7.2", "read-only", ""),
        ("6.12", "held", "EAGAIN"),
        ("6.12", "full memory", "ENOMEM"),
        ("6.12", "refused", "EINVAL"),
    ],
)
def test_errors_of_madv_collapse(release: str, what: str, error: str) -> None:
    kernel, process, vma = written(0 if what == "nothing" else 2, release)
    kernel.drain()
    tables = process.mm.tables
    if what == "read-only":
        for page in range(2):
            tables.set(AT + page, tables.entry(AT + page) & ~e.RW)
    elif what == "held":
        kernel.get(e.pfn_of(tables.entry(AT)))
    elif what == "full memory":
        while kernel.machine.alloc(MemoryType.DRIVER, 9) is not None:
            pass
    elif what == "refused":
        vma.flags |= VM.NOHUGEPAGE
    if not error:
        madvise_collapse(kernel, process.mm, vma, AT, AT + HUGE)
        assert is_huge(process)
        return
    with pytest.raises(Errno, match=error):
        madvise_collapse(kernel, process.mm, vma, AT, AT + HUGE)
    assert not is_huge(process)


def test_what_is_huge_already_is_fine_and_parts_are_rounded() -> None:
    kernel, process, vma = written(2)
    madvise_collapse(kernel, process.mm, vma, AT, AT + 4)
    assert not is_huge(process), "no whole 2 MiB lies in the range"
    madvise_collapse(kernel, process.mm, vma, AT, AT + HUGE)
    before = process.mm.tables.pmd_of(AT).huge  # type: ignore[union-attr]
    madvise_collapse(kernel, process.mm, vma, AT, AT + HUGE)
    assert process.mm.tables.pmd_of(AT).huge == before  # type: ignore[union-attr]
