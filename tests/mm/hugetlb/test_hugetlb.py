"""hugetlb: what the pool counts, who may take from it, and what becomes of pages that fail."""

from __future__ import annotations

import pytest

from memdesc.mm import entries as e
from memdesc.mm.areas.madvise import madvise
from memdesc.mm.areas.mmap import exit_process, mmap, munmap
from memdesc.mm.areas.mremap import mremap
from memdesc.mm.areas.vma import VM
from memdesc.mm.check import check
from memdesc.mm.faults.fork import fork
from memdesc.mm.files.inode import HUGETLBFS, memfd_create
from memdesc.mm.hugetlb.hugetlbfs import fallocate, hugetlb_file, read
from memdesc.mm.kernel import Kernel
from memdesc.mm.process import Errno, Process, Signal
from memdesc.mm.references.gup import FOLL, pin_user_pages
from memdesc.mm.userfault import userfaultfd as uffd
from memdesc.mm.userfault.userfault_ops import continue_, copy
from memdesc.mm.userfault.userfault_wp import writeprotect

AT, ELSEWHERE, HUGE = 0x10000, 0x20000, 512
_NONE = VM(0)


def pool_of(pages: int, *, series: str = "6.12") -> tuple[Kernel, Process]:
    kernel = Kernel(series, memory_bytes=64 << 20)
    kernel.set_knob("hugepages", str(pages))
    return kernel, kernel.process("p")


def map_huge(kernel: Kernel, process: Process, vpn: int, count: int, flags: VM = _NONE) -> None:
    file = hugetlb_file(kernel, count * HUGE)
    try:
        mmap(kernel, process.mm, vpn, count * HUGE, flags=flags, file=file, pgoff=0)
    finally:
        file.closed(kernel)


def counts(kernel: Kernel) -> tuple[int, int, int, int]:
    """Total, free, reserved, surplus."""
    pool = kernel.hugetlb
    return pool.total, len(pool.free), pool.reserved, pool.surplus


def test_two_private_mappings_of_one_file_reserve_each_for_itself() -> None:
    kernel, process = pool_of(3)
    file = memfd_create(kernel, process, "f", fs=HUGETLBFS)
    for vpn in (AT, ELSEWHERE):
        mmap(kernel, process.mm, vpn, HUGE, file=file, pgoff=0)
    assert counts(kernel) == (3, 3, 2, 0)
    munmap(kernel, process.mm, AT, AT + HUGE)
    assert counts(kernel) == (3, 3, 1, 0)
    check(kernel)


def test_a_failed_reservation_leaves_no_surplus_page() -> None:
    kernel, process = pool_of(1)
    kernel.set_knob("hugepages_overcommit", "2")
    with pytest.raises(Errno, match="ENOMEM"):
        map_huge(kernel, process, AT, 4)
    assert counts(kernel) == (1, 1, 0, 0)
    map_huge(kernel, process, AT, 3)
    assert counts(kernel) == (3, 3, 3, 2)
    exit_process(kernel, process)
    assert counts(kernel) == (1, 1, 0, 0)


def test_what_mremap_leaves_behind_stays_reserved_for_nobody() -> None:
    kernel, process = pool_of(4)
    map_huge(kernel, process, AT, 2)
    mremap(kernel, process.mm, AT, HUGE, HUGE, to=ELSEWHERE)
    kernel.read(process, AT + HUGE)
    exit_process(kernel, process)
    assert counts(kernel) == (4, 4, 1, 0)


def test_a_child_whose_page_was_taken_is_refused_for_good() -> None:
    kernel, process = pool_of(1)
    map_huge(kernel, process, AT, 1)
    kernel.write(process, AT, 1)
    child = fork(kernel, process, "c")
    kernel.write(process, AT, 2)
    kernel.set_knob("hugepages", "2")
    with pytest.raises(Signal, match="SIGBUS ADRERR"):
        kernel.read(child, AT)
    check(kernel)


def test_fork_fails_where_a_pinned_page_cannot_be_copied() -> None:
    kernel, process = pool_of(1)
    map_huge(kernel, process, AT, 1)
    kernel.write(process, AT, 1)
    pin_user_pages(kernel, process.mm, AT, 1, FOLL.WRITE)
    with pytest.raises(Errno, match="ENOMEM"):
        fork(kernel, process, "c")
    assert "c" not in kernel.processes


@pytest.mark.parametrize("series", ["6.1", "6.12"])
def test_a_failed_private_page_is_dissolved(series: str) -> None:
    kernel, process = pool_of(3, series=series)
    map_huge(kernel, process, AT, 1)
    kernel.write(process, AT, 1)
    head = e.pfn_of(process.mm.tables.entry(AT))
    if series == "6.1":
        madvise(kernel, process, AT + 3, AT + 4, "hwpoison")
    else:
        with pytest.raises(Signal, match="MCEERR_AR"):
            madvise(kernel, process, AT + 3, AT + 4, "hwpoison")
    assert counts(kernel) == (2, 2, 0, 0)
    assert kernel.poisoned == {head + 3}
    assert kernel.f.refs[head] == 0
    with pytest.raises(Signal, match="MCEERR_AR"):
        kernel.read(process, AT + 9)
    check(kernel)


def test_a_surplus_page_that_fails_leaves_the_pool_and_its_frame_is_held() -> None:
    kernel, process = pool_of(2)
    map_huge(kernel, process, AT, 2)
    kernel.read(process, AT)
    head = e.pfn_of(process.mm.tables.entry(AT))
    kernel.set_knob("hugepages", "1")
    assert counts(kernel) == (2, 1, 1, 1)
    madvise(kernel, process, AT, AT + 1, "hwpoison")
    assert counts(kernel) == (1, 1, 1, 0)
    assert kernel.poisoned == {head}
    check(kernel)


def test_a_page_of_a_file_is_read_around_what_was_lost() -> None:
    for series, good in (("6.1", None), ("6.12", [7])):
        kernel, process = pool_of(2, series=series)
        file = memfd_create(kernel, process, "f", fs=HUGETLBFS)
        mmap(kernel, process.mm, AT, HUGE, flags=VM.SHARED, file=file, pgoff=0)
        kernel.write(process, AT, 7)
        kernel.hugetlb.raw_errors[e.pfn_of(process.mm.tables.entry(AT))] = {
            e.pfn_of(process.mm.tables.entry(AT)) + 1
        }
        if good is None:
            with pytest.raises(Errno, match="EIO"):
                read(kernel, file.mapping, 0, 2)
        else:
            assert read(kernel, file.mapping, 0, 2) == good


@pytest.mark.parametrize("free", [1, 3])
def test_soft_offline_keeps_the_content_and_takes_from_the_pool_what_is_free(free: int) -> None:
    kernel, process = pool_of(free)
    map_huge(kernel, process, AT, 1)
    kernel.write(process, AT + 5, 9)
    child = fork(kernel, process, "c")
    madvise(kernel, process, AT + 5, AT + 6, "soft_offline")
    assert kernel.read(child, AT + 5) == kernel.read(process, AT + 5) == 9
    # Without a free page the new one is made for this, and stays.
    assert counts(kernel)[0] == (1 if free == 1 else free - 1)
    check(kernel)


def test_fallocate_takes_what_the_file_has_reserved() -> None:
    kernel, process = pool_of(2)
    file = memfd_create(kernel, process, "f", fs=HUGETLBFS)
    mmap(kernel, process.mm, AT, HUGE, flags=VM.SHARED, file=file, pgoff=0)
    fallocate(kernel, file.mapping, 0, 2 * HUGE, "grow")
    assert counts(kernel) == (2, 0, 0, 0)
    with pytest.raises(Errno, match="ENOSPC"):
        fallocate(kernel, file.mapping, 2 * HUGE, 1, "grow")
    check(kernel)


def test_userfaultfd_fills_and_continues_whole_huge_pages_only() -> None:
    kernel, process = pool_of(2)
    file = memfd_create(kernel, process, "f", fs=HUGETLBFS)
    mmap(kernel, process.mm, AT, HUGE, flags=VM.SHARED, file=file, pgoff=0)
    mmap(kernel, process.mm, ELSEWHERE, HUGE, flags=VM.SHARED, file=file, pgoff=0)
    uffd.register(kernel, process.mm, uffd.userfaultfd(kernel, "missing"), AT, AT + HUGE)
    with pytest.raises(Errno, match="EINVAL"):
        copy(kernel, process.mm, AT, [1])
    copy(kernel, process.mm, AT, [page % 7 for page in range(HUGE)])
    minor = uffd.userfaultfd(kernel, "minor")
    uffd.register(kernel, process.mm, minor, ELSEWHERE, ELSEWHERE + HUGE)
    continue_(kernel, process.mm, ELSEWHERE, ELSEWHERE + HUGE)
    assert kernel.read(process, ELSEWHERE + 13) == 6
    check(kernel)


def test_protection_of_an_empty_huge_entry_survives_dontneed_and_not_munmap() -> None:
    kernel, process = pool_of(2)
    map_huge(kernel, process, AT, 2)
    ctx = uffd.userfaultfd(kernel, "wp")
    uffd.register(kernel, process.mm, ctx, AT, AT + 2 * HUGE)
    kernel.write(process, AT, 1)
    writeprotect(kernel, process.mm, AT, AT + 2 * HUGE, protect=True)
    madvise(kernel, process, AT, AT + HUGE, "dontneed")
    for vpn in (AT, AT + HUGE):
        with pytest.raises(Signal, match="SIGBUS ADRERR"):
            kernel.write(process, vpn, 2)
    munmap(kernel, process.mm, AT, AT + HUGE)
    assert process.mm.tables.entry(AT) == e.NONE_ENTRY
    check(kernel)
