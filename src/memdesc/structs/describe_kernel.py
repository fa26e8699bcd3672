"""What the kernel's own memory says of itself: slabs, compressed memory, pools, free blocks.

Each function reads one overlay of struct page and raises FaultError where memory cannot be
read, LayoutError where this kernel's overlay has no such member.
"""

from __future__ import annotations

from functools import cached_property
from typing import Final

import numpy as np

from memdesc.descriptors import DeviceKind
from memdesc.errors import FaultError
from memdesc.kernels.page_types import PageType, TopByteTypes, TypedWord
from memdesc.structs.describe_folio import FolioPages
from memdesc.structs.kernel import Kernel, Object
from memdesc.structs.memmap import MemMap
from memdesc.structs.walk.freelists import migratetype_names, migratetypes_of

__all__ = [
    "KernelImage",
    "cache_of",
    "device_map_of",
    "migratetype_at",
    "pool_references",
    "zspage_offset_bytes",
]

_PAGE_SIZE_BYTES: Final = 4096

_DEVICE_KINDS: Final = {
    "MEMORY_DEVICE_PRIVATE": DeviceKind.PRIVATE,
    "MEMORY_DEVICE_COHERENT": DeviceKind.COHERENT,
    "MEMORY_DEVICE_FS_DAX": DeviceKind.FS_DAX,
    "MEMORY_DEVICE_GENERIC": DeviceKind.GENERIC,
    "MEMORY_DEVICE_PCI_P2PDMA": DeviceKind.PCI_P2PDMA,
}
"""`include/linux/memremap.h`: enum memory_type."""


# --- slabs -------------------------------------------------------------------------------


def cache_of(slab: Object) -> Object:
    """The kmem_cache of a `struct slab`."""
    cache = slab.follow("slab_cache")
    if cache is None:
        raise FaultError("a slab has no cache", slab.address)
    return cache


# --- compressed memory -------------------------------------------------------------------


def zspage_offset_bytes(folio: FolioPages) -> int:
    """Where the first object that begins in this frame begins.

    It shares the word of the page type: its low 24 bits where types are a top byte
    (`mm/zpdesc.h:first_obj_offset` @7.2, `mm/zsmalloc.c:get_first_obj_offset` @6.12), and the
    whole word before (@6.1).
    """
    word = folio.type_word
    if not isinstance(folio.layout.types, TopByteTypes):
        return word
    typed = folio.layout.types.decode(word)
    if not isinstance(typed, TypedWord) or typed.page_type is not PageType.ZSMALLOC:
        raise FaultError("this frame is no zsmalloc frame any more", folio.address)
    return typed.payload


# --- page pools and devices --------------------------------------------------------------


def pool_references(page: Object) -> int:
    """Fragments of a page_pool page given out (`pp_ref_count`; 6.1: `pp_frag_count`)."""
    found = page.get("pp_ref_count.counter")
    return page["pp_frag_count.counter"] if found is None else found


def device_map_of(kernel: Kernel, address: int) -> tuple[int, DeviceKind | None]:
    """Address of the dev_pagemap of the device folio at `address`, and its kind; None for a
    kind that this kernel does not name."""
    struct = "page" if kernel.has("page", "pgmap") else "folio"
    pgmap = kernel.u64(address + kernel.member(struct, "pgmap").offset)
    if not pgmap:
        raise FaultError("a device frame has no dev_pagemap", address)
    number = kernel.load("dev_pagemap", pgmap)["type"]
    names = kernel.types.find_enum("memory_type") or {}
    kinds = (_DEVICE_KINDS.get(name) for name, value in names.items() if value == number)
    return pgmap, next(kinds, None)


# --- free blocks -------------------------------------------------------------------------


def migratetype_at(memmap: MemMap, pfn: int) -> str:
    """The migratetype of the pageblock around `pfn`, in the words of /proc/pagetypeinfo."""
    code = int(migratetypes_of(memmap.kernel, memmap, np.array([pfn], np.int64))[0])
    names = migratetype_names(memmap.kernel)
    if code >= len(names):
        raise FaultError("the bits of this pageblock cannot be read", pfn)
    return names[code]


# --- reserved memory ---------------------------------------------------------------------

_IMAGE_PARTS: Final = (
    ("Kernel code", "_text", "_etext"),
    ("Kernel rodata", "__start_rodata", "__end_rodata"),
    ("Kernel data", "_sdata", "_edata"),
    ("Kernel bss", "__bss_start", "__bss_stop"),
)
"""As /proc/iomem names them (`arch/x86/kernel/setup.c:setup_kernel_resources` @7.2)."""

_KERNEL_MAP: Final = 0xFFFF_FFFF_8000_0000
"""Where x86-64 maps its image (`arch/x86/include/asm/page_64_types.h`: __START_KERNEL_map)."""


class KernelImage:
    """Where the parts of the kernel image lie in physical memory."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel

    def part_at(self, pfn: int) -> str | None:
        """Name of the part that holds frame `pfn`; None outside the image.

        Raises LayoutError where the image's symbols are not known.
        """
        address = pfn * _PAGE_SIZE_BYTES
        for name, low, high in self._parts:
            if low < address + _PAGE_SIZE_BYTES and address < high:
                return name
        return None

    @cached_property
    def _parts(self) -> list[tuple[str, int, int]]:
        offset = self.kernel.u64(self.kernel.symbol("phys_base")) - _KERNEL_MAP
        return [
            (name, self.kernel.symbol(low) + offset, self.kernel.symbol(high) + offset)
            for name, low, high in _IMAGE_PARTS
        ]
