"""Frames that packets lead to: the fragments of every sk_buff in memory.

A block of a page_frag cache that is full is forgotten by its cache and lives on by its
packets alone.  So the packets are asked: each object of the caches of sk_buffs that is in use
is followed to its data and to the pages that it lists.

Sources: `include/linux/skbuff.h` (struct sk_buff, skb_shared_info, skb_frag; sk_buff_fclones),
`net/core/skbuff.c:skb_init` @6.1, @6.12, @7.2.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from memdesc.errors import FaultError, LayoutError
from memdesc.structs.walk.view import View
from memdesc.types import PAGE_SHIFT

__all__ = ["packet_frames"]

_MOST_FRAGS = 17
"""MAX_SKB_FRAGS as every distribution sets it: above it, the object is no packet's."""
_KERNEL = 1 << 63
_CACHES = ("skbuff_head_cache", "skbuff_fclone_cache")
_NOT_A_PAGE = 1
"""NET_IOV of a netmem_ref (`include/net/netmem.h`)."""


def packet_frames(view: View, slabs: NDArray[np.int64]) -> NDArray[np.int64]:
    """The frames (int64[n], rising) of the whole blocks that packets in use lead to.

    `slabs` are the frames of all slabs, heads among them; tails are passed over. Raises
    LayoutError where the caches of packets or their layout are not known.
    """
    found: list[int] = []
    caches = {_cache(view, name): name for name in _CACHES}
    size = view.kernel.size_of("sk_buff")
    rows = view.fields("slab", view.memmap.page_address(slabs), "slab_cache", "objects")
    base = view.memmap.direct_map_address(0)
    for cache, name in caches.items():
        stride = view.kernel.load("kmem_cache", cache)["size"]
        mine = np.flatnonzero(rows["slab_cache"] == np.uint64(cache))
        for index in mine.tolist():
            slab = base + (int(slabs[index]) << PAGE_SHIFT)
            for number in range(int(rows["objects"][index])):
                skb = slab + number * stride
                found += _frames_of(view, skb)
                if name == "skbuff_fclone_cache":  # struct sk_buff_fclones: skb1, then skb2
                    found += _frames_of(view, skb + size)
    return np.unique(np.array(found, np.int64))


# --- helpers -----------------------------------------------------------------------------


def _cache(view: View, name: str) -> int:
    """The kmem_cache of packets; from 6.9 on a member of `net_hotdata`."""
    symbol = view.find_symbol(name)
    if symbol is not None:
        return view.u64(symbol)
    member = name.replace("_head", "")
    place = view.kernel.member("net_hotdata", member).offset
    return view.u64(view.symbol("net_hotdata") + place)


def _frames_of(view: View, address: int) -> list[int]:
    """What one sk_buff leads to; nothing for an object that is free."""
    kernel = view.kernel
    try:
        skb = kernel.load("sk_buff", address)
        head = skb["head"]
        if skb["users.refs.counter"] < 1 or head < _KERNEL:
            return []
        shared = kernel.load("skb_shared_info", head + skb["end"])
        count = shared["nr_frags"]
        if shared["dataref.counter"] < 1 or not 0 <= count <= _MOST_FRAGS:
            return []
        pages = [_page(view, shared.address, index) for index in range(count)]
        blocks = [view.memmap.pfn_of(page) for page in pages if page]
        if skb.get("head_frag"):
            blocks.append(view.memmap.pfn_of_direct(head))
        return [pfn for block in blocks for pfn in _block(view, block)]
    except FaultError:
        return []


def _page(view: View, shared: int, index: int) -> int:
    """The page of a fragment; 0 for memory of a device."""
    kernel = view.kernel
    frags = kernel.member("skb_shared_info", "frags").offset
    for struct, path in (("skb_frag", "netmem"), ("bio_vec", "bv_page"), ("skb_frag", "bv_page")):
        place = kernel.find_member(struct, path)
        if place is not None and (struct != "bio_vec" or not kernel.types.find_struct("skb_frag")):
            page = view.u64(shared + frags + index * kernel.size_of(struct) + place.offset)
            return 0 if page & _NOT_A_PAGE else page
    raise LayoutError(f"the fragments of packets of {kernel.release} are not known")


def _block(view: View, pfn: int) -> list[int]:
    """All frames of the compound page that holds `pfn`; itself where there is none."""
    memmap = view.memmap
    if not 0 <= pfn < memmap.pfn_end or not memmap.has_page(pfn):
        return []
    layout = memmap.layout
    link = view.u64(memmap.page_address(pfn) + layout.compound)
    head = pfn
    if link & 1:
        for order in range(1, layout.max_order + 1):
            first = pfn & ~((1 << order) - 1)
            flags = view.u64(memmap.page_address(first) + layout.flags)
            if flags & layout.flag("head") and _order(view, first) >= order:
                head = first
                break
        else:
            return []
    elif not view.u64(memmap.page_address(pfn) + layout.flags) & layout.flag("head"):
        return [pfn]
    return list(range(head, head + (1 << _order(view, head))))


def _order(view: View, head: int) -> int:
    layout = view.memmap.layout
    raw = view.memory.read(view.memmap.page_address(head) + layout.folio_order, 1)
    return min(raw[0], layout.max_order)
