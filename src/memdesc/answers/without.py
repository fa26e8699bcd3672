"""What if these pages were gone? Words of people turned into frames and types.

slab, page_table     a type of `memdesc ledger`
dentry, tmpfs        an owner of `memdesc ledger --by owner`: a slab cache, a caller, ...
process:1234         what this process alone has: its memory, its page tables, its stacks
0x1234               the page at this frame, with its whole folio
pins                 what only a reference holds in place: pins, pipes, io_uring
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from memdesc.answers.block_counts import Gone
from memdesc.errors import QuestionError
from memdesc.map.describe import MapDescriber
from memdesc.map.extents import MemoryMap
from memdesc.map.inverse import Inverse
from memdesc.sources.source import Source
from memdesc.types import MemoryType, Pfn, TypeSet

__all__ = ["gone_of", "needs_whole_map"]

_TYPES = {kind.value: kind for kind in MemoryType}
_Ranges = tuple[NDArray[np.int64], NDArray[np.int64]]
"""(starts, ends), rising and not touching."""


def needs_whole_map(words: Iterable[str]) -> bool:
    """Whether `gone_of` has to look at the extents themselves."""
    return any(word not in _TYPES and not _FRAME.fullmatch(word) for word in words)


def gone_of(words: Iterable[str], source: Source, result: MemoryMap | None = None) -> Gone:
    """The pages that `words` name. `result` is the map, where `needs_whole_map` says so.

    Raises QuestionError for a word that names nothing here, and where the source does not
    show what it needs.
    """
    mask, owners, pins = 0, set(), False
    ranges: list[_Ranges] = []
    for word in words:
        if word in _TYPES:
            mask |= _TYPES[word].bit
        elif word == "pins":
            if result is None or result.references is None:
                raise QuestionError(
                    "reference counts are not visible in this source",
                    hint="--source live:struct, or a crash dump, shows pins",
                )
            pins = True
        elif found := re.fullmatch(r"process:([0-9]{1,10})", word):
            pid = int(found[1])
            ranges.append(_of_process(source, result, pid))
            owners |= _owners_of_process(result, pid)
        elif _FRAME.fullmatch(word):
            ranges.append(_of_frame(source, int(word, 16)))
        elif result is not None and word in result.owner_names[1:]:
            owners.add(word)
        else:
            raise QuestionError(
                f"nothing here is called {word[:60]!r}",
                hint="--without takes a type of `memdesc ledger`, an owner of `memdesc ledger "
                "--by owner`, process:PID, 0xPFN, or pins",
            )
    starts, ends = _union(ranges)
    return Gone(mask, frozenset(owners), pins, starts, ends)


# --- helpers -----------------------------------------------------------------------------

_FRAME = re.compile(r"0[xX][0-9a-fA-F]{1,13}")
_PRIVATE = TypeSet.of(MemoryType.ANON, MemoryType.KSM, MemoryType.SWAP_CACHE)
"""Freed with the last process that maps it; files stay in the cache."""
_NONE: _Ranges = (np.zeros(0, np.int64), np.zeros(0, np.int64))


def _of_frame(source: Source, pfn: int) -> _Ranges:
    pages = MapDescriber(source.window(pfn)).pages_of(Pfn(pfn))
    return np.array([pages.pfn_start], np.int64), np.array([pages.pfn_end], np.int64)


def _of_process(source: Source, result: MemoryMap | None, pid: int) -> _Ranges:
    """Private memory that no other process maps."""
    attribution = source.attribution()
    index = attribution.process_index(pid)
    inverse = Inverse.of(attribution)
    mine = attribution.process_of_mapping[inverse.runs] == index
    if not mine.size or result is None:
        return _NONE
    alone = np.add.reduceat(mine.astype(np.int64), inverse.offsets[:-1]) == inverse.mapcount
    starts = inverse.pfn_start[alone]
    private = result.table.types & np.uint64(_PRIVATE.mask) != 0
    chosen = private[result.facts]
    first = result.pfn_starts[chosen].astype(np.int64)
    return _both(
        (starts, starts + inverse.nr_pages[alone]), (first, first + result.nr_pages[chosen])
    )


def _owners_of_process(result: MemoryMap | None, pid: int) -> set[str]:
    """Names of what the kernel keeps for one process."""
    names = result.owner_names if result is not None else ()
    mine = re.compile(rf"page tables of {pid}|stack of task {pid} \(.*\)", re.DOTALL)
    return {name for name in names if mine.fullmatch(name)}


def _union(ranges: Iterable[_Ranges]) -> _Ranges:
    """All of them as one column of ranges that do not touch."""
    parts = list(ranges)
    starts = np.concatenate([_NONE[0], *(low for low, _ in parts)])
    ends = np.concatenate([_NONE[1], *(high for _, high in parts)])
    if not starts.size:
        return _NONE
    order = np.argsort(starts, kind="stable")
    starts, ends = starts[order], np.maximum.accumulate(ends[order])
    new = np.append(True, starts[1:] > ends[:-1])
    return starts[new], ends[np.append(np.flatnonzero(new)[1:] - 1, ends.size - 1)]


def _both(one: _Ranges, other: _Ranges) -> _Ranges:
    """Frames that are in both; each rising and not overlapping."""
    edges = np.unique(np.concatenate([*one, *other]))
    inside = np.ones(max(0, edges.size - 1), np.bool_)
    for starts, ends in (one, other):
        if not starts.size:
            return _NONE
        at = np.searchsorted(starts, edges[:-1], side="right") - 1
        inside &= (at >= 0) & (edges[:-1] < ends[np.maximum(at, 0)])
    return edges[:-1][inside], edges[1:][inside]
