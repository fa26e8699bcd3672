"""Small worlds for the page allocator: few frames, few orders, and a driver for hypothesis."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from memdesc.kernels.allocator import AllocatorRules, allocator_rules
from memdesc.kernels.release import KernelRelease
from memdesc.model.compiled import array
from memdesc.model.machine import Layout, Machine, ZoneLayout
from memdesc.model.zones import ZoneMarks

KERNELS = ("6.1.192", "6.12.117", "7.2.13")

NO_MARKS = ZoneMarks(0, 0, 0, 0, (0, 0, 0, 0))


def rules_of(kernel: str, **changes: int) -> AllocatorRules:
    """The rules of a kernel with another geometry."""
    return replace(allocator_rules(KernelRelease.parse(kernel)), **changes)


def tiny(kernel: str, *, frames: int = 16, orders: int = 2, log_rows: int = 0) -> Machine:
    """`frames` frames, blocks of `orders` orders, pageblocks as large as the largest block."""
    layout = Layout(
        (ZoneLayout("Normal", 0, 0, frames),), grouping=True, marks=(NO_MARKS,), thp=False
    )
    rules = rules_of(kernel, max_order=orders - 1, pageblock_order=orders - 1)
    return Machine(layout, rules, cpus=1, memmap_bytes_per_frame=0, log_rows=log_rows)


def small(kernel: str, *, cpus: int = 2, frames: int = 512, log_rows: int = 0) -> Machine:
    """Two zones of pageblocks of 16 frames, with marks, so that every path can be reached."""
    layout = Layout(
        (
            ZoneLayout("DMA32", 0, 1, frames // 2 - 1, reserved=((8, 11),)),
            ZoneLayout("Normal", 0, frames // 2, frames // 2),
        ),
        grouping=True,
        marks=(ZoneMarks(4, 6, 8, 10, (0, 0, 5, 5)), ZoneMarks(8, 12, 16, 20, (0, 0, 0, 0))),
    )
    rules = rules_of(kernel, max_order=6, pageblock_order=4)
    return Machine(layout, rules, cpus=cpus, memmap_bytes_per_frame=0, log_rows=log_rows)


def columns(machine: Machine) -> dict[str, NDArray[np.integer]]:
    """A copy of everything that the machine is made of."""
    names = machine.state._fields
    return {name: array(c).copy() for name, c in zip(names, machine.state, strict=True)}
