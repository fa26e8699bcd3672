"""The frames that the kernel's own variables name: the pages of zeroes.

A live kernel may keep its variables to itself (no CONFIG_KALLSYMS_ALL).  Then a page of our
own that was only read shows where the zero page is, and /proc/kpageflags is asked about the
one or two folios that could be the huge one.
"""

from __future__ import annotations

import ctypes
import mmap
import struct
from pathlib import Path

from memdesc.kernels.kpageflags import KPF
from memdesc.structs.kernel import Kernel
from memdesc.structs.memmap import MemMap
from memdesc.structs.work import Special
from memdesc.types import PAGE_SHIFT, PAGE_SIZE_BYTES

__all__ = ["special_frames"]

_HUGE_PAGES = 512
_KERNEL_IMAGE = 0xFFFFFFFF80000000
_PAGEMAP_PFN_MASK = (1 << 55) - 1
_PAGEMAP_PRESENT = 1 << 63


def special_frames(kernel: Kernel, memmap: MemMap) -> Special:
    """Where the shared zero page and the huge zero folio are; empty where not known.

    `empty_zero_page` lies in the kernel image, whose frames `phys_base` places
    (`arch/x86/include/asm/page_64.h:__phys_addr_nodebug` @6.12); 7.2 has `zero_page_pfn`
    too. `huge_zero_pfn` is ~0 while nobody uses the folio (`mm/huge_memory.c`).
    """
    zero = kernel.find_variable("zero_page_pfn")
    if zero is None:
        address = kernel.symbols.address_of("empty_zero_page")
        base = kernel.find_variable("phys_base")
        if address is not None and base is not None:
            zero = address - _KERNEL_IMAGE + base >> PAGE_SHIFT
    if zero is None and kernel.is_live:
        zero = _own_zero_page()
    huge = kernel.find_variable("huge_zero_pfn")
    end = memmap.pfn_end
    return Special(
        zero=range(0) if zero is None or zero >= end else range(zero, zero + 1),
        huge_zero=range(0) if huge is None or huge >= end else range(huge, huge + _HUGE_PAGES),
        is_huge_zero=_shown_as_zero if huge is None and kernel.is_live else None,
    )


# --- helpers -----------------------------------------------------------------------------


def _own_zero_page(proc: Path = Path("/proc")) -> int | None:
    """The frame behind an anonymous page that was read and never written; None if hidden."""
    with mmap.mmap(-1, PAGE_SIZE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as page:
        page[0]
        try:
            address = _address_of(page)
            with (proc / "self" / "pagemap").open("rb", buffering=0) as file:
                file.seek((address >> PAGE_SHIFT) * 8)
                (word,) = struct.unpack("<Q", file.read(8))
        except (OSError, struct.error):
            return None
    return word & _PAGEMAP_PFN_MASK or None if word & _PAGEMAP_PRESENT else None


def _address_of(page: mmap.mmap) -> int:
    # The view must be gone before the mapping can be closed.
    view = ctypes.c_char.from_buffer(page)
    address = ctypes.addressof(view)
    del view
    return address


def _shown_as_zero(pfn: int, proc: Path = Path("/proc")) -> bool:
    """Whether /proc/kpageflags marks `pfn` as a page of zeroes."""
    try:
        with (proc / "kpageflags").open("rb", buffering=0) as file:
            file.seek(pfn * 8)
            (word,) = struct.unpack("<Q", file.read(8))
    except (OSError, struct.error):
        return False
    return bool(word & KPF.ZERO_PAGE)
