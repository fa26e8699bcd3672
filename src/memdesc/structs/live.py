"""The running kernel as a `Kernel`: its memory through BPF, its types from its own BTF.

    kernel = open_live_kernel()
    kernel.load("uts_namespace", kernel.symbol("init_uts_ns")).text("name.release")

It only ever reads: nothing is written to the kernel's memory, to /proc/sys or to /sys, and the
BPF programs are gone when the memory is closed.
"""

from __future__ import annotations

import os
from pathlib import Path

from memdesc.errors import FaultError, FormatError, LayoutError, MemdescError, NotReadableError
from memdesc.kernels.release import KernelRelease
from memdesc.structs.bases import live_direct_map, vmcoreinfo_place
from memdesc.structs.bpf import BpfMemory
from memdesc.structs.btf import LIVE_BTF, BtfTypes
from memdesc.structs.dump_file import notes_in
from memdesc.structs.kallsyms import LiveSymbols, SymbolTable, kallsyms_from_memory
from memdesc.structs.kernel import Kernel
from memdesc.structs.vmcoreinfo import VmcoreInfo

__all__ = ["live_vmcoreinfo", "open_live_kernel", "why_not"]

_LARGEST_NOTE = 1 << 16
_VALUES = ("mem_section", "vmemmap")
"""SYMBOL()s of VMCOREINFO that are the variable's value, not its address
(`include/linux/vmcore_info.h`: VMCOREINFO_SYMBOL_ARRAY)."""

_RELEASE = Path("/proc/sys/kernel/osrelease")


def open_live_kernel() -> Kernel:
    """The running kernel. Takes 0.1 s, most of it for BTF.

    `Kernel.memory` is a `BpfMemory`, to be closed.

    Raises NotReadableError with the reason and a hint where its memory may not be read or
    its types are not known.
    """
    types = BtfTypes.open(_btf())
    memory = BpfMemory()
    try:
        info = live_vmcoreinfo(memory)
        known = {} if info is None else dict(info.symbols)

        def tables() -> SymbolTable:
            return kallsyms_from_memory(memory, known)

        addresses = {name: address for name, address in known.items() if name not in _VALUES}
        symbols = LiveSymbols(others=addresses, tables=tables)
        release = KernelRelease.parse(_RELEASE.read_text())
    except BaseException:
        memory.close()
        raise
    values = {name: value for name, value in known.items() if name in _VALUES}
    # The kernel takes a while to print its symbols; nobody needs them at once.
    symbols.prefetch()
    return Kernel(
        memory, types, symbols, release, "the running kernel", is_live=True, values=values
    )


def why_not() -> str:
    """Why the running kernel's memory may not be read, in one sentence; "" where it may.

    Loads the program and reads one word, 2 ms; what it says has been tried.
    """
    try:
        _btf()
        with BpfMemory() as memory:
            memory.read(memory.current_task(), 8)
    except MemdescError as error:
        return str(error)
    return ""


def live_vmcoreinfo(memory: BpfMemory) -> VmcoreInfo | None:
    """What the running kernel keeps ready for its dump; None where it keeps nothing, or
    nothing that can be found.

    /sys/kernel/vmcoreinfo says where in physical memory the ELF note is
    (`kernel/vmcore_info.c`).
    """
    place = vmcoreinfo_place()
    if place is None:
        return None
    try:
        base = live_direct_map(memory)
        note = memory.read(base + place[0], min(place[1], _LARGEST_NOTE))
        return VmcoreInfo.parse(next(one.content for one in notes_in(note)))
    except (FaultError, FormatError, LayoutError, StopIteration):
        return None


def _btf() -> Path:
    """The running kernel's types. Raises NotReadableError."""
    if not os.access(LIVE_BTF, os.R_OK):
        raise NotReadableError(
            f"the running kernel does not tell its types: {LIVE_BTF} "
            + ("may not be read" if LIVE_BTF.exists() else "is missing"),
            path=LIVE_BTF,
            hint="a kernel built with CONFIG_DEBUG_INFO_BTF=y has it; use --source live:proc",
        )
    return LIVE_BTF
