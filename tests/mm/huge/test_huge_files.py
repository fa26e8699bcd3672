"""Huge pages of files: who holds them, what drops the PMD, and what splits the folio."""

from __future__ import annotations

import pytest

from memdesc.kernels.kpageflags import KPF
from memdesc.mm.areas.mmap import exit_process, mmap, munmap
from memdesc.mm.areas.vma import VM
from memdesc.mm.check import check
from memdesc.mm.faults.fork import fork
from memdesc.mm.files.inode import AddressSpace, memfd_create
from memdesc.mm.files.page_cache import pwrite
from memdesc.mm.files.truncate import ftruncate, punch_hole
from memdesc.mm.huge.khugepaged import madvise_collapse
from memdesc.mm.kernel import Kernel
from memdesc.mm.process import Errno, Process
from memdesc.mm.reclaim.swapfile import swapoff, swapon
from memdesc.mm.reclaim.vmscan import madvise_pageout
from memdesc.model.check_slab import check_described
from memdesc.model.designs import DESIGNS, OVERLAYS, Design
from memdesc.types import PAGE_SIZE_BYTES

AT = 0x10000
HUGE = 512
RELEASES = ("6.1", "6.12", "7.2")


def mapped(
    release: str, pages: int = HUGE, *, setting: str = "always", design: Design = OVERLAYS
) -> tuple[Kernel, Process, AddressSpace]:
    """A process that maps a memfd, of which nothing was touched."""
    kernel = Kernel(release, memory_bytes=64 << 20, design=design)
    kernel.set_knob("thp_shmem", setting)
    process = kernel.process("p")
    file = memfd_create(kernel, process, "f")
    ftruncate(kernel, file, pages * PAGE_SIZE_BYTES)
    mmap(kernel, process.mm, AT, pages, flags=VM.SHARED, file=file)
    return kernel, process, file.mapping


@pytest.mark.parametrize("release", RELEASES)
def test_the_cache_and_the_pmd_hold_it(release: str) -> None:
    kernel, process, mapping = mapped(release)
    kernel.write(process, AT + 3, 7)
    head = mapping.pages[0]
    assert kernel.refs(head) == HUGE + 1
    pmd = process.mm.tables.pmd_of(AT)
    assert pmd is not None
    assert pmd.huge
    assert pmd.deposit is None
    child = fork(kernel, process, "c")
    assert kernel.read(child, AT + 3) == 7
    assert kernel.refs(head) == HUGE + 2
    munmap(kernel, process.mm, AT, AT + 1)
    assert process.mm.tables.pmd_of(AT) is None
    assert kernel.flags(head) & KPF.DIRTY
    check(kernel)
    exit_process(kernel, child)
    exit_process(kernel, process)
    assert kernel.type_at(head).name == "FREE"


@pytest.mark.parametrize(("release", "sizes"), [("6.12", [0] * 5), ("7.2", [2, 0])])
def test_a_cut_splits_what_it_must(release: str, sizes: list[int]) -> None:
    """Up to the cut: pages of their own, or pieces that are halved towards it."""
    kernel, process, mapping = mapped(release)
    kernel.write(process, AT, 7)
    ftruncate(kernel, process.files["f"], 5 * PAGE_SIZE_BYTES)
    check(kernel)
    assert sorted(mapping.pages) == list(range(5))
    heads = dict.fromkeys(kernel.head(pfn) for pfn in mapping.pages.values())
    assert [kernel.order_of(head) for head in heads] == sizes
    assert kernel.read(process, AT) == 7


@pytest.mark.parametrize("name", DESIGNS)
def test_every_piece_is_described(name: str) -> None:
    kernel, process, _ = mapped("7.2", design=DESIGNS[name])
    kernel.write(process, AT + 99, 7)
    punch_hole(kernel, process.files["f"], 100, 103)
    kernel.drain()
    check(kernel)
    check_described(kernel.machine)
    assert kernel.read(process, AT + 99) == 7


def test_a_folio_that_is_held_stays_whole() -> None:
    kernel, process, mapping = mapped("6.12")
    kernel.write(process, AT, 7)
    head = mapping.pages[0]
    kernel.get(head)
    punch_hole(kernel, process.files["f"], 0, 4)
    assert kernel.order_of(head) == 9
    assert kernel.read(process, AT) == 0
    kernel.put(head)
    check(kernel)


@pytest.mark.parametrize(("release", "order"), [("6.1", 0), ("6.12", 0), ("7.2", 9)])
def test_swap_and_back(release: str, order: int) -> None:
    kernel, process, mapping = mapped(release)
    swapon(kernel)
    for page in range(HUGE):
        kernel.write(process, AT + page, page + 1)
    vma = process.mm.vmas.find(AT)
    assert vma is not None
    madvise_pageout(kernel, process.mm, vma, AT, AT + HUGE)
    assert not mapping.pages
    assert len(mapping.swapped) == HUGE
    assert bool(mapping.swap_orders) == (release != "6.1")
    assert kernel.read(process, AT + 9) == 10
    assert kernel.order_of(mapping.pages[9]) == order
    kernel.drain()
    check(kernel)
    swapoff(kernel)
    assert [kernel.read(process, AT + page) for page in range(HUGE)] == list(range(1, HUGE + 1))
    check(kernel)


@pytest.mark.parametrize("release", RELEASES)
def test_a_collapse_wants_a_place_for_the_pmd(release: str) -> None:
    kernel, process, mapping = mapped(release, setting="never")
    pwrite(kernel, process.files["f"], 0, [7, 8])
    vma = process.mm.vmas.find(AT)
    assert vma is not None
    if release == "7.2":
        madvise_collapse(kernel, process.mm, vma, AT, AT + HUGE)
    else:
        with pytest.raises(Errno, match="EINVAL"):
            madvise_collapse(kernel, process.mm, vma, AT, AT + HUGE)
    assert kernel.order_of(mapping.pages[1]) == 9
    assert [kernel.read(process, AT + page) for page in range(3)] == [7, 8, 0]
    kernel.drain()
    check(kernel)
