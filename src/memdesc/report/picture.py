"""Memory as a picture: equal cells of frames, what each holds, and where each lies.

The frame space is cut into cells of 2**k frames.  A cell has the colour of the type that
holds most of it, and keeps the exact number of frames of every type in it.  Cells fill
squares ("tiles") along a Hilbert curve, and tiles stand in rows like text, so a picture
fits any width and a tile is a round amount of memory.

Holes far larger than the memory that is there are left out and named (`Picture.folded`).
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memdesc.map.extents import MemoryMap
from memdesc.report.hilbert import curve
from memdesc.types import MemoryType, Pfn, PfnRange, TypeSet

__all__ = ["TILE_ORDER", "Cells", "Picture", "Span", "picture_of"]

TILE_ORDER = 6
"""A tile is 2**6 cells wide and high."""
_MOST_CELLS = 1 << 17
"""Cells of the picture as it first appears: at most 32 tiles."""
_MOST_FINE_ROWS = 700_000
"""Rows kept for the view from near; more would make the file large."""
_FINE_STEP = 2
"""Cells of the near view are 2**2 times smaller: two by two for each."""
_FOLD_SHARE = 2
"""A hole is left out when it is larger than the present memory divided by this."""
_MATRIX = 1 << 22
"""Numbers of the cell by type matrix that is held at a time."""


@dataclass(frozen=True, slots=True)
class Span:
    """Frames that are drawn without a break. `cell_start` counts the finest cells."""

    pages: PfnRange
    cell_start: int


@dataclass(frozen=True)
class Cells:
    """What n cells hold: rows of (type, frames), by rising cell and type."""

    order: int
    """log2 of the frames in a cell."""
    first: NDArray[np.int64]
    """int64[n + 1]: index of each cell's first row."""
    types: NDArray[np.int64]
    """int64[rows]: index into `Picture.types`."""
    frames: NDArray[np.int64]
    """int64[rows]: frames of that type, above 0."""
    top: NDArray[np.int64]
    """int64[n]: the row of the type that holds most; the more common one on a tie."""

    def __len__(self) -> int:
        return int(self.top.size)

    @property
    def top_types(self) -> NDArray[np.int64]:
        """int64[n]: the type that holds most of each cell."""
        return self.types[self.top]


@dataclass(frozen=True)
class Picture:
    """The picture of one map."""

    types: tuple[TypeSet, ...]
    """Every type of the map, the most common first."""
    spans: tuple[Span, ...]
    folded: tuple[PfnRange, ...]
    """Holes that are not drawn."""
    order: int
    """log2 of the frames in a cell as the picture first appears."""
    fine: Cells
    """The finest cells that are kept; `fine.order` is `order` or `order` - 2."""

    @cached_property
    def cells(self) -> Cells:
        """The cells as the picture first appears."""
        fine, shift = self.fine, self.order - self.fine.order
        if not shift:
            return fine
        cell = np.repeat(np.arange(len(fine)), np.diff(fine.first)) >> shift
        size = ((len(fine) - 1) >> shift) + 1 if len(fine) else 0
        return _count(self.order, cell, fine.types, fine.frames, size, len(self.types))

    @property
    def nr_tiles(self) -> int:
        return max(1, -(-len(self.cells) >> 2 * TILE_ORDER))

    def layout(self, columns: int) -> NDArray[np.int64]:
        """int64[height, width]: types laid out in rows of `columns` tiles, -1 where none is."""
        side = 1 << TILE_ORDER
        x, y = curve(TILE_ORDER)
        tile, step = np.divmod(np.arange(len(self.cells)), side * side)
        plane = np.full((-(-self.nr_tiles // columns) * side, columns * side), -1, np.int64)
        row, column = np.divmod(tile, columns)
        plane[row * side + y[step], column * side + x[step]] = self.cells.top_types
        return plane

    def to_json(self) -> dict[str, Any]:
        """What the page needs to draw it. Frames of a cell's top type are what others leave."""
        fine = self.fine
        others = np.ones(fine.types.size, np.bool_)
        others[fine.top] = False
        return {
            "order": self.order,
            "fine": fine.order,
            "tile_order": TILE_ORDER,
            "cells": len(fine),
            "spans": [[s.pages.pfn_start, s.pages.pfn_end, s.cell_start] for s in self.spans],
            "columns": _pack(
                {
                    "top": fine.top_types,
                    "more": np.diff(fine.first) - 1,
                    "type": fine.types[others],
                    "frames": fine.frames[others],
                }
            ),
        }


def picture_of(result: MemoryMap, types: Sequence[TypeSet]) -> Picture:
    """Draw `result`. `types` names what comes first: it breaks ties and orders the legend.

    Exact: the frames of all cells and of the folded holes add up to those of the map.
    """
    seen = np.bincount(result.facts, minlength=len(result.table)) > 0
    masks = [TypeSet(int(mask)) for mask in np.unique(result.table.types[seen])]
    ordered = tuple(dict.fromkeys([*(kind for kind in types if kind in masks), *masks]))
    number = {kind.mask: index for index, kind in enumerate(ordered)}
    of_fact = np.array([number.get(int(mask), 0) for mask in result.table.types], np.int64)

    holes = _large_holes(result)
    order = 0
    while (plan := _plan(result, holes, order))[1] > _MOST_CELLS:
        order += 1
    ranges, _size, folded = plan
    fine = order - _FINE_STEP if order >= _FINE_STEP else order
    spans, cells = _cells(result, ranges, fine, of_fact, len(ordered))
    if fine < order and cells.types.size > _MOST_FINE_ROWS:
        spans, cells = _cells(result, ranges, order, of_fact, len(ordered))
    return Picture(ordered, spans, folded, order, cells)


# --- helpers -----------------------------------------------------------------------------


def _large_holes(result: MemoryMap) -> list[tuple[int, int]]:
    """Runs of frames that are certainly holes, larger than a share of all others."""
    hole = result.table.within(TypeSet.of(MemoryType.HOLE))[result.facts]
    filled = int(result.nr_pages[~hole].sum())
    edges = np.flatnonzero(np.diff(hole.astype(np.int8), prepend=0, append=0))
    bounds = np.append(result.pfn_starts.astype(np.int64), result.pfn_end)[edges]
    pairs = bounds.reshape(-1, 2)
    large = pairs[:, 1] - pairs[:, 0] > filled // _FOLD_SHARE
    return [(int(start), int(end)) for start, end in pairs[large]] if filled else []


def _plan(
    result: MemoryMap, holes: list[tuple[int, int]], order: int
) -> tuple[tuple[PfnRange, ...], int, tuple[PfnRange, ...]]:
    """(what is drawn, in how many cells of `order`, what is folded), cut between cells."""
    ranges: list[PfnRange] = []
    folded: list[PfnRange] = []
    base = start = result.pfn_start
    for hole_start, hole_end in holes:
        low = base + (-(-(hole_start - base) >> order) << order)
        inner = base + ((hole_end - base) >> order << order)
        high = hole_end if hole_end == result.pfn_end else inner
        if low < high:
            folded.append(PfnRange(Pfn(low), Pfn(high)))
            ranges.append(PfnRange(Pfn(start), Pfn(low)))
            start = high
    ranges.append(PfnRange(Pfn(start), Pfn(result.pfn_end)))
    drawn = tuple(pages for pages in ranges if pages.nr_pages)
    size = sum(-(-pages.nr_pages >> order) for pages in drawn)
    return drawn, size, tuple(folded)


def _cells(
    result: MemoryMap,
    ranges: tuple[PfnRange, ...],
    order: int,
    of_fact: NDArray[np.int64],
    nr_types: int,
) -> tuple[tuple[Span, ...], Cells]:
    """Cut `ranges` into cells of `order` and count what each holds."""
    spans: list[Span] = []
    cell_parts: list[NDArray[np.int64]] = []
    type_parts: list[NDArray[np.int64]] = []
    frame_parts: list[NDArray[np.int64]] = []
    size = 0
    for pages in ranges:
        spans.append(Span(pages, size))
        low, high = result.index_of(pages.pfn_start), result.index_of(pages.pfn_end - 1) + 1
        starts = result.pfn_starts[low:high].astype(np.int64) - pages.pfn_start
        starts[0] = 0
        borders = np.arange(0, pages.nr_pages, 1 << order, dtype=np.int64)
        pieces = np.sort(np.concatenate([starts, borders]), kind="stable")
        pieces = pieces[np.diff(pieces, prepend=-1) > 0]
        extent = np.searchsorted(starts, pieces, side="right") - 1
        cell_parts.append((pieces >> order) + size)
        type_parts.append(of_fact[result.facts[low:high]][extent])
        frame_parts.append(np.diff(pieces, append=pages.nr_pages))
        size += borders.size
    empty = [np.zeros(0, np.int64)]
    cell, kind, frames = (
        np.concatenate(empty + parts) for parts in (cell_parts, type_parts, frame_parts)
    )
    return tuple(spans), _count(order, cell, kind, frames, size, nr_types)


def _count(
    order: int,
    cell: NDArray[np.int64],
    kind: NDArray[np.int64],
    frames: NDArray[np.int64],
    size: int,
    nr_types: int,
) -> Cells:
    """Sum `frames` by (cell, kind). `cell` never falls, and each of `size` cells appears."""
    chunk = max(1, _MATRIX // max(1, nr_types))
    types_parts: list[NDArray[np.int64]] = [np.zeros(0, np.int64)]
    frames_parts: list[NDArray[np.int64]] = [np.zeros(0, np.int64)]
    top_parts: list[NDArray[np.int64]] = [np.zeros(0, np.int64)]
    count_parts: list[NDArray[np.int64]] = [np.zeros(1, np.int64)]
    rows = 0
    for start in range(0, size, chunk):
        here = min(chunk, size - start)
        low, high = np.searchsorted(cell, [start, start + here])
        key = (cell[low:high] - start) * nr_types + kind[low:high]
        summed = np.bincount(key, frames[low:high], here * nr_types).astype(np.int64)
        filled = np.flatnonzero(summed)
        matrix = summed.reshape(here, nr_types)
        best = np.arange(here) * nr_types + matrix.argmax(axis=1)
        types_parts.append(filled % nr_types)
        frames_parts.append(summed[filled])
        top_parts.append(np.searchsorted(filled, best) + rows)
        count_parts.append(np.count_nonzero(matrix, axis=1))
        rows += filled.size
    return Cells(
        order,
        np.cumsum(np.concatenate(count_parts)),
        np.concatenate(types_parts),
        np.concatenate(frames_parts),
        np.concatenate(top_parts),
    )


def _pack(columns: Mapping[str, NDArray[np.int64]]) -> dict[str, Any]:
    """Columns of counts in one zlib stream in base64, each in the smallest width that fits."""
    layout = []
    parts = []
    for name, column in columns.items():
        most = int(column.max()) if column.size else 0
        width = next((w for w in (1, 2, 4) if most < 1 << 8 * w), 8)
        layout.append({"name": name, "width": width, "length": int(column.size)})
        # JavaScript has no plain 64-bit integers; a float is exact to 2**53.
        parts.append(column.astype("<f8" if width == 8 else f"<u{width}").tobytes())
    data = zlib.compress(b"".join(parts), 6)
    return {"layout": layout, "zlib": base64.b64encode(data).decode("ascii")}
