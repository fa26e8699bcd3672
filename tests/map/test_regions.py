"""The borders of a machine: every frame lies in one region, and in the right one."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memdesc.map.machine import Counters, IomemRange, Machine, Zone
from memdesc.map.regions import regions_of
from memdesc.rules.classify import Backing
from memdesc.sources.procfs import parse_iomem
from memdesc.types import PAGE_SIZE_BYTES

FRAMES = 60
NAMES = ["System RAM", "Reserved", "Persistent Memory", "Persistent Memory (legacy)", "dax0.0"]


@st.composite
def iomem(draw: st.DrawFn) -> tuple[IomemRange, ...]:
    """Ranges one after the other, borders anywhere in a frame."""
    byte = st.integers(0, FRAMES * PAGE_SIZE_BYTES)
    frame = st.integers(0, FRAMES).map(lambda pfn: pfn * PAGE_SIZE_BYTES)
    cuts = sorted(draw(st.lists(st.one_of(byte, frame), max_size=6, unique=True)))
    return tuple(
        IomemRange(low, high, draw(st.sampled_from(NAMES)))
        for low, high in zip(cuts[::2], cuts[1::2], strict=False)
    )


@st.composite
def zones(draw: st.DrawFn) -> tuple[Zone, ...]:
    """Zones one after the other, with gaps, and with fewer managed frames than present."""
    cuts = sorted(draw(st.lists(st.integers(0, FRAMES), max_size=6, unique=True)))
    return tuple(
        Zone(0, f"Z{low}", low, high - low, high - low, draw(st.integers(0, high - low)), 0, 0)
        for low, high in zip(cuts[::2], cuts[1::2], strict=False)
    )


def counters(unlisted: int) -> Counters:
    """MemFree with so many frames that no free list holds."""
    return Counters({"MemFree": (100 + unlisted) * PAGE_SIZE_BYTES}, {"nr_free_pages": 100})


machines = st.builds(
    Machine,
    iomem=iomem(),
    zones=zones(),
    section_pages=st.just(8),
    before=st.sampled_from([Counters(), counters(0), counters(3), counters(4), counters(50)]),
)


def backing_of(machine: Machine, pfn: int) -> Backing:
    """What backs one frame. A frame that is only partly RAM is none."""
    start, end = pfn * PAGE_SIZE_BYTES, (pfn + 1) * PAGE_SIZE_BYTES
    if not machine.iomem:
        return Backing.UNKNOWN
    for entry in machine.iomem:
        inside = entry.phys_start <= start and end <= entry.phys_end
        touched = entry.phys_start < end and start < entry.phys_end
        if entry.name == "System RAM" and inside:
            return Backing.RAM
        if entry.name not in ("System RAM", "Reserved") and touched:
            return Backing.DEVICE
    return Backing.HOLE


@given(machines)
def test_every_frame_has_its_zone_and_its_backing(machine: Machine) -> None:
    regions = regions_of(machine)
    for pfn in range(FRAMES + 5):
        region = regions.of(pfn)
        assert region.pfn_start <= pfn < region.pfn_end
        assert region is regions.all[regions.index_of(pfn)]
        zone = next((z for z in machine.zones if z.pfn_start <= pfn < z.pfn_end), None)
        assert region.zone == zone
        assert region.backing is backing_of(machine, pfn)
        assert region.deferred_ok == (
            region.backing is Backing.RAM
            and zone is not None
            and zone.present - zone.managed >= 8
            and machine.before in (counters(4), counters(50))
        )


@given(machines)
def test_regions_leave_no_gap(machine: Machine) -> None:
    regions = regions_of(machine).all
    assert regions[0].pfn_start == 0
    assert regions[-1].pfn_end == 1 << 52
    for left, right in pairwise(regions):
        assert left.pfn_end == right.pfn_start


@given(machines, st.integers(0, FRAMES), st.integers(1, FRAMES))
def test_borders_within_are_strictly_inside(machine: Machine, low: int, size: int) -> None:
    regions = regions_of(machine)
    starts = [region.pfn_start for region in regions.all]
    expected = [pfn for pfn in starts if low < pfn < low + size]
    assert regions.borders_within(low, low + size) == expected


def test_a_frame_that_is_partly_ram_is_none() -> None:
    machine = Machine(iomem=(IomemRange(0x1800, 0x4800, "System RAM"),))
    backings = [regions_of(machine).of(pfn).backing for pfn in range(5)]
    assert backings == [Backing.HOLE, Backing.HOLE, Backing.RAM, Backing.RAM, Backing.HOLE]


def test_without_iomem_nothing_is_known() -> None:
    assert [region.backing for region in regions_of(Machine()).all] == [Backing.UNKNOWN]


# --- machines that are more than one stick of RAM -----------------------------------------

VIRTIO_MEM = """\
00001000-0009fbff : System RAM
100000000-13fffffff : virtio0
  100000000-127ffffff : System RAM (virtio_mem)
200000000-23fffffff : CXL Window 0
  200000000-23fffffff : region0
    200000000-23fffffff : dax0.0
      200000000-21fffffff : System RAM (kmem)
"""


def test_ram_that_a_driver_onlined_is_ram() -> None:
    regions = regions_of(Machine(iomem=parse_iomem(VIRTIO_MEM)))
    assert regions.of(0x100000).backing is Backing.RAM
    assert regions.of(0x13FFFF).backing is Backing.HOLE, "plugged later, not RAM yet"
    assert regions.of(0x200000).backing is Backing.RAM
    assert regions.of(0x220000).backing is Backing.DEVICE


def test_an_offline_memory_block_is_not_present() -> None:
    machine = Machine(iomem=parse_iomem("00000000-3fffffff : System RAM\n"), offline=((8, 16),))
    regions = regions_of(machine)
    assert [regions.of(pfn).backing for pfn in (7, 8, 15, 16)] == [
        Backing.RAM,
        Backing.HOLE,
        Backing.HOLE,
        Backing.RAM,
    ]


def test_frames_that_two_zones_span_belong_to_neither() -> None:
    zones = (Zone(0, "Normal", 0, 64, 64, 64, 0, 0), Zone(1, "Normal", 32, 64, 64, 64, 0, 0))
    regions = regions_of(Machine(zones=zones))
    assert [regions.of(pfn).zone for pfn in (0, 40, 80)] == [zones[0], None, zones[1]]


@pytest.mark.parametrize(("listed", "lazy"), [(10_000, False), (30_000, False), (0, True)])
def test_memory_freed_between_two_reads_is_not_an_uninitialised_memmap(
    listed: int, lazy: bool
) -> None:
    machine = Machine(
        zones=(Zone(0, "Normal", 0, 1 << 20, 1 << 20, 1 << 19, 0, 0),),
        iomem=parse_iomem("00000000-ffffffff : System RAM\n"),
        before=Counters({"MemFree": 20_000 * 4096}, {"nr_free_pages": listed}),
    )
    assert regions_of(machine).of(5).deferred_ok is lazy
