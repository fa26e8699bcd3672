"""A dump's memory by kernel virtual address, through drgn.

drgn reads ELF dumps and /proc/kcore, and follows the kernel's page tables; of a kdump file
it gets the physical pages from `memdesc.structs.kdump`.  One lock guards the whole: drgn is
not thread-safe, and a reader in Python lets other threads in.
"""

from __future__ import annotations

import os
import struct
import threading
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from memdesc.errors import FaultError, FormatError, MemdescError, SourceError
from memdesc.structs.dump_file import NEEDS_VMCOREINFO, DumpFile, Form
from memdesc.structs.kdump import KdumpFile, Packing
from memdesc.structs.vmcoreinfo import PAGE_SIZE, VmcoreInfo

if TYPE_CHECKING:
    from drgn import Program

__all__ = ["DumpMemory"]

_BLOCK = 1 << 20
"""Bytes that drgn is asked for at a time in bulk reads: its answer stays in the cache until it
is copied (10 GB/s; one read of everything, which touches fresh pages, 1.5 to 8)."""

_CACHED_PAGES = 1 << 14
"""64 MiB. A read of 64 bytes costs 4 to 7 µs in drgn, most of it for the page tables, and one
of a page no more; walks stay on few pages."""

_KERNEL_HALF = 1 << 63
_LARGEST_READ = 1 << 30
"""Nothing of a kernel is larger; a damaged length may be."""


class DumpMemory:
    """A dump's memory by kernel virtual address. A `Memory`."""

    def __init__(self, file: DumpFile, prog: Program, info: VmcoreInfo) -> None:
        self.file = file
        self.prog = prog
        """The drgn Program. It is no more thread-safe than drgn: hold `lock`."""
        self.info = info
        self.notes: list[str] = list(file.notes)
        self.lock = threading.Lock()
        self._kdump: KdumpFile | None = None
        self._pages: dict[int, bytes] = {}
        self._may_cache = file.form is not Form.LIVE
        import drgn

        self._fault: type[Exception] = drgn.FaultError

    @classmethod
    def open(cls, file: DumpFile) -> DumpMemory:
        """Hand `file` to drgn. Raises as `open_dump`."""
        prog = _program()
        kdump: KdumpFile | None = None
        if file.form in (Form.KDUMP, Form.FLATTENED):
            kdump = KdumpFile(file.fd, file.path, flattened=file.form is Form.FLATTENED)
            file.notes.extend(kdump.notes)
            file.vmcoreinfo = kdump.vmcoreinfo
        if not file.vmcoreinfo:
            raise FormatError(f"{file.path} holds no VMCOREINFO", hint=NEEDS_VMCOREINFO)
        info = VmcoreInfo.parse(file.vmcoreinfo)
        if kdump is not None and kdump.packing is Packing.FOREIGN and not kdump.names_system:
            raise FormatError(
                f"{file.path} is a kdump file of QEMU, packed with LZO, snappy or zstd: drgn's "
                "library refuses its header, and memdesc itself unpacks only zlib",
                hint="make the dump as ELF or with zlib (virsh dump --format kdump-zlib)",
            )
        try:
            if kdump is None or kdump.packing is Packing.FOREIGN:
                prog.set_core_dump(os.dup(file.fd))  # drgn closes it, whatever happens
            else:
                _attach(prog, kdump, file.vmcoreinfo)
        except Exception as error:  # drgn raises plain Exception for what its libraries say
            raise _from_drgn(file, error) from None
        memory = cls(file, prog, info)
        memory._kdump = kdump
        return memory

    def read(self, address: int, size_bytes: int) -> bytes:
        start = address & (PAGE_SIZE - 1)
        if not self._may_cache or start + size_bytes > PAGE_SIZE:
            return self._read(address, size_bytes)
        page = self._pages.get(address - start)
        if page is None:
            try:
                page = self._read(address - start, PAGE_SIZE)
            except FaultError:
                # A segment of the dump may begin or end inside the page.
                return self._read(address, size_bytes)
            if len(self._pages) >= _CACHED_PAGES:
                self._pages.clear()
            self._pages[address - start] = page
        return page[start : start + size_bytes]

    def read_into(self, address: int, into: NDArray[np.uint8]) -> None:
        for at in range(0, into.size, _BLOCK):
            size = min(_BLOCK, into.size - at)
            into[at : at + size] = np.frombuffer(self._read(address + at, size), np.uint8)

    def close(self) -> None:
        """Let go of the file. Nothing can be read afterwards."""
        with self.lock:
            self._pages.clear()
            if self._kdump is not None:
                self._kdump.close()
            self.file.close()

    def _read(self, address: int, size_bytes: int) -> bytes:
        # QEMU's segments claim virtual address 0: a NULL pointer would read frame 0.
        if not _KERNEL_HALF <= address < 1 << 64 or not 0 <= size_bytes <= _LARGEST_READ:
            raise FaultError(
                f"{size_bytes} bytes at {address:#x} are no memory of a kernel", address
            )
        if self.file.fd < 0:
            raise FaultError(f"{self.file.path} was closed", address)
        try:
            with self.lock:
                data: bytes = self.prog.read(address, size_bytes)
        except self._fault as error:
            at = getattr(error, "address", address)
            missing = self.file.missing_bytes
            hint = f"the file was cut: {missing:,} bytes are missing" if missing else ""
            raise FaultError(f"{self.file.path} has no memory at {at:#x}", at, hint=hint) from None
        except Exception as error:  # drgn raises plain Exception for what its libraries say
            raise FaultError(f"{self.file.path} cannot be read: {error}", address) from None
        return data


# --- drgn --------------------------------------------------------------------------------


def _program() -> Program:
    try:
        import drgn
    except ImportError:
        raise SourceError(
            "reading dumps needs drgn, which is not installed",
            hint="pip install 'memdesc[vmcore]'",
        ) from None
    return drgn.Program()


def _attach(prog: Program, kdump: KdumpFile, vmcoreinfo: bytes) -> None:
    """Make `prog` a dump that holds VMCOREINFO and no memory, and lend it that of `kdump`.

    drgn then finds its way through the page tables as in any dump. Its own support of this
    format wants a system name that QEMU leaves empty, which only a patched copy would cure.
    """
    import drgn

    def read(address: int, count: int, offset: int, physical: bool) -> bytes:
        try:
            return kdump.read(address, count)
        except FaultError as error:
            raise drgn.FaultError(str(error), error.address) from None

    fd = os.memfd_create("memdesc-vmcoreinfo", os.MFD_CLOEXEC)
    os.write(fd, _empty_dump(vmcoreinfo))
    prog.set_core_dump(fd)  # drgn closes it
    prog.add_memory_segment(0, kdump.nr_frames * PAGE_SIZE, read, True)


def _empty_dump(vmcoreinfo: bytes) -> bytes:
    """An ELF core of an x86-64 machine with one note."""
    name = b"VMCOREINFO\0\0"
    note = struct.pack("<III", 11, len(vmcoreinfo), 0) + name + vmcoreinfo
    note += bytes(-len(note) % 4)
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    header = ident + struct.pack("<HHIQQQIHHHHHH", 4, 62, 1, 0, 64, 0, 0, 64, 56, 1, 64, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 4, 0, 64 + 56, 0, 0, len(note), len(note), 4)
    return header + segment + note


def _from_drgn(file: DumpFile, error: Exception) -> MemdescError:
    return SourceError(
        f"drgn cannot read {file.path}: {' '.join(str(error).split())}", path=file.path
    )
