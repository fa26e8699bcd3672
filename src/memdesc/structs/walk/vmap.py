"""Every vmalloc area of a kernel, and the frames behind it.

Areas in use hang in red-black trees: one for all (`vmap_area_root`), or since
`mm/vmalloc.c:vmap_init_nodes` one per node of `vmap_nodes`.  The trees are walked breadth
first, all nodes of a level at once.  An area's `vm_struct` says who asked for it (`caller`)
and which frames it got (`pages`).

Only areas made by vmalloc own their frames.  ioremap's show a device's memory, and those of
vmap() or vm_map_ram() show frames that somebody else owns: `VmapAreas` lists them, `frames`
of them are none.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag

import numpy as np
from numpy.typing import NDArray

from memdesc.errors import FaultError
from memdesc.structs.kernel import Kernel
from memdesc.structs.memmap import MemMap
from memdesc.structs.owned import OwnedFrames
from memdesc.structs.walk.view import View, Walked
from memdesc.types import MemoryType

__all__ = ["VmFlag", "VmapAreas", "areas_in", "find_areas", "walk_vmap"]

_MOST_AREAS = 1 << 22
_MOST_NODES = 128
"""`mm/vmalloc.c:vmap_init_nodes`: one per possible CPU, at most 128."""
_DEEPEST = 64
"""A red-black tree of 2**22 nodes is at most 44 deep."""
_MODULE_SPACE = (0xFFFFFFFFA0000000, 0xFFFFFFFFFF000000)
"""`arch/x86/include/asm/pgtable_64_types.h`: MODULES_VADDR begins here with KASLR (and
without, 6.1's at 0xffffffffa0000000 as well), MODULES_END."""


class VmFlag(IntFlag):
    """`vm_struct.flags`, `include/linux/vmalloc.h` @6.1, @6.12, @7.2."""

    IOREMAP = 0x1
    ALLOC = 0x2
    MAP = 0x4
    USERMAP = 0x8
    DMA_COHERENT = 0x10
    UNINITIALIZED = 0x20
    NO_GUARD = 0x40
    KASAN = 0x80
    FLUSH_RESET_PERMS = 0x100
    MAP_PUT_PAGES = 0x200
    """vmap() of pages that vfree() gives back: the area owns them."""
    ALLOW_HUGE_VMAP = 0x400


@dataclass(frozen=True)
class VmapAreas:
    """All areas in use, by address. All columns have one row per area."""

    va_start: NDArray[np.uint64]
    va_end: NDArray[np.uint64]
    vm: NDArray[np.uint64]
    """Address of its vm_struct; 0 for vm_map_ram(), which makes none."""
    flags: NDArray[np.uint64]
    """`VmFlag`."""
    pages: NDArray[np.uint64]
    """Address of the array of pointers to struct page; 0 for none."""
    nr_pages: NDArray[np.int64]
    caller: NDArray[np.uint64]
    phys_addr: NDArray[np.uint64]
    """Of ioremap."""
    requested_size_bytes: NDArray[np.uint64] | None
    """As asked for; None on kernels that do not keep it."""
    callers: tuple[str, ...]
    """The function that asked for each area ("kernel_clone"); "" where not known."""
    torn: int = 0

    def __len__(self) -> int:
        return int(self.va_start.size)

    def owner_of(self, index: int) -> str:
        """In words: who asked for the area, and whether it holds code."""
        caller = self.callers[index] or f"caller {int(self.caller[index]):#x}"
        low, high = _MODULE_SPACE
        if low <= int(self.va_start[index]) < high:
            return f"{caller} (module or BPF text)"
        return caller


def find_areas(kernel: Kernel, memmap: MemMap) -> VmapAreas:
    """Every area. Raises LayoutError for an unknown layout, FaultError where there is no
    tree to begin with."""
    return areas_in(View.of(kernel, memmap))


def areas_in(view: View) -> VmapAreas:
    """As `find_areas`, with what `view` has already read."""
    addresses, torn = _tree_nodes(view)
    rows = view.fields("vmap_area", addresses, "va_start", "va_end", "vm")
    start, end = rows["va_start"], rows["va_end"]
    is_area = rows.readable & (start < end) & ((start | end) % np.uint64(4096) == 0)
    torn += int((~is_area).sum())
    start, end, vm = start[is_area], end[is_area], rows["vm"][is_area]
    order = np.argsort(start)
    start, end, vm = start[order], end[order], vm[order]

    paths = ["addr", "flags", "pages", "nr_pages", "caller", "phys_addr"]
    keeps_size = view.kernel.has("vm_struct", "requested_size")
    structs = view.fields("vm_struct", vm, *paths, *(["requested_size"] if keeps_size else []))
    is_whole = structs.readable & (structs["addr"] == start)
    # A torn vm_struct can claim more pages than its addresses have room for.
    is_whole &= structs["nr_pages"] <= (end - start) >> np.uint64(12)
    is_whole &= structs["nr_pages"] <= np.uint64(view.memmap.pfn_end)
    torn += int((~is_whole & (vm != 0)).sum())
    nothing = np.uint64(0)
    names = {
        address: view.kernel.symbols.name_at(address) or ""
        for address in np.unique(structs["caller"][is_whole]).tolist()
    }
    caller = np.where(is_whole, structs["caller"], nothing)
    return VmapAreas(
        va_start=start,
        va_end=end,
        vm=np.where(is_whole, vm, nothing),
        flags=np.where(is_whole, structs["flags"], nothing),
        pages=np.where(is_whole, structs["pages"], nothing),
        nr_pages=np.where(is_whole, structs["nr_pages"], nothing).astype(np.int64),
        caller=caller,
        phys_addr=np.where(is_whole, structs["phys_addr"], nothing),
        requested_size_bytes=(
            np.where(is_whole, structs["requested_size"], nothing) if keeps_size else None
        ),
        callers=tuple(names.get(address, "") for address in caller.tolist()),
        torn=torn,
    )


def frames_of(
    view: View, areas: VmapAreas, chosen: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """The frames of the areas with the indices `chosen`.

    Returns frames (int64[m]), the area of each (int64[m]), and how many pointers of the
    arrays led to no struct page.
    """
    chosen = chosen[areas.pages[chosen] != 0]
    # All areas together cannot have more frames than the machine: what lies beyond is torn.
    is_sane = np.cumsum(areas.nr_pages[chosen]) <= view.memmap.pfn_end
    torn = int((~is_sane).sum())
    chosen = chosen[is_sane]
    nr_pages = areas.nr_pages[chosen]
    pointers, of, readable = view.pointers(areas.pages[chosen], nr_pages)
    pfns = view.memmap.pfn_of(pointers)
    is_page = readable & (pfns >= 0) & (pfns < view.memmap.pfn_end)
    # An area that is being filled has null pointers yet: nothing is torn by that.
    torn += int((~is_page & (pointers != 0)).sum())
    return pfns[is_page], chosen[of[is_page]], torn


def walk_vmap(kernel: Kernel, memmap: MemMap) -> Walked:
    """The frames of all vmalloc areas, task stacks included, each with its caller."""
    view = View.of(kernel, memmap)
    return vmap_frames(view, areas_in(view))


def vmap_frames(view: View, areas: VmapAreas) -> Walked:
    """As `walk_vmap`, of areas that are already known."""
    owns = areas.flags & np.uint64(VmFlag.ALLOC | VmFlag.MAP_PUT_PAGES) != 0
    pfns, of, torn = frames_of(view, areas, np.flatnonzero(owns))
    names: dict[str, int] = {}
    code = np.array(
        [names.setdefault(areas.owner_of(index), len(names)) for index in range(len(areas))],
        np.uint32,
    )
    found = OwnedFrames(MemoryType.VMALLOC, pfns, code[of], areas.vm[of], tuple(names))
    return Walked((found,), areas.torn + torn)


# --- the trees ---------------------------------------------------------------------------


def _tree_nodes(view: View) -> tuple[NDArray[np.uint64], int]:
    """The addresses of all vmap_areas in use, and the number of torn links."""
    link = view.offset("vmap_area", "rb_node")
    level = np.array([root for root in _roots(view) if root], np.uint64)
    parents = np.zeros(level.size, np.uint64)
    paths = ("__rb_parent_color", "rb_left", "rb_right")
    found = [np.zeros(0, np.uint64)]
    torn = total = 0
    for _ in range(_DEEPEST):
        if not level.size:
            break
        rows = view.fields("rb_node", level, *paths)
        is_child = rows.readable & (rows["__rb_parent_color"] & ~np.uint64(3) == parents)
        torn += int((~is_child).sum())
        level = level[is_child]
        total += level.size
        if total > _MOST_AREAS:
            raise FaultError("the trees of vmalloc areas do not end", int(level[0]))
        found.append(level)
        below = np.concatenate([rows["rb_left"][is_child], rows["rb_right"][is_child]])
        parents = np.concatenate([level, level])[below != 0]
        level = below[below != 0]
    # A child names its parent, so that no node can be reached twice.
    return np.concatenate(found) - link, torn + int(level.size)


def _roots(view: View) -> list[int]:
    if not view.kernel.types.find_struct("vmap_node"):
        return [view.u64(view.symbol("vmap_area_root"))]
    first = view.u64(view.symbol("vmap_nodes"))
    size = view.kernel.size_of("vmap_node")
    root = view.kernel.member("vmap_node", "busy.root.rb_node").offset
    symbol = view.find_symbol("nr_vmap_nodes")
    if symbol is not None:
        count = min(max(view.i32(symbol), 0), _MOST_NODES)
        return [view.u64(first + index * size + root) for index in range(count)]
    # The number is not known: the nodes go on as long as their lists are lists.
    head = view.kernel.member("vmap_node", "busy.head").offset
    roots = []
    for index in range(_MOST_NODES):
        node = first + index * size
        try:
            is_node = view.u64(view.u64(node + head) + 8) == node + head
            is_node = is_node and view.u64(view.u64(node + head + 8)) == node + head
        except FaultError:
            break
        if not is_node:
            break
        roots.append(view.u64(node + root))
    return roots
