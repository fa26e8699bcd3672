"""mremap: areas grow, shrink and move, with the entries of their pages.

`mm/mremap.c:do_mremap, mremap_to, move_vma, move_page_tables, remap_move @7.2`;
`mm/mremap.c:vma_to_resize @6.12`; `mm/vma.c:copy_vma @6.12`.  Pages are not touched: their
entries, or whole tables of them, are linked elsewhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from memdesc.mm import entries as e
from memdesc.mm.areas.accounting import check_commit, check_expand, check_lock_more
from memdesc.mm.areas.mmap import munmap
from memdesc.mm.areas.mseal import check_modify
from memdesc.mm.areas.vma import VM, Vma
from memdesc.mm.areas.vma_modify import Proposed, most_areas, split_at, vma_merge_new_range
from memdesc.mm.faults.populate import mm_populate
from memdesc.mm.frames import ENTRIES_SHIFT, TABLE_ENTRIES
from memdesc.mm.huge.huge_memory import move_huge_pmd, split_pmd
from memdesc.mm.ksm.ksm import unmerge_range
from memdesc.mm.page_tables import PMD_SHIFT
from memdesc.mm.process import Errno, Mm, OutOfMemory
from memdesc.mm.rmap import anon_vma_clone, unlink_anon_vmas
from memdesc.mm.userfault.userfault_wp import clear_moved
from memdesc.mm.userfault.userfaultfd import mremap_userfaultfd_prep
from memdesc.model.compiled import array

if TYPE_CHECKING:
    from memdesc.mm.kernel import Kernel

__all__ = ["mremap"]

_LOCKED = VM.LOCKED | VM.LOCKONFAULT
_PUD_SHIFT = 2 * ENTRIES_SHIFT


def mremap(
    kernel: Kernel,
    mm: Mm,
    vpn: int,
    old_pages: int,
    new_pages: int,
    *,
    to: int | None = None,
    dontunmap: bool = False,
) -> None:
    """Resize pages where they are, or move them. Raises Errno.

    `to`: MREMAP_FIXED with that page; what lies there goes. `dontunmap`: MREMAP_DONTUNMAP, the old
    area stays, empty.
    """
    several = kernel.rules.mremap_several_areas
    old_pages, new_pages = _whole_pages(mm, vpn, old_pages, new_pages, to)
    if not new_pages or (dontunmap and old_pages != new_pages):
        raise Errno("EINVAL")
    if to is None:
        _resize(kernel, mm, vpn, old_pages, new_pages)
        return
    if not several:
        check_modify(kernel, _area(mm, vpn))
    if vpn + old_pages > to and to + new_pages > vpn:
        raise Errno("EINVAL")
    if len(mm.vmas) + 2 >= most_areas(kernel) - 3:
        raise OutOfMemory
    if several and old_pages == new_pages:
        _move_areas(kernel, mm, vpn, old_pages, to, dontunmap=dontunmap)
        return
    if several:
        vma = _area(mm, vpn)
        _check(kernel, mm, vma, vpn, min(old_pages, new_pages), new_pages, to, dontunmap=dontunmap)
    _mremap_to(kernel, mm, vpn, old_pages, new_pages, to, dontunmap=dontunmap)


# --- helpers -----------------------------------------------------------------------------


def _area(mm: Mm, vpn: int) -> Vma:
    vma = mm.vmas.find(vpn)
    if vma is None:
        raise Errno("EFAULT")
    return vma


def _check(
    kernel: Kernel,
    mm: Mm,
    vma: Vma,
    vpn: int,
    old_pages: int,
    new_pages: int,
    to: int | None,
    *,
    dontunmap: bool = False,
) -> None:
    """vma_to_resize() @6.12, check_prep_vma() @7.2. Raises Errno."""
    check_modify(kernel, vma)
    if vma.flags & VM.HUGETLB and (
        (vpn | (to or 0)) % TABLE_ENTRIES or _whole(new_pages) > _whole(old_pages)
    ):
        raise Errno("EINVAL")
    special = vma.flags & (VM.DONTEXPAND | VM.PFNMAP)
    if dontunmap and special:
        raise Errno("EINVAL")
    if old_pages > vma.vpn_end - vpn:
        kernel.say("mremap: the range crosses the end of an area")
        raise Errno("EFAULT")
    if new_pages != old_pages and special:
        raise Errno("EFAULT")
    if new_pages > old_pages:
        check_lock_more(kernel, mm, vma.flags, new_pages - old_pages)
        check_expand(kernel, mm, vma.flags, new_pages - old_pages)


def _whole_pages(
    mm: Mm, vpn: int, old_pages: int, new_pages: int, to: int | None
) -> tuple[int, int]:
    """Sizes of hugetlb areas are rounded up, addresses fit, and nothing grows. Raises Errno."""
    vma = mm.vmas.find(vpn)
    if vma is None or not vma.flags & VM.HUGETLB:
        return old_pages, new_pages
    old_pages, new_pages = (_whole(pages) * TABLE_ENTRIES for pages in (old_pages, new_pages))
    if (vpn | (to or 0)) % TABLE_ENTRIES or new_pages > old_pages:
        raise Errno("EINVAL")
    return old_pages, new_pages


def _whole(pages: int) -> int:
    """In huge pages, rounded up."""
    return -(-pages // TABLE_ENTRIES)


def _resize(kernel: Kernel, mm: Mm, vpn: int, old_pages: int, new_pages: int) -> None:
    """Without MREMAP_MAYMOVE: `mremap_at @7.2`."""
    vma = _area(mm, vpn)
    check_modify(kernel, vma)
    if new_pages < old_pages:
        munmap(kernel, mm, vpn + new_pages, vpn + old_pages)
        return
    if new_pages == old_pages:
        return
    _check(kernel, mm, vma, vpn, old_pages, new_pages, None)
    end, grown = vma.vpn_end, new_pages - old_pages
    if vpn + old_pages != end or mm.vmas.overlapping(end, end + grown):
        kernel.say("mremap: cannot grow in place, and may not move")
        raise OutOfMemory
    if vma.flags & VM.ACCOUNT:
        check_commit(kernel, grown)
    if kernel.rules.close_forbids_merge and vma.file is not None and vma.file.has_close:
        mm.vmas.resize(vma, vma.vpn_start, end + grown)
        kernel.say("mremap: an area with a close operation merges with nothing, it is only longer")
    elif vma_merge_new_range(kernel, mm, Proposed.part_of(vma, end, end + grown)) is None:
        raise OutOfMemory
    _populate(kernel, mm, vma, end, end + grown)


def _populate(kernel: Kernel, mm: Mm, vma: Vma, vpn_start: int, vpn_end: int) -> None:
    if vma.flags & VM.LOCKED and vpn_start < vpn_end:
        mm_populate(kernel, mm, vpn_start, vpn_end)


def _move_areas(kernel: Kernel, mm: Mm, vpn: int, pages: int, to: int, *, dontunmap: bool) -> None:
    """remap_move(): each area of the range in turn, with the gaps between them."""
    end, at, shift = vpn + pages, vpn, to - vpn
    while areas := mm.vmas.overlapping(at, end):
        vma = areas[0]
        first = max(vma.vpn_start, vpn)
        if at == vpn and first > vpn:
            break
        at = vma.vpn_end
        count = min(end, at) - first
        if vma.uffd is not None and (first > vpn or count < pages):
            # vma_multi_allowed(): its handler would have to follow each area.
            kernel.say("mremap: userfaultfd has one of several areas")
            raise Errno("EFAULT")
        _check(kernel, mm, vma, first, count, count, first + shift, dontunmap=dontunmap)
        _mremap_to(kernel, mm, first, count, count, first + shift, dontunmap=dontunmap)
    if at == vpn:
        raise Errno("EFAULT")


def _mremap_to(
    kernel: Kernel, mm: Mm, vpn: int, old_pages: int, new_pages: int, to: int, *, dontunmap: bool
) -> None:
    """mremap_to(): until 6.17 the new place is cleared before the arguments were checked."""
    munmap(kernel, mm, to, to + new_pages)
    if old_pages > new_pages:
        munmap(kernel, mm, vpn + new_pages, vpn + old_pages)
        old_pages = new_pages
    vma = _area(mm, vpn)
    _check(kernel, mm, vma, vpn, old_pages, new_pages, to, dontunmap=dontunmap)
    if dontunmap:
        check_expand(kernel, mm, vma.flags, old_pages)
    if len(mm.vmas) >= most_areas(kernel) - 3:
        raise OutOfMemory
    if vma.flags & VM.ACCOUNT:
        check_commit(kernel, new_pages if dontunmap else new_pages - old_pages)
    if vma.flags & VM.MERGEABLE:
        unmerge_range(kernel, mm, vma, vpn, vpn + old_pages)
    vma, new = _copy_vma(kernel, mm, vma, vpn, to, new_pages)
    _move_page_tables(kernel, mm, vma, new, vpn, to, old_pages)
    if vma.flags & VM.HUGETLB:
        # clear_vma_resv_huge_pages(): what was reserved goes along, also for what stays behind.
        vma.resv = None
    if new.uffd is not None:
        mm.may_have_mergeable = True
    mremap_userfaultfd_prep(kernel, new)
    locked = new.flags & VM.LOCKED
    if dontunmap:
        _dontunmap_complete(kernel, mm, vma, new, vpn, old_pages)
    else:
        munmap(kernel, mm, vpn, vpn + old_pages)
    if locked:
        _populate(kernel, mm, new, to + old_pages, to + new_pages)


def _dontunmap_complete(kernel: Kernel, mm: Mm, vma: Vma, new: Vma, vpn: int, pages: int) -> None:
    """The old place stays, and is not locked any more; for that a part of an area is split off.

    So do 6.1.192, 6.12.117 and 7.2.13; the source of 7.0 unlocks the area as a whole.
    """
    mm.may_have_mergeable = True
    if vma is new:
        vma.flags &= ~_LOCKED
        return
    if vma.flags & VM.LOCKED:
        if vma.vpn_start < vpn:
            _, vma = split_at(kernel, mm, vma, vpn)
        if vma.vpn_end > vpn + pages:
            split_at(kernel, mm, vma, vpn + pages)
        vma.flags &= ~_LOCKED
    if (vma.vpn_start, vma.pages) == (vpn, pages):
        unlink_anon_vmas(kernel, mm, vma)
        kernel.say("mremap: the old area stays without pages and without anon_vma")


def _copy_vma(kernel: Kernel, mm: Mm, vma: Vma, vpn: int, to: int, pages: int) -> tuple[Vma, Vma]:
    """copy_vma(): (the old area, which may have become part of the new; the new one)."""
    pgoff = vma.index_of(vpn)
    if vma.is_anonymous and vma.anon_vma is None:
        # No page has an offset in it yet: it is as if it had been made there.
        pgoff = to
    start = vma.vpn_start
    proposed = Proposed(
        to, to + pages, vma.flags, pgoff, vma.file, vma.name, vma.anon_vma, vma, vma.uffd,
        vma.policy,
    )  # fmt: skip
    new = vma_merge_new_range(kernel, mm, proposed)
    if new is not None:
        return (new if new.vpn_start <= start < new.vpn_end else vma), new
    new = vma.copy(to, to + pages, pgoff)
    mm.vmas.insert(new)
    anon_vma_clone(mm, new, vma)
    if new.file is not None:
        new.file.mapped(mm, new)
    return vma, new


def _move_page_tables(
    kernel: Kernel, mm: Mm, old: Vma, new: Vma, vpn: int, to: int, pages: int
) -> None:
    """move_page_tables(): whole tables where both ends are aligned, else entry by entry."""
    tables, end = mm.tables, vpn + pages
    if kernel.rules.mremap_realigns and _may_realign(mm, old, new, vpn, to, pages):
        kernel.say("try_realign_addr: the move begins where the table begins")
        vpn, to = vpn >> PMD_SHIFT << PMD_SHIFT, to >> PMD_SHIFT << PMD_SHIFT
    while vpn < end:
        extent = _extent(vpn, end, to, _PUD_SHIFT)
        if vpn >> _PUD_SHIFT in tables.pmd_tables:
            tables.alloc_pud(to)
            if extent == 1 << _PUD_SHIFT and tables.move_pud(vpn, to):
                kernel.say("move_normal_pud: the tables of 1 GiB move as they are")
            else:
                extent = _extent(vpn, end, to, PMD_SHIFT)
                _move_pmd(kernel, mm, old, vpn, to, extent)
        vpn, to = vpn + extent, to + extent


def _extent(vpn: int, end: int, to: int, shift: int) -> int:
    """get_extent(): pages up to the next boundary of the old or the new place."""
    size = 1 << shift
    return min(size - vpn % size, size - to % size, end - vpn)


def _may_realign(mm: Mm, old: Vma, new: Vma, vpn: int, to: int, pages: int) -> bool:
    """can_realign_addr(): nothing lies between the table's beginning and either area."""
    into = vpn % TABLE_ENTRIES
    if not into or into != to % TABLE_ENTRIES or pages < TABLE_ENTRIES - into:
        return False
    return all(
        vma.vpn_start == start and not mm.vmas.overlapping(start - into, start)
        for vma, start in ((old, vpn), (new, to))
    )


def _move_pmd(kernel: Kernel, mm: Mm, vma: Vma, vpn: int, to: int, extent: int) -> None:
    """What maps one 2 MiB range, or a part of it that lies in one such range at both places."""
    tables = mm.tables
    pmd = tables.pmd_of(vpn)
    if pmd is None or not (pmd.huge or pmd.table):
        return
    tables.alloc_upper(to)
    # Tables of a registered area do not move whole, as their entries change on the way.
    whole = vma.uffd is None
    if extent == TABLE_ENTRIES and to >> PMD_SHIFT not in tables.pmds and (pmd.huge or whole):
        if pmd.huge:
            move_huge_pmd(kernel, mm, mm, vpn, to)
            if not whole:
                tables.pmds[to >> PMD_SHIFT].huge &= ~e.UFFD_WP
        else:
            tables.move_pmd(vpn, to)
            kernel.say("move_normal_pmd: the table moves as it is")
        return
    if pmd.huge:
        split_pmd(kernel, mm, vma, vpn)
    if pmd.table is None:
        return
    target = tables.alloc_pte(to)
    rows = array(kernel.f.entries)
    source = slice(pmd.table.first + vpn % TABLE_ENTRIES, None)
    moved = rows[source][:extent].copy()
    rows[source][:extent] = 0
    here = moved & (e.PRESENT | e.PROTNONE) != 0
    moved[here] |= e.SOFT_DIRTY
    moved[~here & (moved != np.int64(e.NONE_ENTRY))] |= e.SOFT_DIRTY_SWAP
    if not whole:
        clear_moved(moved)
    first = target.first + to % TABLE_ENTRIES
    rows[first : first + extent] = moved
    kernel.say("move_ptes: entries move, their pages stay")
