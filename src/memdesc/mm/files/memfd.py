"""Seals of memory files: what a file promises never to let happen again.

`mm/memfd.c:memfd_add_seals, memfd_get_seals, memfd_wait_for_pins; include/linux/memfd.h:
memfd_check_seals_mmap; mm/shmem.c:shmem_setattr, shmem_write_begin, shmem_fallocate @6.12`.
A process that gets such a file from another can rely on it: what was sealed against shrinking
brings no SIGBUS, what was sealed against writing does not change while it is read.  So a seal
against writing is refused while somebody could still write, through a mapping or a reference.
That a sealed file can be mapped shared for reading came with 6.7, and to stable series in 2025.
"""

from __future__ import annotations

from enum import IntFlag
from typing import TYPE_CHECKING

from memdesc.mm.areas.vma import VM
from memdesc.mm.process import Errno

if TYPE_CHECKING:
    from memdesc.mm.files.inode import AddressSpace, OpenFile
    from memdesc.mm.kernel import Kernel

__all__ = [
    "Seal", "add_seals", "check_fallocate", "check_mmap", "check_punch", "check_resize",
    "check_write", "get_seals", "seals_of_new",
]  # fmt: skip


class Seal(IntFlag):
    """F_SEAL_* (`include/uapi/linux/fcntl.h`)."""

    NONE = 0
    SEAL = 0x1
    SHRINK = 0x2
    GROW = 0x4
    WRITE = 0x8
    FUTURE_WRITE = 0x10
    EXEC = 0x20


_WRITES = Seal.WRITE | Seal.FUTURE_WRITE


def seals_of_new(kernel: Kernel, *, sealable: bool, noexec: bool) -> Seal:
    """The seals that memfd_create() begins with. `noexec`: MFD_NOEXEC_SEAL. Raises Errno."""
    if noexec:
        if not kernel.rules.seals_exec:
            raise Errno("EINVAL")
        return Seal.EXEC
    return Seal.NONE if sealable else Seal.SEAL


def add_seals(kernel: Kernel, file: OpenFile, seals: Seal) -> None:
    """F_ADD_SEALS: seals are only added, never taken away. Raises Errno."""
    mapping = file.mapping
    if file.readonly:
        raise Errno("EPERM")
    if seals & Seal.EXEC and not kernel.rules.seals_exec:
        raise Errno("EINVAL")
    if mapping.seals is None:
        raise Errno("EINVAL")
    if mapping.seals & Seal.SEAL:
        kernel.say("memfd_add_seals: F_SEAL_SEAL, no more seals")
        raise Errno("EPERM")
    if seals & Seal.EXEC and not mapping.seals & Seal.EXEC:
        # What can be executed and never be made otherwise shall not change either.
        seals |= Seal.SHRINK | Seal.GROW | _WRITES
    if seals & Seal.WRITE and not mapping.seals & Seal.WRITE:
        _deny_writers(kernel, mapping)
    mapping.seals |= seals


def get_seals(file: OpenFile) -> Seal:
    """F_GET_SEALS. Raises Errno."""
    if file.mapping.seals is None:
        raise Errno("EINVAL")
    return file.mapping.seals


def check_mmap(kernel: Kernel, mapping: AddressSpace, flags: VM) -> VM:
    """memfd_check_seals_mmap(): what an area of the file may become. Raises Errno."""
    seals = mapping.seals
    if not seals or not seals & _WRITES or not flags & VM.SHARED:
        return flags
    if flags & VM.WRITE:
        raise Errno("EPERM")
    kernel.say("memfd_check_seals_mmap: never to be made writable")
    return flags & ~VM.MAYWRITE


def check_resize(mapping: AddressSpace, size: int) -> None:
    """ftruncate(2) to so many bytes. Raises Errno."""
    seals = mapping.seals or Seal.NONE
    if (size < mapping.size and seals & Seal.SHRINK) or (size > mapping.size and seals & Seal.GROW):
        raise Errno("EPERM")


def check_write(mapping: AddressSpace, end: int) -> None:
    """write(2) of a piece that ends at a byte. Raises Errno."""
    seals = mapping.seals or Seal.NONE
    if seals & _WRITES or (seals & Seal.GROW and end > mapping.size):
        raise Errno("EPERM")


def check_punch(mapping: AddressSpace) -> None:
    """A hole is a write: FALLOC_FL_PUNCH_HOLE, MADV_REMOVE. Raises Errno."""
    if (mapping.seals or Seal.NONE) & _WRITES:
        raise Errno("EPERM")


def check_fallocate(mapping: AddressSpace, end: int) -> None:
    """fallocate(2) up to a byte, also where the size would be kept. Raises Errno."""
    if (mapping.seals or Seal.NONE) & Seal.GROW and end > mapping.size:
        raise Errno("EPERM")


# --- helpers -----------------------------------------------------------------------------


def _deny_writers(kernel: Kernel, mapping: AddressSpace) -> None:
    """mapping_deny_writable(), memfd_wait_for_pins(). Raises Errno."""
    writer = VM.SHARED | VM.MAYWRITE
    if any(vma.flags & writer == writer for _, vma in mapping.vmas):
        kernel.say("mapping_deny_writable: somebody has it mapped and might write")
        raise Errno("EBUSY")
    kernel.drain()
    for head in {kernel.head(pfn) for pfn in mapping.pages.values()}:
        expected = kernel.mapcount(head) + (1 << kernel.order_of(head))
        if kernel.refs(head) != expected:
            kernel.say("memfd_wait_for_pins: somebody holds a page and might write to it")
            raise Errno("EBUSY")
