"""The same frames through drgn's own helpers: does somebody else read them alike?

drgn's helpers are written and tested by others, follow the kernel's own functions one frame at
a time, and share no code with memdesc's columns.  They run on types from DWARF where the debug
package's vmlinux is at hand, else on the BTF of the dump (`memdesc.drgn_plugin`).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from memdesc.checks.runs import Peer
from memdesc.kernels.layout import head_address
from memdesc.map.extents import MemoryMap
from memdesc.sources.structs import DumpSource
from memdesc.structs.walk.slab import find_caches
from memdesc.structs.walk.vmap import find_areas
from memdesc.types import MemoryType, TypeSet

if TYPE_CHECKING:
    from drgn import Program

__all__ = ["find_dwarf", "peer_rows"]

SAMPLES = 10_000
_SEED = 1
_MOST_EXAMPLES = 3


def peer_rows(
    path: Path, source: DumpSource, truth: MemoryMap, *, dwarf: Path | None = None
) -> list[Peer]:
    """Compare a sample of the dump at `path`. Raises what drgn raises for a dump that it
    cannot open, and VmError never: without `dwarf` the types are the dump's own BTF."""
    prog = _program(path, dwarf)
    origin = "BTF" if dwarf is None else "DWARF"
    sample = _sample(source)
    return [*_of_frames(prog, source, truth, sample, origin), *_of_lists(prog, source, origin)]


def find_dwarf(release: str, folder: Path | None) -> Path | None:
    """A vmlinux with DWARF for a release: of the debug package, or anywhere in `folder`."""
    places = [Path(f"/usr/lib/debug/boot/vmlinux-{release}")]
    if folder is not None:
        places += sorted(folder.rglob(f"vmlinux-{release}"))
    return next((place for place in places if place.is_file()), None)


# --- frames ------------------------------------------------------------------------------


@dataclass
class _Tally:
    """One property of all sampled frames."""

    what: str
    helper: str
    compared: int = 0
    agreed: int = 0
    differing: list[str] = field(default_factory=list)

    def add(self, pfn: int, mine: object, theirs: object) -> None:
        self.compared += 1
        if mine == theirs:
            self.agreed += 1
        elif len(self.differing) < _MOST_EXAMPLES:
            self.differing.append(f"frame {pfn:#x}: memdesc {mine}, drgn {theirs}")

    def row(self, origin: str) -> Peer:
        return Peer(
            self.what, self.helper, origin, self.compared, self.agreed, tuple(self.differing)
        )


def _of_frames(
    prog: Program, source: DumpSource, truth: MemoryMap, sample: list[int], origin: str
) -> list[Peer]:
    from drgn.helpers.linux import mm, slab

    layout, memmap = source.memmap.layout, source.memmap
    flags = _Tally("flags", "decode_page_flags")
    heads = _Tally("head of the compound page", "compound_head")
    orders = _Tally("order", "compound_order")
    mappings = _Tally("mapping", "page.mapping")
    indexes = _Tally("index in the file or mapping", "page_index")
    slabs = _Tally("is a slab, by its head", "PageSlab")
    caches = _Tally("slab cache", "slab_object_info")
    addresses = _Tally("address in the direct map", "page_to_virt")
    for pfn in sample:
        page = mm.pfn_to_page(prog, pfn)
        data = memmap.read_pages(pfn, 1)[0]
        words, address = data.view(np.uint64), memmap.page_address(pfn)
        mine = int(words[layout.flags // 8]) & layout.flag_mask
        flags.add(pfn, mine, _mask(layout.flag_bits, mm.decode_page_flags(page)))
        head = head_address(layout, address, int(words[layout.compound // 8]))
        heads.add(pfn, head, mm.compound_head(page).value_())
        order = 0
        if head == address and mine & layout.flag("head"):
            order = int(memmap.read_pages(pfn, 2).reshape(-1)[layout.folio_order])
        orders.add(pfn, order, int(mm.compound_order(page)))
        fact = truth.extent(truth.index_of(pfn)).fact
        if fact.types.only in (MemoryType.ANON, MemoryType.FILE, MemoryType.SHMEM):
            mappings.add(pfn, int(words[layout.mapping // 8]), page.mapping.value_())
            if head == address:
                indexes.add(pfn, int(words[layout.index // 8]), mm.page_index(page).value_())
        is_slab = bool(mm.PageSlab(mm.compound_head(page)))
        slabs.add(pfn, fact.types == TypeSet.of(MemoryType.SLAB), is_slab)
        if fact.types.only is MemoryType.SLAB and truth.owners is not None:
            owner = truth.owner_names[int(truth.owners[truth.index_of(pfn)])]
            info = slab.slab_object_info(prog, mm.page_to_virt(page))
            theirs = None if info is None else info.slab_cache.name.string_().decode()
            if info is not None:
                caches.add(pfn, owner, theirs)
        direct = memmap.direct_map_address(pfn)
        addresses.add(pfn, direct, mm.page_to_virt(page).value_())
    tallies = (flags, heads, orders, mappings, indexes, slabs, caches, addresses)
    return [tally.row(origin) for tally in tallies if tally.compared]


# --- lists -------------------------------------------------------------------------------


def _of_lists(prog: Program, source: DumpSource, origin: str) -> Iterator[Peer]:
    """Whole lists, compared entry by entry."""
    from drgn.helpers.linux import mm, slab

    kernel, memmap = source.kernel, source.memmap
    areas = find_areas(kernel, memmap)
    mine = set(zip(areas.va_start.tolist(), areas.va_end.tolist(), strict=True))
    theirs = {
        (area.va_start.value_(), area.va_end.value_()) for area in mm.for_each_vmap_area(prog)
    }
    yield _sets("vmalloc areas", "for_each_vmap_area", origin, mine, theirs)
    caches, _ = find_caches(kernel, memmap)
    counted = {(cache.name, cache.nr_slabs, cache.nr_objects) for cache in caches}
    told = set()
    for cache in slab.for_each_slab_cache(prog):
        usage = slab.slab_cache_usage(cache)
        told.add((cache.name.string_().decode(), usage.num_slabs, usage.num_objs))
    yield _sets("slab caches, their slabs and objects", "slab_cache_usage", origin, counted, told)


def _sets(what: str, helper: str, origin: str, mine: set[Any], theirs: set[Any]) -> Peer:
    differing = sorted(mine ^ theirs)[:_MOST_EXAMPLES]
    return Peer(
        what,
        helper,
        origin,
        len(mine | theirs),
        len(mine & theirs),
        tuple(f"only {'memdesc' if item in mine else 'drgn'} has {item}" for item in differing),
    )


# --- helpers -----------------------------------------------------------------------------


def _program(path: Path, dwarf: Path | None) -> Program:
    from memdesc.drgn_plugin import open_program

    if dwarf is None:
        return open_program(path)
    from drgn import Program

    prog = Program()
    prog.set_core_dump(str(path))
    prog.load_debug_info([str(dwarf)])
    return prog


def _sample(source: DumpSource) -> list[int]:
    """Frames with a struct page, at random but the same every time, in order."""
    ranges = source.memmap.sections
    frames = np.concatenate([np.arange(low, high) for low, high in ranges])
    chooser = random.Random(_SEED)
    return sorted(chooser.sample(frames.tolist(), min(SAMPLES, frames.size)))


def _mask(bits: Mapping[str, int], text: str) -> int:
    """The flags in drgn's words, as a mask. A name that memdesc has not, or a number of a bit
    without a name, gives a mask that equals nothing."""
    mask = 0
    for name in text.split("|"):
        if name in ("", "0"):
            continue
        bit = bits.get(name.removeprefix("PG_"))
        if bit is None:
            return -1
        mask |= 1 << bit
    return mask
