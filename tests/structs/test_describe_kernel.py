"""Descriptors of the kernel's own memory agree with what the same kernel counted in /proc."""

from __future__ import annotations

import collections
import dataclasses
import re

import numpy as np
import pytest
from guests import KERNELS
from structs.described_worlds import PAGE, World, patched, world_of

from memdesc.descriptors import (
    NOT_LOOKED,
    Balloon,
    Buddy,
    DeviceKind,
    KernelStack,
    NetPool,
    NotVisible,
    PageTable,
    PerCpu,
    Poisoned,
    RawPageLookup,
    Reserved,
    Slab,
    TableRole,
    Vmalloc,
    ZPDesc,
)
from memdesc.structs.describe import KernelDescriber
from memdesc.structs.describe_kernel import device_map_of
from memdesc.structs.describe_tables import TableOwners
from memdesc.structs.kernel import Kernel
from memdesc.structs.scan import StructScan
from memdesc.structs.walk.freelists import walk_free_blocks
from memdesc.types import MemoryType, Pfn, PfnRange, TypeSet


@pytest.fixture(scope="module", params=KERNELS)
def world(request: pytest.FixtureRequest) -> World:
    return world_of(request)


@pytest.mark.vm
def test_slabs_add_up_to_slabinfo(world: World) -> None:
    """But for a slab or two that the guest freed or got between /proc and its dump."""
    objects: collections.Counter[object] = collections.Counter()
    sizes: dict[object, object] = {}
    marked = np.flatnonzero(world.words("kpageflags") >> np.uint64(7) & np.uint64(1))
    pfn_end = 0
    gone = []
    for pfn in marked.tolist():
        if pfn < pfn_end:
            continue
        slab = world.describer.descriptor_of(Pfn(pfn))
        if not isinstance(slab, Slab):
            gone.append(slab)
            continue
        assert isinstance(slab.objects, int)
        assert isinstance(slab.objects_in_use, int)
        assert slab.objects_in_use <= slab.objects
        objects[slab.cache] += slab.objects
        sizes[slab.cache] = slab.object_size_bytes
        pfn_end = slab.pages.pfn_end
    assert len(gone) <= 16, gone
    caches: collections.Counter[object] = collections.Counter()
    for line in (world.tree / "proc/slabinfo").read_text().splitlines()[2:]:
        name, _, count, size = line.split()[:4]
        caches[name] = int(count)
        assert name not in sizes or 0 < int(str(sizes[name])) <= int(size), name
    differ = {name for name in objects | caches if objects[name] != caches[name]}
    assert len(differ) <= 4, {name: (objects[name], caches[name]) for name in differ}


@pytest.mark.vm
def test_free_blocks_are_those_of_the_free_lists(world: World) -> None:
    lists = walk_free_blocks(world.kernel, world.memmap)
    expected = {
        (int(pfn), int(order), lists.names[int(kind)])
        for pfn, order, kind in zip(lists.pfn, lists.order, lists.migratetype, strict=True)
    }
    found = set()
    for descriptor in world.every:
        if isinstance(descriptor, Buddy):
            assert descriptor.pages.nr_pages == 1 << int(str(descriptor.order))
            found.add((int(descriptor.pages.pfn_start), descriptor.order, descriptor.migratetype))
    assert found == expected


@pytest.mark.vm
def test_page_tables_have_a_level_and_an_owner(world: World) -> None:
    for pfn in np.flatnonzero(world.words("kpageflags") >> np.uint64(26) & np.uint64(1)).tolist():
        table = world.describer.descriptor_of(Pfn(pfn))
        assert isinstance(table, PageTable)
        assert table.level in (1, 2, 3, 5)
        assert (table.role is TableRole.USER) == isinstance(table.owner, int)
        assert isinstance(table.owner_name, str) == isinstance(table.owner, int)


@pytest.mark.vm
def test_page_tables_of_each_process_add_up_to_its_vmpte(world: World) -> None:
    owners = TableOwners(world.kernel, world.memmap)
    tables: collections.Counter[int] = collections.Counter()
    for pfn in owners.frames().pfns.tolist():
        owner = owners.at(pfn)
        assert owner is not None
        # VmPTE leaves the top table out (mm_pgtables_bytes()).
        if owner.pid is not None and owner.level < 5:
            tables[owner.pid] += 1
    processes = [int(row.name) for row in (world.tree / "proc").iterdir() if row.name.isdecimal()]
    assert len(processes) > 5
    for pid in processes:
        status = (world.tree / f"proc/{pid}/status").read_text()
        found = re.search(r"VmPTE:\s+(\d+) kB", status)
        assert found is not None
        assert tables[pid] * 4 == int(found[1]), pid


@pytest.mark.vm
def test_each_thread_has_its_stack(world: World) -> None:
    pages: collections.Counter[int] = collections.Counter()
    names: dict[int, str] = {}
    for frame in world.frames(MemoryType.KERNEL_STACK):
        assert isinstance(frame, KernelStack)
        if isinstance(frame.task, int):
            pages[frame.task] += 1
            names[frame.task] = str(frame.task_name)
    assert names[2] == "kthreadd"
    processes = {int(row["pid"]) for row in world.planted if "pid" in row}
    assert processes <= set(pages)
    assert set(pages.values()) == {4}, "16 KiB on x86-64"


@pytest.mark.vm
def test_vmalloc_and_per_cpu_frames_lead_to_their_owners(world: World) -> None:
    callers = set()
    for frame in world.frames(MemoryType.VMALLOC):
        assert isinstance(frame, Vmalloc)
        assert isinstance(frame.area, int)
        assert frame.area % PAGE == 0
        assert frame.area > 1 << 63
        assert isinstance(frame.mapcount, int)
        assert frame.refcount == 1 + frame.mapcount, "a BPF array may be mapped by its user"
        assert isinstance(frame.area_size_bytes, int)
        assert frame.area_size_bytes % PAGE == 0
        assert frame.area_size_bytes >= PAGE
        callers.add(frame.caller)
    assert any("bpf_prog" in str(caller) for caller in callers)
    for frame in world.frames(MemoryType.PERCPU):
        assert isinstance(frame, PerCpu)
        assert isinstance(frame.chunk, int)


@pytest.mark.vm
def test_compressed_memory_has_one_first_frame_for_each_zspage(world: World) -> None:
    zspages: dict[object, list[ZPDesc]] = {}
    for frame in world.frames(MemoryType.ZSMALLOC):
        assert isinstance(frame, ZPDesc)
        zspages.setdefault(frame.zspage, []).append(frame)
    if not zspages:
        pytest.skip("this kernel's symbols do not name zsmalloc, so its frames stay a union")
    for frames in zspages.values():
        assert sum(bool(frame.first_of_zspage) for frame in frames) == 1
        for frame in frames:
            assert isinstance(frame.first_object_offset_bytes, int)
            assert frame.first_object_offset_bytes < PAGE
            if frame.first_of_zspage:
                assert frame.first_object_offset_bytes == 0


@pytest.mark.vm
def test_balloon_frames_can_be_moved(world: World) -> None:
    frames = list(world.frames(MemoryType.BALLOON))
    assert len(frames) == 2048, "8 MiB were returned to the host"
    assert all(isinstance(frame, Balloon) and frame.movable is True for frame in frames)


@pytest.mark.vm
def test_the_image_is_told_from_other_reserved_memory(world: World) -> None:
    for row in world.planted:
        if row["kind"] == "kernel_image":
            for page, pfn in world.pfns(row):
                descriptor = world.describer.descriptor_of(pfn)
                assert isinstance(descriptor, Reserved)
                assert descriptor.role == row["note"]
                if page == 64:
                    break


@pytest.mark.vm
def test_poisoned_frames_remember_what_they_were(world: World) -> None:
    former = {
        "hwpoison_anon": MemoryType.ANON,
        "hwpoison_file": MemoryType.FILE,
        "hwpoison_free": MemoryType.FREE,
    }
    for kind, was in former.items():
        (descriptor,) = world.described(kind)
        assert isinstance(descriptor, Poisoned)
        assert isinstance(descriptor.former, TypeSet)
        assert was in descriptor.former
        # Nothing but flags is left of a page that was in a file.
        assert descriptor.former.is_certain or was is MemoryType.FILE


@pytest.mark.vm
def test_nothing_that_memory_holds_is_left_out(world: World) -> None:
    """Every field of every kind is read, or says what stood in the way."""
    left_out = set()
    unread = set()
    for descriptor in world.every:
        for item in dataclasses.fields(descriptor):
            value = getattr(descriptor, item.name)
            if value == NOT_LOOKED:
                left_out.add((type(descriptor).__name__, item.name))
            elif isinstance(value, NotVisible) and "cannot be read" in value.reason:
                unread.add((type(descriptor).__name__, item.name))
    assert not left_out
    assert not unread, "a dump holds all of the kernel's memory"


@pytest.mark.vm
def test_a_struct_page_is_shown_by_its_words(world: World) -> None:
    assert isinstance(world.describer, RawPageLookup)
    for row in world.planted:
        if row["kind"] == "io_uring_fixed":
            _, pfn = next(world.pfns(row))
            words = world.describer.raw_page(pfn)
            assert not isinstance(words, NotVisible)
            assert words["refcount"] == 1025
            assert words["mapping"] & 3 == 1, "PAGE_MAPPING_ANON"
            assert words["page_type"] == 0, "mapped once"


# --- kinds that no guest has: written over a frame of a dump --------------------------------


def struct_bytes(kernel: Kernel, struct: str, values: dict[str, int]) -> bytes:
    """A struct of zeroes with these members set."""
    data = bytearray(kernel.size_of(struct))
    for path, value in values.items():
        member = kernel.member(struct, path)
        size = member.size_bits // 8
        data[member.offset : member.offset + size] = value.to_bytes(size, "little")
    return bytes(data)


@pytest.mark.vm
def test_a_page_of_a_page_pool(world: World) -> None:
    (row,) = (row for row in world.planted if row["kind"] == "io_uring_fixed")
    _, pfn = next(world.pfns(row))
    given_out = "pp_ref_count" if world.kernel.has("page", "pp_ref_count") else "pp_frag_count"
    page = struct_bytes(
        world.kernel,
        "page",
        {
            "pp_magic": 0xDEAD000000000040,
            "pp": 0xFFFF888001234000,
            "dma_addr": 0x5678000,
            f"{given_out}.counter": 3,
            "_mapcount.counter": 0xFFFFFFFF,
            "_refcount.counter": 1,
        },
    )
    kernel, memmap = patched(world, {world.memmap.page_address(pfn): page})
    result = StructScan(kernel, memmap, world.map.machine).window(pfn)
    assert KernelDescriber(kernel, memmap, result, None).descriptor_of(pfn) == NetPool(
        PfnRange(pfn, Pfn(pfn + 1)),
        pool=0xFFFF888001234000,
        dma_addr=0x5678000,
        pool_refcount=3,
        refcount=1,
        mapcount=0,
    )


@pytest.mark.vm
def test_device_memory_leads_to_its_dev_pagemap(world: World) -> None:
    place = world.memmap.direct_map_address(0x9000)
    struct = "page" if world.kernel.has("page", "pgmap") else "folio"
    page = world.memmap.page_address(0x9000)
    pointer = page + world.kernel.member(struct, "pgmap").offset
    for name, kind in (
        ("MEMORY_DEVICE_PRIVATE", DeviceKind.PRIVATE),
        ("MEMORY_DEVICE_FS_DAX", DeviceKind.FS_DAX),
        ("MEMORY_DEVICE_PCI_P2PDMA", DeviceKind.PCI_P2PDMA),
    ):
        number = world.kernel.types.find_enumerator(name)
        assert number is not None
        pgmap = struct_bytes(world.kernel, "dev_pagemap", {"type": number})
        kernel, _ = patched(world, {pointer: place.to_bytes(8, "little"), place: pgmap})
        assert device_map_of(kernel, page) == (place, kind)
