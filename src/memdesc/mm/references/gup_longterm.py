"""FOLL_LONGTERM: what is kept for long must not lie where memory is to stay movable.

`mm/gup.c:__gup_longterm_locked, collect_longterm_unpinnable_folios,
migrate_longterm_unpinnable_folios; include/linux/mm.h:folio_is_longterm_pinnable @6.12`.  Pins on
such places are given back, the pages are migrated, and everything begins again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from memdesc.kernels.allocator import MIGRATETYPES
from memdesc.kernels.gfp import GFP
from memdesc.mm.migrate import migrate_folio
from memdesc.mm.process import Errno, Mm
from memdesc.mm.references.gup import FOLL, get_pages_slow, unpin_user_pages
from memdesc.model.compiled import array
from memdesc.model.described import KIND_CODES
from memdesc.model.slab_state import K_GFP, KIND_FIELDS
from memdesc.model.state import ISOLATE, ZONE_MOVABLE
from memdesc.types import MemoryType

if TYPE_CHECKING:
    from memdesc.mm.kernel import Kernel

__all__ = ["is_longterm_pinnable", "longterm"]


def is_longterm_pinnable(kernel: Kernel, pfn: int) -> bool:
    """folio_is_longterm_pinnable(): not in ZONE_MOVABLE, and with CMA not in an isolated block."""
    if pfn == kernel.zero_pfn:
        return True
    pages = kernel.machine.pages
    zone = next(z for z in pages.layout.zones if z.pfn_start <= pfn < z.pfn_end)
    if zone.type == ZONE_MOVABLE:
        return False
    if pages.rules.migratetypes <= len(MIGRATETYPES):
        return True  # no CMA: isolated blocks are not asked for
    return int(array(pages.state.block)[pfn >> pages.rules.pageblock_order]) != ISOLATE


def longterm(kernel: Kernel, mm: Mm, vpn: int, count: int, flags: FOLL) -> list[int]:
    """__gup_longterm_locked(): until every page is in a place for long. Raises Errno."""
    while True:
        pages = get_pages_slow(kernel, mm, vpn, count, flags)
        unpinnable = dict.fromkeys(
            kernel.head(pfn) for pfn in pages if not is_longterm_pinnable(kernel, pfn)
        )
        if not unpinnable:
            return pages
        kernel.say(f"collect_longterm_unpinnable_folios: {len(unpinnable)} must move, pins go back")
        unpin_user_pages(kernel, pages)
        kernel.drain()
        _migrate(kernel, list(unpinnable))


# --- helpers -----------------------------------------------------------------------------


def _migrate(kernel: Kernel, heads: list[int]) -> None:
    """migrate_longterm_unpinnable_folios(): to frames that GFP_USER gives. Raises Errno."""
    with _requests(kernel, {kernel.type_at(head) for head in heads}, GFP.USER):
        failed = [head for head in heads if not migrate_folio(kernel, head)]
    if failed:
        kernel.say("migrate_longterm_unpinnable_folios: somebody else holds one, ENOMEM")
        raise Errno("ENOMEM")
    kernel.say(f"migrate_longterm_unpinnable_folios: {len(heads)} moved, once more")


@contextmanager
def _requests(kernel: Kernel, kinds: Iterable[MemoryType], gfp: GFP) -> Iterator[None]:
    """Allocate memory of some types by another request for a while."""
    rows = array(kernel.machine.slabs.state.kind).reshape(-1, KIND_FIELDS)
    places = [(rows[KIND_CODES[kind]], int(rows[KIND_CODES[kind]][K_GFP])) for kind in kinds]
    for row, _ in places:
        row[K_GFP] = int(gfp)
    try:
        yield
    finally:
        for row, before in places:
            row[K_GFP] = before
