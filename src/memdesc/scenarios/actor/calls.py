"""System calls by number, with addresses as plain numbers; x86-64 only.

Not the C library's wrappers: `mremap`, `madvise` and their like have no wrapper in Python, and
the scenario is about what the kernel does with exactly these arguments.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterable

__all__ = [
    "MAP_ANONYMOUS",
    "MAP_FIXED",
    "MAP_FIXED_NOREPLACE",
    "MAP_HUGETLB",
    "MAP_NORESERVE",
    "MAP_POPULATE",
    "MAP_PRIVATE",
    "MAP_SHARED",
    "PROT_EXEC",
    "PROT_READ",
    "PROT_WRITE",
    "call",
    "error_name",
    "iovec",
    "madvise",
    "mmap",
    "mprotect",
    "munmap",
    "prctl",
    "sigaction",
    "sigaltstack",
]

PROT_READ, PROT_WRITE, PROT_EXEC = 1, 2, 4
MAP_SHARED, MAP_PRIVATE, MAP_FIXED, MAP_ANONYMOUS = 0x01, 0x02, 0x10, 0x20
MAP_NORESERVE, MAP_POPULATE, MAP_HUGETLB = 0x4000, 0x8000, 0x40000
MAP_FIXED_NOREPLACE = 0x100000

NUMBERS = {
    "read": 0, "write": 1, "mmap": 9, "mprotect": 10, "munmap": 11, "brk": 12, "rt_sigaction": 13,
    "pread64": 17, "pwrite64": 18, "mremap": 25, "msync": 26, "mincore": 27, "madvise": 28,
    "shmget": 29, "shmat": 30, "shmctl": 31, "sendto": 44, "shmdt": 67, "ptrace": 101,
    "capset": 126, "sigaltstack": 131, "munlock": 150, "mlockall": 151, "munlockall": 152,
    "prctl": 157, "mount": 165, "swapon": 167, "swapoff": 168, "init_module": 175,
    "readahead": 187, "futex": 202, "io_setup": 206, "io_destroy": 207, "io_getevents": 208,
    "io_submit": 209, "remap_file_pages": 216, "mbind": 237, "get_mempolicy": 239,
    "sync_file_range": 277, "vmsplice": 278, "move_pages": 279, "fallocate": 285, "syncfs": 306,
    "process_vm_readv": 310, "process_vm_writev": 311, "userfaultfd": 323, "mlock2": 325,
    "pkey_mprotect": 329, "pkey_alloc": 330, "io_uring_setup": 425, "io_uring_enter": 426,
    "io_uring_register": 427, "pidfd_open": 434, "pidfd_getfd": 438, "process_madvise": 440,
    "memfd_secret": 447, "set_mempolicy_home_node": 450, "cachestat": 451, "mseal": 462,
}  # fmt: skip
"""arch/x86/entry/syscalls/syscall_64.tbl"""

_EHWPOISON = 133
_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long


def call(name: str, *arguments: int | bytes | ctypes.Array[ctypes.c_char] | None) -> int:
    """Make a system call. Raises OSError with its errno."""
    words = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result = int(_syscall(ctypes.c_long(NUMBERS[name]), *words))
    if result == -1 and (error := ctypes.get_errno()):
        ctypes.set_errno(0)
        raise OSError(error, f"{name}: {os.strerror(error)}")
    return result


def mmap(
    length: int,
    prot: int = PROT_READ | PROT_WRITE,
    flags: int = MAP_PRIVATE | MAP_ANONYMOUS,
    fd: int = -1,
    offset: int = 0,
    address: int = 0,
) -> int:
    """Map memory; its address."""
    return call("mmap", address, length, prot, flags, fd, offset)


def munmap(address: int, length: int) -> None:
    """Unmap memory."""
    call("munmap", address, length)


def mprotect(address: int, length: int, prot: int) -> None:
    """Change the protection of memory."""
    call("mprotect", address, length, prot)


def madvise(address: int, length: int, advice: int) -> None:
    """Give advice about memory."""
    call("madvise", address, length, advice)


def prctl(*arguments: int) -> int:
    """Change an attribute of this process."""
    return call("prctl", *arguments, *(0,) * (5 - len(arguments)))


def iovec(ranges: Iterable[tuple[int, int]]) -> ctypes.Array[ctypes.c_char]:
    """`struct iovec` of (address, length)."""
    data = b"".join(struct.pack("<QQ", address, length) for address, length in ranges)
    return ctypes.create_string_buffer(data, len(data))


def sigaction(number: int, handler: int, flags: int, restorer: int) -> None:
    """`rt_sigaction` itself: the C library would put a restorer of its own in its place."""
    action = ctypes.create_string_buffer(struct.pack("<QQQQ", handler, flags, restorer, 0), 32)
    call("rt_sigaction", number, action, None, 8)


def sigaltstack(address: int, length: int) -> None:
    """Run handlers that ask for it on a stack of their own."""
    stack = struct.pack("<QiiQ", address, 0, 0, length)
    call("sigaltstack", ctypes.create_string_buffer(stack, 24), None)


def error_name(error: OSError) -> str:
    """ "EFAULT"; by the kernel's names, of which Python has another for one, and lacks one."""
    if error.errno == _EHWPOISON:
        return "EHWPOISON"
    if error.errno == errno.EOPNOTSUPP:
        return "EOPNOTSUPP"
    return errno.errorcode.get(error.errno or 0, str(error.errno))
