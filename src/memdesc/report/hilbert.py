"""The Hilbert curve: a line through a square that keeps neighbours together.

Frames are a line, and a screen is a plane.  Laid out along this curve, frames that are
near each other in memory are near each other in the picture, so a huge page is a square
and a large file is a patch.

>>> x, y = curve(1)
>>> list(zip(x.tolist(), y.tolist()))
[(0, 0), (0, 1), (1, 1), (1, 0)]
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["curve"]


def curve(order: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return (x, y), int64[4**order] each: the place of each step on a 2**order square.

    The curve starts at (0, 0) and ends at (2**order - 1, 0), so the next square to the
    right goes on where this one stops.  Orders nest: the place of step i of `order` is
    half the place of steps 4i to 4i + 3 of `order + 1`.
    """
    step = np.arange(1 << 2 * order, dtype=np.int64)
    x = np.zeros_like(step)
    y = np.zeros_like(step)
    for level in range(order):
        side = 1 << level
        right = step >> (2 * level + 1) & 1
        up = (step >> 2 * level ^ right) & 1
        # A quarter whose curve must enter elsewhere: turned, and mirrored as well.
        turn = up == 0
        mirror = turn & (right == 1)
        x, y = np.where(mirror, side - 1 - x, x), np.where(mirror, side - 1 - y, y)
        x, y = np.where(turn, y, x), np.where(turn, x, y)
        x, y = x + side * right, y + side * up
    return x, y
