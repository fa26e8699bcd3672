"""What a struct page says, and what stays open until a walk has been made."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from struct_worlds import RELEASES, DictTypes

from memdesc.kernels.layout import MappingKind, PageLayout
from memdesc.kernels.page_state import (
    SIG_ACCOUNTED,
    SIG_DAMAGED,
    SIG_DEVICE,
    SIG_HAS_MAPPING,
    SIG_HOLE,
    SIG_HUGE_ZERO,
    SIG_IDENTITY_SHIFT,
    SIG_IN_FREE_BLOCK,
    SIG_KIND_SHIFT,
    SIG_KNOWN,
    SIG_MAPPED,
    SIG_MAPPING_SHIFT,
    SIG_NET_POOL,
    SIG_REFCOUNT_0,
    SIG_RMAPPABLE,
    SIG_TAIL,
    SIG_TORN,
    SIG_TYPE_SHIFT,
    SIG_UNREADABLE,
    SIG_ZERO_PAGE,
    Identity,
    PageState,
    TypeCode,
)
from memdesc.kernels.release import KernelRelease, behaviour_of
from memdesc.rules.classify import Context, Verdict
from memdesc.rules.procedure import RULES
from memdesc.rules.structpage import ANYTHING, StructContext, judge
from memdesc.types import DEVICE, Certainty, MemoryType

T = MemoryType
FILE = SIG_HAS_MAPPING
ANON = SIG_HAS_MAPPING | MappingKind.ANON << SIG_MAPPING_SHIFT
KSM = SIG_HAS_MAPPING | MappingKind.KSM << SIG_MAPPING_SHIFT
MOVABLE = SIG_HAS_MAPPING | MappingKind.MOVABLE << SIG_MAPPING_SHIFT
KINDS = (None, T.VMALLOC, T.KERNEL_STACK, T.PERCPU, T.FREE_PCP)
WALKED = frozenset({T.VMALLOC, T.KERNEL_STACK, T.PERCPU, T.FREE_PCP})


def known(
    series: str = "6.12", *, walked: frozenset[MemoryType] = frozenset(), is_live: bool = False
) -> StructContext:
    release = KernelRelease.parse(RELEASES[series])
    layout = PageLayout.probe(DictTypes.of(series))
    context = Context(behaviour_of(release))
    return StructContext(context, layout, kinds=KINDS, walked=walked, is_live=is_live)


def of(bits: int, *flags: str, about: StructContext | None = None) -> Verdict:
    """The verdict on a frame with these signature bits and flags."""
    about = about or known()
    signature = SIG_KNOWN | bits | sum(about.layout.flag(flag) for flag in flags)
    return judge(PageState.unpack(signature), about)


def typed(code: TypeCode) -> int:
    return code << SIG_TYPE_SHIFT


def identity(which: Identity) -> int:
    return which << SIG_IDENTITY_SHIFT


def walk(kind: MemoryType) -> int:
    return KINDS.index(kind) << SIG_KIND_SHIFT


@pytest.mark.parametrize(
    ("bits", "flags", "kind"),
    [
        (SIG_HOLE, "", T.HOLE),
        (typed(TypeCode.BUDDY) | SIG_REFCOUNT_0, "", T.FREE),
        (SIG_IN_FREE_BLOCK | SIG_REFCOUNT_0, "", T.FREE),
        (typed(TypeCode.SLAB), "", T.SLAB),
        (typed(TypeCode.TABLE), "", T.PAGE_TABLE),
        (typed(TypeCode.GUARD), "", T.GUARD),
        (typed(TypeCode.HUGETLB) | ANON, "head", T.HUGETLB),
        (typed(TypeCode.ZSMALLOC), "private", T.ZSMALLOC),
        (typed(TypeCode.UNACCEPTED), "", T.UNACCEPTED),
        (typed(TypeCode.LARGE_KMALLOC), "head", T.LARGE_KMALLOC),
        (typed(TypeCode.OFFLINE) | MOVABLE, "", T.BALLOON),
        (SIG_HUGE_ZERO, "head", T.HUGE_ZERO),
        (SIG_ZERO_PAGE, "reserved", T.ZERO),
        (0, "reserved", T.RESERVED),
        (SIG_MAPPED, "reserved", T.RESERVED),
        (ANON | SIG_MAPPED, "swapbacked lru", T.ANON),
        (ANON, "uptodate", T.ANON),  # lazily freed
        (ANON, "swapbacked owner_priv_1", T.SWAP_CACHE),
        (KSM, "swapbacked", T.KSM),
        (FILE, "swapbacked", T.SHMEM),
        (0, "swapbacked owner_priv_1", T.SWAP_CACHE),
        (FILE, "lru", T.FILE),
        (FILE | identity(Identity.SECRETMEM), "unevictable", T.SECRETMEM),
        (FILE | identity(Identity.GUEST_MEMFD), "unevictable", T.GUEST_MEMFD),
        (FILE | identity(Identity.FILE), "unevictable mlocked", T.FILE),
        (MOVABLE | identity(Identity.ZSMALLOC), "", T.ZSMALLOC),
        (FILE | identity(Identity.DRIVER) | SIG_MAPPED, "", T.DRIVER_MAPPED),  # a perf ring
        (FILE | identity(Identity.DRIVER), "dirty", T.DRIVER),
        (FILE | identity(Identity.FILE), "locked", T.FILE),
        (0, "lru", T.FILE),
        (SIG_NET_POOL, "", T.NET_POOL),
        (SIG_NET_POOL | SIG_MAPPED, "head", T.NET_POOL),
        (0, "hwpoison", T.POISONED),
    ],
)  # fmt: skip
def test_what_a_struct_page_says_alone(bits: int, flags: str, kind: MemoryType) -> None:
    verdict = of(bits, *flags.split())
    assert verdict.types.only is kind
    assert verdict.certainty is not Certainty.NOT_VISIBLE


def test_a_mapping_without_marks_of_page_cache_may_be_a_driver_s() -> None:
    assert set(of(FILE | SIG_MAPPED).types) == {T.FILE, T.DRIVER_MAPPED}
    assert set(of(FILE, "locked").types) == {T.FILE, T.DRIVER}


def test_a_struct_page_of_zeroes_is_not_initialised_yet() -> None:
    assert judge(PageState.unpack(0), known()).types.only is T.DEFERRED


@pytest.mark.parametrize("bits", [SIG_UNREADABLE, SIG_DAMAGED, SIG_TAIL | SIG_TORN])
def test_what_cannot_be_read_may_be_anything(bits: int) -> None:
    assert of(bits).types == ANYTHING


def test_poison_says_so_before_all_else_and_hugetlb_keeps_its_type() -> None:
    assert of(ANON, "hwpoison", "swapbacked").types.only is T.POISONED
    huge = of(typed(TypeCode.HUGETLB), "hwpoison", "head")
    assert set(huge.types) == {T.HUGETLB, T.POISONED}


def test_slab_is_a_flag_on_6_1_and_a_stale_map_count_is_none() -> None:
    assert of(SIG_MAPPED, "slab", about=known("6.1")).types.only is T.SLAB


def test_device_memory_is_the_union_of_its_kinds() -> None:
    assert of(SIG_DEVICE).types == DEVICE


def test_slab_words_where_mapping_is_are_no_anonymous_memory() -> None:
    assert of(typed(TypeCode.SLAB) | MappingKind.ANON << SIG_MAPPING_SHIFT).types.only is T.SLAB
    # Low bits without an address, on a page of no type, say nothing either.
    assert T.ANON not in of(MappingKind.ANON << SIG_MAPPING_SHIFT).types


class TestWithoutAWalk:
    def test_a_page_in_use_may_be_vmalloc_or_a_stack_but_not_free(self) -> None:
        verdict = of(0)
        assert {T.VMALLOC, T.KERNEL_STACK, T.PERCPU, T.DRIVER} <= set(verdict.types)
        assert not set(verdict.types) & {T.FREE_PCP, T.NET_POOL, T.ACCOUNTED, T.ZSMALLOC, T.GUARD}
        assert verdict.certainty is Certainty.NOT_VISIBLE

    def test_one_without_references_is_on_a_cpu_s_list_or_inside_a_block(self) -> None:
        assert set(of(SIG_REFCOUNT_0, about=known("7.2")).types) == {T.FREE_PCP, T.DRIVER}
        # Until 6.15 an order-1 page directory was no compound page.
        assert T.PAGE_TABLE in of(SIG_REFCOUNT_0).types

    def test_a_charged_page_is_none_that_is_free(self) -> None:
        assert set(of(SIG_ACCOUNTED | SIG_REFCOUNT_0, about=known("7.2")).types) == {
            T.ACCOUNTED, T.VMALLOC, T.KERNEL_STACK,
        }  # fmt: skip

    def test_kernels_with_a_type_for_large_kmalloc_rule_it_out_elsewhere(self) -> None:
        assert T.LARGE_KMALLOC in of(0, "head").types
        assert T.LARGE_KMALLOC not in of(0, "head", about=known("7.2")).types

    def test_a_folio_for_users_is_being_filled_and_no_kernel_memory(self) -> None:
        kinds = of(SIG_RMAPPABLE, "head").types
        assert {T.ANON, T.FILE, T.SHMEM} <= set(kinds)
        assert T.LARGE_KMALLOC not in kinds


class TestWithWalks:
    @pytest.mark.parametrize("kind", [T.VMALLOC, T.KERNEL_STACK, T.PERCPU])
    def test_a_walk_names_pages_in_use(self, kind: MemoryType) -> None:
        about = known(walked=WALKED)
        for more in (0, SIG_ACCOUNTED, SIG_MAPPED):
            assert of(walk(kind) | more, about=about).types.only is kind

    def test_a_walk_names_pages_on_the_lists_of_cpus(self) -> None:
        about = known(walked=WALKED)
        assert of(walk(T.FREE_PCP) | SIG_REFCOUNT_0, about=about).types.only is T.FREE_PCP

    def test_a_page_that_moved_on_since_the_walk_is_not_what_the_walk_says(self) -> None:
        about = known(walked=WALKED)
        assert of(walk(T.FREE_PCP), about=about).rule is RULES["struct-kernel"]
        assert T.VMALLOC not in of(walk(T.VMALLOC) | SIG_REFCOUNT_0, about=about).types
        assert of(walk(T.VMALLOC) | typed(TypeCode.SLAB), about=about).types.only is T.SLAB

    def test_what_was_walked_to_its_end_is_ruled_out_elsewhere(self) -> None:
        about = known("7.2", walked=WALKED)
        assert not set(of(0, about=about).types) & WALKED
        assert of(SIG_ACCOUNTED, about=about).types.only is T.ACCOUNTED
        assert of(SIG_REFCOUNT_0, about=about).types.only is T.DRIVER

    def test_lists_of_cpus_change_too_fast_to_be_ruled_out_on_a_live_kernel(self) -> None:
        about = known("7.2", walked=WALKED, is_live=True)
        assert T.FREE_PCP in of(SIG_REFCOUNT_0, about=about).types


@given(st.integers(0, (1 << 64) - 1), st.sampled_from(sorted(RELEASES)), st.booleans())
def test_every_signature_has_an_answer(signature: int, series: str, walked: bool) -> None:
    about = known(series, walked=WALKED if walked else frozenset())
    verdict = judge(PageState.unpack(signature), about)
    assert len(verdict.types) >= 1
    assert RULES[verdict.rule.name] is verdict.rule


def test_a_movable_balloon_page_is_told_by_the_flag_that_this_kernel_has() -> None:
    about = known("7.2")
    flags = {**about.layout.flag_bits, "movable_ops": about.layout.flag_bits["uptodate"]}
    marked = replace(about, layout=replace(about.layout, flag_bits=flags))
    offline = typed(TypeCode.OFFLINE)
    assert of(offline, "uptodate", about=marked).types.only is T.BALLOON
    assert T.OFFLINE in of(offline, about=marked).types
    assert T.OFFLINE in of(offline, "uptodate", about=about).types


def test_the_later_frames_of_a_stack_without_vmalloc_count_no_references() -> None:
    """CONFIG_VMAP_STACK=n. On a live machine the frame may have been given back since."""
    bare = walk(T.KERNEL_STACK) | SIG_REFCOUNT_0
    assert of(bare, about=known(walked=WALKED)).types.only is T.KERNEL_STACK
    assert T.FREE_PCP in of(bare, about=known(walked=WALKED, is_live=True)).types


def test_a_page_pool_is_ruled_out_only_where_its_pages_would_show() -> None:
    about = known("7.2")
    blind = replace(about, layout=replace(about.layout, pp_magic=None))
    assert T.NET_POOL not in of(0, about=about).types
    assert T.NET_POOL in of(0, about=blind).types
