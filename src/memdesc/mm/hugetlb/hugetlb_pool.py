"""The pool of huge pages: what is free, what is reserved and for whom, and its size.

`mm/hugetlb.c:alloc_hugetlb_folio, free_huge_folio, hugetlb_reserve_pages, hugetlb_acct_memory,
gather_surplus_pages, set_max_huge_pages @6.12`.  A page of the pool is a folio of order 9 that is
never on an LRU list.  mmap reserves without taking; the first access takes.  What the pool has
beyond its size, by overcommit or because it was made smaller while pages were in use, is surplus
and goes back to the allocator as soon as it is free.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from memdesc.kernels.kpageflags import KPF
from memdesc.mm.areas.vma import VM, Vma
from memdesc.mm.check import HOLDERS
from memdesc.mm.files.inode import AddressSpace
from memdesc.mm.page_tables import PMD_SHIFT
from memdesc.mm.process import OutOfMemory
from memdesc.model.compiled import array
from memdesc.types import MemoryType

if TYPE_CHECKING:
    from memdesc.mm.kernel import Kernel

__all__ = [
    "HUGE", "HugetlbPool", "HugetlbResv", "area_gone", "cache_refs", "give_back", "huge_index",
    "hugetlb_counters", "hugetlb_reserve", "is_owner", "put_hugetlb", "resv_of", "set_overcommit",
    "set_pool_size", "shared_resv", "take", "take_reserved",
]  # fmt: skip

HUGE: Final = 1 << PMD_SHIFT
"""Pages of a huge page: 2 MiB."""
_NEW: Final = int(KPF.HUGE)


@dataclass(slots=True, eq=False)
class HugetlbResv:
    """What a file's shared mappings, or one private mapping, have reserved (`struct resv_map`)."""

    unused: set[int] = field(default_factory=set)
    """Huge pages, by their number in the file, that are reserved and were not taken."""
    owner: bool = False
    """HPAGE_RESV_OWNER: of a private mapping that was made by mmap, and not by fork."""
    unmapped: bool = False
    """HPAGE_RESV_UNMAPPED: a page was taken from it for the owner, so it gets nothing any more."""


@dataclass(slots=True)
class HugetlbPool:
    """Huge pages of 2 MiB (`struct hstate`)."""

    free: list[int] = field(default_factory=list)
    """First frames of free pages; the last one is taken first."""
    total: int = 0
    surplus: int = 0
    """Of them, more than the pool should have."""
    overcommit: int = 0
    """nr_overcommit_hugepages: how many may be surplus."""
    resvs: list[HugetlbResv] = field(default_factory=list)
    """Everything that was reserved."""
    of_file: dict[int, HugetlbResv] = field(default_factory=dict)
    """Number of a file -> what its shared mappings have reserved."""
    cache: dict[tuple[int, int], int] = field(default_factory=dict)
    """(file, index) -> first frame: pages of files."""
    raw_errors: dict[int, set[int]] = field(default_factory=dict)
    """First frame -> frames in it that failed (`struct raw_hwp_page`)."""

    @property
    def reserved(self) -> int:
        """resv_huge_pages."""
        return sum(len(resv.unused) for resv in self.resvs)

    @property
    def available(self) -> int:
        """available_huge_pages(): free ones that nobody has reserved."""
        return len(self.free) - self.reserved


def set_pool_size(kernel: Kernel, wanted: int) -> None:
    """Write /proc/sys/vm/nr_hugepages: as many as can be had; those in use become surplus."""
    pool = kernel.hugetlb
    while pool.surplus and wanted > pool.total - pool.surplus:
        pool.surplus -= 1
    while pool.total - pool.surplus < wanted and _grow(kernel):
        pass
    least = max(wanted, pool.reserved + pool.total - len(pool.free))
    while pool.total - pool.surplus > least:
        _release(kernel, pool.free.pop())
    while pool.total - pool.surplus > wanted:
        pool.surplus += 1
        kernel.say("set_max_huge_pages: a page in use, or reserved, is surplus now")


def set_overcommit(kernel: Kernel, most: int) -> None:
    """Write /proc/sys/vm/nr_overcommit_hugepages."""
    kernel.hugetlb.overcommit = most


def hugetlb_reserve(
    kernel: Kernel, flags: VM, inode: AddressSpace, first: int, end: int
) -> HugetlbResv | None:
    """hugetlb_reserve_pages(): for pages [first, end) of a file that are mapped. Raises Errno.

    A shared mapping reserves what neither is in the file nor reserved already, a private one every
    page, for itself alone: a child of fork has none. Returns what a private area keeps.
    """
    if flags & VM.NORESERVE:
        return None
    pool = kernel.hugetlb
    private = not flags & VM.MAYSHARE
    resv = HugetlbResv(owner=True) if private else shared_resv(kernel, inode)
    wanted = {
        index
        for index in range(first // HUGE, -(-end // HUGE))
        if index not in resv.unused and (private or (inode.number, index) not in pool.cache)
    }
    _gather_surplus(kernel, len(wanted))
    resv.unused |= wanted
    if private:
        pool.resvs.append(resv)
    return resv if private else None


def take(kernel: Kernel, vma: Vma, vpn: int, *, avoid_reserve: bool = False) -> int:
    """alloc_hugetlb_folio(): by the area's reservation, or what nobody has reserved.

    Raises OutOfMemory; the kernel's error is ENOSPC.
    """
    resv = resv_of(kernel, vma)
    return take_reserved(kernel, resv, huge_index(vma, vpn), avoid_reserve=avoid_reserve)


def take_reserved(
    kernel: Kernel, resv: HugetlbResv | None, index: int, *, avoid_reserve: bool = False
) -> int:
    """The same for a page of a file. Raises OutOfMemory."""
    pool = kernel.hugetlb
    mine = resv is not None and index in resv.unused and not avoid_reserve
    # dequeue_hugetlb_folio_node_exact() passes over pages that failed.
    usable = [head for head in pool.free if head not in pool.raw_errors]
    if usable and (mine or pool.available > 0):
        if mine:
            assert resv is not None
            resv.unused.discard(index)
        kernel.say(
            f"alloc_hugetlb_folio: {'reserved by this mapping' if mine else 'nobody had it'}"
        )
        pool.free.remove(usable[-1])
        return usable[-1]
    if not _grow(kernel, surplus=True):
        raise OutOfMemory
    if mine:
        assert resv is not None
        resv.unused.discard(index)
    kernel.say("alloc_surplus_hugetlb_folio: beyond the pool's size, by overcommit")
    return pool.free.pop()


def put_hugetlb(kernel: Kernel, pfn: int, count: int = 1) -> None:
    """Drop references; the last one gives the page back to the pool (`free_huge_folio`)."""
    head = kernel.head(pfn)
    if kernel.f.refs[head] > count:
        kernel.f.refs[head] -= count
        return
    assert kernel.f.refs[head] == count
    f, pool = kernel.f, kernel.hugetlb
    # DIRTY stays, as nothing in the kernel clears it: who gets the page next shows it.
    kept = f.flags[head] & int(KPF.DIRTY | KPF.HWPOISON)
    for column in (f.flags, f.content, f.maps):
        array(column)[head : head + HUGE] = 0
    f.flags[head] = _NEW | kept
    f.refs[head], f.entire[head], f.pins[head], f.mapping[head], f.pgoff[head] = 1, 0, 0, 0, 0
    if pool.surplus:
        pool.surplus -= 1
        _release(kernel, head)
        kernel.say("free_huge_folio: a surplus page goes back to the allocator")
    else:
        pool.free.append(head)


def area_gone(kernel: Kernel, vma: Vma) -> None:
    """hugetlb_vm_op_close(): what a private area had reserved and not used is free again."""
    resv = vma.resv
    if resv is None or not resv.owner:
        return
    low, high = vma.pgoff // HUGE, (vma.pgoff + vma.pages) // HUGE
    gone = {index for index in resv.unused if low <= index < high}
    give_back(kernel, resv, gone)
    if not resv.unused and resv in kernel.hugetlb.resvs and not _is_used(vma, resv):
        kernel.hugetlb.resvs.remove(resv)


def give_back(kernel: Kernel, resv: HugetlbResv, indexes: set[int]) -> None:
    """hugetlb_acct_memory() of less: reservations end, and surplus pages held for them go."""
    pool = kernel.hugetlb
    resv.unused -= indexes
    for _ in range(min(len(indexes), pool.surplus)):
        if not pool.free:
            break
        pool.surplus -= 1
        _release(kernel, pool.free.pop())


def hugetlb_counters(kernel: Kernel) -> dict[str, int]:
    """The pool as /proc/meminfo counts it, in huge pages."""
    pool = kernel.hugetlb
    return {
        "meminfo.HugePages_Total": pool.total,
        "meminfo.HugePages_Free": len(pool.free),
        "meminfo.HugePages_Rsvd": pool.reserved,
        "meminfo.HugePages_Surp": pool.surplus,
    }


def shared_resv(kernel: Kernel, inode: AddressSpace) -> HugetlbResv:
    """What the shared mappings of a file have reserved."""
    pool = kernel.hugetlb
    found = pool.of_file.get(inode.number)
    if found is None:
        found = pool.of_file[inode.number] = HugetlbResv()
        pool.resvs.append(found)
    return found


def resv_of(kernel: Kernel, vma: Vma) -> HugetlbResv | None:
    """vma_resv_map(): by whose reservations an area takes pages."""
    if not vma.flags & VM.MAYSHARE:
        return vma.resv
    assert vma.file is not None
    return kernel.hugetlb.of_file.get(vma.file.mapping.number)


def is_owner(vma: Vma) -> bool:
    """is_vma_resv_set(HPAGE_RESV_OWNER): a private mapping, not by fork, that has reserved."""
    return not vma.flags & VM.MAYSHARE and vma.resv is not None and vma.resv.owner


def huge_index(vma: Vma, vpn: int) -> int:
    """vma_hugecache_offset(): number of the huge page in its file."""
    return vma.index_of(vpn) // HUGE


def cache_refs(kernel: Kernel) -> int:
    """References that a file holds on a huge page of it."""
    return HUGE if kernel.rules.hugetlb_cache_counts_pages else 1


# --- helpers -----------------------------------------------------------------------------


def _grow(kernel: Kernel, *, surplus: bool = False) -> bool:
    """One more page from the allocator, at the end of the free ones."""
    pool = kernel.hugetlb
    if surplus and pool.surplus >= pool.overcommit:
        return False
    try:
        pool.free.append(kernel.alloc_folio(MemoryType.HUGETLB, PMD_SHIFT, flags=_NEW))
    except OutOfMemory:
        return False
    pool.total += 1
    pool.surplus += surplus
    return True


def _release(kernel: Kernel, head: int) -> None:
    """remove_hugetlb_folio(), update_and_free_hugetlb_folio()."""
    kernel.clear_flags(head, _NEW | int(KPF.DIRTY))
    kernel.put(head)
    kernel.hugetlb.total -= 1


def _gather_surplus(kernel: Kernel, more: int) -> None:
    """gather_surplus_pages(): what is missing for a reservation, beyond the pool's size."""
    pool = kernel.hugetlb
    missing = more - pool.available
    for made in range(missing):
        if not _grow(kernel, surplus=True):
            for _ in range(made):
                pool.surplus -= 1
                _release(kernel, pool.free.pop())
            raise OutOfMemory
    if missing > 0:
        kernel.say(f"gather_surplus_pages: {missing} pages beyond the pool's size")


def _is_used(gone: Vma, resv: HugetlbResv) -> bool:
    assert gone.file is not None
    return any(vma.resv is resv and vma is not gone for _, vma in gone.file.mapping.vmas)


def _held(kernel: Kernel) -> Iterator[tuple[int, int]]:
    """The pool keeps a reference to what is free, for the model's sake; the cache its own."""
    for head in kernel.hugetlb.free:
        yield head, 1
    for head in kernel.hugetlb.cache.values():
        yield head, cache_refs(kernel)


HOLDERS.append(_held)
