"""Pages of files in processes: references, what a fault maps, which bits reach the folio."""

from __future__ import annotations

import pytest

from memdesc.kernels.kpageflags import KPF
from memdesc.mm import entries as e
from memdesc.mm.areas.mmap import exit_process, mmap, munmap
from memdesc.mm.areas.vma import VM
from memdesc.mm.check import check
from memdesc.mm.faults.fork import fork
from memdesc.mm.files.inode import OpenFile, close_file, memfd_create, open_file
from memdesc.mm.files.page_cache import cachestat, file_mappings, pread, pwrite
from memdesc.mm.files.truncate import drop_caches, ftruncate
from memdesc.mm.kernel import Kernel
from memdesc.mm.process import Errno, Process, Signal
from memdesc.types import PAGE_SIZE_BYTES

AT, OTHER = 0x10000, 0x20000
SERIES = ("6.1", "6.12", "7.2")


def world(series: str, where: str, contents: list[int]) -> tuple[Kernel, Process, OpenFile]:
    """A process with an open file of those contents, one page each, written one by one."""
    kernel = Kernel(series, memory_bytes=64 << 20)
    process = kernel.process("p")
    if where == "memfd":
        file = memfd_create(kernel, process, "f")
    else:
        file = open_file(kernel, process, "f", where, "name", create=True)
    for index, content in enumerate(contents):
        pwrite(kernel, file, index, [content])
    return kernel, process, file


@pytest.mark.parametrize("series", SERIES)
@pytest.mark.parametrize("where", ["memfd", "tmpfs", "ext4"])
def test_every_reference_ends_with_its_holder(series: str, where: str) -> None:
    kernel, process, file = world(series, where, [1, 2, 3])
    mmap(kernel, process.mm, AT, 3, flags=VM.SHARED, file=file, pgoff=0)
    mmap(kernel, process.mm, OTHER, 3, file=file, pgoff=0)
    for page in range(3):
        assert kernel.read(process, AT + page) == page + 1
        assert kernel.read(process, OTHER + page) == page + 1
    kernel.write(process, OTHER, 9)
    kernel.drain()
    check(kernel)
    private = int(where == "ext4")
    pfn = file.mapping.pages[1]
    assert (kernel.refs(pfn), kernel.mapcount(pfn)) == (3 + private, 2)
    assert kernel.mapcount(file.mapping.pages[0]) == 1
    child = fork(kernel, process, "c")
    close_file(kernel, process, "f")
    exit_process(kernel, process)
    check(kernel)
    assert kernel.read(child, OTHER) == 9
    exit_process(kernel, child)
    kernel.drain()
    check(kernel)
    named = where != "memfd"
    assert len(file_mappings(kernel)) == int(named)


@pytest.mark.parametrize("series", SERIES)
def test_dirty_entries_of_shmem_pass_their_bit_on(series: str) -> None:
    kernel, process, file = world(series, "memfd", [])
    ftruncate(kernel, file, 2 * PAGE_SIZE_BYTES)
    mmap(kernel, process.mm, AT, 2, flags=VM.SHARED, file=file, pgoff=0)
    for page in range(2):
        kernel.read(process, AT + page)
    kernel.write(process, AT, 5)
    first, second = (file.mapping.pages[index] for index in range(2))
    assert process.mm.tables.entry(AT) & e.DIRTY
    assert not kernel.flags(first) & KPF.DIRTY
    munmap(kernel, process.mm, AT, AT + 2)
    assert kernel.flags(first) & KPF.DIRTY
    assert not kernel.flags(second) & KPF.DIRTY


@pytest.mark.parametrize("window", [4, 16])
def test_fault_around_maps_the_aligned_window_and_nothing_else(window: int) -> None:
    kernel, process, file = world("6.12", "memfd", list(range(1, 41)))
    kernel.set_knob("fault_around", str(window * PAGE_SIZE_BYTES))
    mmap(kernel, process.mm, AT + 3, 37, flags=VM.SHARED, file=file, pgoff=0)
    at = AT + 21
    kernel.read(process, at)
    mapped = [vpn for vpn in range(AT, AT + 48) if process.mm.tables.entry(vpn)]
    start = at // window * window
    assert mapped == list(range(start, start + window))
    kernel.read(process, AT + 3)
    low = [vpn for vpn in range(AT, AT + 20) if process.mm.tables.entry(vpn)]
    # The window begins with the area, and is as long as ever.
    assert low[:window] == list(range(AT + 3, AT + 3 + min(window, len(low))))
    check(kernel)


def test_the_last_page_decides_about_sigbus() -> None:
    kernel, process, file = world("6.12", "memfd", [1])
    mmap(kernel, process.mm, AT, 3, flags=VM.SHARED, file=file, pgoff=0)
    ftruncate(kernel, file, PAGE_SIZE_BYTES + 8)
    assert kernel.read(process, AT + 1) == 0
    with pytest.raises(Signal, match="SIGBUS ADRERR"):
        kernel.read(process, AT + 2)


@pytest.mark.parametrize("series", SERIES)
def test_cachestat_knows_dirty_pages_of_devices_only(series: str) -> None:
    kernel, _, file = world(series, "ext4", [1, 2])
    if not kernel.rules.cachestat:
        with pytest.raises(Errno, match="ENOSYS"):
            cachestat(kernel, file.mapping, 0, 2)
        return
    assert cachestat(kernel, file.mapping, 0, 2) == (2, 2, 0, 0, 0)
    kernel, _, file = world(series, "tmpfs", [1, 2])
    assert cachestat(kernel, file.mapping, 0, 2) == (2, 0, 0, 0, 0)


def test_dropped_pages_come_back_from_their_blocks() -> None:
    from memdesc.mm.files.writeback import writeback_range

    kernel, process, file = world("6.12", "ext4", [1, 2])
    drop_caches(kernel, 1)
    assert set(file.mapping.pages) == {0, 1}, "dirty pages stay"
    writeback_range(kernel, file.mapping)
    mmap(kernel, process.mm, AT, 2, flags=VM.SHARED, file=file, pgoff=0)
    kernel.read(process, AT)
    drop_caches(kernel, 1)
    assert set(file.mapping.pages) == {0}, "mapped pages stay"
    assert pread(kernel, file, 0, 2) == (1, 2)
    assert kernel.flags(file.mapping.pages[1]) & KPF.OWNER_2
    assert not kernel.flags(file.mapping.pages[1]) & KPF.PRIVATE
    check(kernel)
