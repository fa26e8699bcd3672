"""Memory of devices and of drivers in an address space, with and without struct pages.

`drivers/char/mem.c:mmap_mem, mm/memory.c:remap_pfn_range, vm_insert_page, generic_access_phys,
net/packet/af_packet.c:packet_mmap @6.12`.  /dev/mem maps physical memory that nobody manages
(VM_PFNMAP): its entries are special, no page stands behind them, so nothing is counted and
get_user_pages refuses the area.  A packet socket inserts pages of its own (VM_MIXEDMAP): they are
counted and can be pinned, though they are no file's and on no list.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from memdesc.mm import entries as e
from memdesc.mm.areas.mmap import mmap
from memdesc.mm.areas.mprotect import protection_bits
from memdesc.mm.areas.vma import VM, Vma
from memdesc.mm.check import HOLDERS
from memdesc.mm.files.file_systems import FileSystem
from memdesc.mm.files.inode import OpenFile, new_inode
from memdesc.mm.process import Mm
from memdesc.types import MemoryType

if TYPE_CHECKING:
    from memdesc.mm.kernel import Kernel

__all__ = ["FIRMWARE", "RING", "map_firmware", "map_ring", "physical_page"]

FIRMWARE: Final = 0xF0
"""First frame of the firmware below 1 MiB, which is never the allocator's."""
RING: Final = "socket"
"""How the file of a packet socket is shown, without its number."""
_DEVICES: Final = FileSystem(
    "devices", MemoryType.DRIVER_MAPPED, 0, False, False, maps_around=False
)
_UNMANAGED: Final = 0
"""The frame that stands for all of the firmware's memory: the allocator never has it."""


@dataclass(slots=True, eq=False)
class _Ring(OpenFile):
    """The file of a packet socket: it has a reference to each page of its ring."""

    pages: list[int] = field(default_factory=list)

    @property
    def has_close(self) -> bool:
        """packet_mm_close()."""
        return True

    def closed(self, kernel: Kernel) -> None:
        """packet_release(), free_pg_vec(): whoever still holds a page keeps it."""
        OpenFile.closed(self, kernel)
        if self.holders == 0:
            for pfn in self.pages:
                kernel.put(pfn)
            self.pages = []


def map_firmware(kernel: Kernel, mm: Mm, vpn: int, pages: int, prot: VM, *, content: int) -> None:
    """mmap(2) of /dev/mem at the firmware, private. Raises Errno.

    `content`: what all of its pages hold; nobody knows.
    """
    file = OpenFile(new_inode(kernel, _DEVICES, "/dev/mem"))
    file.mapping.opens = 1
    kernel.f.content[_UNMANAGED] = content

    def remap_pfn_range(vma: Vma) -> None:
        vma.flags |= VM.IO | VM.PFNMAP | VM.DONTEXPAND | VM.DONTDUMP
        if kernel.rules.pat_marks_areas:
            vma.flags |= VM.PAT
        for at in range(vpn, vpn + pages):
            _enter(mm, vma, at, _UNMANAGED, e.SPECIAL)
        kernel.say("remap_pfn_range: special entries, no struct page is asked")

    try:
        mmap(kernel, mm, vpn, pages, prot=prot, file=file, pgoff=FIRMWARE, driver=remap_pfn_range)
    finally:
        file.closed(kernel)


def map_ring(kernel: Kernel, mm: Mm, vpn: int, pages: int, prot: VM) -> None:
    """mmap(2) of the ring of a packet socket, which is closed then; shared. Raises Errno."""
    file = _Ring(new_inode(kernel, _DEVICES, RING))
    file.mapping.opens = 1

    def packet_mmap(vma: Vma) -> None:
        vma.flags |= VM.MIXEDMAP
        if kernel.rules.sockets_are_noexec:
            vma.flags &= ~VM.MAYEXEC
        for at, pfn in enumerate(file.pages, vpn):
            _enter(mm, vma, at, pfn, 0)
            kernel.get(pfn)
            kernel.f.maps[pfn] += 1
        kernel.say("vm_insert_page: pages of the driver, counted as a file's would be")

    try:
        for _ in range(pages):
            file.pages.append(kernel.alloc_folio(MemoryType.DRIVER_MAPPED))
            kernel.f.content[file.pages[-1]] = 0
        mmap(
            kernel, mm, vpn, pages, prot=prot, flags=VM.SHARED, file=file, pgoff=0,
            driver=packet_mmap,
        )  # fmt: skip
    finally:
        file.closed(kernel)


def physical_page(kernel: Kernel, mm: Mm, vma: Vma, vpn: int, *, write: bool) -> int | None:
    """generic_access_phys(): the frame that a debugger gets at without a struct page, if it may."""
    entry = mm.tables.entry(vpn)
    if not vma.flags & VM.PFNMAP or not entry & e.SPECIAL or (write and not entry & e.RW):
        return None
    kernel.say("generic_access_phys: by the address in the entry")
    return e.pfn_of(entry)


# --- helpers -----------------------------------------------------------------------------


def _enter(mm: Mm, vma: Vma, vpn: int, pfn: int, bits: int) -> None:
    """An entry with the protection of its area: what may not be accessed is hidden."""
    entry = e.present(pfn, e.ACCESSED | bits) & ~e.PRESENT | protection_bits(vma)
    mm.tables.alloc_pte(vpn)
    mm.tables.set(vpn, entry)


def _held(kernel: Kernel) -> Iterator[tuple[int, int]]:
    rings = {
        id(vma.file): vma.file
        for process in kernel.processes.values()
        for vma in process.mm.vmas
        if isinstance(vma.file, _Ring)
    }
    for ring in rings.values():
        for pfn in ring.pages:
            yield pfn, 1


HOLDERS.append(_held)
