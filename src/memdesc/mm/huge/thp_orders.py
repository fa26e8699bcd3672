"""Which sizes of folios a fault may use: settings, advice, and what fits into the area.

`mm/huge_memory.c:__thp_vma_allowable_orders`, `include/linux/huge_mm.h:
thp_vma_allowable_orders, thp_vma_suitable_order` @6.12; `hugepage_vma_check @6.1`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from memdesc.mm.areas.vma import VM, VM_UFFD, Vma
from memdesc.mm.page_tables import PMD_SHIFT

if TYPE_CHECKING:
    from memdesc.mm.kernel import Kernel
    from memdesc.mm.process import Mm

__all__ = [
    "PMD_ORDER", "allowed_orders", "collapse_orders", "enabled_sizes", "is_suitable",
    "khugepaged_runs", "pmd_allowed", "pmd_enabled", "suitable_orders",
]  # fmt: skip

PMD_ORDER: Final = PMD_SHIFT
"""HPAGE_PMD_ORDER."""

_SIZES: Final = {"thp_16k": 2, "thp_64k": 4}
"""Setting -> order of the folios that it is about."""


def pmd_allowed(kernel: Kernel, mm: Mm, vma: Vma, *, sysfs: bool = True) -> bool:
    """Whether an area may have huge pages at all; `sysfs` False: whatever the settings are.

    MADV_COLLAPSE asks without `sysfs`; it obeys only the area's and the process's own wish.
    """
    return _takes_part(mm, vma) and (not sysfs or pmd_enabled(kernel, vma.flags))


def pmd_enabled(kernel: Kernel, flags: VM) -> bool:
    """Whether settings allow huge pages in anonymous areas with some flags.

    The size has a setting of its own beside the global one since there are other sizes; unless
    it says `inherit`, the global one says nothing about anonymous memory.
    """
    own = kernel.knobs["thp_2m"] if kernel.rules.large_anon_folios else "inherit"
    return _enabled(_resolved(kernel, own), flags)


def allowed_orders(kernel: Kernel, mm: Mm, vma: Vma) -> list[int]:
    """Orders above 0 and below a PMD's that settings allow a fault to use, largest first."""
    if not kernel.rules.large_anon_folios or not _takes_part(mm, vma) or vma.flags & VM_UFFD:
        return []
    return enabled_sizes(kernel, vma.flags)


def collapse_orders(kernel: Kernel, mm: Mm, vma: Vma) -> frozenset[int]:
    """Orders below a PMD's that khugepaged may make in an area (collapse_possible_orders @7.2)."""
    if not kernel.rules.collapses_to_any_size:
        return frozenset()
    return frozenset(allowed_orders(kernel, mm, vma))


def enabled_sizes(kernel: Kernel, flags: VM) -> list[int]:
    """Orders below a PMD's that settings allow in an area with some flags, largest first."""
    found = []
    for name, order in _SIZES.items():
        if _enabled(_resolved(kernel, kernel.knobs[name]), flags):
            found.append(order)
    return sorted(found, reverse=True)


def khugepaged_runs(kernel: Kernel, flags: VM = VM.HUGEPAGE) -> bool:
    """Whether khugepaged has anything to do in anonymous areas with some flags.

    `mm/khugepaged.c:hugepage_pmd_enabled @6.12, hugepage_enabled @7.2`.
    """
    small = kernel.rules.collapses_to_any_size and enabled_sizes(kernel, flags)
    return pmd_enabled(kernel, flags) or bool(small)


def is_suitable(vma: Vma, vpn: int, order: int) -> bool:
    """thp_vma_suitable_order(): the aligned range that holds a page lies wholly in the area.

    A private mapping of a file must also be aligned like the file's pages.
    """
    low = vpn >> order << order
    if vma.file is not None and (vma.vpn_start - vma.pgoff) & ((1 << order) - 1):
        return False
    return vma.vpn_start <= low and low + (1 << order) <= vma.vpn_end


def suitable_orders(kernel: Kernel, mm: Mm, vma: Vma, vpn: int) -> list[int]:
    """`allowed_orders` whose range around a page fits."""
    return [o for o in allowed_orders(kernel, mm, vma) if is_suitable(vma, vpn, o)]


# --- helpers -----------------------------------------------------------------------------


def _takes_part(mm: Mm, vma: Vma) -> bool:
    """vma_thp_disabled() and the kinds of areas that never have any."""
    if vma.flags & (VM.NOHUGEPAGE | VM.HUGETLB | VM.PFNMAP | VM.IO | VM.DONTEXPAND | VM.MIXEDMAP):
        return False
    return not mm.thp_disabled and vma.is_anonymous


def _resolved(kernel: Kernel, word: str) -> str:
    """What a setting of one size says."""
    return kernel.knobs["thp"] if word == "inherit" else word


def _enabled(word: str, flags: VM) -> bool:
    return word == "always" or (word == "madvise" and bool(flags & VM.HUGEPAGE))
