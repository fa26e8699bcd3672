"""The page allocator's lists in their order, from dumps of real kernels."""

from __future__ import annotations

import pytest

from memdesc.sources.structs import DumpSource
from memdesc.structs.walk.allocator import read_allocator
from memdesc.structs.walk.freelists import walk_free_blocks, walk_pcp
from memdesc.vm.record import Recording

pytestmark = pytest.mark.vm


def test_the_lists_hold_what_the_other_walks_and_the_kernels_files_say(
    recording: Recording,
) -> None:
    source = DumpSource(recording.vmcore)
    state = read_allocator(source.kernel, source.memmap)
    blocks = walk_free_blocks(source.kernel, source.memmap)
    assert sorted(
        zip(
            state.free.pfn.tolist(),
            state.free.order.tolist(),
            state.free.migratetype.tolist(),
            strict=True,
        )
    ) == list(
        zip(blocks.pfn.tolist(), blocks.order.tolist(), blocks.migratetype.tolist(), strict=True)
    )
    pcp = [
        int(pfn) for group in walk_pcp(source.kernel, source.memmap).frames for pfn in group.pfns
    ]
    assert sorted(state.pcp.frames().tolist()) == sorted(pcp)
    assert state.pcp.nr_pages == sum(cpu.count for zone in state.zones for cpu in zone.cpus)
    buddyinfo = (recording.tree / "proc/buddyinfo").read_text().splitlines()
    assert [line.split()[3] for line in buddyinfo] == [zone.name for zone in state.zones]
    for zone in state.zones:
        assert list(zone.watermarks) == sorted(zone.watermarks)
        assert 0 < zone.managed <= zone.present <= zone.spanned
        assert all(cpu.batch > 0 for cpu in zone.cpus)
