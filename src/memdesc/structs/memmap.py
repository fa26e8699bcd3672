"""The memory map of a kernel: where the struct page of every frame is.

On x86-64 all struct pages lie in one virtual array, vmemmap, backed only where a memory
section is present (CONFIG_SPARSEMEM_VMEMMAP, which every distribution has).  Which sections
those are, and the array's base, is in `mem_section` (`mm/sparse.c`); a live kernel that keeps
its data symbols to itself is asked by reading one struct page of each section.

    memmap = MemMap.find(kernel)
    memmap.read_pages(0x1000, 512)
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, overload

import numpy as np
from numpy.typing import NDArray

from memdesc.errors import FaultError, LayoutError, QuestionError
from memdesc.kernels.layout import PageLayout, SectionBits
from memdesc.structs.bases import page_offset_base, vmemmap_base
from memdesc.structs.kernel import Kernel
from memdesc.types import PAGE_SHIFT, PAGE_SIZE_BYTES

__all__ = ["MemMap"]

_DIRECT_MAP_4_LEVEL: Final = 0xFFFF888000000000
"""`arch/x86/include/asm/page_64_types.h`, without KASLR."""

_MOST_SECTIONS: Final = 1 << 25
"""2**52 bytes of physical memory in sections of 128 MiB."""


@dataclass(frozen=True)
class MemMap:
    """Where struct pages are, and which frames have one."""

    kernel: Kernel
    layout: PageLayout
    vmemmap: int
    """Address of frame 0's struct page."""
    sections: tuple[tuple[int, int], ...]
    """Frames [pfn_start, pfn_end) of present and online sections, joined, rising."""
    offline: tuple[tuple[int, int], ...] = ()
    """The same of sections that have a memory map and are not online: device memory
    (ZONE_DEVICE), or memory blocks that were set offline."""
    page_offset: int = _DIRECT_MAP_4_LEVEL
    """Address of frame 0 in the direct map."""

    @classmethod
    def find(
        cls,
        kernel: Kernel,
        *,
        layout: PageLayout | None = None,
        vmemmap: int | None = None,
        nr_pages: int | None = None,
    ) -> MemMap:
        """Find the memory map of `kernel`.

        `vmemmap` gives its base where it is known. `nr_pages` bounds the search on a kernel
        whose `mem_section` is not known; on a live one /proc/zoneinfo says it otherwise.

        Raises LayoutError for an unknown layout or a memory map that is nowhere.
        """
        layout = PageLayout.probe(kernel.types) if layout is None else layout
        page_offset = page_offset_base(kernel)
        found = _from_mem_section(kernel, layout)
        if found is not None:
            base, online, offline = found
            return cls(kernel, layout, vmemmap or base, online, offline, page_offset)
        base = vmemmap_base(kernel) if vmemmap is None else vmemmap
        if nr_pages is None:
            nr_pages = _live_bound()
        online = _probed(kernel, layout, base, nr_pages)
        if not online:
            raise LayoutError(
                f"no struct page can be read at {base:#x}, where vmemmap should be",
                hint="the kernel's symbol mem_section or vmemmap_base would tell its place",
            )
        return cls(kernel, layout, base, online, (), page_offset)

    @property
    def page_size(self) -> int:
        """Bytes of a struct page."""
        return self.layout.size_bytes

    @property
    def section_pages(self) -> int:
        """Frames per memory section."""
        return self.layout.section_pages

    @property
    def pfn_end(self) -> int:
        """One past the last frame with an online struct page."""
        return self.sections[-1][1] if self.sections else 0

    @overload
    def page_address(self, pfn: int) -> int: ...
    @overload
    def page_address(self, pfn: NDArray[np.int64]) -> NDArray[np.uint64]: ...
    def page_address(self, pfn: int | NDArray[np.int64]) -> int | NDArray[np.uint64]:
        """Address of the struct page of frame `pfn`; of an int64 array, uint64."""
        if isinstance(pfn, np.ndarray):
            return np.uint64(self.vmemmap) + pfn.astype(np.uint64) * np.uint64(self.page_size)
        return self.vmemmap + pfn * self.page_size

    @overload
    def pfn_of(self, page_address: int) -> int: ...
    @overload
    def pfn_of(self, page_address: NDArray[np.uint64]) -> NDArray[np.int64]: ...
    def pfn_of(self, page_address: int | NDArray[np.uint64]) -> int | NDArray[np.int64]:
        """Frame whose struct page is at `page_address`.

        Of an array: -1 where an address lies before the map. No check beyond that: ask
        `has_page` whether the frame exists.
        """
        if isinstance(page_address, np.ndarray):
            distance = page_address - np.uint64(self.vmemmap)
            pfns = (distance // np.uint64(self.page_size)).astype(np.int64)
            pfns[page_address < np.uint64(self.vmemmap)] = -1
            return pfns
        return (page_address - self.vmemmap) // self.page_size

    def has_page(self, pfn: int) -> bool:
        """Whether frame `pfn` lies in a section with a memory map, online or not."""
        return any(low <= pfn < high for low, high in (*self.sections, *self.offline))

    def direct_map_address(self, pfn: int) -> int:
        """Kernel address of the first byte of frame `pfn` in the direct map."""
        return self.page_offset + (pfn << PAGE_SHIFT)

    def pfn_of_direct(self, address: int) -> int:
        """Inverse of `direct_map_address`, for any address of the frame."""
        return (address - self.page_offset) >> PAGE_SHIFT

    def read_pages(self, pfn_start: int, nr_pages: int) -> NDArray[np.uint8]:
        """uint8[nr_pages, page_size]: the raw struct pages. Raises FaultError."""
        pages = np.empty((nr_pages, self.page_size), np.uint8)
        self.read_pages_into(pfn_start, pages)
        return pages

    def read_pages_into(self, pfn_start: int, into: NDArray[np.uint8]) -> None:
        """As `read_pages`, into uint8[n, page_size] (contiguous). Raises FaultError."""
        if pfn_start < 0:
            raise QuestionError(f"{pfn_start} is not a frame")
        self.kernel.memory.read_into(self.page_address(pfn_start), into.reshape(-1))


# --- helpers -----------------------------------------------------------------------------

_Ranges = tuple[tuple[int, int], ...]


def _from_mem_section(kernel: Kernel, layout: PageLayout) -> tuple[int, _Ranges, _Ranges] | None:
    """(vmemmap, online, offline) from the array of memory sections; None without its symbol.

    With SPARSEMEM_EXTREME `mem_section` is a pointer to an array of pointers, each to a page
    full of `struct mem_section` (`include/linux/mmzone.h`).
    """
    # VMCOREINFO tells the array itself, and then its length comes from the zones.
    known = kernel.values.get("mem_section")
    root = known or kernel.find_variable("mem_section")
    if not root or not kernel.has("mem_section", "section_mem_map"):
        return None
    size = kernel.size_of("mem_section")
    place = kernel.member("mem_section", "section_mem_map").offset
    per_root = PAGE_SIZE_BYTES // size
    if not per_root or size % 8 or place % 8:
        raise LayoutError(f"struct mem_section of {kernel.release} has {size} bytes")
    last: int | None
    if known and kernel.is_live:
        last = (_live_bound() - 1) // layout.section_pages
    else:
        last = kernel.find_variable("__highest_present_section_nr")
    if last is None:
        last = (kernel.find_variable("max_pfn") or 0) // layout.section_pages
    if last >= _MOST_SECTIONS:
        raise LayoutError(f"the last memory section of {kernel.name} would be number {last}")
    roots = np.frombuffer(kernel.memory.read(root, (last // per_root + 1) * 8), np.uint64)
    bits = layout.sections
    maps = np.zeros(roots.size * per_root, np.uint64)
    for index in np.flatnonzero(roots).tolist():
        block = np.frombuffer(kernel.memory.read(int(roots[index]), per_root * size), np.uint64)
        words = block[: per_root * size // 8].reshape(per_root, size // 8)
        maps[index * per_root : (index + 1) * per_root] = words[:, place // 8]
    return _sections(maps[: last + 1], bits, layout.section_pages, kernel)


def _sections(
    maps: NDArray[np.uint64], bits: SectionBits, section_pages: int, kernel: Kernel
) -> tuple[int, _Ranges, _Ranges]:
    """Read `section_mem_map` words: each holds the base of vmemmap beside its bits."""
    wanted = np.uint64(bits.present | bits.has_mem_map)
    present = maps & wanted == wanted
    bases = np.unique(maps[present] & np.uint64(bits.address_mask))
    if bases.size != 1:
        raise LayoutError(
            f"the memory map of {kernel.name} has {bases.size} bases, not one",
            hint="memdesc reads kernels with CONFIG_SPARSEMEM_VMEMMAP",
        )
    online = present & (maps & np.uint64(bits.online) != 0)
    return (
        int(bases[0]),
        _joined(np.flatnonzero(online), section_pages),
        _joined(np.flatnonzero(present & ~online), section_pages),
    )


def _joined(numbers: NDArray[np.int64], section_pages: int) -> _Ranges:
    """Frame ranges of sections, adjacent ones joined."""
    ranges: list[tuple[int, int]] = []
    for number in numbers.tolist():
        low, high = number * section_pages, (number + 1) * section_pages
        if ranges and ranges[-1][1] == low:
            low = ranges.pop()[0]
        ranges.append((low, high))
    return tuple(ranges)


def _probed(kernel: Kernel, layout: PageLayout, base: int, nr_pages: int) -> _Ranges:
    """Sections whose first struct page can be read."""
    step = layout.section_pages
    found: list[int] = []
    for number in range(-(-nr_pages // step)):
        try:
            kernel.memory.read(base + number * step * layout.size_bytes, 8)
        except FaultError:
            continue
        found.append(number)
    return _joined(np.array(found, np.int64), step)


def _live_bound(proc: Path = Path("/proc")) -> int:
    """One past the last frame that a zone of this machine spans.

    Raises LayoutError where /proc/zoneinfo cannot be read.
    """
    try:
        text = (proc / "zoneinfo").read_text()
    except OSError as error:
        raise LayoutError(
            f"how many frames there are is not known: {error}",
            hint="mem_section in the kernel's symbols would tell",
        ) from error
    # A zone without pages has no start_pfn: each zone's lines must be kept together.
    ends = [0]
    for zone in text.split("\nNode "):
        start = re.search(r"^\s+start_pfn:\s+(\d+)", zone, re.MULTILINE)
        spanned = re.search(r"^\s+spanned\s+(\d+)", zone, re.MULTILINE)
        if start and spanned:
            ends.append(int(start[1]) + int(spanned[1]))
    return max(ends)
