"""Walks over a kernel's structures: what no struct page says of its frame.

    owned = walk_owned(kernel, memmap)
    owned.at(0x1234)            # Owned(..., KERNEL_STACK, "stack of task 1 (init)", ...)

Each walk is a module and can be asked alone.  They begin at a symbol, follow links that are
checked, end by limits where a link is torn, and count what was broken.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from memdesc.errors import MemdescError
from memdesc.structs.kernel import Kernel
from memdesc.structs.memmap import MemMap
from memdesc.structs.owned import OwnedFrames, OwnedRanges
from memdesc.structs.walk.frags import frag_frames
from memdesc.structs.walk.freelists import pcp_frames
from memdesc.structs.walk.percpu import percpu_frames
from memdesc.structs.walk.stacks import stack_frames
from memdesc.structs.walk.tasks import Tasks, tasks_in
from memdesc.structs.walk.view import View, Walked
from memdesc.structs.walk.vmap import VmapAreas, areas_in, vmap_frames

__all__ = ["walk_owned"]


def walk_owned(
    kernel: Kernel,
    memmap: MemMap,
    *,
    tables: bool = False,
    progress: Callable[[str], None] | None = None,
) -> OwnedRanges:
    """Every frame that a walk can name: stacks, per-CPU memory, the CPUs' free lists,
    vmalloc areas, and blocks of network fragments. Where two name one frame, the first in
    this order keeps it. With `tables` the page tables of every process and of the kernel come
    first: they take longer than all others together, and the struct pages of newer kernels mark
    them anyway.

    A walk that this kernel's layout or symbols do not allow is left out, and its reason
    stands in `OwnedRanges.unseen`; broken links are counted in `OwnedRanges.torn`. Raises
    nothing. `progress` is told the name of each walk before it starts.
    """
    view = View.of(kernel, memmap)
    found: list[OwnedFrames] = []
    torn: dict[str, int] = {}
    unseen: dict[str, str] = {}
    areas: VmapAreas | None = None
    tasks: Tasks | None = None

    def of_areas() -> VmapAreas:
        nonlocal areas
        if areas is None:
            areas = areas_in(view)
        return areas

    def of_tasks() -> Tasks:
        nonlocal tasks
        if tasks is None:
            tasks = tasks_in(view)
        return tasks

    def of_tables() -> Walked:
        from memdesc.structs.describe_tables import TableOwners

        return Walked((TableOwners(kernel, memmap).frames(),))

    walks: dict[str, Callable[[], Walked]] = {
        **({"tables": of_tables} if tables else {}),
        "stacks": lambda: stack_frames(view, of_areas(), of_tasks()),
        "percpu": lambda: percpu_frames(view),
        "pcp": lambda: pcp_frames(view),
        "vmalloc": lambda: vmap_frames(view, of_areas()),
        "frags": lambda: frag_frames(view, of_tasks()),
    }
    for name, walk in walks.items():
        if progress is not None:
            progress(name)
        try:
            result = walk()
        except MemdescError as error:
            unseen[name] = str(error)
            continue
        kept, wild = _inside(result.frames, memmap.pfn_end)
        found.extend(kept)
        if result.torn + wild:
            torn[name] = result.torn + wild
    done = frozenset(walks) - torn.keys() - unseen.keys()
    return dataclasses.replace(OwnedRanges.of(found, torn=torn, unseen=unseen), done=done)


def _inside(groups: Sequence[OwnedFrames], pfn_end: int) -> tuple[list[OwnedFrames], int]:
    """The groups without frames that do not exist, and how many those were: damaged pointers
    lead anywhere."""
    kept, wild = [], 0
    for group in groups:
        exists = (group.pfns >= 0) & (group.pfns < pfn_end)
        wild += int((~exists).sum())
        if not exists.all():
            group = dataclasses.replace(
                group,
                pfns=group.pfns[exists],
                owners=group.owners[exists],
                addresses=group.addresses[exists],
            )
        kept.append(group)
    return kept, wild
