"""What scenarios cannot make: every kind of page that somebody dirties, and rules of write-back."""

from __future__ import annotations

import pytest

from memdesc.kernels.kpageflags import KPF
from memdesc.mm.areas.mmap import mmap
from memdesc.mm.areas.vma import VM
from memdesc.mm.files import inode as files
from memdesc.mm.files import writeback
from memdesc.mm.files.folio_writeback import Answers
from memdesc.mm.files.page_cache import attach_private, detach_private, pread, pwrite
from memdesc.mm.files.truncate import drop_caches, ftruncate
from memdesc.mm.files.wb_err import filemap_check_errors, mapping_set_error
from memdesc.mm.frames import Kind
from memdesc.mm.kernel import Kernel
from memdesc.mm.process import Errno, Process
from memdesc.types import MemoryType


@pytest.fixture(params=["6.1", "6.12", "7.2"])
def kernel(request: pytest.FixtureRequest) -> Kernel:
    return Kernel(request.param)


@pytest.fixture
def process(kernel: Kernel) -> Process:
    return kernel.process("p")


def on_disk(kernel: Kernel, process: Process, name: str = "f") -> files.OpenFile:
    return files.open_file(kernel, process, name, "ext4", name, create=True)


def said(kernel: Kernel) -> str:
    return next(rule for rule in kernel.fired if rule.startswith("folio_mark_dirty"))


def dirtied(kernel: Kernel, pfn: int) -> str:
    kernel.fired.clear()
    was = bool(kernel.flags(pfn) & KPF.DIRTY)
    assert writeback.dirty_folio(kernel, pfn) is not was
    assert kernel.flags(pfn) & KPF.DIRTY
    assert not writeback.dirty_folio(kernel, pfn)
    return said(kernel).partition(": ")[2]


# --- who is told ---------------------------------------------------------------------------


def test_a_disk_file_system_is_told(kernel: Kernel, process: Process) -> None:
    file = on_disk(kernel, process)
    pwrite(kernel, file, 0, [7])
    writeback.vfs_fsync_range(kernel, file)
    assert writeback.nr_dirty(kernel) == 0
    assert dirtied(kernel, file.mapping.pages[0]) == "ext4_dirty_folio"
    assert writeback.nr_dirty(kernel) == 1


@pytest.mark.parametrize("fs", [files.SHMEM, files.TMPFS, files.SECRETMEM, files.HUGETLBFS])
def test_memory_file_systems_only_note_it(kernel: Kernel, fs: files.FileSystem) -> None:
    inode = files.new_inode(kernel, fs, "x", links=1)
    pfn = kernel.alloc_folio(fs.kind, flags=fs.new_flags, mapping=inode.number)
    assert dirtied(kernel, pfn) == "noop_dirty_folio"
    assert writeback.nr_dirty(kernel) == 0


def test_who_has_no_file_is_told_nothing(kernel: Kernel, process: Process) -> None:
    mmap(kernel, process.mm, 0x10000, 1)
    kernel.write(process, 0x10000, content=3)
    anon = process.mm.tables.entry(0x10000) >> 12 & (1 << 40) - 1
    driver = kernel.machine.alloc(MemoryType.DRIVER)
    pool = kernel.machine.alloc(MemoryType.NET_POOL)
    assert driver is not None
    assert pool is not None
    for pfn in map(int, (driver, pool)):
        kernel.f.kind[pfn] = Kind.OTHER
    assert "anonymous" in dirtied(kernel, anon)
    for pfn in map(int, (driver, pool, kernel.zero_pfn)):
        assert "no file" in dirtied(kernel, pfn)
    kernel.set_flags(anon, KPF.SWAPCACHE)
    kernel.clear_flags(anon, KPF.DIRTY)
    assert "swap cache" in dirtied(kernel, anon)
    kernel.clear_flags(anon, KPF.SWAPCACHE)


def test_a_page_that_left_its_file_has_none(kernel: Kernel, process: Process) -> None:
    file = on_disk(kernel, process)
    pwrite(kernel, file, 0, [7])
    kernel.drain()
    pfn = file.mapping.pages[0]
    kernel.get(pfn)
    ftruncate(kernel, file, 0)
    assert "no file" in dirtied(kernel, pfn)
    kernel.put(pfn)


# --- write-back ----------------------------------------------------------------------------


def test_a_page_without_buffers_is_lost(kernel: Kernel, process: Process) -> None:
    file = on_disk(kernel, process)
    pwrite(kernel, file, 0, [7])
    writeback.vfs_fsync_range(kernel, file)
    pfn = file.mapping.pages[0]
    detach_private(kernel, pfn)
    kernel.f.content[pfn] = 8
    writeback.dirty_folio(kernel, pfn)
    writeback.vfs_fsync_range(kernel, file)
    assert not kernel.flags(pfn) & KPF.DIRTY
    assert file.mapping.blocks[0] == 7
    attach_private(kernel, pfn)
    writeback.dirty_folio(kernel, pfn)
    writeback.vfs_fsync_range(kernel, file)
    assert file.mapping.blocks[0] == 8


def test_only_shared_mappings_are_protected(kernel: Kernel, process: Process) -> None:
    file = on_disk(kernel, process)
    pwrite(kernel, file, 0, [7])
    shared = VM.READ | VM.WRITE | VM.SHARED | VM.MAYSHARE
    mmap(kernel, process.mm, 0x10000, 1, file=file, flags=shared)
    kernel.write(process, 0x10000, content=9)
    pfn = file.mapping.pages[0]
    assert writeback.folio_mkclean(kernel, pfn)
    assert not writeback.folio_mkclean(kernel, pfn)
    assert kernel.read(process, 0x10000) == 9


# --- errors --------------------------------------------------------------------------------


def test_no_space_is_told_as_such_and_io_errors_first(kernel: Kernel, process: Process) -> None:
    file = on_disk(kernel, process)
    mapping_set_error(kernel, file.mapping, "ENOSPC")
    with pytest.raises(Errno, match="ENOSPC"):
        writeback.vfs_fsync_range(kernel, file)
    assert not file.mapping.as_errors
    mapping_set_error(kernel, file.mapping, "ENOSPC")
    mapping_set_error(kernel, file.mapping, "EIO")
    mapping_set_error(kernel, file.mapping, "ENOSPC")
    with pytest.raises(Errno, match="EIO"):
        filemap_check_errors(kernel, file.mapping)
    filemap_check_errors(kernel, file.mapping)
    with pytest.raises(Errno, match="ENOSPC"):
        writeback.vfs_fsync_range(kernel, file)


def test_an_inode_in_use_keeps_its_error(kernel: Kernel, process: Process) -> None:
    file = on_disk(kernel, process)
    pwrite(kernel, file, 0, [7])
    writeback.set_disk(kernel, Answers.FAIL)
    writeback.sync(kernel)
    kernel.drain()
    drop_caches(kernel, 3)
    later = files.open_file(kernel, process, "later", "ext4", "f")
    with pytest.raises(Errno, match="EIO"):
        writeback.vfs_fsync_range(kernel, later)
    pwrite(kernel, file, 0, [8])
    writeback.sync(kernel)
    for name in ("f", "later"):
        files.close_file(kernel, process, name)
    assert later.mapping.wb_err
    kernel.drain()
    drop_caches(kernel, 3)
    again = files.open_file(kernel, process, "again", "ext4", "f")
    writeback.vfs_fsync_range(kernel, again)
    writeback.set_disk(kernel, Answers.OK)
    assert pread(kernel, again, 0, 1) == (0,)
