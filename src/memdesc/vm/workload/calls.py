"""The system calls that Python has no function for, through ctypes.

Memory is mapped with the C library directly and not with ``mmap.mmap``, because the addresses are
what a recording is about.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Sequence
from fcntl import ioctl
from pathlib import Path

from memdesc.vm.guard import only_in_guest

PAGE = 4096
HUGE = 2 << 20

PROT_NONE, PROT_READ, PROT_WRITE = 0, 1, 2
MAP_SHARED, MAP_PRIVATE, MAP_FIXED, MAP_ANONYMOUS = 0x01, 0x02, 0x10, 0x20
MAP_NORESERVE, MAP_HUGETLB = 0x4000, 0x40000

MADV_DONTNEED, MADV_FREE, MADV_MERGEABLE, MADV_HUGEPAGE, MADV_NOHUGEPAGE = 4, 8, 12, 14, 15
MADV_COLD, MADV_PAGEOUT, MADV_GUARD_INSTALL = 20, 21, 102

MFD_HUGETLB = 4
SPLICE_F_GIFT = 8
F_SETPIPE_SZ = 1031

_SYS_VMSPLICE, _SYS_PERF_EVENT_OPEN, _SYS_IO_URING_SETUP = 278, 298, 425
_SYS_BPF, _SYS_IO_URING_REGISTER, _SYS_MEMFD_SECRET, _SYS_USERFAULTFD = 321, 427, 447, 323
_UFFDIO_API, _UFFDIO_REGISTER, _UFFDIO_WRITEPROTECT = 0xC018AA3F, 0xC020AA00, 0xC018AA06
_PR_SET_NAME = 15
_BPF_MAP_TYPE_ARRAY, _BPF_F_MMAPABLE = 2, 1 << 10
_IORING_OFF_SQES = 0x10000000

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
]
_libc.shmat.restype = ctypes.c_void_p
_libc.syscall.restype = ctypes.c_long
for _function in (_libc.munmap, _libc.mlock):
    _function.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
for _function in (_libc.madvise, _libc.mprotect):
    _function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def _checked(result: int | None, what: str) -> int:
    """The result of a call, or OSError with its errno."""
    if result is None or result < 0 or result == 2**64 - 1:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")
    return result


def mmap(length: int, prot: int = PROT_READ | PROT_WRITE, flags: int = MAP_PRIVATE | MAP_ANONYMOUS,
         fd: int = -1, offset: int = 0, address: int = 0) -> int:  # fmt: skip
    """Map memory; returns its address."""
    return _checked(_libc.mmap(address or None, length, prot, flags, fd, offset), "mmap")


def munmap(address: int, length: int) -> None:
    """Unmap memory."""
    _checked(_libc.munmap(address, length), "munmap")


def madvise(address: int, length: int, advice: int) -> None:
    """Give advice about memory."""
    _checked(_libc.madvise(address, length, advice), f"madvise {advice}")


def mlock(address: int, length: int) -> None:
    """Lock memory."""
    _checked(_libc.mlock(address, length), "mlock")


def mprotect(address: int, length: int, prot: int) -> None:
    """Change the protection of memory."""
    _checked(_libc.mprotect(address, length, prot), "mprotect")


def aligned(length: int, alignment: int, offset: int = 0) -> int:
    """Reserve anonymous memory whose address is ``offset`` past a multiple of ``alignment``."""
    whole = length + offset + alignment
    start = mmap(whole, flags=MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE)
    wanted = -(-start // alignment) * alignment + offset
    if wanted > start:
        munmap(start, wanted - start)
    munmap(wanted + length, start + whole - wanted - length)
    return wanted


def write_pages(address: int, pages: int, seed: int = 1, step: int = 1) -> None:
    """Write a different word to every (or every ``step``-th) page.

    By copying, because setting a ctypes object reads the memory first, and a page that was read
    before it was written ends up different (no huge page, no DIRTY flag on shared memory).
    """
    for index in range(0, pages, step):
        fill(address + index * PAGE, struct.pack("<II", index + 1, seed))


def fill(address: int, content: bytes) -> None:
    """Copy bytes to an address."""
    ctypes.memmove(address, content, len(content))


def read_pages(address: int, pages: int, step: int = 1) -> None:
    """Read a word of every (or every ``step``-th) page."""
    for index in range(0, pages, step):
        ctypes.c_uint64.from_address(address + index * PAGE).value  # noqa: B018


def set_name(name: str) -> None:
    """Set the name that /proc/PID/comm shows."""
    _checked(_libc.prctl(_PR_SET_NAME, name.encode(), 0, 0, 0), "prctl")


@only_in_guest("mount a file system")
def mount(source: str, target: str, kind: str, options: str = "") -> None:
    """Mount a file system, making the mount point."""
    Path(target).mkdir(parents=True, exist_ok=True)
    _checked(
        _libc.mount(
            source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(0), options.encode()
        ),
        f"mount {target}",
    )


@only_in_guest("use a device for swapping")
def swapon(device: str, priority: int) -> None:
    """Use a device for swapping."""
    _checked(_libc.swapon(device.encode(), 0x8000 | priority), f"swapon {device}")


@only_in_guest("restart")
def restart() -> None:
    """Restart the machine at once."""
    _libc.reboot(0x01234567)


@only_in_guest("write a swap header")
def make_swap(device: str, pages: int) -> None:
    """Write a swap header, as mkswap does."""
    header = bytearray(PAGE)
    struct.pack_into("<III", header, 1024, 1, pages - 1, 0)
    header[1036:1052] = b"memdescswap00001"
    header[-10:] = b"SWAPSPACE2"
    with Path(device).open("r+b") as file:
        file.write(header)
        file.flush()
        os.fsync(file.fileno())


def shared_segment(length: int) -> int:
    """A new System V shared memory segment, attached."""
    identity = _checked(_libc.shmget(0, ctypes.c_size_t(length), 0o1600), "shmget")
    return _checked(_libc.shmat(identity, None, 0), "shmat")


def secret_memory(length: int) -> int:
    """Memory that the kernel itself cannot read."""
    fd = _checked(_libc.syscall(_SYS_MEMFD_SECRET, 0), "memfd_secret")
    os.ftruncate(fd, length)
    return mmap(length, flags=MAP_SHARED, fd=fd)


def write_protect(address: int, length: int) -> int:
    """Write-protect memory with userfaultfd; returns the descriptor that must stay open."""
    fd = _checked(_libc.syscall(_SYS_USERFAULTFD, os.O_CLOEXEC), "userfaultfd")
    ioctl(fd, _UFFDIO_API, struct.pack("<3Q", 0xAA, 0, 0))
    ioctl(fd, _UFFDIO_REGISTER, struct.pack("<4Q", address, length, 2, 0))
    ioctl(fd, _UFFDIO_WRITEPROTECT, struct.pack("<3Q", address, length, 1))
    return fd


def vmsplice(pipe: int, address: int, length: int, flags: int = 0) -> None:
    """Put pages of this process into a pipe without copying them."""
    vector = (ctypes.c_uint64 * 2)(address, length)
    _checked(_libc.syscall(_SYS_VMSPLICE, pipe, vector, ctypes.c_size_t(1), flags), "vmsplice")


def io_uring(entries: int) -> tuple[int, list[tuple[int, int]]]:
    """An io_uring: its descriptor and its mapped rings as (address, pages)."""
    params = (ctypes.c_uint32 * 30)()
    fd = _checked(_libc.syscall(_SYS_IO_URING_SETUP, entries, params), "io_uring_setup")
    sq_entries, cq_entries = params[0], params[1]
    cqes = params[25]  # cq_off.cqes; sq_off is at word 10, cq_off at word 20
    array = params[16]  # sq_off.array
    rings = []
    for length, offset in (
        (max(array + 4 * sq_entries, cqes + 16 * cq_entries), 0),
        (64 * sq_entries, _IORING_OFF_SQES),
    ):
        length = -(-length // PAGE) * PAGE
        address = mmap(length, flags=MAP_SHARED, fd=fd, offset=offset)
        read_pages(address, length // PAGE)
        rings.append((address, length // PAGE))
    return fd, rings


def io_uring_fix(ring: int, address: int, length: int) -> None:
    """Register memory as a fixed buffer, which pins its pages."""
    vector = (ctypes.c_uint64 * 2)(address, length)
    _checked(_libc.syscall(_SYS_IO_URING_REGISTER, ring, 0, vector, 1), "io_uring_register")


def io_uring_fix_pages(ring: int, addresses: Sequence[int]) -> None:
    """Register single pages as fixed buffers, which pins them."""
    words = [word for address in addresses for word in (address, PAGE)]
    vector = (ctypes.c_uint64 * len(words))(*words)
    _checked(
        _libc.syscall(_SYS_IO_URING_REGISTER, ring, 0, vector, len(addresses)),
        "io_uring_register",
    )


def perf_ring(pages: int) -> int:
    """The mapped ring of a perf event that counts nothing."""
    attributes = bytearray(64)
    struct.pack_into("<IIQ", attributes, 0, 1, 64, 9)  # software event "dummy"
    buffer = (ctypes.c_char * 64).from_buffer(attributes)
    fd = _checked(_libc.syscall(_SYS_PERF_EVENT_OPEN, buffer, 0, -1, -1, 0), "perf_event_open")
    return mmap((pages + 1) * PAGE, flags=MAP_SHARED, fd=fd)


def bpf_array(pages: int) -> int:
    """An array map that may be mapped: the kernel takes it from vmalloc; its descriptor."""
    attributes = bytearray(128)
    struct.pack_into("<5I", attributes, 0, _BPF_MAP_TYPE_ARRAY, 4, PAGE, pages, _BPF_F_MMAPABLE)
    buffer = (ctypes.c_char * len(attributes)).from_buffer(attributes)
    return _checked(_libc.syscall(_SYS_BPF, 0, buffer, len(attributes)), "bpf BPF_MAP_CREATE")


def page_frames(address: int, pages: int) -> list[int]:
    """Page frame numbers of this process's memory (0 where nothing is present)."""
    with Path("/proc/self/pagemap").open("rb", buffering=0) as file:
        entries = struct.unpack(
            f"<{pages}Q", os.pread(file.fileno(), pages * 8, address // PAGE * 8)
        )
    return [entry & ((1 << 55) - 1) if entry >> 63 else 0 for entry in entries]
