"""Plants memory of a known kind in this process, for tests that ask what it is.

Each planter is a context manager that yields the address of memory that is resident for
as long as the context is open. A planter that this machine cannot carry out raises
`CannotPlant` with the reason.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PAGE = 4096
PMD = 2 << 20
_LIBC = ctypes.CDLL(None, use_errno=True)
_MADV_FREE, _MADV_HUGEPAGE, _MADV_NOHUGEPAGE = 8, 14, 15
_MADV_GUARD_INSTALL = 102
_MADV_POPULATE_READ = 22
_MFD_HUGETLB = 4
_SYS_MEMFD_SECRET = 447


class CannotPlant(Exception):
    """This machine does not offer that kind of memory; the text says what is missing."""


def address_of(area: mmap.mmap) -> int:
    """Where `area` is mapped."""
    return ctypes.addressof(ctypes.c_char.from_buffer(area))


def madvise(address: int, length: int, advice: int) -> None:
    if _LIBC.madvise(ctypes.c_void_p(address), ctypes.c_size_t(length), advice):
        number = ctypes.get_errno()
        raise CannotPlant(f"madvise({advice}) is refused: {os.strerror(number)}")


def anonymous(pages: int = 8, *, flags: int = mmap.MAP_PRIVATE) -> mmap.mmap:
    return mmap.mmap(-1, pages * PAGE, flags=flags | mmap.MAP_ANONYMOUS)


def _touch(area: mmap.mmap) -> None:
    for offset in range(0, len(area), PAGE):
        area[offset] = 1


@contextmanager
def anon() -> Iterator[int]:
    area = anonymous()
    madvise(address_of(area), len(area), _MADV_NOHUGEPAGE)
    _touch(area)
    yield address_of(area)


@contextmanager
def zero_page() -> Iterator[int]:
    area = anonymous()
    madvise(address_of(area), len(area), _MADV_NOHUGEPAGE)
    assert area[0] == 0
    yield address_of(area)


@contextmanager
def transparent_huge_page() -> Iterator[int]:
    area = anonymous(2 * PMD // PAGE)
    start = -address_of(area) % PMD
    madvise(address_of(area), len(area), _MADV_HUGEPAGE)
    area[start] = 1
    yield address_of(area) + start


@contextmanager
def shared_anonymous() -> Iterator[int]:
    area = anonymous(flags=mmap.MAP_SHARED)
    _touch(area)
    yield address_of(area)


@contextmanager
def memfd() -> Iterator[int]:
    handle = os.memfd_create("planted")
    os.ftruncate(handle, 8 * PAGE)
    area = mmap.mmap(handle, 8 * PAGE)
    _touch(area)
    yield address_of(area)
    os.close(handle)


@contextmanager
def tmpfs_file() -> Iterator[int]:
    with tempfile.TemporaryFile(dir="/dev/shm") as file:
        file.write(b"x" * 8 * PAGE)
        file.flush()
        area = mmap.mmap(file.fileno(), 8 * PAGE)
        _touch(area)
        yield address_of(area)


@contextmanager
def file_page() -> Iterator[int]:
    with Path(os.__file__).open("rb") as file:
        area = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=3)
        assert area[0]
        yield address_of(area)


@contextmanager
def private_file_copy() -> Iterator[int]:
    with Path(os.__file__).open("rb") as file:
        area = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=3)
        area[0] = 65
        yield address_of(area)


@contextmanager
def mlocked() -> Iterator[int]:
    area = anonymous()
    madvise(address_of(area), len(area), _MADV_NOHUGEPAGE)
    if _LIBC.mlock(ctypes.c_void_p(address_of(area)), ctypes.c_size_t(len(area))):
        raise CannotPlant(f"mlock is refused: {os.strerror(ctypes.get_errno())}")
    _touch(area)
    yield address_of(area)


@contextmanager
def lazily_freed() -> Iterator[int]:
    area = anonymous(64)
    madvise(address_of(area), len(area), _MADV_NOHUGEPAGE)
    _touch(area)
    madvise(address_of(area), len(area), _MADV_FREE)
    yield address_of(area)


@contextmanager
def huge_zero_page() -> Iterator[int]:
    area = anonymous(2 * PMD // PAGE)
    start = -address_of(area) % PMD
    madvise(address_of(area), len(area), _MADV_HUGEPAGE)
    assert area[start] == 0
    yield address_of(area) + start


@contextmanager
def hugetlb() -> Iterator[int]:
    free = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")
    if not free.exists() or int(free.read_text()) < 1:
        raise CannotPlant("the hugetlb pool is empty (nr_hugepages is 0 on this machine)")
    handle = os.memfd_create("planted-huge", _MFD_HUGETLB)
    os.ftruncate(handle, PMD)
    area = mmap.mmap(handle, PMD)
    area[0] = 1
    yield address_of(area)
    os.close(handle)


@contextmanager
def secret_memory() -> Iterator[int]:
    handle = _LIBC.syscall(_SYS_MEMFD_SECRET, 0)
    if handle < 0:
        raise CannotPlant(f"memfd_secret is refused: {os.strerror(ctypes.get_errno())}")
    os.ftruncate(handle, 8 * PAGE)
    area = mmap.mmap(handle, 8 * PAGE)
    _touch(area)
    yield address_of(area)
    os.close(handle)


@contextmanager
def guard_region() -> Iterator[int]:
    area = anonymous()
    _touch(area)
    madvise(address_of(area), len(area), _MADV_GUARD_INSTALL)
    yield address_of(area)


@contextmanager
def vdso() -> Iterator[int]:
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith("[vdso]"):
            yield int(line.split("-")[0], 16)
            return
    raise CannotPlant("this process has no vdso")


@contextmanager
def never_touched() -> Iterator[int]:
    area = anonymous()
    yield address_of(area)
