"""The fast path of get_user_pages: page tables without locks, and why it gives up.

`mm/gup.c:gup_fast, gup_fast_pte_range, gup_fast_folio_allowed @6.12
(internal_get_user_pages_fast, lockless_pages_from_mm @6.1)`.  It never looks at areas: what the
entry allows is allowed.  At the first page that it cannot take it stops, and the slow path does
that page and all that follow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from memdesc.kernels.kpageflags import KPF
from memdesc.mm import entries as e
from memdesc.mm.areas.pkeys import pkey_allows
from memdesc.mm.process import Errno, Mm
from memdesc.mm.references.gup import FOLL, get_pages_slow, grab, must_unshare, start
from memdesc.mm.references.gup_longterm import is_longterm_pinnable, longterm

if TYPE_CHECKING:
    from memdesc.mm.kernel import Kernel

__all__ = ["fast"]


def fast(kernel: Kernel, mm: Mm, vpn: int, count: int, flags: FOLL) -> list[int]:
    """Pages of the process that runs; the slow path does what is left. Raises Errno."""
    start(mm, flags)
    pages: list[int] = []
    why = ""
    while len(pages) < count and not why:
        entry = mm.tables.entry(vpn + len(pages))
        why = reason_for_slow(kernel, flags, entry) or _key(mm, vpn + len(pages), flags)
        if not why:
            pfn = e.pfn_of(entry)
            grab(kernel, pfn, flags)
            kernel.set_flags(pfn, int(KPF.REFERENCED))
            pages.append(pfn)
    if not why:
        kernel.say("gup_fast: all pages without a lock")
        return pages
    kernel.say(f"gup_fast: {len(pages)} pages, then the slow path: {why}")
    if flags & FOLL.FAST_ONLY:
        return pages
    path = longterm if flags & FOLL.LONGTERM else get_pages_slow
    try:
        rest = path(kernel, mm, vpn + len(pages), count - len(pages), flags | FOLL.TOUCH)
    except Errno:
        if not pages:
            raise
        return pages
    return pages + rest


def reason_for_slow(kernel: Kernel, flags: FOLL, entry: int) -> str:
    """Why the fast path does not take a page; "" where it does."""
    if not e.is_present(entry):
        return "nothing is present"
    if not entry & e.PRESENT:
        return "PROT_NONE"
    if flags & FOLL.WRITE and not entry & e.RW:
        return "the entry is read-only"
    if entry & e.SPECIAL:
        return "a special entry"
    pfn = e.pfn_of(entry)
    if flags & FOLL.LONGTERM and not is_longterm_pinnable(kernel, pfn):
        return "not a place for long"
    if not _folio_allowed(kernel, flags, pfn):
        return "a page of a file, to be written for long, or a secret"
    if not entry & e.RW and must_unshare(kernel, None, flags, pfn, entry):
        return "not exclusive"
    return ""


# --- helpers -----------------------------------------------------------------------------


def _key(mm: Mm, vpn: int, flags: FOLL) -> str:
    """pte_access_permitted(): the key is in the entry."""
    vma = mm.vmas.find(vpn) if mm.pkru else None
    if vma is None or pkey_allows(mm, vma, write=bool(flags & FOLL.WRITE)):
        return ""
    return "the protection key"


def _folio_allowed(kernel: Kernel, flags: FOLL, pfn: int) -> bool:
    """gup_fast_folio_allowed(): no secrets, and files only where nobody tracks writes."""
    if kernel.flags(pfn) & (KPF.ANON | KPF.HUGE):
        return True
    mapping = kernel.mappings.get(int(kernel.f.mapping[kernel.head(pfn)]))
    fs = getattr(mapping, "fs", None)
    if fs is not None and fs.name == "secretmem":
        return False
    long_write = FOLL.PIN | FOLL.LONGTERM | FOLL.WRITE
    tracked = kernel.rules.refuses_longterm_file_writes and flags & long_write == long_write
    # Without a file: a driver's page, or one that was truncated. Nobody can tell here.
    return not tracked or bool(mapping is not None and mapping.is_shmem)
