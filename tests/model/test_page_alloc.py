"""What the kernel's page allocator is known to do, on small machines."""

from __future__ import annotations

import pytest
from model.worlds import KERNELS, small

from memdesc.errors import QuestionError
from memdesc.model import state as s
from memdesc.model.batch import Op, operations
from memdesc.model.check import check
from memdesc.model.machine import GFP, Layout, Machine, ZoneLayout

MOVABLE = GFP.HIGHUSER_MOVABLE


def one_zone(kernel: str = "6.12", frames: int = 1 << 15, **options: int) -> Machine:
    layout = Layout((ZoneLayout("Normal", 0, 0, frames),))
    return Machine(layout, kernel, cpus=1, memmap_bytes_per_frame=0, **options)


def test_allocations_from_a_split_block_come_in_ascending_order() -> None:
    machine = one_zone()
    assert [machine.alloc(4) for _ in range(4)] == [0, 16, 32, 48]


def test_a_cpu_gets_back_first_what_it_freed_last() -> None:
    machine = one_zone()
    pfns = [machine.alloc(gfp=MOVABLE) for _ in range(3)]
    for pfn in pfns:
        machine.free(pfn)
    assert [machine.alloc(gfp=MOVABLE) for _ in range(3)] == pfns[::-1]


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_refill_takes_a_batch_and_later_ones_double_except_in_6_1(kernel: str) -> None:
    machine = one_zone(kernel, frames=1 << 18, log_rows=100)
    batch = machine.percpu_value(0, 0, s.P_BATCH)
    assert batch == 63
    for _ in range(63 * 7 + 1):
        machine.alloc(gfp=MOVABLE)
    sizes = [event.details[1] for event in machine.events() if event.code == 0]
    assert sizes[:3] == ([63, 63, 63] if kernel.startswith("6.1.") else [63, 126, 252])


@pytest.mark.parametrize("kernel", KERNELS)
def test_freed_memory_merges_into_what_it_was(kernel: str) -> None:
    machine = one_zone(kernel)
    before = machine.buddyinfo()
    pfns = [machine.alloc(order, MOVABLE) for order in (0, 3, 0, 9, 10, 5, 1, 0, 2)]
    assert machine.buddyinfo() != before
    for pfn in pfns:
        machine.free(pfn)
    machine.drain()
    assert machine.buddyinfo() == before


def test_buddyinfo_is_the_kernels_text() -> None:
    line = "Node 0, zone   Normal      0      0      0      0      0      0      0      0      0"
    assert one_zone().buddyinfo() == f"{line}      0     32 \n"


def test_an_unmovable_request_claims_a_whole_movable_pageblock() -> None:
    machine = one_zone(log_rows=10)
    machine.alloc(4, GFP.KERNEL)
    claimed = [str(event) for event in machine.events()]
    assert claimed == ["fallback claimed: UNMOVABLE <- MOVABLE, pageblock 0, zone Normal"]
    assert machine.state.block[0] == machine.state.block[1] == s.UNMOVABLE
    assert machine.state.block[2] == s.MOVABLE


def fill(machine: Machine, order: int, gfp: int) -> list[int]:
    """Allocate until there is nothing more, in batches: as single calls would."""
    batch = operations([Op.ALLOC] * 200_000, order=order, flags=int(gfp), argument=-1)
    found: list[int] = []
    step = 1
    while not found or found[-1] >= 0:
        first = len(found)
        # No step is larger than what is free, so that at most the last one fails.
        free = machine.counters()["nr_free_pages"] >> order
        step = max(1, free // 4)
        found += machine.run(batch, first, first + step)[first : first + step].tolist()
    return [pfn for pfn in found if pfn >= 0]


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_movable_request_steals_a_small_block_and_the_pageblock_stays(kernel: str) -> None:
    machine = one_zone(kernel, frames=1 << 12, log_rows=10_000)
    pfns = fill(machine, 0, GFP.KERNEL | GFP.MEMALLOC)
    machine.free(pfns[100])
    machine.drain()
    machine.clear_events()
    assert machine.alloc(0, MOVABLE | GFP.MEMALLOC) == pfns[100]
    assert f"fallback stole: MOVABLE <- UNMOVABLE, pageblock {pfns[100] >> 9}, zone Normal" in [
        str(event) for event in machine.events()
    ]
    assert machine.state.block[pfns[100] >> 9] == s.UNMOVABLE
    check(machine)


def test_double_frees_are_refused() -> None:
    machine = one_zone()
    pfn = machine.alloc()
    machine.free(pfn)
    with pytest.raises(QuestionError, match="no block of order 0 is allocated"):
        machine.free(pfn, 0)
    assert machine.counters()["model_bad_frees"] == 1
    check(machine)


def test_requests_go_down_the_zones_and_lower_zones_keep_a_reserve() -> None:
    machine = small("6.12")
    low = machine.layout.zones[1].pfn_start
    pfns = fill(machine, 0, MOVABLE)
    down_to_low_mark = machine.layout.zones[1].managed - 2 * 16
    assert min(pfns[:down_to_low_mark]) >= low, "the higher zone comes first"
    assert min(pfns) < low
    free = machine.zone_value(0, s.Z_FREE)
    # min 4 and 5 frames kept from requests that could also be had above; then the last resort.
    assert free == 9
    assert machine.alloc(0, GFP.DMA32) is not None, "who needs the low zone gets more of it"


def test_atomic_requests_go_below_the_min_mark_and_reserves_below_that() -> None:
    machine = one_zone()
    fill(machine, 0, MOVABLE)
    left = machine.zone_value(0, s.Z_FREE)
    assert left == machine.zone_value(0, s.Z_MIN)
    fill(machine, 0, GFP.ATOMIC)
    machine.drain()
    atomic = machine.zone_value(0, s.Z_FREE)
    assert atomic < left
    fill(machine, 0, GFP.KERNEL | GFP.MEMALLOC)
    assert machine.zone_value(0, s.Z_FREE) == 0


def test_a_reserve_is_kept_for_high_order_atomic_requests() -> None:
    machine = one_zone(frames=1 << 17, log_rows=100_000)
    fill(machine, 0, MOVABLE)
    assert machine.zone_value(0, s.Z_RESERVED_HIGHATOMIC) == 0
    assert machine.alloc(2, GFP.ATOMIC) is not None
    assert machine.zone_value(0, s.Z_RESERVED_HIGHATOMIC) == 512
    check(machine)
    machine.alloc(0, MOVABLE)
    assert machine.zone_value(0, s.Z_RESERVED_HIGHATOMIC) == 0, "given back before it fails"


def test_isolated_pageblocks_are_not_given_out_and_do_not_count_as_free() -> None:
    machine = one_zone(frames=1 << 12)
    free = machine.zone_value(0, s.Z_FREE)
    assert machine.isolate(3) == 512
    assert machine.zone_value(0, s.Z_FREE) == free - 512
    check(machine)
    pfns = fill(machine, 0, GFP.KERNEL | GFP.MEMALLOC)
    assert len(pfns) == free - 512
    assert not [pfn for pfn in pfns if pfn >> 9 == 3]
    for pfn in pfns:
        machine.free(pfn)
    machine.drain()
    machine.unisolate(3)
    check(machine)
    assert machine.zone_value(0, s.Z_FREE) == free


def test_exact_frames_can_be_taken_wherever_they_wait() -> None:
    machine = one_zone()
    waiting = machine.alloc(gfp=MOVABLE)
    machine.free(waiting)
    assert waiting is not None
    assert machine.take(waiting), "on a per-CPU list"
    assert machine.take(0x1234, 2)
    assert not machine.take(0x1235), "not free any more"
    check(machine)
    machine.free(0x1234)
    machine.free(waiting)
    machine.drain()
    check(machine)
    assert machine.buddyinfo() == one_zone().buddyinfo()


def test_nofragment_takes_the_lower_zone_rather_than_mix_types() -> None:
    machine = small("6.12", log_rows=1000)
    normal = machine.layout.zones[1].pfn_start
    hogs = [pfn for pfn in fill(machine, 4, MOVABLE | GFP.MEMALLOC) if pfn >= normal]
    low = [pfn for pfn in range(16, normal, 16) if machine.state.frame[pfn] == s.USED_MOVABLE | 4]
    for pfn in low:
        machine.free(pfn)
    # In Normal, only pieces of a movable pageblock are free: 8 frames of one, 8 of another.
    for head in hogs[-4:]:
        machine.split(head, 3)
        machine.free(head)
    got = machine.alloc(3, GFP.KERNEL)
    assert got is not None
    assert got < normal
    assert not [e for e in machine.events() if "stole" in str(e) and e.zone == "Normal"]


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_nth_allocation_fails_when_asked_to(kernel: str) -> None:
    machine = one_zone(kernel)
    machine.fail_after(3)
    assert [machine.alloc() is None for _ in range(5)] == [False, False, True, False, False]
    check(machine)


def test_remote_nodes_come_last_and_are_counted() -> None:
    layout = Layout.pc(1 << 30, nodes=2)
    machine = Machine(layout, cpus=2)
    border = min(zone.pfn_start for zone in layout.zones if zone.node == 1)
    assert (machine.alloc(gfp=MOVABLE, cpu=1) or 0) >= border
    assert (machine.alloc(gfp=MOVABLE, cpu=0) or border) < border
    counters = machine.counters()
    assert (counters["numa_hit"], counters["numa_local"], counters["numa_miss"]) == (2, 2, 0)


def test_what_cannot_be_asked_is_refused_with_a_sentence() -> None:
    machine = one_zone()
    with pytest.raises(QuestionError, match="CPU"):
        machine.alloc(cpu=5)
    with pytest.raises(QuestionError, match="there is no frame"):
        machine.free(1 << 40)
    with pytest.raises(QuestionError, match="pageblock"):
        machine.isolate(1 << 20)
    with pytest.raises(QuestionError, match="overlap"):
        Layout((ZoneLayout("DMA", 0, 0, 1024), ZoneLayout("Normal", 0, 512, 1024)))
    with pytest.raises(QuestionError, match="shares a pageblock"):
        Machine(Layout((ZoneLayout("DMA", 0, 0, 700), ZoneLayout("Normal", 0, 700, 4000))))
