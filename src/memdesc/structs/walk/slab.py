"""Slab caches: what there are, and what each slab of the memory map belongs to.

    caches = find_caches(kernel, memmap)
    slabs = slabs_at(kernel, memmap, heads)        # heads: frames of PageSlab, first of each
    slabs.totals(caches)["dentry"].nr_unused

`inuse` counts an object as used once a CPU has taken it to hand it out, so that
objects waiting on a CPU's own list are not among the unused ones; a slab that a CPU works
on (`frozen`) shows all objects in use.

Sources: `mm/slab.h` (struct slab, kmem_cache), `mm/slub.c:get_slabinfo,oo_order,oo_objects`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memdesc.errors import FaultError, LayoutError
from memdesc.structs.kernel import Kernel, Object
from memdesc.structs.memmap import MemMap
from memdesc.structs.walk.view import View

__all__ = ["SlabCache", "SlabTotal", "Slabs", "find_caches", "slabs_at"]

_ORDER_SHIFT = 16
"""`mm/slub.c:OO_SHIFT`."""
_MOST_CACHES = 1 << 16
_MOST_NODES = 1024


@dataclass(frozen=True, slots=True)
class SlabCache:
    """One kmem_cache. Caches that were merged are one, by the name of the first."""

    address: int
    name: str
    object_size_bytes: int
    """As asked for."""
    size_bytes: int
    """With metadata and alignment: from one object to the next."""
    objects_per_slab: int
    order: int
    """Of its slabs, unless memory is short."""
    nr_slabs: int
    """As the kernel counts them (`kmem_cache_node.nr_slabs`); 0 without CONFIG_SLUB_DEBUG."""
    nr_objects: int
    """In all slabs, used or not (`total_objects`)."""


@dataclass(frozen=True, slots=True)
class SlabTotal:
    """The slabs of one cache that were looked at."""

    nr_slabs: int
    nr_objects: int
    nr_unused: int
    """Objects on the slabs' own free lists."""
    nr_frozen: int
    """Slabs that a CPU works on; 0 on kernels that do not freeze (7.2 does not)."""


@dataclass(frozen=True)
class Slabs:
    """Slabs as columns, in the order of the frames that were asked for."""

    pfns: NDArray[np.int64]
    caches: NDArray[np.uint64]
    """Address of the kmem_cache; 0 where the slab could not be read."""
    objects: NDArray[np.uint16]
    inuse: NDArray[np.uint16]
    frozen: NDArray[np.bool_]

    def totals(self, caches: Sequence[SlabCache]) -> Mapping[str, SlabTotal]:
        """Per cache with slabs among these; caches of one name are added up."""
        found: dict[str, SlabTotal] = {}
        for cache in caches:
            own = self.caches == np.uint64(cache.address)
            if not own.any():
                continue
            before = found.get(cache.name, SlabTotal(0, 0, 0, 0))
            objects = int(self.objects[own].sum(dtype=np.int64))
            found[cache.name] = SlabTotal(
                before.nr_slabs + int(own.sum()),
                before.nr_objects + objects,
                before.nr_unused + objects - int(self.inuse[own].sum(dtype=np.int64)),
                before.nr_frozen + int(self.frozen[own].sum()),
            )
        return found


def find_caches(kernel: Kernel, memmap: MemMap) -> tuple[list[SlabCache], int]:
    """Every slab cache, newest first, and the number of torn links.

    Raises LayoutError where `slab_caches` or the layout is not known.
    """
    view = View.of(kernel, memmap)
    head = view.symbol("slab_caches")
    link = view.kernel.member("kmem_cache", "list").offset
    found: list[SlabCache] = []
    try:
        before, at = head, view.u64(head)
        while at != head:
            if view.u64(at + 8) != before or len(found) >= _MOST_CACHES:
                return found, 1
            found.append(_cache(view, view.kernel.load("kmem_cache", at - link)))
            before, at = at, view.u64(at)
    except FaultError:
        return found, 1
    return found, 0


def slabs_at(kernel: Kernel, memmap: MemMap, pfns: NDArray[np.int64]) -> Slabs:
    """The slabs whose first frames are `pfns` (int64[n]). Raises LayoutError."""
    view = View.of(kernel, memmap)
    rows = view.fields(
        "slab", memmap.page_address(pfns), "slab_cache", "objects", "inuse", "frozen"
    )
    return Slabs(
        pfns,
        np.where(rows.readable, rows["slab_cache"], np.uint64(0)),
        rows["objects"].astype(np.uint16),
        rows["inuse"].astype(np.uint16),
        rows["frozen"].astype(np.bool_),
    )


# --- helpers -----------------------------------------------------------------------------


def _cache(view: View, cache: Object) -> SlabCache:
    order_and_objects = cache["oo.x"]
    nr_slabs = nr_objects = 0
    for node in _nodes(view, cache):
        nr_slabs += node.get("nr_slabs.counter") or 0
        nr_objects += node.get("total_objects.counter") or 0
    return SlabCache(
        cache.address,
        cache.string("name"),
        cache["object_size"],
        cache["size"],
        order_and_objects & ((1 << _ORDER_SHIFT) - 1),
        order_and_objects >> _ORDER_SHIFT,
        nr_slabs,
        nr_objects,
    )


def _nodes(view: View, cache: Object) -> list[Object]:
    """The kmem_cache_node of each NUMA node: pointers in a row, or one of several pointers
    that the cache keeps per node."""
    if view.kernel.has("kmem_cache", "node"):
        path = "node[{}]"
    elif view.kernel.has("kmem_cache", "per_node[0].node"):
        path = "per_node[{}].node"
    else:
        raise LayoutError(f"kmem_cache of {view.kernel.release} has no nodes")
    count = view.find_symbol("nr_node_ids")
    nodes = []
    for number in range(_MOST_NODES if count is None else min(view.i32(count), _MOST_NODES)):
        member = view.kernel.find_member("kmem_cache", path.format(number))
        pointer = view.u64(cache.address + member.offset) if member is not None else 0
        if not pointer and count is not None:
            continue  # a node without memory
        if not pointer:
            # Nodes are numbered from 0, and a struct has room only for those that there are.
            break
        nodes.append(view.kernel.load("kmem_cache_node", pointer))
    return nodes
