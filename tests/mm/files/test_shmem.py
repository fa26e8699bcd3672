"""Files that live in memory only: holes, reserved pages, memory shared without a name."""

from __future__ import annotations

import pytest

from memdesc.kernels.kpageflags import KPF
from memdesc.mm.areas.mmap import exit_process, mmap
from memdesc.mm.areas.vma import VM
from memdesc.mm.check import check
from memdesc.mm.faults.fork import fork
from memdesc.mm.files.inode import memfd_create, memfd_secret
from memdesc.mm.files.page_cache import file_mappings, is_cached, pread, pwrite
from memdesc.mm.files.truncate import fallocate, ftruncate
from memdesc.mm.kernel import Kernel
from memdesc.mm.process import Errno
from memdesc.types import PAGE_SIZE_BYTES

AT = 0x10000


@pytest.mark.parametrize("series", ["6.1", "6.12", "7.2"])
def test_shared_anonymous_memory_goes_with_its_last_mapping(series: str) -> None:
    kernel = Kernel(series, memory_bytes=64 << 20)
    parent = kernel.process("p")
    mmap(kernel, parent.mm, AT, 4, flags=VM.SHARED)
    kernel.write(parent, AT, 7)
    child = fork(kernel, parent, "c")
    assert kernel.read(child, AT) == 7
    kernel.write(child, AT + 1, 8)
    assert kernel.read(parent, AT + 1) == 8
    exit_process(kernel, parent)
    check(kernel)
    assert [len(mapping.pages) for mapping in file_mappings(kernel)] == [2]
    exit_process(kernel, child)
    kernel.drain()
    check(kernel)
    assert not file_mappings(kernel)


def test_reserved_pages_are_not_there_until_they_are_used() -> None:
    kernel = Kernel("6.12", memory_bytes=64 << 20)
    process = kernel.process("p")
    file = memfd_create(kernel, process, "f")
    fallocate(kernel, file, 0, 3, "grow")
    assert file.mapping.size == 3 * PAGE_SIZE_BYTES
    assert not any(is_cached(kernel, file, index) for index in range(3))
    assert all(kernel.flags(pfn) & KPF.DIRTY for pfn in file.mapping.pages.values())
    mmap(kernel, process.mm, AT, 3, flags=VM.SHARED, file=file, pgoff=0)
    assert kernel.read(process, AT + 1) == 0
    assert [is_cached(kernel, file, index) for index in range(3)] == [False, True, False]
    for mode in ("zero", "collapse", "insert"):
        with pytest.raises(Errno, match="EOPNOTSUPP"):
            fallocate(kernel, file, 0, 1, mode)
    kernel.drain()
    check(kernel)


def test_reading_a_hole_allocates_only_through_a_mapping() -> None:
    kernel = Kernel("6.12", memory_bytes=64 << 20)
    process = kernel.process("p")
    file = memfd_create(kernel, process, "f")
    ftruncate(kernel, file, 2 * PAGE_SIZE_BYTES)
    assert pread(kernel, file, 0, 4) == (0, 0)
    assert not file.mapping.pages
    mmap(kernel, process.mm, AT, 2, file=file, pgoff=0)
    assert kernel.read(process, AT) == 0
    assert set(file.mapping.pages) == {0}


def test_secret_memory_refuses_read_and_private_mappings() -> None:
    kernel = Kernel("6.12", memory_bytes=64 << 20)
    process = kernel.process("p")
    file = memfd_secret(kernel, process, "s")
    ftruncate(kernel, file, PAGE_SIZE_BYTES)
    with pytest.raises(Errno, match="EINVAL"):
        mmap(kernel, process.mm, AT, 1, file=file, pgoff=0)
    mmap(kernel, process.mm, AT, 1, flags=VM.SHARED, file=file, pgoff=0)
    kernel.write(process, AT, 3)
    assert kernel.read(process, AT) == 3
    assert kernel.flags(file.mapping.pages[0]) & KPF.UNEVICTABLE
    for call in (lambda: pread(kernel, file, 0, 1), lambda: pwrite(kernel, file, 0, [1])):
        with pytest.raises(Errno, match="ESPIPE"):
            call()
    with pytest.raises(Errno, match="EINVAL"):
        ftruncate(kernel, file, 2 * PAGE_SIZE_BYTES)
