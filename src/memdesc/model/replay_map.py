"""The allocator's state that a map of a machine shows: for replays that start from a capture.

Free blocks are the largest aligned ones.  Their order on the lists, what waits on the CPUs and the
types of pageblocks are not in a map; pageblocks count as movable, which is how they begin.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from memdesc.errors import QuestionError
from memdesc.kernels.allocator import PAGEBLOCK_ORDER
from memdesc.kernels.kpageflags import KPF
from memdesc.map.extents import MemoryMap
from memdesc.model.state import MOVABLE
from memdesc.model.zones import ZONE_NAMES
from memdesc.traces.state import AllocatorState, CpuList, ZoneState, state_of_free
from memdesc.types import MemoryType, TypeSet

__all__ = ["moment_of_map", "movable_in_map"]


def moment_of_map(found: MemoryMap) -> AllocatorState:
    """The state of the machine of a map. Raises QuestionError where it does not tell zones."""
    machine = found.machine
    zones = [zone for zone in machine.zones if zone.name in ZONE_NAMES and zone.managed]
    if not zones:
        raise QuestionError(
            "the map does not tell the zones of its machine",
            hint="take a capture, a dump or a copy of /proc, not a raw file",
        )
    is_free = _frames(found, found.table.within(TypeSet.of(MemoryType.FREE)))
    states = []
    for zone in zones:
        gap = zone.wmark_low - zone.wmark_min
        marks = tuple(zone.wmark_min + gap * step for step in range(4)) if zone.wmark_low else ()
        states.append(
            ZoneState(
                node=zone.node,
                name=zone.name,
                index=ZONE_NAMES.index(zone.name),
                pfn_start=zone.pfn_start,
                spanned=zone.spanned,
                present=zone.present,
                managed=zone.managed,
                free=zone.free,
                watermarks=marks,
            )
        )
    pageblocks = np.full(-(-found.pfn_end >> PAGEBLOCK_ORDER), MOVABLE, np.uint8)
    state = state_of_free(is_free, states, machine.release.text, pageblocks)
    # The CPUs' lists are there, with the sizes of boot, and empty.
    return dataclasses.replace(
        state,
        zones=tuple(
            dataclasses.replace(
                zone, cpus=tuple(CpuList(cpu=cpu, count=0) for cpu in range(machine.nr_cpus))
            )
            for zone in state.zones
        ),
    )


def movable_in_map(found: MemoryMap) -> NDArray[np.bool_]:
    """bool[frames]: frames that are on the LRU."""
    return _frames(found, found.table.with_flags(KPF.LRU))


def _frames(found: MemoryMap, facts: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """One value per frame from frame 0 on."""
    values = np.zeros(found.pfn_end, np.bool_)
    values[found.pfn_start :] = np.repeat(facts[found.facts], found.nr_pages)
    return values
