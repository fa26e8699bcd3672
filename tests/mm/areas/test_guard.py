"""Guards: markers that only unmapping and their own advice take away."""

from __future__ import annotations

import pytest

from memdesc.mm import entries as e
from memdesc.mm.areas.guard import GUARD
from memdesc.mm.areas.madvise import madvise
from memdesc.mm.areas.mmap import mmap, munmap
from memdesc.mm.areas.vma import VM
from memdesc.mm.check import check
from memdesc.mm.faults.fork import fork
from memdesc.mm.files.inode import memfd_create
from memdesc.mm.kernel import Kernel
from memdesc.mm.process import Errno, Process, Signal

AT = 0x10000


def guarded(*, written: bool) -> tuple[Kernel, Process]:
    kernel = Kernel("7.2", memory_bytes=64 << 20)
    process = kernel.process("p")
    mmap(kernel, process.mm, AT, 3)
    if written:
        kernel.write(process, AT + 1, 7)
    madvise(kernel, process, AT + 1, AT + 2, "guard_install")
    return kernel, process


@pytest.mark.parametrize("written", [True, False])
def test_the_page_is_gone_and_a_child_has_the_guard(written: bool) -> None:
    kernel, process = guarded(written=written)
    child = fork(kernel, process, "c")
    for one in (process, child):
        assert one.mm.tables.entry(AT + 1) == GUARD
        with pytest.raises(Signal, match="SIGSEGV"):
            kernel.write(one, AT + 1, 1)
    madvise(kernel, child, AT, AT + 3, "guard_remove")
    assert kernel.read(child, AT + 1) == 0
    check(kernel)


@pytest.mark.parametrize("advice", ["dontneed", "free", "cold", "dontdump"])
def test_advice_leaves_guards(advice: str) -> None:
    kernel, process = guarded(written=True)
    madvise(kernel, process, AT, AT + 3, advice)
    assert process.mm.tables.entry(AT + 1) == GUARD
    check(kernel)


def test_a_new_mapping_in_the_place_has_none() -> None:
    kernel, process = guarded(written=False)
    munmap(kernel, process.mm, AT, AT + 3)
    mmap(kernel, process.mm, AT, 3)
    assert kernel.read(process, AT + 1) == 0
    assert process.mm.tables.entry(AT) == e.NONE_ENTRY


@pytest.mark.parametrize("series", ["6.1", "6.12"])
def test_older_kernels_have_no_guards(series: str) -> None:
    kernel = Kernel(series, memory_bytes=64 << 20)
    process = kernel.process("p")
    mmap(kernel, process.mm, AT, 1)
    with pytest.raises(Errno, match="EINVAL"):
        madvise(kernel, process, AT, AT + 1, "guard_install")


@pytest.mark.parametrize(
    ("series", "takes", "remembers"),
    [("6.14", False, False), ("6.15", True, False), ("6.18", True, False), ("7.2", True, True)],
)
def test_guards_in_mappings_of_files(series: str, takes: bool, remembers: bool) -> None:
    kernel = Kernel(series, memory_bytes=64 << 20)
    process = kernel.process("p")
    file = memfd_create(kernel, process, "f")
    vma = mmap(kernel, process.mm, AT, 2, flags=VM.SHARED, file=file)
    if not takes:
        with pytest.raises(Errno, match="EINVAL"):
            madvise(kernel, process, AT, AT + 1, "guard_install")
        return
    madvise(kernel, process, AT, AT + 1, "guard_install")
    assert bool(vma.flags & VM.MAYBE_GUARD) is remembers
    # Either way a fork copies the table, although it is a file's.
    assert fork(kernel, process, "c").mm.tables.entry(AT) == GUARD
    check(kernel)
