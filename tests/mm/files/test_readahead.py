"""Windows of readahead. The numbers were read off real kernels with mincore(2)."""

from __future__ import annotations

import pytest

from memdesc.mm.areas.mmap import mmap
from memdesc.mm.areas.vma import VM
from memdesc.mm.check import check
from memdesc.mm.files.inode import OpenFile, open_file
from memdesc.mm.files.page_cache import pread
from memdesc.mm.files.readahead import fadvise, force_readahead
from memdesc.mm.files.truncate import ftruncate
from memdesc.mm.kernel import Kernel
from memdesc.mm.process import Process
from memdesc.types import PAGE_SIZE_BYTES

AT = 0x10000


def disk_file(series: str, pages: int, kilobytes: int) -> tuple[Kernel, Process, OpenFile]:
    """An empty file of so many pages on a device with that read_ahead_kb."""
    kernel = Kernel(series, memory_bytes=64 << 20)
    kernel.set_knob("read_ahead", str(kilobytes))
    process = kernel.process("p")
    file = open_file(kernel, process, "f", "ext4", "name", create=True)
    ftruncate(kernel, file, pages * PAGE_SIZE_BYTES)
    return kernel, process, file


@pytest.mark.parametrize(
    ("series", "ends"),
    [
        ("6.12", {0: 4, 1: 12, 4: 28, 12: 60, 28: 92}),
        ("7.2", {0: 4, 1: 12, 4: 16, 12: 24, 16: 32, 24: 48, 32: 64}),
    ],
)
def test_sequential_reads_open_the_window(series: str, ends: dict[int, int]) -> None:
    kernel, _, file = disk_file(series, 256, 128)
    grown: dict[int, int] = {}
    for index in range(40):
        before = len(file.mapping.pages)
        pread(kernel, file, index, 1)
        if len(file.mapping.pages) != before:
            grown[index] = len(file.mapping.pages)
            assert set(file.mapping.pages) == set(range(len(file.mapping.pages)))
    assert grown == ends
    kernel.drain()
    check(kernel)


def test_a_random_read_reads_itself() -> None:
    kernel, _, file = disk_file("6.12", 256, 128)
    pread(kernel, file, 100, 2)
    assert set(file.mapping.pages) == {100, 101}
    pread(kernel, file, 102, 1)
    assert len(file.mapping.pages) > 3, "right behind the last read: a run"


def test_without_readahead_only_what_is_read_comes() -> None:
    kernel, _, file = disk_file("6.12", 64, 0)
    pread(kernel, file, 0, 3)
    assert set(file.mapping.pages) == {0, 1, 2}
    force_readahead(kernel, file, 60, 100)
    assert set(file.mapping.pages) == {0, 1, 2, 60, 61, 62, 63}
    kernel.set_knob("read_ahead", "128")
    kernel, _, file = disk_file("6.12", 64, 128)
    fadvise(kernel, file, 0, 64, "random")
    pread(kernel, file, 0, 1)
    assert set(file.mapping.pages) == {0}


@pytest.mark.parametrize(("page", "low", "high"), [(32, 24, 40), (3, 0, 16), (62, 54, 64)])
def test_a_fault_reads_around_itself(page: int, low: int, high: int) -> None:
    kernel, process, file = disk_file("6.12", 64, 64)
    vma = mmap(kernel, process.mm, AT, 64, flags=VM.SHARED, file=file, pgoff=0)
    kernel.read(process, AT + page)
    assert set(file.mapping.pages) == set(range(low, high))
    assert [vpn for vpn in range(AT, AT + 64) if process.mm.tables.entry(vpn)] == [AT + page]
    vma.flags |= VM.RAND_READ
    far = 10 if page > 20 else 50
    kernel.read(process, AT + far)
    assert set(file.mapping.pages) == {*range(low, high), far}
