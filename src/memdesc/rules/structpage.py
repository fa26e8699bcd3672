"""What is this frame? From the state of its struct page to a type, with the reason.

The counterpart of `classify` for sources that see kernel memory.  A struct page says much
more than its kpageflags word (page type, reference count, `mapping`, `pp_magic`,
`memcg_data`), and a walk over the kernel's structures says what it cannot.  Like there,
the question is answered once per distinct state, the first match wins, and what stays open
is an honest union: without the walk of vmalloc areas, a page in use may be one.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from memdesc.kernels.layout import MappingKind, PageLayout
from memdesc.kernels.page_state import Identity, PageState, TypeCode, code_of_type
from memdesc.kernels.page_types import ActiveLowTypes
from memdesc.rules.classify import Context, Verdict
from memdesc.rules.procedure import RULES
from memdesc.types import (
    DEVICE,
    KERNEL_COMPOUND,
    KERNEL_MAPPED,
    KERNEL_UNKNOWN,
    MemoryType,
    TypeSet,
)

__all__ = ["ANYTHING", "StructContext", "judge"]

T = MemoryType

ANYTHING = TypeSet.from_iterable(MemoryType)
"""Nothing is known of the frame: its struct page cannot be read, or makes no sense."""


@dataclass(frozen=True)
class StructContext:
    """What is known beside the struct page itself."""

    context: Context
    layout: PageLayout
    kinds: tuple[MemoryType | None, ...] = (None,)
    """By the kind code of a walk (`memdesc.structs.owned.kind_code`); code 0 is none."""
    walked: frozenset[MemoryType] = frozenset()
    """Kinds whose walk met every frame they have."""
    is_live: bool = False
    """Memory changed between the walks and the reading of struct pages."""
    typed: frozenset[TypeCode] = field(init=False)
    """Page types that this kernel has, hugetlb by destructor included."""

    def __post_init__(self) -> None:
        types = self.layout.types
        names = types.flags if isinstance(types, ActiveLowTypes) else types.codes
        typed = {code_of_type(name) for name in names}
        if self.layout.flag("slab"):
            typed.add(TypeCode.SLAB)
        if self.layout.dtor_hugetlb is not None:
            typed.add(TypeCode.HUGETLB)
        object.__setattr__(self, "typed", frozenset(typed))

    def without_ruled_out(self, kinds: TypeSet) -> TypeSet:
        """`kinds` less those that would show: typed pages, walked kinds, absent ones.

        Unless that leaves nothing.
        """
        mask = kinds.mask & ~self.context.absent
        for code, kind in _SHOWN_BY_TYPE.items():
            if code in self.typed:
                mask &= ~kind.bit
        if not self.layout.has_unaccepted:
            mask &= ~T.UNACCEPTED.bit
        for kind in self.walked:
            # A page goes to a CPU's free list and back within microseconds.
            if not (self.is_live and kind is T.FREE_PCP):
                mask &= ~kind.bit
        return TypeSet(mask or kinds.mask)


def judge(state: PageState, known: StructContext) -> Verdict:
    """Return the type of a frame in `state`. Every state has an answer."""
    flag = known.layout.flag
    if (early := _without_page(state)) is not None:
        return early
    if state.flags & flag("hwpoison"):
        if state.page_type is TypeCode.HUGETLB:
            return _verdict("huge-hwpoison", T.HUGETLB, T.POISONED)
        return _verdict("hwpoison", T.POISONED)
    if state.page_type is TypeCode.BUDDY or (state.in_free_block and state.refcount_is_0):
        return _verdict("struct-free", T.FREE)
    if state.is_torn:
        return Verdict(ANYTHING, RULES["struct-torn"])
    if (typed := _typed(state, known)) is not None:
        return typed
    if state.is_huge_zero:
        return _verdict("struct-huge-zero", T.HUGE_ZERO)
    if state.is_zero_page:
        return _verdict("struct-zero-page", T.ZERO)
    if state.flags & flag("reserved"):
        return _verdict("struct-reserved", T.RESERVED)
    if (user := _user_memory(state, known)) is not None:
        return user
    if state.is_net_pool:
        return _verdict("struct-net-pool", T.NET_POOL)
    if (walked := _met_by_walk(state, known)) is not None:
        return walked
    return _kernel(state, known)


# --- helpers -----------------------------------------------------------------------------

_SHOWN_BY_TYPE = {
    TypeCode.GUARD: T.GUARD,
    TypeCode.UNACCEPTED: T.UNACCEPTED,
    TypeCode.ZSMALLOC: T.ZSMALLOC,
    TypeCode.LARGE_KMALLOC: T.LARGE_KMALLOC,
    TypeCode.HUGETLB: T.HUGETLB,
    TypeCode.SLAB: T.SLAB,
}
"""Kinds that can be ruled out where the kernel has a page type for them."""

_EXACT_TYPES = {
    TypeCode.TABLE: ("struct-table", T.PAGE_TABLE),
    TypeCode.GUARD: ("struct-guard", T.GUARD),
    TypeCode.HUGETLB: ("struct-hugetlb", T.HUGETLB),
    TypeCode.SLAB: ("struct-slab", T.SLAB),
    TypeCode.ZSMALLOC: ("struct-zsmalloc", T.ZSMALLOC),
    TypeCode.UNACCEPTED: ("struct-unaccepted", T.UNACCEPTED),
    TypeCode.LARGE_KMALLOC: ("struct-large-kmalloc", T.LARGE_KMALLOC),
}

_BY_IDENTITY = {
    Identity.SECRETMEM: T.SECRETMEM,
    Identity.GUEST_MEMFD: T.GUEST_MEMFD,
}
_BY_MOVABLE = {
    Identity.ZSMALLOC: T.ZSMALLOC,
    Identity.BALLOON: T.BALLOON,
    Identity.OTHER_MOVABLE: T.MOVABLE_OPS,
}


def _without_page(state: PageState) -> Verdict | None:
    """Frames whose struct page is not there, or says nothing."""
    if state.is_unreadable:
        return Verdict(ANYTHING, RULES["struct-unreadable"])
    if state.is_damaged:
        return Verdict(ANYTHING, RULES["struct-damaged"])
    if state.is_hole:
        return _verdict("struct-hole", T.HOLE)
    if state.is_device:
        return Verdict(DEVICE, RULES["struct-device"])
    if not state.is_known:
        return _verdict("struct-deferred", T.DEFERRED)
    return None


def _typed(state: PageState, known: StructContext) -> Verdict | None:
    """What the page type says; slab is a flag on kernels before the type."""
    if state.flags & known.layout.flag("slab"):
        return _verdict("struct-slab", T.SLAB)
    if state.page_type in _EXACT_TYPES:
        rule, kind = _EXACT_TYPES[state.page_type]
        return _verdict(rule, kind)
    if state.page_type is TypeCode.OFFLINE:
        movable = state.mapping is MappingKind.MOVABLE or state.flags & known.layout.flag(
            "movable_ops"
        )
        if movable:
            return _verdict("struct-balloon", T.BALLOON)
        return _verdict("struct-offline", T.BALLOON, T.OFFLINE)
    if state.page_type in (TypeCode.UNKNOWN, TypeCode.OVERFLOW):
        return Verdict(ANYTHING, RULES["struct-unknown-type"])
    return None


def _user_memory(state: PageState, known: StructContext) -> Verdict | None:
    """Anonymous, file and shmem memory, and what passes for it."""
    flags, flag = state.flags, known.layout.flag
    swapbacked = bool(flags & flag("swapbacked"))
    in_swap_cache = swapbacked and bool(flags & flag("owner_priv_1"))
    if state.has_mapping and state.mapping is MappingKind.MOVABLE:
        return _movable(state, known)
    if state.has_mapping and state.mapping & MappingKind.ANON:
        if in_swap_cache:
            return _verdict("struct-anon-swap-cache", T.SWAP_CACHE)
        if state.mapping is MappingKind.KSM:
            return _verdict("struct-ksm", T.KSM)
        return _verdict("struct-anon", T.ANON)
    if swapbacked:
        if in_swap_cache:
            return _verdict("struct-swap-cache", T.SWAP_CACHE)
        if state.has_mapping:
            return _verdict("struct-shmem", T.SHMEM)
        return _verdict("struct-swapbacked-new", T.SHMEM, T.ANON, T.SWAP_CACHE)
    if state.has_mapping:
        if state.identity in _BY_IDENTITY:
            return _verdict("struct-special-file", _BY_IDENTITY[state.identity])
        if state.identity is Identity.DRIVER:
            return _verdict("struct-driver", T.DRIVER_MAPPED if state.is_mapped else T.DRIVER)
        of_cache = flags & (flag("lru") | flag("uptodate"))
        if not of_cache and state.identity is Identity.NOT_RESOLVED:
            other = T.DRIVER_MAPPED if state.is_mapped else T.DRIVER
            return _verdict("struct-file-or-driver", T.FILE, other)
        on_lists = flags & (flag("lru") | flag("unevictable")) == flag("lru")
        if not on_lists and state.identity is Identity.NOT_RESOLVED:
            kinds = T.FILE.bit | T.SECRETMEM.bit
            kinds |= T.GUEST_MEMFD.bit if known.context.behaviour.has_guest_memfd else 0
            return Verdict(
                known.without_ruled_out(TypeSet(kinds)), RULES["struct-file-unevictable"]
            )
        return _verdict("struct-file", T.FILE)
    if flags & flag("lru"):
        return _verdict("struct-truncated", T.FILE)
    return None


def _movable(state: PageState, known: StructContext) -> Verdict:
    if state.identity in _BY_MOVABLE:
        return _verdict("struct-movable", _BY_MOVABLE[state.identity])
    return Verdict(
        known.without_ruled_out(TypeSet.of(T.ZSMALLOC, T.BALLOON, T.MOVABLE_OPS)),
        RULES["struct-movable-unnamed"],
    )


def _met_by_walk(state: PageState, known: StructContext) -> Verdict | None:
    """What a walk says, unless the struct page shows that the frame has moved on since."""
    kind = known.kinds[state.kind] if state.kind < len(known.kinds) else None
    if kind is None:
        return None
    # The second half of a top page table counts no references (page-table isolation), nor does
    # but the first frame of a stack that is not from vmalloc. A live one may be gone by now.
    may_be_bare = kind is T.PAGE_TABLE or (kind is T.KERNEL_STACK and not known.is_live)
    if not may_be_bare and state.refcount_is_0 is not (kind is T.FREE_PCP):
        return None
    return _verdict("struct-walk", kind)


def _kernel(state: PageState, known: StructContext) -> Verdict:
    """A page of the kernel or of a driver that nothing marks."""
    flag = known.layout.flag
    behaviour = known.context.behaviour
    tables = T.PAGE_TABLE.bit if behaviour.pgtable_shows_leaf_user_only else 0
    # A page_pool page would show its magic, an accounted one its cgroup.
    hidden = ~(T.ACCOUNTED.bit | (0 if known.layout.pp_magic is None else T.NET_POOL.bit))
    is_large = state.is_tail or bool(state.flags & flag("head"))
    if is_large:
        if state.is_rmappable:
            kinds = TypeSet.of(T.ANON, T.FILE, T.SHMEM, T.SWAP_CACHE, T.DRIVER)
            return _open("struct-folio-new", kinds.mask, known)
        if state.is_mapped:
            return _open("struct-mapped", KERNEL_MAPPED.mask & hidden, known)
        mask = KERNEL_COMPOUND.mask & hidden | tables
        if state.is_accounted:
            mask = T.ACCOUNTED.bit | T.LARGE_KMALLOC.bit | tables
        return _open("struct-compound", mask, known)
    if state.is_mapped:
        mask = KERNEL_MAPPED.mask & hidden
        mask |= T.ZSMALLOC.bit if behaviour.zsmalloc_shows_mmap else 0
        return _open("struct-mapped", mask, known)
    if state.is_accounted:
        mask = T.ACCOUNTED.bit | T.VMALLOC.bit | T.KERNEL_STACK.bit | tables
        return _open("struct-accounted", mask, known)
    if state.refcount_is_0:
        return _open("struct-unreferenced", T.FREE_PCP.bit | T.DRIVER.bit | tables, known)
    mask = KERNEL_UNKNOWN.mask & hidden & ~T.FREE_PCP.bit
    if state.flags & (flag("uptodate") | flag("dirty") | flag("locked") | flag("writeback")):
        in_flight = T.FILE.bit
        if state.flags & flag("locked"):
            in_flight |= T.ANON.bit | T.SHMEM.bit | T.SWAP_CACHE.bit
        return _open("struct-kernel-or-new", mask | in_flight, known)
    return _open("struct-kernel", mask, known)


def _open(rule: str, mask: int, known: StructContext) -> Verdict:
    return Verdict(known.without_ruled_out(TypeSet(mask)), RULES[rule])


def _verdict(rule: str, *kinds: MemoryType) -> Verdict:
    return Verdict(TypeSet.of(*kinds), RULES[rule])
