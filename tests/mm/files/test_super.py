"""File systems as a whole: read-only, frozen, full; and names of files."""

from __future__ import annotations

import pytest

from memdesc.errors import MemdescError
from memdesc.kernels.kpageflags import KPF
from memdesc.mm.areas.mmap import mmap, munmap
from memdesc.mm.areas.vma import VM
from memdesc.mm.check import check
from memdesc.mm.files import super as whole
from memdesc.mm.files.inode import OpenFile, close_file, open_file
from memdesc.mm.files.namei import rename, unlink
from memdesc.mm.files.page_cache import pread, pwrite
from memdesc.mm.files.truncate import ftruncate
from memdesc.mm.kernel import Kernel
from memdesc.mm.process import Errno, Process, Signal

BASE = 0x40000


def world(series: str = "6.12", fs: str = "ext4") -> tuple[Kernel, Process, OpenFile]:
    """A process with a file of two written pages, mapped shared at BASE."""
    kernel = Kernel(series)
    process = kernel.process("p")
    file = open_file(kernel, process, "f", fs, "name", create=True)
    pwrite(kernel, file, 0, [1])
    pwrite(kernel, file, 1, [2])
    mmap(kernel, process.mm, BASE, 4, flags=VM.READ | VM.WRITE | VM.SHARED, file=file)
    return kernel, process, file


def dirty(kernel: Kernel, file: OpenFile) -> list[int]:
    return [at for at, pfn in file.mapping.pages.items() if kernel.flags(pfn) & KPF.DIRTY]


@pytest.mark.parametrize("fs", ["ext4", "xfs", "vfat"])
def test_a_frozen_file_system_has_no_dirty_page_and_gets_none(fs: str) -> None:
    kernel, process, file = world(fs=fs)
    assert dirty(kernel, file) == [0, 1]
    whole.freeze(kernel, fs)
    assert not dirty(kernel, file)
    with pytest.raises(MemdescError, match="waits until it is thawed"):
        kernel.write(process, BASE, 3)
    with pytest.raises(MemdescError, match="waits until it is thawed"):
        pwrite(kernel, file, 0, [3])
    whole.thaw(kernel, fs)
    kernel.write(process, BASE, 3)
    assert dirty(kernel, file) == [0]
    check(kernel)


def test_a_mapping_keeps_a_file_system_writable() -> None:
    kernel, process, _ = world()
    close_file(kernel, process, "f")
    with pytest.raises(Errno, match="EBUSY"):
        whole.remount(kernel, "ext4", readonly=True)
    munmap(kernel, process.mm, BASE, BASE + 4)
    whole.remount(kernel, "ext4", readonly=True)
    with pytest.raises(Errno, match="EROFS"):
        open_file(kernel, process, "g", "ext4", "name")
    file = open_file(kernel, process, "g", "ext4", "name", readonly=True)
    assert pread(kernel, file, 0, 2) == (1, 2)
    check(kernel)


@pytest.mark.parametrize("series", ["6.1", "6.12", "7.2"])
def test_blocks_are_claimed_once_and_come_back(series: str) -> None:
    kernel, process, file = world(series)
    ftruncate(kernel, file, 4 * 4096)
    whole.fill(kernel, "ext4", 1)
    kernel.write(process, BASE, 5)  # has its block already
    kernel.write(process, BASE + 2, 6)
    with pytest.raises(Signal, match="SIGBUS"):
        kernel.write(process, BASE + 3, 7)
    with pytest.raises(Errno, match="ENOSPC"):
        pwrite(kernel, file, 3, [7])
    ftruncate(kernel, file, 2 * 4096)
    ftruncate(kernel, file, 4 * 4096)
    kernel.write(process, BASE + 3, 7)
    assert pread(kernel, file, 0, 4) == (5, 2, 0, 7)
    check(kernel)


def test_who_loses_a_name_lives_on_until_nobody_uses_it() -> None:
    kernel, process, file = world()
    other = open_file(kernel, process, "g", "ext4", "other", create=True)
    pwrite(kernel, other, 0, [9])
    rename(kernel, "ext4", "name", "other")
    assert open_file(kernel, process, "h", "ext4", "other").mapping is file.mapping
    assert pread(kernel, other, 0, 1) == (9,)
    number = other.mapping.number
    close_file(kernel, process, "g")
    assert number not in kernel.mappings
    unlink(kernel, "ext4", "other")
    assert pread(kernel, file, 0, 2) == (1, 2)
    with pytest.raises(Errno, match="ENOENT"):
        unlink(kernel, "ext4", "other")
    check(kernel)
