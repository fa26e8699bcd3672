"""Layouts are probed by what is there, and refused where that fits no known kernel."""

from __future__ import annotations

from pathlib import Path

import pytest
from struct_worlds import RELEASES, DictTypes

from memdesc.errors import LayoutError
from memdesc.kernels.layout import PageLayout, head_address
from memdesc.kernels.page_flags import DEBIAN_6_1, DEBIAN_6_12, DEBIAN_7_2, page_flag_bits
from memdesc.kernels.page_types import ActiveLowTypes, PageType, TopByteTypes, page_types
from memdesc.kernels.release import KernelRelease

LIVE_BTF = Path("/sys/kernel/btf/vmlinux")
VMEMMAP = 0xFFFFEA0000000000
CONFIGS = {"6.1": DEBIAN_6_1, "6.12": DEBIAN_6_12, "7.2": DEBIAN_7_2}


@pytest.mark.parametrize("series", ["6.1", "6.12", "7.2"])
def test_flags_and_types_are_those_of_the_tables_by_release(series: str) -> None:
    release = KernelRelease.parse(RELEASES[series])
    layout = PageLayout.probe(DictTypes.of(series))
    table = page_flag_bits(release, CONFIGS[series])
    assert {name: layout.flag_bits[name] for name in table} == dict(table)
    assert layout.flag_mask == (1 << len(table)) - 1
    known = page_types(release)
    if isinstance(known, ActiveLowTypes):
        assert isinstance(layout.types, ActiveLowTypes)
        assert layout.types.flags == known.flags
    else:
        assert isinstance(layout.types, TopByteTypes)
        assert layout.types.codes == known.codes


def test_each_kernel_keeps_a_folio_s_counts_in_another_place() -> None:
    old, middle, new = (PageLayout.probe(DictTypes.of(s)) for s in ("6.1", "6.12", "7.2"))
    assert (old.folio_order, middle.folio_order, new.folio_order) == (81, 64, 64)
    assert (old.folio_entire_mapcount, old.folio_large_mapcount) == (84, None)
    assert (middle.folio_entire_mapcount, new.folio_entire_mapcount) == (84, 88)
    assert old.has_subpage_mapcounts_only
    assert not new.has_subpage_mapcounts_only
    assert new.folios_charge_objcg
    assert not middle.folios_charge_objcg
    assert (old.node_field, old.zone_field) == ((54, 10), (51, 3))


class TestTheWayToAHead:
    def test_an_address_with_its_lowest_bit(self) -> None:
        layout = PageLayout.probe(DictTypes.of("6.12"))
        tail = VMEMMAP + 0x1007 * 64
        assert head_address(layout, tail, VMEMMAP + 0x1000 * 64 + 1) == VMEMMAP + 0x1000 * 64

    def test_a_mask_or_an_address_by_content(self) -> None:
        layout = PageLayout.probe(DictTypes.of("7.2"))
        tail = VMEMMAP + 0x1007 * 64
        mask_of_order_3 = (1 << 64) - (1 << 9) | 1
        assert head_address(layout, tail, mask_of_order_3) == VMEMMAP + 0x1000 * 64
        assert head_address(layout, tail, VMEMMAP + 0x1000 * 64 + 1) == VMEMMAP + 0x1000 * 64

    def test_what_looks_like_a_mask_is_an_address_on_kernels_without_masks(self) -> None:
        layout = PageLayout.probe(DictTypes.of("6.12"))
        assert head_address(layout, VMEMMAP, (1 << 64) - 511) == (1 << 64) - 512

    def test_a_page_that_is_no_tail_is_its_own(self) -> None:
        layout = PageLayout.probe(DictTypes.of("7.2"))
        assert head_address(layout, VMEMMAP, 0xDEAD000000000100) == VMEMMAP


@pytest.mark.parametrize(
    ("member", "complaint"),
    [("mapping", "no mapping"), ("page_type", "no page_type"), ("_refcount", "no _refcount")],
)
def test_a_missing_member_is_refused(member: str, complaint: str) -> None:
    types = DictTypes.of("6.12")
    del types.structs["page"][member]
    with pytest.raises(LayoutError, match=complaint) as caught:
        PageLayout.probe(types)
    assert caught.value.hint


def test_page_types_that_nobody_read_are_refused() -> None:
    types = DictTypes.of("6.12")
    # 6.11: single bits by enumerators.
    types.enumerators = {"PG_buddy": 0x40000000, "PG_slab": 0x02000000}
    with pytest.raises(LayoutError, match="page types"):
        PageLayout.probe(types)


def test_other_widths_and_flags_are_refused() -> None:
    for change, complaint in (
        (lambda t: t.structs["page"].update(mapping=(24, 4)), "32 bits"),
        (lambda t: t.pageflags.pop("PG_lru"), "PG_lru"),
        (lambda t: t.structs["folio"].pop("_large_mapcount"), "_large_mapcount"),
        (lambda t: t.structs["folio"].pop("_flags_1"), "order"),
        (lambda t: t.structs.pop("page"), "struct page"),
    ):
        types = DictTypes.of("6.12")
        change(types)
        with pytest.raises(LayoutError, match=complaint):
            PageLayout.probe(types)


@pytest.mark.skipif(not LIVE_BTF.is_file(), reason="this kernel has no BTF (CONFIG_DEBUG_INFO_BTF)")
def test_the_running_kernel_is_known() -> None:
    from memdesc.structs.btf import BtfTypes

    layout = PageLayout.probe(BtfTypes.open(LIVE_BTF))
    assert layout.refcount == layout.page_type + 4
    assert layout.flag("lru")
    assert layout.flag("head")
    assert PageType.BUDDY in (
        layout.types.flags if isinstance(layout.types, ActiveLowTypes) else layout.types.codes
    )


def test_the_magic_of_page_pools_may_be_left_in_the_overlay_alone() -> None:
    types = DictTypes.of("7.2")
    del types.structs["page"]["pp_magic"]
    assert PageLayout.probe(types).pp_magic is None
    types.structs["netmem_desc"] = {"pp_magic": (8, 8)}
    assert PageLayout.probe(types).pp_magic == 8
