"""A PNG file from an array of palette numbers, for readers without JavaScript."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from memdesc.report.palette import Colour, rgb

__all__ = ["indexed_png", "picture_png"]


def picture_png(plane: NDArray[np.int64], colours: Sequence[Colour], *, dark: bool) -> bytes:
    """The picture `plane` (numbers of `colours`, -1 for nothing), hatched where they are."""
    shown = colours[:127]
    inks = [rgb((c.dark_ink or c.dark) if dark else (c.light_ink or c.light)) for c in shown]
    paints = [rgb(c.dark if dark else c.light) for c in shown]
    rows, columns = np.indices(plane.shape)
    inked = (rows + columns) % 4 < 2
    number = np.minimum(plane, len(shown) - 1)
    index = np.where(plane < 0, 0, 1 + 2 * number + inked).astype(np.uint8)
    palette = [(0, 0, 0)] + [tone for pair in zip(paints, inks, strict=True) for tone in pair]
    return indexed_png(index, palette)


def indexed_png(index: NDArray[np.uint8], palette: Sequence[tuple[int, int, int]]) -> bytes:
    """A PNG of 8-bit palette numbers; number 0 is transparent."""
    height, width = index.shape
    lines = np.zeros((height, width + 1), np.uint8)
    lines[:, 1:] = index
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        (
            _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
            _chunk(b"PLTE", bytes(tone for colour in palette for tone in colour)),
            _chunk(b"tRNS", b"\x00"),
            _chunk(b"IDAT", zlib.compress(lines.tobytes(), 9)),
            _chunk(b"IEND", b""),
        )
    )


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
