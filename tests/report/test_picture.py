"""The picture: cells that add up, a curve that keeps neighbours, holes that are folded."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from report_worlds import TILE
from worlds import raw_map, tree

from memdesc.answers.ledger import ledger
from memdesc.map.extents import MemoryMap
from memdesc.report.hilbert import curve
from memdesc.report.palette import colour_of
from memdesc.report.picture import Cells, Picture, picture_of
from memdesc.report.png import indexed_png, picture_png
from memdesc.types import MemoryType, TypeSet


def draw(result: MemoryMap) -> Picture:
    book = ledger(result)
    return picture_of(result, [row.types for row in (*book.rows, *book.not_present)])


def check(result: MemoryMap, picture: Picture) -> None:
    """Every frame once: in a cell, or in a folded hole."""
    kinds = {kind.mask: index for index, kind in enumerate(picture.types)}
    of_fact = np.array([kinds.get(int(mask), -1) for mask in result.table.types])
    types = np.repeat(of_fact[result.facts], result.nr_pages)
    for cells in (picture.fine, picture.cells):
        assert cells.first[-1] == cells.types.size == cells.frames.size
        assert (cells.frames > 0).all()
        want = np.zeros((len(cells), len(picture.types)), np.int64)
        for span in picture.spans:
            start, end = span.pages.pfn_start, span.pages.pfn_end
            first = span.cell_start >> (cells.order - picture.fine.order)
            cell = first + (np.arange(end - start) >> cells.order)
            np.add.at(want, (cell, types[start:end]), 1)
        got = np.zeros_like(want)
        got[np.repeat(np.arange(len(cells)), np.diff(cells.first)), cells.types] = cells.frames
        assert (got == want).all()
        assert (cells.top_types == want.argmax(axis=1)).all()
    drawn = sum(span.pages.nr_pages for span in picture.spans)
    folded = sum(pages.nr_pages for pages in picture.folded)
    assert drawn + folded == result.pfn_end - result.pfn_start
    assert picture.fine.frames.sum() == picture.cells.frames.sum() == drawn


@pytest.mark.parametrize("order", range(1, 8))
def test_the_curve_goes_from_neighbour_to_neighbour(order: int) -> None:
    x, y = curve(order)
    side = 1 << order
    assert sorted(zip(x, y, strict=True)) == [(a, b) for a in range(side) for b in range(side)]
    assert (abs(np.diff(x)) + abs(np.diff(y)) == 1).all()
    assert (x[0], y[0]) == (0, 0)
    assert (x[-1], y[-1]) == (side - 1, 0)
    finer_x, finer_y = curve(order + 1)
    assert (finer_x >> 1 == np.repeat(x, 4)).all()
    assert (finer_y >> 1 == np.repeat(y, 4)).all()


def test_a_small_machine_has_one_frame_in_a_cell(known: MemoryMap) -> None:
    picture = draw(known)
    check(known, picture)
    assert picture.order == picture.fine.order == 0
    assert picture.nr_tiles == 4
    plane = picture.layout(2)
    assert plane.shape == (128, 128)
    anon = picture.types.index(TypeSet.of(MemoryType.ANON))
    assert (plane[:64, 64:] == anon).all()
    assert (plane >= 0).all()
    assert (picture.layout(3)[64:, 64:] == -1).all()


@pytest.mark.parametrize("frames", [1, 7, 8, 4095, 600_001])
def test_every_frame_is_drawn_once(tmp_path: Path, frames: int) -> None:
    random = np.random.default_rng(frames)
    kinds = np.array([0x400, 0x5828, 0x868, 0x80, 0x0], np.uint64)
    lengths = random.geometric(1 / 20, frames)
    words = np.repeat(random.choice(kinds, frames), lengths)[:frames]
    result = raw_map(tmp_path, words)
    check(result, draw(result))


def test_a_window_that_starts_oddly_is_drawn(tmp_path: Path) -> None:
    result = raw_map(tmp_path, [0x400] * 5 + [0x5828] * 5000)
    window = MemoryMap(
        result.machine,
        result.table,
        np.array([3, 5], result.pfn_starts.dtype),
        result.facts,
        pfn_end=result.pfn_end,
        pfn_start=3,
    )
    picture = draw(window)
    assert picture.spans[0].pages.pfn_start == 3
    assert picture.cells.frames.sum() == result.pfn_end - 3


def test_a_hole_larger_than_the_memory_is_folded(tmp_path: Path) -> None:
    low, gap, high = TILE + 5, 40 * TILE, 2 * TILE
    words = np.zeros(low + gap + high, np.uint64)
    words[:low] = 0x400
    words[low + gap :] = 0x80
    iomem = (
        f"00000000-{low * 4096 - 1:08x} : System RAM\n"
        f"{(low + gap) * 4096:08x}-{words.size * 4096 - 1:08x} : System RAM\n"
    )
    result = tree(tmp_path, words, files={"proc/iomem": iomem, "proc/zoneinfo": "\n"}).map()
    picture = draw(result)
    check(result, picture)
    assert len(picture.folded) == 1
    assert len(picture.spans) == 2
    assert picture.folded[0].nr_pages > gap - 100
    assert picture.nr_tiles <= 4


def test_ties_go_to_the_type_that_is_more_common(tmp_path: Path) -> None:
    words = np.zeros(1 << 20, np.uint64)
    words[:] = 0x400
    words[::2] = 0x80
    words[-64:] = 0x80
    picture = draw(raw_map(tmp_path, words))
    assert picture.order == 3
    assert picture.types[0].names == ["slab"]
    assert set(picture.cells.top_types.tolist()) == {0}


def test_many_types_of_a_hostile_map_are_bounded() -> None:
    from memdesc.report import picture as module

    cell = np.arange(3, dtype=np.int64)
    counted: Cells = module._count(0, cell, cell * 20_000, cell + 1, 3, 65_000)
    assert counted.types.tolist() == [0, 20_000, 40_000]
    assert counted.frames.tolist() == [1, 2, 3]


def pixels(png: bytes) -> tuple[np.ndarray, bytes]:
    """The palette numbers and the palette of an 8-bit PNG without filters."""
    position, chunks = 8, {}
    while position < len(png):
        (length,) = struct.unpack_from(">I", png, position)
        kind = png[position + 4 : position + 8]
        body = png[position + 8 : position + 8 + length]
        (crc,) = struct.unpack_from(">I", png, position + 8 + length)
        assert crc == zlib.crc32(kind + body)
        chunks[kind] = body
        position += 12 + length
    width, height, depth, colour = struct.unpack_from(">IIBB", chunks[b"IHDR"])
    assert (depth, colour) == (8, 3)
    lines = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, width + 1)
    assert not lines[:, 0].any()
    return lines[:, 1:], chunks[b"PLTE"]


def test_png_round_trip() -> None:
    index = np.arange(12, dtype=np.uint8).reshape(3, 4) % 3
    got, palette = pixels(indexed_png(index, [(1, 2, 3), (4, 5, 6), (7, 8, 9)]))
    assert (got == index).all()
    assert palette == bytes(range(1, 10))


def test_the_still_picture_shows_the_types(known: MemoryMap) -> None:
    picture = draw(known)
    colours = [colour_of(kind) for kind in picture.types]
    got, palette = pixels(picture_png(picture.layout(4), colours, dark=False))
    anon = colour_of(TypeSet.of(MemoryType.ANON)).light
    number = int(got[30, 64 + 30])
    assert palette[3 * number : 3 * number + 3].hex() == anon.removeprefix("#")
    unknown = set(got[:3, 128:130].ravel().tolist())
    assert len(unknown) >= 2, "hatched"
