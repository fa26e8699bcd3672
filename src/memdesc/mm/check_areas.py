"""What must hold of areas, of the anon_vmas that they are linked to, and of tables below them.

Part of `memdesc.mm.check.check`.
"""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING

from memdesc.mm.areas.vma import VM_SPECIAL
from memdesc.mm.areas.vma_modify import Proposed, may_merge
from memdesc.mm.frames import ENTRIES_SHIFT
from memdesc.mm.rmap import AnonVma

if TYPE_CHECKING:
    from memdesc.mm.kernel import Kernel
    from memdesc.mm.process import Mm

__all__ = ["check_areas"]


def check_areas(kernel: Kernel) -> None:
    """Raise AssertionError where areas, anon_vmas and tables do not fit together."""
    spaces = [process.mm for process in kernel.processes.values()]
    _check_anon_vmas(kernel, spaces)
    for mm in spaces:
        _check_tables(mm)
        if not mm.may_have_mergeable:
            _check_merged(kernel, mm)


def _check_anon_vmas(kernel: Kernel, spaces: list[Mm]) -> None:
    """Links are known at both ends, and counts are those of the links."""
    links: Counter[tuple[int, int]] = Counter()
    active: Counter[int] = Counter()
    for mm in spaces:
        for vma in mm.vmas:
            assert (vma.anon_vma is None) == (not vma.chain), vma
            if vma.anon_vma is not None:
                assert vma.anon_vma in vma.chain, vma
                active[vma.anon_vma.number] += 1
            assert len({linked.number for linked in vma.chain}) == len(vma.chain), vma
            for linked in vma.chain:
                links[linked.number, id(vma)] += 1
    known = [found for found in kernel.mappings.values() if isinstance(found, AnonVma)]
    children = Counter(found.parent.number for found in known if found.parent is not None)
    other_end = Counter((found.number, id(vma)) for found in known for _, vma in found.vmas)
    assert links == other_end, "links between areas and anon_vmas that only one end knows"
    for found in known:
        assert found.active_vmas == active[found.number], f"anon_vma {found.number}: active areas"
        itself = found.parent is None  # a root counts as its own child
        assert found.children == children[found.number] + itself, f"anon_vma {found.number}"


def _check_tables(mm: Mm) -> None:
    """free_pgtables() leaves only tables in whose range an area lies."""
    tables = mm.tables
    levels = ((tables.pmds, 1), (tables.pmd_tables, 2), (tables.puds, 3))
    for keys, level in levels:
        shift = level * ENTRIES_SHIFT
        for key in keys:
            assert mm.vmas.overlapping(key << shift, (key + 1) << shift), (
                f"a table of level {level} without an area: {key << shift:#x}"
            )


def _check_merged(kernel: Kernel, mm: Mm) -> None:
    """Neighbours that nothing was ever written in and nobody can tell apart are one area.

    Of areas with an anon_vma that is not so: they may become alike by a fault; and areas that
    somebody counts do not vanish.
    """
    for one, other in pairwise(mm.vmas):
        if one.file is not None and one.file.has_close:
            continue
        if one.anon_vma is None and other.anon_vma is None and not other.flags & VM_SPECIAL:
            new = Proposed.part_of(other, other.vpn_start, other.vpn_end)
            assert not may_merge(kernel, new, one), (
                f"two areas that could be one, at {other.vpn_start:#x}"
            )
