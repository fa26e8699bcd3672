"""Every invariant of the processes' side of the model: what is counted twice must agree.

References of each folio are recounted from all entries, batches, the page cache, pins and pipes;
map counts from entries; what is on an LRU list from the lists.  Each subsystem adds what it holds
by a function in `HOLDERS`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from memdesc.kernels.kpageflags import KPF
from memdesc.mm import entries as e
from memdesc.mm.check_areas import check_areas
from memdesc.mm.frames import (
    BATCH_ROOM,
    BATCHES,
    C_FRAMES,
    C_LIST_COUNT,
    INACTIVE_FILE,
    LISTS,
    TABLE_ENTRIES,
    UNEVICTABLE_LIST,
    Kind,
)
from memdesc.mm.process import Mm
from memdesc.model.compiled import array

if TYPE_CHECKING:
    from memdesc.mm.kernel import Kernel

__all__ = ["HOLDERS", "INVARIANTS", "check"]

HOLDERS: list[Callable[[Kernel], Iterator[tuple[int, int]]]] = []
"""Functions that yield (frame, references held) for what a subsystem holds."""
INVARIANTS: list[Callable[[Kernel], None]] = []
"""Functions that raise AssertionError where a subsystem's own accounts differ."""


def check(kernel: Kernel) -> None:
    """Raise AssertionError where two of the model's accounts differ."""
    refs: Counter[int] = Counter()
    maps: Counter[int] = Counter()
    entire: Counter[int] = Counter()
    for process in kernel.processes.values():
        process.mm.vmas.check()
        process.mm.tables.check()
        _count_entries(kernel, process.mm, refs, maps, entire)
    for which in range(BATCHES):
        row = which * BATCH_ROOM
        for place in range(row + 1, row + 1 + kernel.f.batch[row]):
            refs[int(kernel.f.batch[place])] += 1
    for holder in HOLDERS:
        for pfn, count in holder(kernel):
            refs[kernel.head(pfn)] += count
    _check_folios(kernel, refs, maps, entire)
    _check_lists(kernel)
    check_areas(kernel)
    for invariant in INVARIANTS:
        invariant(kernel)


def _count_entries(
    kernel: Kernel, mm: object, refs: Counter[int], maps: Counter[int], entire: Counter[int]
) -> None:
    assert isinstance(mm, Mm)
    entries = array(kernel.f.entries)
    for key, pmd in mm.tables.pmds.items():
        low = key * TABLE_ENTRIES
        if pmd.huge and e.is_present(pmd.huge):
            pfn = e.pfn_of(pmd.huge)
            assert mm.vmas.find(low) is not None
            if not kernel.flags(pfn) & KPF.ZERO_PAGE:
                entire[kernel.head(pfn)] += 1
                refs[kernel.head(pfn)] += 1
        if pmd.table is None:
            continue
        row = entries[pmd.table.first : pmd.table.first + TABLE_ENTRIES]
        for at in np.flatnonzero(row).tolist():
            entry = int(row[at])
            vma = mm.vmas.find(low + at)
            assert vma is not None, f"an entry outside every area: {low + at:#x}"
            if not e.is_present(entry) or entry & e.SPECIAL:
                continue
            pfn = e.pfn_of(entry)
            maps[pfn] += 1
            refs[kernel.head(pfn)] += 1
            if kernel.flags(pfn) & KPF.ANON and entry & e.RW and vma.is_cow:
                assert kernel.exclusive(pfn) or kernel.head(pfn) != pfn, (
                    f"writable, not exclusive: {low + at:#x}"
                )


def _check_folios(
    kernel: Kernel, refs: Counter[int], maps: Counter[int], entire: Counter[int]
) -> None:
    """In whole columns: there are thousands of folios, and a check follows every step."""
    f = kernel.f
    kind, offset, flags = array(f.kind), array(f.offset), array(f.flags)
    heads = np.flatnonzero((kind == Kind.FOLIO) & (offset == 0))
    lengths = 1 << array(f.order)[heads].astype(np.int64)
    head_of = np.repeat(heads, lengths)
    pages = head_of + np.arange(head_of.size) - np.repeat(lengths.cumsum() - lengths, lengths)
    mapped, whole = _column(maps, kind.size), _column(entire, kind.size)
    for what, frames, column, accounted in (
        ("references", heads, f.refs, _column(refs, kind.size)),
        ("PMD mappings", heads, f.entire, whole),
        ("map count", pages, f.maps, mapped),
    ):
        for pfn in frames[array(column)[frames] != accounted[frames]].tolist():
            raise AssertionError(
                f"frame {pfn:#x}: {what} {column[pfn]}, {accounted[pfn]} are accounted for"
            )
    _none(heads[array(f.refs)[heads] <= 0], "is a folio without references")
    _none(pages[pages - offset[pages] != head_of], "is a page of another folio")
    exclusive = (flags[head_of] & int(KPF.ANON) != 0) & (flags[pages] & int(KPF.OWNER_2) != 0)
    shared = mapped[pages] + whole[head_of] > 1
    _none(pages[exclusive & shared], "is exclusive and shared")
    known = set(heads.tolist())
    for pfn in (*refs, *maps):
        assert kernel.head(pfn) in known or f.kind[pfn] != Kind.NONE, (
            f"frame {pfn:#x} is used and free"
        )


def _column(counts: Counter[int], frames: int) -> NDArray[np.int64]:
    column = np.zeros(frames, np.int64)
    column[list(counts)] = list(counts.values())
    return column


def _none(pfns: NDArray[np.int64], what: str) -> None:
    assert not pfns.size, f"frame {int(pfns[0]):#x} {what}"


def _check_lists(kernel: Kernel) -> None:
    f = kernel.f
    on_lists = 0
    for which in range(LISTS):
        head = int(f.cell[C_FRAMES]) + which
        count, pfn = 0, int(f.lru_next[head])
        while pfn != head:
            flags = int(f.flags[pfn])
            assert flags & KPF.LRU, f"frame {pfn:#x} is on a list without LRU"
            assert _list_of(flags) == which, f"frame {pfn:#x} is on the wrong list"
            assert f.lru_prev[f.lru_next[pfn]] == pfn
            count, pfn = count + 1, int(f.lru_next[pfn])
        assert count == int(f.cell[C_LIST_COUNT + which])
        on_lists += count
    folios = (array(f.kind) == Kind.FOLIO) & (array(f.offset) == 0)
    flagged = (array(f.flags)[folios] & int(KPF.LRU)) != 0
    assert int(flagged.sum()) == on_lists


def _list_of(flags: int) -> int:
    """As `lru.list_of`, which only compiled code can call."""
    if flags & KPF.UNEVICTABLE:
        return UNEVICTABLE_LIST
    return (0 if flags & KPF.SWAPBACKED else INACTIVE_FILE) + bool(flags & KPF.ACTIVE)
