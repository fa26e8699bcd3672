"""Sizes that the kernel computes at boot, against those read from running kernels."""

from __future__ import annotations

import pytest

from memdesc.kernels.allocator import allocator_rules
from memdesc.kernels.release import UNKNOWN_RELEASE, KernelRelease
from memdesc.model.zones import Layout, ZoneLayout, marks_of, min_free_kbytes

V612 = allocator_rules(KernelRelease.parse("6.12.117"))


@pytest.mark.parametrize(
    ("mib", "batch"), [(16, 1), (128, 7), (256, 15), (512, 31), (1024, 63), (1 << 20, 63)]
)
def test_batches_by_the_size_of_a_zone(mib: int, batch: int) -> None:
    assert V612.pcp_batch(mib << 8) == batch


def test_min_free_kbytes_is_the_root_of_sixteen_times_memory_within_limits() -> None:
    assert V612.min_free_kbytes(1 << 20) == 4096
    assert V612.min_free_kbytes(100) == 128
    assert V612.min_free_kbytes(1 << 40) == 262144


def test_huge_pages_raise_min_free_kbytes() -> None:
    small, large = Layout.pc(2 << 30), Layout.pc(8 << 30)
    assert min_free_kbytes(small, V612, [z.managed for z in small.zones]) == 45056
    assert min_free_kbytes(large, V612, [z.managed for z in large.zones]) == 67584


def test_marks_share_min_free_kbytes_and_step_by_a_quarter() -> None:
    layout = Layout((ZoneLayout("Normal", 0, 0, 1 << 18),), min_free_kbytes=40960)
    (mark,) = marks_of(layout, V612, [1 << 18])
    assert (mark.min, mark.low, mark.high, mark.promo) == (10240, 12800, 15360, 17920)


def test_a_movable_zone_has_marks_of_its_own_but_in_6_1() -> None:
    layout = Layout(
        (ZoneLayout("Normal", 0, 0, 1 << 18), ZoneLayout("Movable", 0, 1 << 18, 1 << 18)),
        min_free_kbytes=40960,
    )
    old = allocator_rules(KernelRelease.parse("6.1.192"))
    assert [m.min for m in marks_of(layout, V612, [1 << 18] * 2)] == [10240, 128]
    assert [m.min for m in marks_of(layout, old, [1 << 18] * 2)] == [5120, 5120]


def test_lower_zones_keep_memory_from_requests_that_have_a_choice() -> None:
    layout = Layout.pc(8 << 30)
    dma, dma32, normal = marks_of(layout, V612, [z.managed for z in layout.zones])
    managed = [zone.managed for zone in layout.zones]
    assert dma.lowmem_reserve == (
        0,
        managed[1] // 256,
        sum(managed[1:]) // 256,
        sum(managed[1:]) // 256,
    )
    assert dma32.lowmem_reserve[2] == managed[2] // 256
    assert normal.lowmem_reserve == (0, 0, 0, 0)


def test_an_unknown_kernel_counts_as_the_one_modelled_first() -> None:
    assert allocator_rules(UNKNOWN_RELEASE).claims_before_steals
