"""Which processes a large folio knows to map it: at most two (CONFIG_MM_ID, since 6.15).

`include/linux/rmap.h:folio_add_return_large_mapcount, folio_sub_return_large_mapcount @7.2`.  A
folio has two slots for address spaces.  A third one that maps it is not counted by itself: when
the other two are gone, the folio still may be shared as far as anybody knows.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from memdesc.mm.rmap import mappings_of

if TYPE_CHECKING:
    from memdesc.mm.kernel import Kernel
    from memdesc.mm.process import Mm

__all__ = ["MmIds", "inherit", "maybe_mapped_shared", "note_child", "was_noted"]

_NOTED: Final = 1 << 59
"""Of `Frames.flags`, gone with the folio: `MmIds` has a row for it."""
_SLOTS: Final = 2


@dataclass(slots=True)
class MmIds:
    """Slots of folios that a fork shared. Others have the one address space that made them."""

    slots: dict[int, list[Mm]] = field(default_factory=dict)
    """First frame -> who has a slot."""
    counted: dict[int, list[Mm]] = field(default_factory=dict)
    """First frame -> who was looked at, with a slot or without."""


def note_child(kernel: Kernel, pfn: int, source: Mm, target: Mm) -> None:
    """fork maps a page of a large folio in the child, who takes a slot if one is free."""
    head = kernel.head(pfn)
    rows, f = kernel.mm_ids, kernel.f
    if not f.flags[head] & _NOTED:
        f.flags[head] |= _NOTED
        rows.slots[head] = [source]
        rows.counted[head] = [source]
    if any(mm is target for mm in rows.counted[head]):
        return
    rows.counted[head].append(target)
    mapping = _spaces(kernel, head)
    slots = [mm for mm in rows.slots[head] if id(mm) in mapping]
    rows.slots[head] = [*slots, target] if len(slots) < _SLOTS else slots


def maybe_mapped_shared(kernel: Kernel, pfn: int) -> bool:
    """folio_maybe_mapped_shared() of a large folio."""
    head = kernel.head(pfn)
    spaces = _spaces(kernel, head)
    if len(spaces) != 1 or not kernel.f.flags[head] & _NOTED:
        return len(spaces) > 1
    return not any(id(mm) in spaces for mm in kernel.mm_ids.slots[head])


def inherit(kernel: Kernel, head: int, pieces: Iterable[int]) -> None:
    """Large pieces of a folio that was split, and that had a row, keep its slots."""
    rows = kernel.mm_ids
    slots, counted = list(rows.slots[head]), list(rows.counted[head])
    for piece in pieces:
        rows.slots[piece], rows.counted[piece] = list(slots), list(counted)
        kernel.f.flags[piece] |= _NOTED


def was_noted(kernel: Kernel, head: int) -> bool:
    """Whether a folio has a row."""
    return bool(kernel.f.flags[head] & _NOTED)


# --- helpers -----------------------------------------------------------------------------


def _spaces(kernel: Kernel, head: int) -> set[int]:
    """Address spaces that map any page of a folio."""
    pages = kernel.pages_of(head)
    return {id(mm) for page in pages for mm, _, _ in mappings_of(kernel, page)}
