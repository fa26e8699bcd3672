"""hugetlb: huge pages out of a pool, reserved when they are mapped.

A page of the pool is a folio of order 9 that is never on an LRU list.  mmap reserves; a fault
takes from the pool, by the reservation or from what nobody has reserved, or gets SIGBUS
(`mm/hugetlb.c:hugetlb_fault, hugetlb_no_page, hugetlb_wp, hugetlb_reserve_pages @6.12`).

Ranges are in pages of 4 KiB, as everywhere; `index` is the number of the huge page in its file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from memdesc.kernels.kpageflags import KPF
from memdesc.mm import entries as e
from memdesc.mm.check import HOLDERS
from memdesc.mm.files import HUGETLBFS, AddressSpace, OpenFile, new_inode
from memdesc.mm.page_tables import PMD_SHIFT, Pmd
from memdesc.mm.process import Errno, Mm, OutOfMemory, Signal
from memdesc.mm.rmap import anon_vma_prepare, move_anon_rmap
from memdesc.mm.vma import VM, Vma
from memdesc.model.compiled import array
from memdesc.types import MemoryType

if TYPE_CHECKING:
    from memdesc.mm.kernel import Kernel

__all__ = [
    "HugetlbPool",
    "area_gone",
    "copy_hugetlb",
    "hugetlb_counters",
    "hugetlb_fault",
    "hugetlb_file",
    "hugetlb_reserve",
    "put_hugetlb",
    "remove_pages",
    "set_pool_size",
    "zap_hugetlb",
]

HUGE: Final = 1 << PMD_SHIFT
"""Pages of a huge page: 2 MiB."""
_NEW: Final = int(KPF.HUGE)


@dataclass(slots=True)
class HugetlbPool:
    """Huge pages of 2 MiB (`struct hstate`)."""

    free: list[int] = field(default_factory=list)
    """First frames of free pages; the last one is taken first."""
    total: int = 0
    reserved: dict[tuple[int, int, int], None] = field(default_factory=dict)
    """What is reserved and not used yet: (address space, or 0 of a shared mapping; file; index)."""
    cache: dict[tuple[int, int], int] = field(default_factory=dict)
    """(file, index) -> first frame: pages of shared mappings."""

    @property
    def available(self) -> int:
        """Free pages that nobody has reserved."""
        return len(self.free) - len(self.reserved)


def set_pool_size(kernel: Kernel, wanted: int) -> None:
    """Write /proc/sys/vm/nr_hugepages: as many as can be had; those in use stay."""
    pool = kernel.hugetlb
    while pool.total < wanted:
        try:
            pool.free.append(kernel.alloc_folio(MemoryType.HUGETLB, PMD_SHIFT, flags=_NEW))
        except OutOfMemory:
            break
        pool.total += 1
    while pool.total > wanted and pool.available > 0:
        kernel.clear_flags(pool.free[-1], _NEW)
        kernel.put(pool.free.pop())
        pool.total -= 1


def hugetlb_file(kernel: Kernel) -> OpenFile:
    """The file behind MAP_HUGETLB | MAP_ANONYMOUS. The caller maps it and closes it."""
    inode = new_inode(kernel, HUGETLBFS, "/anon_hugepage (deleted)")
    inode.opens = 1
    return OpenFile(inode)


def hugetlb_reserve(
    kernel: Kernel, mm: Mm, flags: VM, inode: AddressSpace, first: int, end: int
) -> None:
    """hugetlb_reserve_pages(): for pages [first, end) of a file that are mapped. Raises Errno.

    A shared mapping reserves what neither is in the file nor reserved already, a private one every
    page, for this address space alone: a child of fork has none.
    """
    if flags & VM.NORESERVE:
        return
    pool = kernel.hugetlb
    wanted = [
        key
        for index in range(first // HUGE, -(-end // HUGE))
        if (key := _key(mm, flags, inode, index)) not in pool.reserved
        and (key[0] or (inode.number, index) not in pool.cache)
    ]
    if len(wanted) > pool.available:
        raise Errno("ENOMEM")
    pool.reserved.update(dict.fromkeys(wanted))


def hugetlb_fault(
    kernel: Kernel, mm: Mm, vma: Vma, vpn: int, *, write: bool, unshare: bool = False
) -> None:
    """A fault in a hugetlb area. Raises Signal: SIGBUS where the pool has nothing left."""
    vpn &= ~(HUGE - 1)
    tables = mm.tables
    tables.alloc_upper(vpn)
    pmd = tables.pmds.setdefault(vpn >> PMD_SHIFT, Pmd())
    if not pmd.huge:
        _no_page(kernel, mm, vma, vpn, pmd, write=write)
    elif not e.is_present(pmd.huge):
        raise Signal("SIGBUS", "MCEERR_AR")
    elif (write or unshare) and not pmd.huge & e.RW:
        _wp(kernel, mm, vma, vpn, pmd, unshare=unshare)
    else:
        pmd.huge |= e.ACCESSED | (e.DIRTY if write else 0)


def zap_hugetlb(kernel: Kernel, mm: Mm, vma: Vma, vpn_start: int, vpn_end: int) -> None:
    """__unmap_hugepage_range(): unmap whole huge pages."""
    for low, _, pmd in mm.tables.runs(vpn_start, vpn_end):
        if pmd.huge:
            _unmap(kernel, mm, vma, low, pmd)


def copy_hugetlb(kernel: Kernel, source: Mm, target: Mm, vma: Vma, twin: Vma) -> None:
    """copy_hugetlb_page_range(): fork of an area; pinned pages get a copy at once."""
    for low, _, pmd in source.tables.runs(vma.vpn_start, vma.vpn_end):
        if not pmd.huge:
            continue
        target.tables.alloc_upper(low)
        entry = pmd.huge
        head = e.pfn_of(entry)
        if e.is_present(entry):
            if kernel.exclusive(head):
                if source.has_pinned and kernel.may_be_pinned(head):
                    copy = _take(kernel, target, twin, low)
                    _copy_content(kernel, head, copy)
                    _map_anon(kernel, target, twin, low, copy)
                    kernel.say("copy_hugetlb_page_range: pinned, the child gets a copy at once")
                    continue
                kernel.set_exclusive(head, False)
            if vma.is_cow:
                pmd.huge = entry = entry & ~e.RW
            kernel.get(head)
            kernel.f.entire[head] += 1
        target.tables.pmds[low >> PMD_SHIFT] = Pmd(huge=entry & ~e.UFFD_WP)


def put_hugetlb(kernel: Kernel, pfn: int, count: int = 1) -> None:
    """Drop references; the last one gives the page back to the pool (`free_huge_folio`)."""
    head = kernel.head(pfn)
    if kernel.f.refs[head] > count:
        kernel.f.refs[head] -= count
        return
    assert kernel.f.refs[head] == count
    f = kernel.f
    # DIRTY stays, as nothing in the kernel clears it: who gets the page next shows it.
    dirty = f.flags[head] & int(KPF.DIRTY)
    for column in (f.flags, f.content, f.maps):
        array(column)[head : head + HUGE] = 0
    f.flags[head] = _NEW | dirty
    f.refs[head], f.entire[head], f.pins[head], f.mapping[head], f.pgoff[head] = 1, 0, 0, 0, 0
    kernel.hugetlb.free.append(head)


def remove_pages(kernel: Kernel, inode: AddressSpace, first: int, end: int | None = None) -> None:
    """remove_inode_hugepages(): pages of a file and their reservations go, when it is cut.

    In pages of 4 KiB; `end` None: to the end.
    """
    pool = kernel.hugetlb
    low, high = -(-first // HUGE), None if end is None else end // HUGE
    inside = range(low, 1 << 40 if high is None else high)
    for number, index in [k for k in pool.cache if k[0] == inode.number and k[1] in inside]:
        for mm, vma in tuple(inode.vmas):
            vpn = vma.vpn_of(index * HUGE)
            pmd = mm.tables.pmd_of(vpn) if vpn is not None else None
            if vpn is not None and pmd is not None and pmd.huge:
                _unmap(kernel, mm, vma, vpn, pmd)
        _drop_from_cache(kernel, number, index)
    for key in [k for k in pool.reserved if k[1] == inode.number and k[2] in inside and not k[0]]:
        del pool.reserved[key]


def area_gone(kernel: Kernel, mm: Mm, vma: Vma) -> None:
    """hugetlb_vm_op_close(): what a private area had reserved and not used is free again."""
    if vma.flags & VM.MAYSHARE or vma.file is None:
        return
    for index in range(vma.pgoff // HUGE, (vma.pgoff + vma.pages) // HUGE):
        kernel.hugetlb.reserved.pop(_key(mm, vma.flags, vma.file.mapping, index), None)


def hugetlb_counters(kernel: Kernel) -> dict[str, int]:
    """The pool as /proc/meminfo counts it, in huge pages."""
    pool = kernel.hugetlb
    return {
        "meminfo.HugePages_Total": pool.total,
        "meminfo.HugePages_Free": len(pool.free),
        "meminfo.HugePages_Rsvd": len(pool.reserved),
    }


# --- helpers -----------------------------------------------------------------------------


def _key(mm: Mm, flags: VM, inode: AddressSpace, index: int) -> tuple[int, int, int]:
    return (0 if flags & VM.MAYSHARE or flags & VM.SHARED else id(mm), inode.number, index)


def _index(vma: Vma, vpn: int) -> int:
    return vma.index_of(vpn) // HUGE


def _take(kernel: Kernel, mm: Mm, vma: Vma, vpn: int) -> int:
    """alloc_hugetlb_folio(): by the area's reservation, or what nobody has reserved."""
    pool = kernel.hugetlb
    assert vma.file is not None
    key = _key(mm, vma.flags, vma.file.mapping, _index(vma, vpn))
    if key in pool.reserved:
        del pool.reserved[key]
        kernel.say("alloc_hugetlb_folio: reserved by this mapping")
    elif pool.available > 0:
        kernel.say("alloc_hugetlb_folio: free, and nobody's")
    else:
        raise OutOfMemory
    return pool.free.pop()


def _no_page(kernel: Kernel, mm: Mm, vma: Vma, vpn: int, pmd: Pmd, *, write: bool) -> None:
    assert vma.file is not None
    pool, inode = kernel.hugetlb, vma.file.mapping
    index = _index(vma, vpn)
    head = pool.cache.get((inode.number, index))
    shared = bool(vma.flags & VM.MAYSHARE)
    if head is None:
        if inode.size and index * HUGE * 4096 >= inode.size:
            raise Signal("SIGBUS", "ADRERR")
        try:
            head = _take(kernel, mm, vma, vpn)
        except OutOfMemory:
            kernel.say("hugetlb_no_page: the pool has nothing for this mapping")
            raise Signal("SIGBUS", "ADRERR") from None
        kernel.set_flags(head, KPF.UPTODATE)
        if shared:
            _add_to_cache(kernel, inode, index, head)
        else:
            anon_vma_prepare(kernel, mm, vma)
            _map_anon(kernel, mm, vma, vpn, head, writable=write)
            return
    kernel.get(head)
    kernel.f.entire[head] += 1
    bits = e.HUGE | e.ACCESSED
    if shared and vma.flags & VM.WRITE:
        bits |= e.RW | e.DIRTY
    pmd.huge = e.present(head, bits)
    if write and not shared:
        _wp(kernel, mm, vma, vpn, pmd, unshare=False)


def _map_anon(
    kernel: Kernel, mm: Mm, vma: Vma, vpn: int, head: int, *, writable: bool = True
) -> None:
    """hugetlb_add_new_anon_rmap() and the entry: takes over the caller's reference."""
    assert vma.anon_vma is not None
    kernel.set_flags(head, KPF.UPTODATE | KPF.ANON)
    kernel.set_exclusive(head, True)
    kernel.f.mapping[head] = vma.anon_vma.number
    kernel.f.pgoff[head] = vma.index_of(vpn)
    kernel.f.entire[head] = 1
    bits = e.HUGE | e.ACCESSED
    if writable and vma.flags & VM.WRITE:
        bits |= e.RW | e.DIRTY
    mm.tables.pmds[vpn >> PMD_SHIFT] = Pmd(huge=e.present(head, bits))


def _wp(kernel: Kernel, mm: Mm, vma: Vma, vpn: int, pmd: Pmd, *, unshare: bool) -> None:
    """hugetlb_wp(): reuse by map count alone, whatever references there are; or a copy."""
    old = e.pfn_of(pmd.huge)
    if vma.flags & VM.MAYSHARE:
        pmd.huge |= e.RW | e.DIRTY | e.ACCESSED
        return
    anon = kernel.flags(old) & KPF.ANON
    if anon and kernel.f.entire[old] == 1:
        if not kernel.exclusive(old):
            move_anon_rmap(kernel, old, vma)
            kernel.set_exclusive(old, True)
        if not unshare:
            pmd.huge |= e.RW | e.DIRTY | e.ACCESSED
        kernel.say("hugetlb_wp: reused, mapped once")
        return
    anon_vma_prepare(kernel, mm, vma)
    kernel.get(old)
    try:
        copy = _take_for_copy(kernel, mm, vma, vpn, old)
    except OutOfMemory:
        kernel.put(old)
        kernel.say("hugetlb_wp: the pool has nothing for a copy")
        raise Signal("SIGBUS", "ADRERR") from None
    if copy is None:
        kernel.put(old)
        _wp(kernel, mm, vma, vpn, pmd, unshare=unshare)
        return
    _copy_content(kernel, old, copy)
    _unmap(kernel, mm, vma, vpn, pmd, copied=True)
    kernel.put(old)
    _map_anon(kernel, mm, vma, vpn, copy, writable=not unshare)
    kernel.say("hugetlb_wp: copied 2 MiB")


def _take_for_copy(kernel: Kernel, mm: Mm, vma: Vma, vpn: int, old: int) -> int | None:
    """A page for a copy; None after the page was taken from everybody else (unmap_ref_private).

    Who has reserved pages must not fail for its children: theirs are unmapped, and they get
    SIGBUS at their next access.
    """
    try:
        return _take(kernel, mm, vma, vpn)
    except OutOfMemory:
        if not kernel.flags(old) & KPF.ANON or not _is_owner(kernel, mm, vma):
            raise
    assert vma.file is not None
    for other_mm, other in tuple(vma.file.mapping.vmas):
        if other is vma or other.flags & VM.MAYSHARE:
            continue
        at = other.vpn_of(vma.index_of(vpn))
        pmd = other_mm.tables.pmd_of(at) if at is not None else None
        if at is not None and pmd is not None and pmd.huge and e.pfn_of(pmd.huge) == old:
            _unmap(kernel, other_mm, other, at, pmd)
    kernel.say("unmap_ref_private: taken from the children, the owner goes on")
    return None


def _is_owner(kernel: Kernel, mm: Mm, vma: Vma) -> bool:
    """HPAGE_RESV_OWNER: the address space that made the private mapping, and not by fork."""
    assert vma.file is not None
    first = vma.file.mapping.vmas[0]
    return first[0] is mm and not vma.flags & VM.NORESERVE


def _unmap(kernel: Kernel, mm: Mm, vma: Vma, vpn: int, pmd: Pmd, *, copied: bool = False) -> None:
    """An entry goes; a dirty one makes the page dirty, anonymous or not, unless it was `copied`."""
    entry, pmd.huge = pmd.huge, 0
    if not e.is_present(entry):
        return
    head = e.pfn_of(entry)
    if entry & e.DIRTY and not copied:
        kernel.set_flags(head, KPF.DIRTY)
    kernel.f.entire[head] -= 1
    anon = kernel.flags(head) & KPF.ANON
    if anon and kernel.refs(head) == 1 and kernel.rules.hugetlb_restores_reserve:
        assert vma.file is not None
        if _is_owner(kernel, mm, vma):
            key = _key(mm, vma.flags, vma.file.mapping, _index(vma, vpn))
            kernel.hugetlb.reserved[key] = None
    kernel.put(head)


def _add_to_cache(kernel: Kernel, inode: AddressSpace, index: int, head: int) -> None:
    """hugetlb_add_to_page_cache(): the caller's reference becomes the cache's."""
    kernel.hugetlb.cache[inode.number, index] = head
    kernel.f.mapping[head] = inode.number
    kernel.f.pgoff[head] = index * HUGE
    kernel.set_flags(head, KPF.DIRTY)
    kernel.get(head, _cache_refs(kernel) - 1)


def _drop_from_cache(kernel: Kernel, number: int, index: int) -> None:
    head = kernel.hugetlb.cache.pop((number, index))
    kernel.f.mapping[head] = 0
    kernel.put(head, _cache_refs(kernel))


def _cache_refs(kernel: Kernel) -> int:
    return HUGE if kernel.rules.hugetlb_cache_counts_pages else 1


def _copy_content(kernel: Kernel, old: int, new: int) -> None:
    content = array(kernel.f.content)
    content[new : new + HUGE] = content[old : old + HUGE]


def _held(kernel: Kernel) -> Iterator[tuple[int, int]]:
    """The pool keeps a reference to what is free, for the model's sake; the cache its own."""
    for head in kernel.hugetlb.free:
        yield head, 1
    for head in kernel.hugetlb.cache.values():
        yield head, _cache_refs(kernel)


HOLDERS.append(_held)
