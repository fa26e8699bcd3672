"""Huge pages and other large folios of anonymous memory. (First version: none are made.)"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from memdesc.mm.kernel import Kernel
    from memdesc.mm.process import Mm
    from memdesc.mm.vma import Vma


def try_huge_fault(kernel: Kernel, mm: Mm, vma: Vma, vpn: int, *, write: bool) -> bool:
    """A fault where nothing maps the 2 MiB range: whether a huge page resolved it."""
    return False


def huge_pmd_fault(
    kernel: Kernel, mm: Mm, vma: Vma, vpn: int, *, write: bool, unshare: bool
) -> bool:
    """A fault at a PMD entry; False after it was split, so that the fault goes on below."""
    raise NotImplementedError


def try_large_anon(kernel: Kernel, mm: Mm, vma: Vma, vpn: int) -> bool:
    """alloc_anon_folio() with an order above 0: whether it was done."""
    return False


def wants_large(kernel: Kernel, mm: Mm, vma: Vma, vpn: int) -> bool:
    """Whether a write fault at a page may be resolved by more than one page."""
    return False


def split_pmd_at(kernel: Kernel, mm: Mm, vma: Vma, vpn: int) -> None:
    """Split the PMD entry that crosses an address, if there is one."""


def copy_huge_pmd(kernel: Kernel, source: Mm, target: Mm, vma: Vma, twin: Vma, vpn: int) -> bool:
    """fork at a PMD entry; False after it was split."""
    raise NotImplementedError


def zap_huge_pmd(kernel: Kernel, mm: Mm, vma: Vma, vpn_start: int, vpn_end: int) -> bool:
    """Unmap a PMD entry, or split it where the range is only a part of it (False)."""
    raise NotImplementedError


def page_unmapped(kernel: Kernel, pfn: int) -> None:
    """An entry of the lowest level that mapped a page of a large folio is gone."""
    raise NotImplementedError
