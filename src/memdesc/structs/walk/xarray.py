"""Walk an XArray: IDRs, page caches and RAM disks are made of it (`lib/xarray.c`).

An entry whose two lowest bits are 10 is internal; above 4096 it is a node of 64 slots
(`include/linux/xarray.h:xa_is_node`), below it is a sibling, zero or retry mark.  Nodes of
one level are read together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memdesc.errors import FaultError
from memdesc.structs.walk.view import View

__all__ = ["Entries", "xarray_entries"]

_DEEPEST = 11
"""64-bit indices in steps of 6 bits."""
_MOST_ENTRIES = 1 << 24
_SMALLEST_NODE = 4096


@dataclass(frozen=True)
class Entries:
    """What an XArray holds, in rising order of index."""

    indices: NDArray[np.int64]
    values: NDArray[np.uint64]
    """Pointers, or value entries (bit 0 set): as stored."""


def xarray_entries(view: View, xarray: int) -> tuple[Entries, int]:
    """Every entry of the `struct xarray` at this address, and the number of torn nodes.

    Raises FaultError where the head itself cannot be read, and where there are more than
    16 Mi entries. Multi-index entries are given once.
    """
    head = view.u64(xarray + view.kernel.member("xarray", "xa_head").offset)
    torn = 0
    if not head:
        return Entries(np.zeros(0, np.int64), np.zeros(0, np.uint64)), 0
    if not _is_node(np.array([head], np.uint64))[0]:
        return Entries(np.zeros(1, np.int64), np.array([head], np.uint64)), 0
    nodes = np.array([head - 2], np.uint64)
    starts = np.zeros(1, np.int64)
    above = np.full(1, 64, np.int64)
    found: list[tuple[NDArray[np.int64], NDArray[np.uint64]]] = []
    slots_at = view.offset("xa_node", "slots")
    width = view.kernel.member("xa_node", "slots").type.nr_elements
    bits = width.bit_length() - 1
    for _ in range(_DEEPEST):
        if not nodes.size:
            break
        if nodes.size * width > _MOST_ENTRIES:
            raise FaultError(f"the xarray at {xarray:#x} does not end", xarray)
        rows = view.fields("xa_node", nodes, "shift")
        shift = rows["shift"].astype(np.int64)
        # Each level must lie below the last one: a torn or looping node does not.
        is_good = rows.readable & (shift < above) & (shift % bits == 0)
        torn += int((~is_good).sum())
        nodes, starts, shift = nodes[is_good], starts[is_good], shift[is_good]
        places = (
            nodes[:, None] + slots_at + np.arange(width, dtype=np.uint64)[None, :] * np.uint64(8)
        )
        entries = view.words(places.ravel())[0].reshape(nodes.size, width)
        indices = starts[:, None] + (np.arange(width)[None, :] << shift[:, None])
        deeper = _is_node(entries) & (shift[:, None] > 0)
        kept = (entries != 0) & (entries & np.uint64(3) != 2)
        found.append((indices[kept], entries[kept]))
        above = np.broadcast_to(shift[:, None], entries.shape)[deeper]
        starts, nodes = indices[deeper], entries[deeper] - np.uint64(2)
    indices = np.concatenate([np.zeros(0, np.int64), *(each for each, _ in found)])
    values = np.concatenate([np.zeros(0, np.uint64), *(each for _, each in found)])
    order = np.argsort(indices, kind="stable")
    return Entries(indices[order], values[order]), torn


def _is_node(entries: NDArray[np.uint64]) -> NDArray[np.bool_]:
    is_node: NDArray[np.bool_] = (entries & np.uint64(3) == 2) & (entries > _SMALLEST_NODE)
    return is_node
