"""Blocks that the network stack hands out in fragments: those that are being filled.

Each CPU and each task keeps one block, mostly of order 3, and cuts buffers from it.  A block
that is full is forgotten by its cache and lives on by its references alone, so that this walk
finds some blocks and not all: it says what a frame is, never what it is not.

Sources: `net/core/skbuff.c` (netdev_alloc_cache, napi_alloc_cache), `include/net/sock.h`
(sk_page_frag), `include/linux/mm_types_task.h` and `include/linux/page_frag_cache.h` (struct
page_frag_cache: an address, or since 6.13 an address with the order in its low byte).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from memdesc.errors import FaultError
from memdesc.structs.kernel import Kernel
from memdesc.structs.memmap import MemMap
from memdesc.structs.owned import OwnedFrames
from memdesc.structs.walk.tasks import Tasks, tasks_in
from memdesc.structs.walk.view import View, Walked
from memdesc.types import PAGE_SHIFT, PAGE_SIZE_BYTES, MemoryType

__all__ = ["frag_frames", "walk_frags"]

_LARGEST_ORDER = 3
"""PAGE_FRAG_CACHE_MAX_ORDER and SKB_FRAG_PAGE_ORDER: 32 KiB."""
_ORDER_MASK = 0xFF
"""`include/linux/page_frag_cache.h:PAGE_FRAG_CACHE_ORDER_MASK`."""


def walk_frags(kernel: Kernel, memmap: MemMap) -> Walked:
    """The frames of every block that is being filled ("fragments of cpu 0"). Raises LayoutError
    where tasks cannot be found."""
    view = View.of(kernel, memmap)
    return frag_frames(view, tasks_in(view))


def frag_frames(view: View, tasks: Tasks) -> Walked:
    """As `walk_frags`, of tasks that are already known."""
    groups: list[OwnedFrames] = []
    torn = 0
    for name, path in (("netdev_alloc_cache", ""), ("napi_alloc_cache", "page")):
        symbol = view.find_symbol(name)
        if symbol is None:
            continue
        offset = view.kernel.member("napi_alloc_cache", path).offset if path else 0
        for cpu, address in view.per_cpu(symbol).items():
            try:
                pfns = _cached(view, address + offset)
            except FaultError:
                torn += 1
                continue
            groups.append(
                OwnedFrames.of_one(MemoryType.PAGE_FRAG, pfns, f"fragments of cpu {cpu}", address)
            )
    groups.extend(_of_tasks(view, tasks))
    return Walked(tuple(groups), torn)


# --- helpers -----------------------------------------------------------------------------


def _cached(view: View, address: int) -> NDArray[np.int64]:
    """The block of the page_frag_cache at `address`."""
    cache = view.kernel.load("page_frag_cache", address)
    encoded = cache.get("encoded_page")
    if encoded is not None:
        start, order = encoded & ~(PAGE_SIZE_BYTES - 1), encoded & _ORDER_MASK
    else:
        start = cache["va"] & ~(PAGE_SIZE_BYTES - 1)
        size = cache.get("size") or PAGE_SIZE_BYTES
        order = (size // PAGE_SIZE_BYTES).bit_length() - 1
    if not start:
        return np.zeros(0, np.int64)
    return _block(view, (start - view.memmap.direct_map_address(0)) >> PAGE_SHIFT, order, address)


def _of_tasks(view: View, tasks: Tasks) -> list[OwnedFrames]:
    """The blocks of tasks that write to sockets (`task_struct.task_frag`)."""
    if not view.kernel.has("task_struct", "task_frag.page"):
        return []
    addresses = np.array([task.address for task in tasks.tasks], np.uint64)
    rows = view.fields("task_struct", addresses, "task_frag.page", "task_frag.size")
    groups = []
    for index in np.flatnonzero(rows["task_frag.page"]).tolist():
        pfn = view.memmap.pfn_of(int(rows["task_frag.page"][index]))
        order = (int(rows["task_frag.size"][index]) // PAGE_SIZE_BYTES).bit_length() - 1
        try:
            pfns = _block(view, pfn, order, int(addresses[index]))
        except FaultError:
            continue
        task = tasks.tasks[index]
        groups.append(
            OwnedFrames.of_one(MemoryType.PAGE_FRAG, pfns, f"fragments of {task}", task.address)
        )
    return groups


def _block(view: View, pfn: int, order: int, address: int) -> NDArray[np.int64]:
    if not 0 <= order <= _LARGEST_ORDER or not 0 <= pfn < view.memmap.pfn_end or pfn % (1 << order):
        raise FaultError(f"the fragments at {address:#x} lead to no block", address)
    return np.arange(pfn, pfn + (1 << order))
