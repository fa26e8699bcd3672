"""What a trace's allocations cost under each design: a part of `memdesc model replay`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from memdesc.cli.common import console, notice, size, table

if TYPE_CHECKING:
    from memdesc.model.compare import DesignRun
    from memdesc.traces.events import Trace
    from memdesc.traces.state import AllocatorState

__all__ = ["cost_json", "costs_of", "show_costs"]


def costs_of(trace: Trace, before: AllocatorState) -> list[DesignRun]:
    """The trace's allocations on a machine of the same size, under each design."""
    from memdesc.model.compare import compare
    from memdesc.model.trace_workload import trace_workload
    from memdesc.model.zones import Layout
    from memdesc.types import PAGE_SHIFT

    memory = sum(zone.present for zone in before.zones) << PAGE_SHIFT
    cpus = 1 + int(trace.cpu.max(initial=0))
    found = compare(
        trace_workload(trace),
        Layout.pc(memory),
        kernel=before.release or "6.12",
        cpus=cpus,
        lines=False,
    )
    return list(found.runs)


def show_costs(costs: list[DesignRun]) -> None:
    """Print a table."""
    out = console()
    cells = [
        [
            run.design.title,
            size(run.now.memmap_bytes),
            f"{run.now.descriptors:,}",
            size(run.now.descriptor_bytes),
            size(run.now.taken_bytes),
            size(run.peak.taken_bytes),
        ]
        for run in costs
    ]
    out.print()
    columns = ["design", "memory map", "descriptors", "bytes in them", "taken in all", "at peak"]
    out.print(table(columns, cells, right=range(1, 6)))
    notice(
        "note: designs see what the trace allocates, on an empty machine of the same size; what a "
        "page is for is read from the request's flags"
    )


def cost_json(run: DesignRun) -> dict[str, Any]:
    """A row of the JSON answer."""
    return {
        "design": run.design.id,
        "memmap_bytes": run.now.memmap_bytes,
        "descriptors": run.now.descriptors,
        "descriptor_bytes": run.now.descriptor_bytes,
        "taken_bytes": run.now.taken_bytes,
        "peak_taken_bytes": run.peak.taken_bytes,
        "failed": run.failed,
    }
