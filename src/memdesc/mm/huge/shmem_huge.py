"""Which sizes of folios files in memory get: mounts, settings, advice, and what fits.

`mm/shmem.c:shmem_is_huge @6.1; shmem_huge_global_enabled, shmem_allowable_huge_orders,
shmem_suitable_orders @6.12, @7.2`.  A tmpfs goes by its mount option `huge=`; memfds and shared
anonymous memory lie on a mount of the kernel's own, whose option is the setting `shmem_enabled`,
and since 6.11 have settings per size besides.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from memdesc.mm.areas.vma import VM, VM_SPECIAL, Vma
from memdesc.mm.files.inode import SHMEM, TMPFS
from memdesc.mm.huge.thp_orders import PMD_ORDER, is_suitable, pmd_allowed

if TYPE_CHECKING:
    from memdesc.mm.files.inode import AddressSpace
    from memdesc.mm.kernel import Kernel
    from memdesc.mm.process import Mm

__all__ = [
    "FaultAt",
    "collapse_allowed",
    "is_anon_shmem",
    "khugepaged_enter_vma",
    "new_folio_orders",
]

_SIZES: Final = {"thp_shmem_64k": 4, "thp_shmem_2m": PMD_ORDER}
"""Setting of one size -> its order."""
_ALL: Final = tuple(range(PMD_ORDER, 0, -1))
"""THP_ORDERS_ALL_FILE_DEFAULT."""


@dataclass(frozen=True, slots=True)
class FaultAt:
    """Where a page of a file is wanted by a fault, and not by a call about the file."""

    mm: Mm
    vma: Vma
    vpn: int


def new_folio_orders(
    kernel: Kernel, mapping: AddressSpace, index: int, fault: FaultAt | None, write_end: int
) -> list[int]:
    """Orders above 0 that a new folio at an index may have, largest first; the range is empty.

    `write_end`: where a write will end, in pages; 0: none.
    """
    if fault is None:
        found = _allowable(kernel, mapping, None, None, index, write_end)
    else:
        found = _allowable(kernel, mapping, fault.mm, fault.vma, index, write_end)
        if kernel.rules.shmem_sizes:
            # The largest that suits; what is smaller is not asked again.
            while found and not is_suitable(fault.vma, fault.vpn, found[0]):
                found.pop(0)
    return [order for order in found if _is_empty(mapping, index, order)]


def collapse_allowed(kernel: Kernel, mm: Mm, vma: Vma, *, sysfs: bool) -> bool:
    """Whether an area may have huge pages by a collapse; `sysfs` False: MADV_COLLAPSE asks.

    `mm/huge_memory.c:__thp_vma_allowable_orders, file_thp_enabled; hugepage_vma_check @6.1`.
    """
    if vma.file is None:
        return pmd_allowed(kernel, mm, vma, sysfs=sysfs)
    if mm.thp_disabled or vma.flags & (VM.NOHUGEPAGE | VM.HUGETLB | VM_SPECIAL):
        return False
    if not is_suitable(vma, vma.vpn_end - (1 << PMD_ORDER), PMD_ORDER):
        return False
    mapping = vma.file.mapping
    if mapping.is_shmem:
        orders = _allowable(kernel, mapping, mm, vma, vma.pgoff, 0, force=not sysfs)
        return PMD_ORDER in orders
    if not kernel.rules.collapses_files_on_disk or not mapping.fs.has_device:
        return False
    word = kernel.knobs["thp"]
    return not sysfs or word == "always" or (word == "madvise" and bool(vma.flags & VM.HUGEPAGE))


def khugepaged_enter_vma(kernel: Kernel, mm: Mm, vma: Vma) -> None:
    """A new area of a file that may have huge pages: khugepaged will look at the process."""
    if kernel.knobs["thp"] != "never" and collapse_allowed(kernel, mm, vma, sysfs=True):
        mm.khugepaged = True


def is_anon_shmem(vma: Vma) -> bool:
    """vma_is_anon_shmem(): a memfd, or shared anonymous memory."""
    return vma.file is not None and vma.file.mapping.fs is SHMEM


# --- helpers -----------------------------------------------------------------------------


def _allowable(
    kernel: Kernel, mapping: AddressSpace, mm: Mm | None, vma: Vma | None, index: int,
    write_end: int, *, force: bool = False,
) -> list[int]:  # fmt: skip
    """shmem_allowable_huge_orders(). `force`: MADV_COLLAPSE, whatever is set."""
    if vma is not None and mm is not None and (mm.thp_disabled or vma.flags & VM.NOHUGEPAGE):
        return []
    advised = vma is not None and bool(vma.flags & VM.HUGEPAGE)
    orders = _global_orders(kernel, mapping, index, write_end, advised=advised, force=force)
    by_size = kernel.rules.shmem_sizes and vma is not None and is_anon_shmem(vma)
    if not by_size or force or kernel.knobs["thp_shmem"] == "deny":
        return orders
    return _orders_by_size(kernel, mapping, index, advised=advised, inherited=bool(orders))


def _global_orders(
    kernel: Kernel, mapping: AddressSpace, index: int, write_end: int,
    *, advised: bool, force: bool,
) -> list[int]:  # fmt: skip
    """shmem_huge_global_enabled(): by the mount, or by what `shmem_enabled` says of all mounts."""
    setting = kernel.knobs["thp_shmem"]
    if setting == "deny":
        return []
    if force or setting == "force":
        return [PMD_ORDER]
    huge = kernel.knobs["tmpfs_huge"] if mapping.fs is TMPFS else setting
    sizes = list(_ALL) if kernel.rules.tmpfs_takes_all_sizes else [PMD_ORDER]
    if huge == "always" or (huge in ("within_size", "advise") and advised):
        return sizes
    if huge == "within_size":
        end = write_end if kernel.rules.shmem_size_counts_write else 0
        return [order for order in sizes if _is_within(mapping, index, order, end)]
    return []


def _orders_by_size(
    kernel: Kernel, mapping: AddressSpace, index: int, *, advised: bool, inherited: bool
) -> list[int]:
    """The part of shmem_allowable_huge_orders() for memory that no mount option is about."""
    found = []
    everything = kernel.knobs["thp_shmem"] == "force"
    for name, order in _SIZES.items():
        word = kernel.knobs[name]
        if word == "inherit":
            allowed = inherited
        elif everything:
            allowed = False
        else:
            allowed = (
                word == "always"
                or (word == "within_size" and _is_within(mapping, index, order, 0))
                or (word == "advise" and advised)
            )
        if allowed:
            found.append(order)
    return sorted(found, reverse=True)


def _is_within(mapping: AddressSpace, index: int, order: int, write_end: int) -> bool:
    """Whether the aligned range of an index ends before the file does, or will after a write."""
    end = ((index >> order) + 1) << order
    return max(mapping.pages_in_size, write_end) >= end


def _is_empty(mapping: AddressSpace, index: int, order: int) -> bool:
    """Nothing of an aligned range is cached or swapped out."""
    first = index >> order << order
    pages = range(first, first + (1 << order))
    return not any(
        at in mapping.pages or at in mapping.swapped or at in mapping.lost for at in pages
    )
