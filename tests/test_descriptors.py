"""Descriptors: each kind has its own fields, and a page has none."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memdesc.descriptors import (
    CLASS_OF,
    NOT_LOOKED,
    AnonFolio,
    Buddy,
    Described,
    Descriptor,
    DescriptorIndex,
    DeviceKind,
    DevicePage,
    FileFolio,
    Folio,
    NotVisible,
    Page,
    PageTable,
    Slab,
    Undescribed,
    bare_descriptor,
    descriptor_kind,
)
from memdesc.errors import QuestionError
from memdesc.types import DEVICE, KERNEL_UNKNOWN, MemoryType, Pfn, PfnRange, TypeSet


def frames(start: int, end: int) -> PfnRange:
    return PfnRange(Pfn(start), Pfn(end))


LARGE = FileFolio(frames(512, 1024), index=0)
ONE = AnonFolio(frames(7, 8), mapcount=1)
SLAB = Slab(frames(8, 16), cache="dentry")
INDEX = DescriptorIndex([LARGE, ONE, SLAB])


# A page and its descriptor


def test_a_page_has_a_number_and_a_way_to_its_descriptor() -> None:
    page = INDEX.page(Pfn(7))
    assert page.pfn == 7
    assert page.descriptor() is ONE


@pytest.mark.parametrize("name", ["mapping", "index", "flags", "refcount", "mapcount", "private"])
def test_a_page_has_nothing_else(name: str) -> None:
    page = INDEX.page(Pfn(600))
    assert not hasattr(page, name)
    with pytest.raises(AttributeError):
        getattr(page, name)


def test_page_mapping_raises_even_where_its_folio_has_one() -> None:
    """The bug of the discussion: for a tail page this word means something else."""
    tail = INDEX.page(Pfn(513))
    with pytest.raises(AttributeError):
        tail.mapping  # type: ignore[attr-defined]  # noqa: B018
    assert isinstance(tail.descriptor(), FileFolio)


def test_public_attributes_of_a_page_are_exactly_two() -> None:
    public = {name for name in dir(Page) if not name.startswith("_")}
    assert public == {"pfn", "descriptor"}


def test_a_tail_leads_to_the_same_descriptor_as_its_head() -> None:
    head, tail, last = (INDEX.page(Pfn(n)).descriptor() for n in (512, 513, 1023))
    assert head is tail is last


def test_pages_are_equal_by_frame() -> None:
    assert INDEX.page(Pfn(7)) == DescriptorIndex([ONE]).page(Pfn(7))
    assert INDEX.page(Pfn(7)) != INDEX.page(Pfn(8))


@pytest.mark.parametrize("pfn", [0, 6, 16, 511, 1024])
def test_a_frame_that_nothing_describes_is_an_error_and_not_a_guess(pfn: int) -> None:
    with pytest.raises(QuestionError, match=f"{pfn:#x}"):
        INDEX.page(Pfn(pfn)).descriptor()


def test_two_descriptors_cannot_claim_one_frame() -> None:
    with pytest.raises(ValueError, match="overlap"):
        DescriptorIndex([SLAB, AnonFolio(frames(15, 17))])


@given(st.lists(st.integers(1, 20), min_size=1, max_size=30), st.data())
def test_every_frame_of_every_descriptor_finds_it(sizes: list[int], data: st.DataObject) -> None:
    start = 0
    made = []
    for size in sizes:
        start += data.draw(st.integers(0, 3))
        made.append(Slab(frames(start, start + size)))
        start += size
    index = DescriptorIndex(data.draw(st.permutations(made)))
    assert list(index) == made
    for each in made:
        for pfn in range(each.pages.pfn_start, each.pages.pfn_end):
            assert index.descriptor_of(Pfn(pfn)) is each


# Each kind has its own fields


def names_of(cls: type[Described]) -> set[str]:
    return {each.name for each in fields(cls)}


def test_a_slab_has_a_cache_and_no_mapping_and_no_counts() -> None:
    assert "cache" in names_of(Slab)
    assert names_of(Slab).isdisjoint({"mapping", "index", "refcount", "mapcount", "pins", "cgroup"})


def test_only_file_memory_has_a_mapping() -> None:
    with_mapping = {kind for kind, cls in CLASS_OF.items() if "mapping" in names_of(cls)}
    assert with_mapping == {
        MemoryType.FILE,
        MemoryType.SHMEM,
        MemoryType.HUGETLB,
        MemoryType.SECRETMEM,
        MemoryType.GUEST_MEMFD,
    }


def test_memory_that_users_never_map_has_no_map_count() -> None:
    for kind in (
        MemoryType.SLAB,
        MemoryType.LARGE_KMALLOC,
        MemoryType.PAGE_TABLE,
        MemoryType.KERNEL_STACK,
        MemoryType.PERCPU,
        MemoryType.ZSMALLOC,
        MemoryType.BALLOON,
        MemoryType.FREE,
        MemoryType.ZERO,
    ):
        assert "mapcount" not in names_of(CLASS_OF[kind]), kind


def test_free_memory_is_charged_to_nobody() -> None:
    assert "cgroup" not in names_of(Buddy)


def test_a_union_has_no_field_of_any_member() -> None:
    assert names_of(Undescribed) == {"pages", "cgroup", "kinds", "reason"}


@pytest.mark.parametrize("kind", list(MemoryType))
def test_descriptors_are_small_and_do_not_change(kind: MemoryType) -> None:
    descriptor = bare_descriptor(TypeSet.of(kind), frames(1, 2), "")
    assert not hasattr(descriptor, "__dict__")
    with pytest.raises((FrozenInstanceError, AttributeError, TypeError)):
        descriptor.mapping = 0  # type: ignore
    with pytest.raises(FrozenInstanceError):
        descriptor.pages = frames(2, 3)  # type: ignore[misc]


def test_a_descriptor_covers_at_least_one_frame() -> None:
    with pytest.raises(ValueError, match="at least one frame"):
        Slab(frames(8, 8))


# Facts


def test_what_a_source_does_not_fill_is_named_and_never_zero() -> None:
    folio = AnonFolio(frames(7, 8), mapcount=0)
    assert folio.mapcount == 0
    assert folio.refcount == NOT_LOOKED
    assert not isinstance(folio.refcount, int)
    assert str(folio.refcount) == "not visible: the source did not look"


def test_every_optional_field_defaults_to_not_looked() -> None:
    for kind in MemoryType:
        descriptor = bare_descriptor(TypeSet.of(kind), frames(1, 2), "")
        for each in fields(descriptor):
            if each.name in ("pages", "kind"):
                continue
            assert getattr(descriptor, each.name) is NOT_LOOKED, f"{kind}: {each.name}"


# Kinds


@pytest.mark.parametrize("kind", list(MemoryType))
def test_every_memory_type_has_a_descriptor_that_says_so(kind: MemoryType) -> None:
    descriptor = bare_descriptor(TypeSet.of(kind), frames(1, 2), "not needed")
    assert type(descriptor) is CLASS_OF[kind]
    assert descriptor_kind(descriptor) is kind


def test_every_descriptor_class_stands_for_a_memory_type_or_a_union() -> None:
    assert set(get_args(Descriptor)) == {*CLASS_OF.values(), Undescribed}


def test_an_honest_union_carries_its_members_and_the_reason() -> None:
    descriptor = bare_descriptor(KERNEL_UNKNOWN, frames(1, 2), "all bits are 0")
    assert isinstance(descriptor, Undescribed)
    assert descriptor_kind(descriptor) == KERNEL_UNKNOWN
    assert descriptor.reason == "all bits are 0"


def test_device_memory_of_unknown_kind_is_device_memory() -> None:
    descriptor = bare_descriptor(DEVICE, frames(1, 2), "no pgmap in /proc")
    assert descriptor == DevicePage(frames(1, 2), kind=NotVisible("no pgmap in /proc"))
    assert descriptor_kind(descriptor) == DEVICE
    assert descriptor_kind(DevicePage(frames(1, 2), kind=DeviceKind.FS_DAX)) is MemoryType.FS_DAX


def test_folios_are_one_family() -> None:
    folios = {kind for kind, cls in CLASS_OF.items() if issubclass(cls, Folio)}
    assert MemoryType.KSM in folios
    assert MemoryType.SHMEM in folios
    assert MemoryType.SLAB not in folios
    assert not issubclass(PageTable, Folio)
