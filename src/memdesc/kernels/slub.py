"""The rules of SLUB: how large is a slab, which caches are one, when do slabs go back?

Sources: `mm/slub.c` (calculate_sizes, calculate_order, calc_slab_order, set_cpu_partial,
set_min_partial, calculate_sheaf_capacity), `mm/slab_common.c` (calculate_alignment,
find_mergeable, slab_unmergeable) of 6.1.192, 6.12.117 and 7.2.13.

>>> rules = slub_rules(KernelRelease.parse("6.12.117"))
>>> slab_order(512, cpus=2, rules=rules)
SlabOrder(order=1, objects=16)
>>> object_layout(80, align=16).size_bytes
80
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

from memdesc.errors import FormatError
from memdesc.kernels.release import KernelRelease

__all__ = [
    "KMALLOC_MAX_CACHE_BYTES",
    "KMALLOC_SIZES_BYTES",
    "MAX_OBJECTS_PER_SLAB",
    "CacheTraits",
    "ObjectLayout",
    "SlabOrder",
    "SlubRules",
    "cpu_partial_slabs",
    "kmalloc_size_bytes",
    "may_merge",
    "min_partial",
    "object_layout",
    "order_of_one",
    "sheaf_objects",
    "slab_order",
    "slub_rules",
]

_FRAME_BYTES: Final = 4096
_WORD_BYTES: Final = 8
_CACHE_LINE_BYTES: Final = 64
_SLUB_MAX_ORDER: Final = 3
_MAX_PAGE_ORDER: Final = 10
_SHEAF_HEADER_BYTES: Final = 32
"""`struct slab_sheaf` before its objects: a list head, a cache, a size and a node."""

MAX_OBJECTS_PER_SLAB: Final = (1 << 15) - 1
"""`objects` has 15 bits in struct slab (MAX_OBJS_PER_PAGE)."""

KMALLOC_SIZES_BYTES: Final = (8, 16, 32, 64, 96, 128, 192, 256, 512, 1024, 2048, 4096, 8192)
"""Sizes of the kmalloc caches (`mm/slab_common.c:kmalloc_info`)."""

KMALLOC_MAX_CACHE_BYTES: Final = 8192
"""Larger requests go to the page allocator."""


@dataclass(frozen=True, slots=True)
class SlubRules:
    """What one release does differently."""

    release: KernelRelease

    has_sheaves: bool
    """Every cache has arrays of objects per CPU instead of CPU slabs and CPU partial lists.
    Read in 7.2; 7.0 (believed). 6.18 has both, for two caches."""

    gives_up_objects_for_order: bool
    """Rather than accept waste of a half, one object fewer is asked for. Read in 6.1; until 6.7
    (believed)."""

    freed_pointer_may_be_placed: bool
    """A cache whose objects outlive a free until a grace period can name the member that the
    free pointer may overwrite (`kmem_cache_args.use_freeptr_offset`). 6.12 and later."""


def slub_rules(release: KernelRelease) -> SlubRules:
    """The rules of `release`; an unknown one counts as the newest that was read."""
    version: tuple[int, int] = (release.major, release.minor) if release.is_known else (7, 2)
    return SlubRules(
        release=release,
        has_sheaves=version >= (7, 0),
        gives_up_objects_for_order=version < (6, 8),
        freed_pointer_may_be_placed=version >= (6, 12),
    )


# From the size of an object to the size of a slab


class ObjectLayout(NamedTuple):
    """The place that one object takes."""

    size_bytes: int
    """From one object to the next (`kmem_cache.size`, slab_size in sysfs)."""
    align: int


class SlabOrder(NamedTuple):
    """One slab of a cache."""

    order: int
    objects: int


def object_layout(
    object_bytes: int,
    *,
    align: int = 0,
    hwcache_align: bool = False,
    pointer_outside: bool = False,
) -> ObjectLayout:
    """Bytes from one object to the next, and its alignment.

    `pointer_outside`: a constructor, or TYPESAFE_BY_RCU without a declared place, keeps the
    free pointer out of the object.  Raises FormatError for a size below 1 and for an alignment
    that is no power of two.
    """
    if object_bytes < 1:
        raise FormatError(f"an object has at least one byte, not {object_bytes}")
    if align & (align - 1) or align < 0:
        raise FormatError(f"alignment {align} is not a power of two")
    if hwcache_align:
        line = _CACHE_LINE_BYTES
        while object_bytes <= line // 2:
            line //= 2
        align = max(align, line)
    align = max(align, _WORD_BYTES)
    size = _round_up(object_bytes, _WORD_BYTES)
    if pointer_outside:
        size += _WORD_BYTES
    return ObjectLayout(_round_up(size, align), align)


def slab_order(
    size_bytes: int, *, cpus: int, rules: SlubRules, possible_cpus: int | None = None
) -> SlabOrder:
    """Order and objects of a slab whose objects are `size_bytes` apart.

    `cpus` are those present; a machine with one uses `possible_cpus` (default: the same).
    Raises FormatError where one object does not fit into the largest block.
    """
    asked = 4 * ((cpus if cpus > 1 else possible_cpus or cpus).bit_length() + 1)
    objects = min(asked, max(_objects(_SLUB_MAX_ORDER, size_bytes), 1))
    if rules.gives_up_objects_for_order:
        order = _order_giving_up_objects(size_bytes, objects)
    else:
        order = _order_accepting_waste(size_bytes, objects)
    return SlabOrder(order, _objects(order, size_bytes))


def order_of_one(size_bytes: int) -> int:
    """The least order that holds one object: what a slab falls back to (`kmem_cache.min`).

    Raises FormatError where one object does not fit into the largest block.
    """
    order = max(0, (-(-size_bytes // _FRAME_BYTES) - 1).bit_length())
    if order > _MAX_PAGE_ORDER:
        raise FormatError(f"an object of {size_bytes} bytes does not fit into any block")
    return order


def _order_accepting_waste(size_bytes: int, objects: int) -> int:
    least = order_of_one(objects * size_bytes)
    for share in (16, 8, 4, 2):
        order = _first_order(size_bytes, least, share)
        if order <= _SLUB_MAX_ORDER:
            return order
    return order_of_one(size_bytes)


def _order_giving_up_objects(size_bytes: int, objects: int) -> int:
    while objects > 1:
        for share in (16, 8, 4):
            order = _first_order(size_bytes, order_of_one(objects * size_bytes), share)
            if order <= _SLUB_MAX_ORDER:
                return order
        objects -= 1
    return order_of_one(size_bytes)


def _first_order(size_bytes: int, least: int, share: int) -> int:
    """The first order from `least` that wastes at most 1/`share`; one too large if none does."""
    for order in range(least, _SLUB_MAX_ORDER + 1):
        slab_bytes = _FRAME_BYTES << order
        if slab_bytes % size_bytes <= slab_bytes // share:
            return order
    return _SLUB_MAX_ORDER + 1


def _objects(order: int, size_bytes: int) -> int:
    return min((_FRAME_BYTES << order) // size_bytes, MAX_OBJECTS_PER_SLAB)


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


# How much a cache keeps


def min_partial(size_bytes: int) -> int:
    """Slabs a node keeps on its partial list before an empty one goes back."""
    return min(max((size_bytes.bit_length() - 1) // 2, 5), 10)


def cpu_partial_slabs(size_bytes: int, objects: int) -> int:
    """Slabs on a CPU's partial list before it is moved to the node (6.1, 6.12)."""
    wanted = _by_size(size_bytes, (120, 52, 24, 6))
    return -(-2 * wanted // objects)


def sheaf_objects(size_bytes: int) -> int:
    """Objects of one sheaf (7.2): grown until the sheaf fills its kmalloc size."""
    wanted = _by_size(size_bytes, (60, 26, 12, 4))
    whole = kmalloc_size_bytes(_SHEAF_HEADER_BYTES + wanted * _WORD_BYTES)
    return (whole - _SHEAF_HEADER_BYTES) // _WORD_BYTES


def kmalloc_size_bytes(request_bytes: int) -> int:
    """The kmalloc cache that serves a request. Raises FormatError above the largest."""
    for size in KMALLOC_SIZES_BYTES:
        if request_bytes <= size:
            return size
    raise FormatError(
        f"no kmalloc cache holds {request_bytes} bytes",
        hint=f"requests above {KMALLOC_MAX_CACHE_BYTES} bytes go to the page allocator",
    )


def _by_size(size_bytes: int, values: tuple[int, int, int, int]) -> int:
    for limit, value in zip((256, 1024, _FRAME_BYTES), values, strict=False):
        if size_bytes < limit:
            return value
    return values[3]


# Merging


class CacheTraits(NamedTuple):
    """What decides whether two caches become one."""

    size_bytes: int
    """Of a cache: its size. Of a wish: the size it needs."""
    align: int
    has_constructor: bool = False
    has_usercopy_window: bool = False
    never_merge: bool = False
    """RED_ZONE, POISON, STORE_USER, TRACE, TYPESAFE_BY_RCU, NOLEAKTRACE, FAILSLAB, NO_MERGE."""
    reclaim_account: bool = False
    dma: bool = False
    dma32: bool = False
    account: bool = False

    @property
    def is_unmergeable(self) -> bool:
        return self.has_constructor or self.has_usercopy_window or self.never_merge

    @property
    def flags(self) -> tuple[bool, bool, bool, bool]:
        return (self.reclaim_account, self.dma, self.dma32, self.account)


def may_merge(cache: CacheTraits, wish: CacheTraits) -> bool:
    """True if `wish` is served by the existing `cache`; scanned oldest first."""
    return (
        not cache.is_unmergeable
        and not wish.is_unmergeable
        and 0 <= cache.size_bytes - wish.size_bytes < _WORD_BYTES
        and cache.size_bytes % wish.align == 0
        and cache.flags == wish.flags
    )
