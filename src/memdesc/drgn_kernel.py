"""A drgn Program as a `Kernel`, so that memdesc's walks and classifier run inside drgn.

    kernel = kernel_of(prog)
    MemMap.find(kernel)

Whatever drgn has open will do: a dump, a live kernel, a program with memory segments of its
own.  `memdesc.structs.dump.open_dump` is the way for those who begin with a file.
"""

from __future__ import annotations

import threading

import numpy as np
from drgn import FaultError as DrgnFaultError
from drgn import Program, ProgramFlags
from numpy.typing import NDArray

from memdesc.errors import FaultError, LayoutError
from memdesc.kernels.release import KernelRelease
from memdesc.kernels.type_info import TypeInfo
from memdesc.structs.kernel import Kernel

__all__ = ["ProgramMemory", "ProgramSymbols", "kernel_of"]

_BLOCK = 1 << 20
"""Bytes that drgn is asked for at a time: the copy it makes stays in the cache."""


class ProgramMemory:
    """A Program's memory. A `Memory`; drgn is not thread-safe, so threads take turns."""

    def __init__(self, prog: Program) -> None:
        self._prog = prog
        self._lock = threading.Lock()

    def read(self, address: int, size_bytes: int) -> bytes:
        if not 0 <= address <= (1 << 64) - size_bytes:
            raise FaultError(f"{address:#x} is no address", address)
        try:
            with self._lock:
                data: bytes = self._prog.read(address, size_bytes)
        except DrgnFaultError as error:
            raise FaultError(f"no memory at {error.address:#x}", error.address) from None
        return data

    def read_into(self, address: int, into: NDArray[np.uint8]) -> None:
        for at in range(0, into.size, _BLOCK):
            size = min(_BLOCK, into.size - at)
            into[at : at + size] = np.frombuffer(self.read(address + at, size), np.uint8)


class ProgramSymbols:
    """A Program's symbols, whichever finder has them. A `Symbols`."""

    def __init__(self, prog: Program) -> None:
        self._prog = prog

    def address_of(self, name: str) -> int | None:
        try:
            found: int = self._prog.symbol(name).address
        except LookupError:
            return None
        return found

    def name_at(self, address: int) -> str | None:
        try:
            found: str = self._prog.symbol(address).name
        except LookupError:
            return None
        return found


def kernel_of(prog: Program, types: TypeInfo) -> Kernel:
    """`prog` as a `Kernel` whose structs are described by `types`.

    Raises LayoutError for a program that is no Linux kernel.
    """
    if ProgramFlags.IS_LINUX_KERNEL not in prog.flags:
        raise LayoutError("this program is no Linux kernel")
    release = prog["UTS_RELEASE"].string_().decode("ascii", "replace")
    return Kernel(
        memory=ProgramMemory(prog),
        types=types,
        symbols=ProgramSymbols(prog),
        release=KernelRelease.parse(release),
        name=f"drgn program ({release})",
        is_live=ProgramFlags.IS_LIVE in prog.flags,
    )
