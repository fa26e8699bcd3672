"""Descriptors of memory that this process plants, read from the running kernel."""

from __future__ import annotations

import dataclasses
import mmap
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import planting
import pytest

from memdesc.descriptors import (
    AddressSpace,
    AnonFolio,
    Descriptor,
    FileFolio,
    SecretmemFolio,
    ShmemFolio,
)
from memdesc.errors import NotReadableError
from memdesc.kernels.pagemap import Present
from memdesc.kernels.release import KernelRelease
from memdesc.sources.procfs import read_machine
from memdesc.sources.source import pagemap_entry
from memdesc.structs.describe import KernelDescriber
from memdesc.structs.memmap import MemMap
from memdesc.structs.scan import StructScan
from memdesc.types import Pfn, Pid, VirtAddr

PAGE = 4096

Planter = Callable[[], AbstractContextManager[int]]


@pytest.fixture(scope="module")
def live() -> Callable[[int], KernelDescriber]:
    """A describer of the neighbourhood of a frame of the running kernel."""
    from memdesc.structs.bases import page_offset_base, vmemmap_base
    from memdesc.structs.live import open_live_kernel

    try:
        kernel = open_live_kernel()
    except NotReadableError as error:
        pytest.skip(f"{error}; {error.hint}")
    memmap = MemMap.find(kernel, vmemmap=vmemmap_base(kernel))
    memmap = dataclasses.replace(memmap, page_offset=page_offset_base(kernel))
    machine = read_machine(Path("/"))

    def describer_at(pfn: int) -> KernelDescriber:
        # A scan remembers what pointers led to: on a running kernel, one scan for each question.
        scan = StructScan(kernel, memmap, machine)
        return KernelDescriber(kernel, memmap, scan.window(pfn), None)

    return describer_at


def own_pfn(address: int) -> Pfn:
    release = KernelRelease.parse(os.uname().release)
    entry = pagemap_entry(Path("/"), Pid(os.getpid()), VirtAddr(address), release)
    assert isinstance(entry.target, Present)
    assert isinstance(entry.target.pfn, int)
    return entry.target.pfn


def describe(live: Callable[[int], KernelDescriber], planter: Planter) -> Descriptor:
    try:
        with planter() as address:
            pfn = own_pfn(address)
            return live(pfn).descriptor_of(pfn)
    except planting.CannotPlant as reason:
        pytest.skip(str(reason))


@pytest.mark.live
def test_a_file_of_this_process_has_its_inode_and_path(
    live: Callable[[int], KernelDescriber],
) -> None:
    descriptor = describe(live, planting.file_page)
    assert isinstance(descriptor, FileFolio)
    assert isinstance(descriptor.mapping, AddressSpace)
    assert descriptor.mapping.inode == Path(os.__file__).stat().st_ino
    assert str(descriptor.mapping.path).endswith(Path(os.__file__).name)
    assert descriptor.index == 0


@pytest.mark.live
def test_a_memfd_of_this_process_has_its_name(live: Callable[[int], KernelDescriber]) -> None:
    descriptor = describe(live, planting.memfd)
    assert isinstance(descriptor, ShmemFolio)
    assert isinstance(descriptor.mapping, AddressSpace)
    assert descriptor.mapping.path == "/memfd:planted (deleted)"


@pytest.mark.live
def test_secret_memory_of_this_process_is_named(live: Callable[[int], KernelDescriber]) -> None:
    descriptor = describe(live, planting.secret_memory)
    assert isinstance(descriptor, SecretmemFolio)
    assert isinstance(descriptor.mapping, AddressSpace)
    assert descriptor.mapping.filesystem == "secretmem"


@pytest.mark.live
def test_a_huge_page_is_mapped_once_and_counted_as_a_whole(
    live: Callable[[int], KernelDescriber],
) -> None:
    descriptor = describe(live, planting.transparent_huge_page)
    assert isinstance(descriptor, AnonFolio)
    if descriptor.pages.nr_pages != 512:
        pytest.skip("no free 2 MiB block on this machine right now: the fault fell back")
    assert descriptor.mapcount == 1
    assert descriptor.pins == 0


@pytest.mark.live
def test_fork_shares_a_page(live: Callable[[int], KernelDescriber]) -> None:
    area = mmap.mmap(-1, PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    area[:4] = b"mine"
    pfn = own_pfn(planting.address_of(area))
    alone = live(pfn).descriptor_of(pfn)
    assert isinstance(alone, AnonFolio)
    assert (alone.mapcount, alone.exclusive) == (1, True)
    child = os.fork()
    if not child:
        os.read(_wait[0], 1)
        os._exit(0)
    try:
        shared = live(pfn).descriptor_of(pfn)
    finally:
        os.write(_wait[1], b".")
        os.waitpid(child, 0)
    assert isinstance(shared, AnonFolio)
    assert (shared.mapcount, shared.exclusive) == (2, False)


_wait = os.pipe()
