"""Where struct pages are: sections, addresses, and what a kernel without symbols still says."""

from __future__ import annotations

import numpy as np
import pytest
from struct_worlds import DIRECT_MAP, VMEMMAP, ArrayMemory, DictTypes, NoSymbols, World

from memdesc.errors import FaultError, LayoutError
from memdesc.kernels.release import KernelRelease
from memdesc.structs.kernel import Kernel
from memdesc.structs.memmap import MemMap

SECTION = 32768
DATA, ROOTS, ROOT = 0xFFFFFFFF82000000, 0xFFFF888000001000, 0xFFFF888000002000
PRESENT, MEM_MAP, ONLINE = 1, 2, 4


def kernel_with_sections(words: dict[int, int], *, last: int) -> Kernel:
    """A kernel whose mem_section array holds `words` by section number."""
    types = DictTypes.of("6.12")
    types.structs["mem_section"] = {"section_mem_map": (0, 8), "usage": (8, 8)}
    data, roots, root, ram = (np.zeros(4096, np.uint8) for _ in range(4))
    data.view(np.uint64)[:2] = ROOTS, last
    roots.view(np.uint64)[0] = ROOT
    for number, word in words.items():
        root.view(np.uint64)[number * 2] = word
    symbols = NoSymbols({"mem_section": DATA, "__highest_present_section_nr": DATA + 8})
    memory = ArrayMemory({DATA: data, ROOTS: roots, ROOT: root, DIRECT_MAP: ram})
    return Kernel(memory, types, symbols, KernelRelease.parse("6.12"), "by hand", False)


def test_sections_tell_the_base_of_vmemmap_and_which_are_online() -> None:
    bits = PRESENT | MEM_MAP
    kernel = kernel_with_sections(
        {
            0: VMEMMAP | bits | ONLINE,
            1: VMEMMAP | bits | ONLINE,
            3: VMEMMAP | bits,
            4: VMEMMAP | bits | ONLINE,
            5: PRESENT | ONLINE,  # no memory map yet
        },
        last=5,
    )
    memmap = MemMap.find(kernel)
    assert memmap.vmemmap == VMEMMAP
    assert memmap.sections == ((0, 2 * SECTION), (4 * SECTION, 5 * SECTION))
    assert memmap.offline == ((3 * SECTION, 4 * SECTION),)
    assert memmap.pfn_end == 5 * SECTION
    assert memmap.has_page(3 * SECTION)
    assert not memmap.has_page(2 * SECTION)


def test_sections_with_different_bases_are_refused() -> None:
    bits = PRESENT | MEM_MAP | ONLINE
    kernel = kernel_with_sections({0: VMEMMAP | bits, 1: VMEMMAP + 4096 | bits}, last=1)
    with pytest.raises(LayoutError, match="2 bases"):
        MemMap.find(kernel)


def test_a_section_number_that_no_machine_has_is_refused() -> None:
    with pytest.raises(LayoutError, match="last memory section"):
        MemMap.find(kernel_with_sections({}, last=1 << 40))


def test_without_symbols_sections_are_found_by_reading() -> None:
    world = World("6.12", nr_pages=2 * SECTION)
    hole = VMEMMAP + 3 * SECTION * 64
    world.memory.regions[hole] = np.zeros(SECTION * 64, np.uint8)
    memmap = MemMap.find(world.kernel, nr_pages=5 * SECTION)
    assert memmap.sections == ((0, 2 * SECTION), (3 * SECTION, 4 * SECTION))
    with pytest.raises(LayoutError, match="no struct page"):
        MemMap.find(world.kernel, vmemmap=0xFFFFD40000000000, nr_pages=SECTION)


def test_addresses_and_frames_are_inverse_for_numbers_and_arrays() -> None:
    memmap = World("6.12", nr_pages=8).memmap
    assert memmap.page_address(3) == VMEMMAP + 192
    assert memmap.pfn_of(VMEMMAP + 192) == 3
    pfns = np.array([0, 3, 7], np.int64)
    addresses = memmap.page_address(pfns)
    assert addresses.dtype == np.uint64
    assert memmap.pfn_of(addresses).tolist() == [0, 3, 7]
    assert memmap.pfn_of(np.array([VMEMMAP - 64], np.uint64)).tolist() == [-1]
    assert memmap.pfn_of_direct(memmap.direct_map_address(5) + 4095) == 5


def test_struct_pages_come_as_rows_of_bytes() -> None:
    world = World("7.2", nr_pages=8)
    world.page(2, "lru", refcount=7)
    pages = world.memmap.read_pages(1, 3)
    assert pages.shape == (3, 64)
    assert int(pages[1, 52]) == 7
    with pytest.raises(FaultError):
        world.memmap.read_pages(6, 3)
