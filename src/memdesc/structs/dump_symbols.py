"""The symbols of a dump: kallsyms in its memory, else a vmlinux, and those of modules."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from memdesc.errors import FaultError, LayoutError, MemdescError
from memdesc.structs.dump_file import Form
from memdesc.structs.dump_memory import DumpMemory
from memdesc.structs.elf import vmlinux_symbols
from memdesc.structs.kallsyms import LiveSymbols, kallsyms_from_memory
from memdesc.structs.kernel import Kernel, Symbols
from memdesc.structs.modules import ModuleSymbols
from memdesc.structs.vmcoreinfo import VmcoreInfo

__all__ = ["DumpSymbols", "symbols_of"]

_IMAGE_START = 0xFFFF_FFFF_8000_0000
"""__START_KERNEL_map (`arch/x86/include/asm/page_64_types.h`): below lie per-CPU offsets."""


@dataclass
class DumpSymbols:
    """The kernel's symbols, and those of its modules when one is asked for. A `Symbols`."""

    image: Symbols | None
    """From kallsyms or a vmlinux; None where there is neither."""
    info: VmcoreInfo
    kernel: Kernel | None = None
    """Whose modules to read; set when it is complete."""
    _modules: ModuleSymbols | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def address_of(self, name: str) -> int | None:
        found = None if self.image is None else self.image.address_of(name)
        if found is None:
            found = self.info.symbols.get(name)
            # Of mem_section and vmemmap VMCOREINFO gives the value, not the address.
            if found is not None and found < _IMAGE_START:
                return None
        return found

    def name_at(self, address: int) -> str | None:
        if self.image is None:
            return None
        modules = self.modules()
        inside = None if modules is None else modules.name_at(address)
        return self.image.name_at(address) if inside is None else inside

    def modules(self) -> ModuleSymbols | None:
        """The modules' own symbols, read at the first call; None where they cannot be."""
        with self._lock:
            if self._modules is None and self.kernel is not None:
                kernel, self.kernel = self.kernel, None
                try:
                    self._modules = ModuleSymbols.read(kernel)
                except (LayoutError, FaultError):
                    return None
            return self._modules


@dataclass(frozen=True)
class _ImageSymbols:
    """Symbols of a vmlinux, moved to where the kernel ran. A `Symbols`."""

    by_name: dict[str, int]
    addresses: NDArray[np.uint64]
    names: tuple[str, ...]

    @classmethod
    def of(cls, linked: dict[str, int], kernel_offset: int) -> _ImageSymbols:
        moved = {
            name: address + kernel_offset if address >= _IMAGE_START else address
            for name, address in linked.items()
        }
        rows = sorted((address, name) for name, address in moved.items() if address >= _IMAGE_START)
        return cls(
            moved, np.array([row[0] for row in rows], np.uint64), tuple(row[1] for row in rows)
        )

    def address_of(self, name: str) -> int | None:
        return self.by_name.get(name)

    def name_at(self, address: int) -> str | None:
        if not _IMAGE_START <= address < 1 << 64:
            return None
        end = self.by_name.get("_end")
        index = int(np.searchsorted(self.addresses, np.uint64(address), side="right")) - 1
        return None if index < 0 or (end is not None and address >= end) else self.names[index]


def symbols_of(memory: DumpMemory, vmlinux: Path | str | None, notes: list[str]) -> DumpSymbols:
    """kallsyms in the dump, else the vmlinux's table, else what VMCOREINFO has."""
    info = memory.info
    if memory.file.form is Form.LIVE:
        return DumpSymbols(LiveSymbols(), info)
    try:
        return DumpSymbols(kallsyms_from_memory(memory, info.symbols), info)
    except MemdescError as error:
        reason = str(error)
    if vmlinux is not None:
        linked = vmlinux_symbols(vmlinux)
        if linked:
            return DumpSymbols(_ImageSymbols.of(linked, info.kernel_offset), info)
    notes.append(
        f"the kernel's symbols are not known ({reason}): who called an allocation cannot be named"
    )
    return DumpSymbols(None, info)
