"""userfaultfd: whose a fault is, what is filled, what protection outlives, and when it ends."""

from __future__ import annotations

import pytest

from memdesc.mm import entries as e
from memdesc.mm.areas.madvise import madvise
from memdesc.mm.areas.mmap import mmap, munmap
from memdesc.mm.areas.mremap import mremap
from memdesc.mm.areas.vma import VM, VM_UFFD
from memdesc.mm.check import check
from memdesc.mm.faults.fork import fork
from memdesc.mm.files.inode import memfd_create
from memdesc.mm.kernel import Kernel
from memdesc.mm.process import Errno, Process, Signal
from memdesc.mm.userfault import userfault_ops
from memdesc.mm.userfault import userfaultfd as uffd
from memdesc.mm.userfault.userfault_wp import writeprotect
from memdesc.mm.userfault.userfaultfd import UserfaultfdCtx

AT = 0x10000
PAGES = 4
MARKER = e.not_present(e.SwapType.MARKER, e.Marker.UFFD_WP)


def registered(
    mode: str, *, series: str = "6.12", shared: bool = False
) -> tuple[Kernel, Process, UserfaultfdCtx]:
    """A process with four pages that a userfaultfd has."""
    kernel = Kernel(series, memory_bytes=64 << 20)
    process = kernel.process("p")
    mmap(kernel, process.mm, AT, PAGES, flags=VM.SHARED if shared else VM(0))
    ctx = uffd.userfaultfd(kernel, mode)
    uffd.register(kernel, process.mm, ctx, AT, AT + PAGES)
    return kernel, process, ctx


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("thp", ["never", "always"])
def test_missing_pages_are_the_descriptors(shared: bool, thp: str) -> None:
    kernel, process, ctx = registered("missing", shared=shared)
    kernel.set_knob("thp", thp)
    with pytest.raises(Signal, match="SIGBUS ADRERR"):
        kernel.read(process, AT)
    with pytest.raises(Signal, match="SIGBUS ADRERR"):
        kernel.write(process, AT, 1)
    userfault_ops.copy(kernel, process.mm, AT, [7, 8])
    userfault_ops.zeropage(kernel, process.mm, AT + 2, AT + 3)
    assert [kernel.read(process, AT + page) for page in range(3)] == [7, 8, 0]
    kernel.write(process, AT + 2, 9)
    check(kernel)
    uffd.unregister(kernel, process.mm, ctx, AT, AT + PAGES)
    assert kernel.read(process, AT + 3) == 0
    assert not any(vma.flags & VM_UFFD or vma.uffd for vma in process.mm.vmas)
    check(kernel)


@pytest.mark.parametrize("shared", [True, False])
def test_what_is_there_is_not_filled(shared: bool) -> None:
    kernel, process, _ = registered("missing", shared=shared)
    userfault_ops.copy(kernel, process.mm, AT + 1, [5])
    with pytest.raises(Errno, match="EEXIST"):
        userfault_ops.copy(kernel, process.mm, AT + 1, [6])
    with pytest.raises(Errno, match="EEXIST"):
        userfault_ops.zeropage(kernel, process.mm, AT + 1, AT + 2)
    with pytest.raises(Errno, match="EEXIST"):
        userfault_ops.poison(kernel, process.mm, AT + 1, AT + 2)
    with pytest.raises(Errno, match="EAGAIN"):
        userfault_ops.copy(kernel, process.mm, AT, [4, 6])
    assert [kernel.read(process, AT), kernel.read(process, AT + 1)] == [4, 5]
    with pytest.raises(Errno, match="ENOENT"):
        userfault_ops.copy(kernel, process.mm, AT + 2, [1] * PAGES)
    check(kernel)


@pytest.mark.parametrize("series", ["6.1", "6.12", "7.2"])
def test_a_protected_page_is_written_after_its_protection_ended(series: str) -> None:
    kernel, process, _ = registered("wp", series=series)
    kernel.write(process, AT, 1)
    frame = e.pfn_of(process.mm.tables.entry(AT))
    writeprotect(kernel, process.mm, AT, AT + PAGES, protect=True)
    assert process.mm.tables.entry(AT + 1) == e.NONE_ENTRY
    with pytest.raises(Signal, match="SIGBUS ADRERR"):
        kernel.write(process, AT, 2)
    assert kernel.read(process, AT) == 1
    writeprotect(kernel, process.mm, AT, AT + PAGES, protect=False)
    kernel.write(process, AT, 2)
    assert e.pfn_of(process.mm.tables.entry(AT)) == frame
    check(kernel)


@pytest.mark.parametrize("write", [True, False])
def test_async_protection_ends_with_the_first_store(write: bool) -> None:
    kernel, process, _ = registered("wp_async")
    writeprotect(kernel, process.mm, AT, AT + PAGES, protect=True)
    assert process.mm.tables.entry(AT) == MARKER
    if write:
        kernel.write(process, AT, 3)
    else:
        kernel.read(process, AT)
    entry = process.mm.tables.entry(AT)
    assert e.is_present(entry)
    assert bool(entry & e.UFFD_WP) is not write
    check(kernel)


def test_there_is_no_async_protection_in_old_kernels() -> None:
    kernel = Kernel("6.1", memory_bytes=64 << 20)
    with pytest.raises(Errno, match="EINVAL"):
        uffd.userfaultfd(kernel, "wp_async")


def test_protection_of_shared_memory_outlives_its_entries() -> None:
    kernel, process, _ = registered("wp", shared=True)
    kernel.write(process, AT, 1)
    writeprotect(kernel, process.mm, AT, AT + 2, protect=True)
    madvise(kernel, process, AT, AT + PAGES, "dontneed")
    entries = [process.mm.tables.entry(AT + page) for page in range(PAGES)]
    assert entries == [MARKER, MARKER, e.NONE_ENTRY, e.NONE_ENTRY]
    for page in range(2):
        with pytest.raises(Signal, match="SIGBUS"):
            kernel.write(process, AT + page, 2)
    assert [kernel.read(process, AT), kernel.read(process, AT + 1)] == [1, 0]
    munmap(kernel, process.mm, AT, AT + PAGES)
    mmap(kernel, process.mm, AT, PAGES)
    assert process.mm.tables.entry(AT) == e.NONE_ENTRY
    check(kernel)


def test_a_child_has_poison_and_no_protection() -> None:
    kernel, process, _ = registered("wp_async")
    kernel.write(process, AT, 1)
    userfault_ops.poison(kernel, process.mm, AT + 1, AT + 2)
    writeprotect(kernel, process.mm, AT, AT + PAGES, protect=True)
    child = fork(kernel, process, "c")
    (twin,) = child.mm.vmas
    assert twin.uffd is None
    assert not twin.flags & VM_UFFD
    entry = child.mm.tables.entry(AT)
    assert e.is_present(entry)
    assert not entry & e.UFFD_WP
    assert process.mm.tables.entry(AT) & e.UFFD_WP
    assert child.mm.tables.entry(AT + 2) == e.NONE_ENTRY
    for one in (process, child):
        with pytest.raises(Signal, match="SIGBUS MCEERR_AR"):
            kernel.read(one, AT + 1)
    check(kernel)


def test_what_moves_is_nobodys() -> None:
    kernel, process, _ = registered("wp_async")
    kernel.write(process, AT, 1)
    writeprotect(kernel, process.mm, AT, AT + PAGES, protect=True)
    mremap(kernel, process.mm, AT, PAGES, PAGES, to=AT + 0x1000)
    (vma,) = process.mm.vmas
    assert vma.uffd is None
    assert not process.mm.tables.entry(AT + 0x1000) & e.UFFD_WP
    assert process.mm.tables.entry(AT + 0x1001) == e.NONE_ENTRY
    check(kernel)


def test_areas_of_two_descriptors_do_not_merge() -> None:
    kernel, process, ctx = registered("missing")
    mm = process.mm
    mmap(kernel, mm, AT + PAGES, 2)
    assert len(mm.vmas) == 2
    other = UserfaultfdCtx("missing")
    uffd.register(kernel, mm, other, AT + PAGES, AT + PAGES + 2)
    assert [vma.uffd for vma in mm.vmas] == [ctx, other]
    with pytest.raises(Errno, match="EBUSY"):
        uffd.register(kernel, mm, other, AT, AT + 1)
    uffd.unregister(kernel, mm, other, AT + PAGES, AT + PAGES + 2)
    uffd.register(kernel, mm, ctx, AT, AT + PAGES + 2)
    assert len(mm.vmas) == 1


def test_minor_faults_need_a_page_in_the_cache() -> None:
    kernel = Kernel("6.12", memory_bytes=64 << 20)
    process = kernel.process("p")
    file = memfd_create(kernel, process, "f")
    file.mapping.size = 2 * 4096
    mmap(kernel, process.mm, AT, 2, flags=VM.SHARED, file=file, pgoff=0)
    mmap(kernel, process.mm, AT + 16, 2, flags=VM.SHARED, file=file, pgoff=0)
    ctx = uffd.userfaultfd(kernel, "minor")
    uffd.register(kernel, process.mm, ctx, AT, AT + 2)
    kernel.write(process, AT + 16, 5)
    with pytest.raises(Signal, match="SIGBUS ADRERR"):
        kernel.read(process, AT)
    assert kernel.read(process, AT + 1) == 0
    check(kernel)
