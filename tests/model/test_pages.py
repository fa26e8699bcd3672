"""From a page to its descriptor: typed, and as it was in 2021."""

from __future__ import annotations

import pytest

from memdesc.descriptors import (
    AddressSpace,
    AnonFolio,
    Buddy,
    DriverPage,
    FileFolio,
    Hole,
    MappedDriverPage,
    PageTable,
    PcpFree,
    Reserved,
    Slab,
    Undescribed,
    descriptor_kind,
)
from memdesc.errors import QuestionError
from memdesc.model.described import ALLOCATED, VMEMMAP, DescribedMachine
from memdesc.model.designs import DESIGNS, MEMDESC_8, OVERLAYS, STRUCT_PAGE, Design
from memdesc.model.pages import TypedPages, mapping_address
from memdesc.model.struct_page import TAIL_MAPPING, struct_page
from memdesc.model.zones import Layout
from memdesc.types import MemoryType, Pfn, TypeSet


def world(design: Design) -> tuple[DescribedMachine, TypedPages]:
    machine = DescribedMachine(Layout.pc(64 << 20), design)
    return machine, TypedPages(machine)


def allocate(machine: DescribedMachine, kind: MemoryType, order: int = 0, owner: int = 0) -> Pfn:
    pfn = machine.alloc(kind, order, owner=owner)
    assert pfn is not None
    return pfn


EVERY = pytest.mark.parametrize("design", DESIGNS.values(), ids=list(DESIGNS))


@EVERY
def test_every_frame_of_a_folio_leads_to_the_same_descriptor(design: Design) -> None:
    machine, pages = world(design)
    pfn = allocate(machine, MemoryType.FILE, 2, owner=5)
    found = [pages.page(Pfn(pfn + n)).descriptor() for n in range(4)]
    assert found == [found[0]] * 4
    folio = found[0]
    assert isinstance(folio, FileFolio)
    assert (folio.pages.pfn_start, folio.pages.nr_pages) == (pfn, 4)
    assert folio.mapping == AddressSpace(address=mapping_address(5))
    assert folio.refcount == 1
    machine.get(pfn + 3)
    again = pages.page(pfn).descriptor()
    assert isinstance(again, FileFolio)
    assert again.refcount == 2


@EVERY
@pytest.mark.parametrize("kind", sorted(ALLOCATED, key=lambda kind: kind.value))
@pytest.mark.parametrize("order", [0, 3])
def test_no_design_takes_memory_for_anything_else(
    kind: MemoryType, order: int, design: Design
) -> None:
    """Where a word does not tell two types apart, the answer is their union."""
    machine, pages = world(design)
    pfn = allocate(machine, kind, order)
    found = pages.page(Pfn(pfn + (1 << order) - 1)).descriptor()
    assert (found.pages.pfn_start, found.pages.nr_pages) == (pfn, 1 << order)
    says = descriptor_kind(found)
    if isinstance(says, TypeSet):
        assert kind in says
        assert len(says) < 6
        assert isinstance(found, Undescribed)
        assert found.reason
    else:
        assert says is kind


def test_a_word_that_says_vmalloc_does_not_say_whose_stack_it_is() -> None:
    machine, pages = world(MEMDESC_8)
    found = pages.page(allocate(machine, MemoryType.KERNEL_STACK, 2)).descriptor()
    assert isinstance(found, Undescribed)
    assert found.kinds == TypeSet.of(MemoryType.VMALLOC, MemoryType.KERNEL_STACK)
    assert "vmalloc" in found.reason


@EVERY
def test_slabs_tables_drivers_and_free_memory(design: Design) -> None:
    machine, pages = world(design)
    cache = machine.slabs.create("task_struct", 4096)
    address = machine.slabs.alloc(cache)
    assert address is not None
    slab = pages.page(Pfn((address >> 12) + 5)).descriptor()
    assert isinstance(slab, Slab)
    assert (slab.cache, slab.objects, slab.object_size_bytes) == ("task_struct", 8, 4096)
    assert isinstance(pages.page(allocate(machine, MemoryType.PAGE_TABLE)).descriptor(), PageTable)
    driver = allocate(machine, MemoryType.DRIVER)
    found = pages.page(driver).descriptor()
    if design.allocates:  # subtype 2 is "unknown, probably a device driver's"
        assert isinstance(found, Undescribed)
        assert MemoryType.DRIVER in found.kinds
    else:
        assert isinstance(found, DriverPage)
    mapped = pages.page(allocate(machine, MemoryType.DRIVER_MAPPED)).descriptor()
    assert isinstance(mapped, MappedDriverPage)
    machine.free(driver)
    assert isinstance(pages.page(driver).descriptor(), PcpFree)
    machine.pages.drain()
    free = pages.page(driver).descriptor()
    assert isinstance(free, Buddy)
    assert driver in free.pages
    assert isinstance(pages.page(Pfn(0)).descriptor(), Hole)
    top = machine.pages.layout.zones[-1].pfn_end - 1
    assert isinstance(pages.page(Pfn(top)).descriptor(), Reserved)  # the memory map itself
    with pytest.raises(QuestionError):
        pages.page(Pfn(1 << 40)).descriptor()


def test_a_page_allocated_without_a_descriptor_is_an_error() -> None:
    machine, pages = world(MEMDESC_8)
    pfn = machine.pages.alloc()
    assert pfn is not None
    with pytest.raises(QuestionError, match="behind the descriptors' back"):
        pages.page(pfn).descriptor()


# --- 2021 --------------------------------------------------------------------------------


def test_mapping_of_a_tail_page_is_garbage_in_2021() -> None:
    """The bug that no compiler sees: right for the head, four different things for the rest."""
    machine, pages = world(STRUCT_PAGE)
    pfn = allocate(machine, MemoryType.FILE, 3, owner=9)
    file = mapping_address(9)
    read = [struct_page(machine, pfn + n).mapping for n in range(8)]
    assert read[0] == file
    assert read[1] == 8  # compound_nr
    assert read[2] == VMEMMAP + (pfn + 2) * 64 + 24  # deferred_list
    assert read[3:] == [TAIL_MAPPING] * 5
    # compound_head() first would have been right; nothing makes one call it.
    tail = struct_page(machine, pfn + 6)
    assert tail.compound_head == struct_page(machine, pfn).address | 1
    assert tail.refcount == 0
    assert struct_page(machine, pfn + 1).compound_order == 3
    assert struct_page(machine, pfn + 1).compound_nr == 8
    # Typed, the same question has one answer for all eight; `page.mapping` cannot be written
    # (typing_tests/misuse_model.py).
    folios = [pages.page(Pfn(pfn + n)).descriptor() for n in range(8)]
    assert {each.mapping for each in folios if isinstance(each, FileFolio)} == {
        AddressSpace(address=file)
    }
    assert not hasattr(pages.page(Pfn(pfn + 6)), "mapping")


def test_mapping_of_a_slab_is_its_cache_and_of_anonymous_memory_no_address_space() -> None:
    machine, pages = world(STRUCT_PAGE)
    cache = machine.slabs.create("dentry", 192)
    address = machine.slabs.alloc(cache)
    assert address is not None
    slab = struct_page(machine, address >> 12)
    assert slab.mapping == slab.slab_cache != 0
    assert slab.counters == 21 | 21 << 16  # the CPU holds the whole free list
    anon = struct_page(machine, allocate(machine, MemoryType.ANON, owner=3))
    assert anon.mapping == mapping_address(3) + 1
    assert (anon.refcount, anon.mapcount) == (1, 0)
    typed = pages.page(allocate(machine, MemoryType.ANON, owner=3)).descriptor()
    assert isinstance(typed, AnonFolio)
    assert not hasattr(typed, "mapping")


def test_only_machines_of_2021_have_it() -> None:
    machine, _ = world(OVERLAYS)
    with pytest.raises(QuestionError, match="no struct page of 2021"):
        struct_page(machine, 4096)
    with pytest.raises(QuestionError, match="not allocated"):
        struct_page(world(STRUCT_PAGE)[0], 4096)
