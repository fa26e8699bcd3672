"""What a folio's descriptor says is compared with what the same kernel said of it in /proc."""

from __future__ import annotations

import re
from typing import Any

import pytest
from guests import KERNELS
from structs.described_worlds import World, patched, world_of

from memdesc.answers.what import describe_page
from memdesc.descriptors import (
    AddressSpace,
    AnonFolio,
    FileFolio,
    Folio,
    HugetlbFolio,
    KsmFolio,
    Nobody,
    NotVisible,
    SecretmemFolio,
    ShmemFolio,
    SwapCacheFolio,
)
from memdesc.errors import FaultError
from memdesc.structs.describe import KernelDescriber
from memdesc.structs.describe_folio import FolioPages, seen
from memdesc.structs.describe_owner import Cgroups


@pytest.fixture(scope="module", params=KERNELS)
def world(request: pytest.FixtureRequest) -> World:
    return world_of(request)


@pytest.mark.vm
def test_counts_and_owners_are_those_of_proc(world: World) -> None:
    mapcounts, cgroups = world.words("kpagecount"), world.words("kpagecgroup")
    moving = world.frames_of_writers()
    checked = 0
    for descriptor in world.every:
        if not isinstance(descriptor, Folio):
            continue
        low, high = descriptor.pages.pfn_start, descriptor.pages.pfn_end
        if moving[low:high].any():
            continue
        entire = FolioPages(world.memmap, descriptor.pages).entire_mapcount()
        seen_by_proc = int(mapcounts[low:high].sum())
        if isinstance(descriptor, HugetlbFolio):
            assert descriptor.mapcount == mapcounts[low], descriptor
        else:
            # /proc adds the mappings of the whole to each of its frames.
            assert descriptor.mapcount == seen_by_proc - entire * (high - low - 1), descriptor
        charged = descriptor.cgroup if isinstance(descriptor.cgroup, int) else 0
        assert charged == cgroups[low], descriptor
        checked += 1
    assert checked > 1000


@pytest.mark.vm
def test_cgroups_have_the_paths_of_their_folders(world: World) -> None:
    rows = (line.split("\t") for line in (world.tree / "cgroups.tsv").read_text().splitlines())
    assert Cgroups(world.kernel).all() == {int(inode): path for inode, path in rows}


@pytest.mark.vm
def test_page_cache_leads_to_its_file(world: World) -> None:
    """By path, file system, place in the file; by inode where /proc/PID/maps shows it."""
    kinds = set()
    for row in world.planted:
        path = re.match(r"(/\S+)(?=:)|(/tmp/result of run 7|/tmp/report|/huge/blob)", row["note"])
        if path is None or row["kind"].startswith("hwpoison"):
            continue
        on_tmpfs = row["kind"].startswith("tmpfs")
        inode = _inode_in_maps(world, row) if "pid" in row else None
        for page, pfn in world.pfns(row):
            if page % 16:
                continue
            descriptor = world.describer.descriptor_of(pfn)
            assert isinstance(descriptor, FileFolio | ShmemFolio), (row, descriptor)
            mapping = descriptor.mapping
            assert isinstance(mapping, AddressSpace)
            assert mapping.path == path[0]
            filesystem, table = ("tmpfs", "shmem_aops") if on_tmpfs else ("ext4", "ext4_da_aops")
            assert mapping.filesystem == filesystem
            if world.kernel.symbols.address_of(table) is not None:
                assert mapping.operations == table
            if inode is not None:
                assert mapping.inode == inode
                assert isinstance(descriptor.index, int)
                assert descriptor.index + pfn - descriptor.pages.pfn_start == page
        kinds.add(row["kind"])
    assert {"ext4_mapped_written", "ext4_in_pipe", "tmpfs_mapped", "tmpfs_huge"} <= kinds


@pytest.mark.vm
@pytest.mark.parametrize(
    ("kind", "filesystem", "path"),
    [
        ("memfd", "tmpfs", "/memfd:memdesc-memfd (deleted)"),
        ("shared_anon", "tmpfs", "/dev/zero (deleted)"),
        ("sysv_shm", "tmpfs", "/SYSV00000000 (deleted)"),
        ("secretmem", "secretmem", "/secretmem (deleted)"),
        ("hugetlb_memfd", "hugetlbfs", "/memfd:memdesc-hugetlb_memfd (deleted)"),
    ],
)
def test_memory_without_a_path_has_the_name_that_maps_shows(
    world: World, kind: str, filesystem: str, path: str
) -> None:
    for descriptor in world.described(kind):
        assert isinstance(descriptor, ShmemFolio | SecretmemFolio | HugetlbFolio)
        mapping = descriptor.mapping
        assert isinstance(mapping, AddressSpace)
        assert (mapping.filesystem, mapping.path) == (filesystem, path)


@pytest.mark.vm
def test_references_and_pins_beyond_the_mappings_show(world: World) -> None:
    """The page files of /proc show all four alike."""
    for kind, mapped, references, pins in (
        ("anon_uffd_wp", 1, 1, 0),
        ("vmspliced", 1, 2, 0),
        ("vmspliced_unmapped", 0, 1, 0),
        ("io_uring_fixed", 1, 1025, 1),
    ):
        for folio in world.described(kind):
            assert isinstance(folio, AnonFolio)
            assert (folio.mapcount, folio.refcount, folio.pins) == (mapped, references, pins), kind


@pytest.mark.vm
def test_sharing_by_fork_and_by_merging(world: World) -> None:
    for folio in world.described("anon_forked"):
        assert isinstance(folio, AnonFolio)
        assert folio.exclusive is False
        assert isinstance(folio.mapcount, int)
        assert folio.mapcount > 2
    sharers = []
    for folio in world.described("ksm"):
        assert isinstance(folio, KsmFolio)
        assert isinstance(folio.sharers, int)
        assert folio.sharers == folio.mapcount
        sharers.append(folio.sharers)
    assert max(sharers) == 128, "64 equal pages in each of two processes"


@pytest.mark.vm
def test_swap_slots_are_told_apart(world: World) -> None:
    slots = set()
    folios = world.described("swap_cache")
    for folio in folios:
        assert isinstance(folio, SwapCacheFolio)
        assert folio.shmem is False
        assert folio.swap_type in (0, 1)
        slots.add((folio.swap_type, folio.swap_offset))
    assert len(slots) == len(folios)


@pytest.mark.vm
def test_huge_pages_of_the_pool(world: World) -> None:
    pool = [d for d in world.every if isinstance(d, HugetlbFolio)]
    meminfo = (world.tree / "proc/meminfo").read_text()
    free = re.search(r"HugePages_Free:\s+(\d+)", meminfo)
    assert free is not None
    assert sum(not folio.in_use for folio in pool) == int(free[1])
    private = {folio.index for folio in pool if folio.in_use and folio.mapping == Nobody()}
    assert private == {0, 512}, "in frames on every kernel"


# --- what cannot be read -----------------------------------------------------------------


def test_a_fault_becomes_a_reason_without_an_address() -> None:
    def read() -> int:
        raise FaultError("address 0xffff888012345678 cannot be read", 0xFFFF888012345678)

    found = seen(read)
    assert isinstance(found, NotVisible)
    assert "cannot be read" in found.reason
    assert "0x" not in found.reason


@pytest.mark.vm
def test_the_counts_of_a_folio_that_was_split_are_not_made_up(world: World) -> None:
    whole = next(
        folio for folio in world.every if isinstance(folio, AnonFolio) and folio.pages.nr_pages > 1
    )
    head = world.memmap.page_address(whole.pages.pfn_start)
    kernel, memmap = patched(world, {head: bytes(8)})
    split = KernelDescriber(kernel, memmap, world.map, None)
    found = split.descriptor_of(whole.pages.pfn_start)
    assert isinstance(found, AnonFolio)
    assert isinstance(found.mapcount, NotVisible)
    assert isinstance(found.pins, NotVisible)


# --- what the answers make of it ---------------------------------------------------------


@pytest.mark.vm
def test_an_answer_shows_the_file_and_keeps_addresses_as_text(world: World) -> None:
    (row,) = (row for row in world.planted if row["kind"] == "ext4_mapped_dirty")
    _, pfn = next(world.pfns(row))
    answer = describe_page(world.map, pfn, lookup=world.describer).to_json()
    mapping = answer["descriptor"]["mapping"]
    assert mapping["path"] == "/data/journal.dat"
    assert mapping["address"].startswith("0xffff")
    assert "struct_page" not in answer


# --- helpers -----------------------------------------------------------------------------


def _inode_in_maps(world: World, row: dict[str, Any]) -> int | None:
    for line in (world.tree / f"proc/{row['pid']}/maps").read_text().splitlines():
        span, _, offset, _, inode = line.split()[:5]
        if int(span.partition("-")[0], 16) == row["address"] and int(offset, 16) == 0:
            return int(inode)
    return None
