"""From a page to the entries that map it: anon_vma and files' lists of areas.

`mm/rmap.c @6.12`: an anonymous page names an anon_vma; every area whose pages may be in it is
linked there (`anon_vma_chain`).  A page of a file names the file, whose `i_mmap` has the areas.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from memdesc.kernels.kpageflags import KPF
from memdesc.mm import entries as e
from memdesc.mm.areas.vma import VM, Vma

if TYPE_CHECKING:
    from memdesc.mm.kernel import Kernel
    from memdesc.mm.process import Mm

__all__ = [
    "AnonVma",
    "anon_vma_fork",
    "anon_vma_prepare",
    "mappings_of",
    "move_anon_rmap",
    "unlink_anon_vmas",
]


@dataclass(slots=True, eq=False)
class AnonVma:
    """One anon_vma. `number` is what pages name."""

    number: int
    parent: AnonVma | None = None
    children: int = 0
    """num_children: anon_vmas whose parent it is."""
    active_vmas: int = 0
    """num_active_vmas: areas whose `anon_vma` it is."""
    vmas: list[tuple[Mm, Vma]] = field(default_factory=list)
    """Areas linked to it, in the order of linking."""

    @property
    def root(self) -> AnonVma:
        """The first of the family."""
        found = self
        while found.parent is not None:
            found = found.parent
        return found


def anon_vma_prepare(kernel: Kernel, mm: Mm, vma: Vma) -> AnonVma:
    """__anon_vma_prepare(): the area's anon_vma, a neighbour's where both could merge, or a new."""
    if vma.anon_vma is not None:
        return vma.anon_vma
    found = _mergeable_anon_vma(mm, vma)
    if found is None:
        found = kernel.new_mapping(AnonVma)
        found.children = 1  # itself, as the kernel counts a root
    vma.anon_vma = found
    found.active_vmas += 1
    _link(mm, vma, found)
    return found


def anon_vma_fork(kernel: Kernel, mm: Mm, vma: Vma, parent: Vma) -> None:
    """anon_vma_fork(): link the child's area to all of the parent's, and give it one of its own.

    An ancestor without areas and with fewer than two children is used again
    (`anon_vma_clone @6.12`).
    """
    if parent.anon_vma is None:
        return
    vma.anon_vma = None
    for ancestor in reversed(parent.chain):
        _link(mm, vma, ancestor)
        if vma.anon_vma is None and ancestor.children < 2 and ancestor.active_vmas == 0:
            vma.anon_vma = ancestor
    vma.chain.reverse()
    if vma.anon_vma is not None:
        vma.anon_vma.active_vmas += 1
        return
    own = kernel.new_mapping(AnonVma)
    own.parent = parent.anon_vma
    own.active_vmas = 1
    parent.anon_vma.children += 1
    vma.anon_vma = own
    _link(mm, vma, own)


def anon_vma_clone(mm: Mm, vma: Vma, source: Vma) -> None:
    """Give an area that is split off, or takes over, the links of another in the same space."""
    for linked in source.chain:
        if linked not in vma.chain:
            _link(mm, vma, linked)
    if vma.anon_vma is None and source.anon_vma is not None:
        vma.anon_vma = source.anon_vma
        vma.anon_vma.active_vmas += 1


def unlink_anon_vmas(kernel: Kernel, mm: Mm, vma: Vma) -> None:
    """unlink_anon_vmas(): the area goes; an anon_vma without areas and children goes with it."""
    for linked in vma.chain:
        linked.vmas.remove((mm, vma))
    if vma.anon_vma is not None:
        vma.anon_vma.active_vmas -= 1
    for linked in vma.chain:
        if not linked.vmas:
            if linked.parent is not None:
                linked.parent.children -= 1
            kernel.forget_mapping(linked.number)
    vma.chain.clear()
    vma.anon_vma = None


def move_anon_rmap(kernel: Kernel, pfn: int, vma: Vma) -> None:
    """folio_move_anon_rmap(): a folio that nobody else has belongs to this area alone."""
    assert vma.anon_vma is not None
    kernel.f.mapping[kernel.head(pfn)] = vma.anon_vma.number


def mappings_of(kernel: Kernel, pfn: int) -> Iterator[tuple[Mm, Vma, int]]:
    """rmap_walk(): every entry that maps this page: (address space, area, virtual page number).

    Also PMD entries, which map the page as part of its folio.
    """
    head = kernel.head(pfn)
    number = int(kernel.f.mapping[head])
    if not number:
        return
    if kernel.f.flags[head] & KPF.KSM:
        for mm, vma, vpn in kernel.mappings[number].walk():
            entry = mm.tables.entry(vpn)
            if e.is_present(entry) and e.pfn_of(entry) == pfn:
                yield mm, vma, vpn
        return
    index = int(kernel.f.pgoff[head]) + pfn - head
    for mm, vma in tuple(kernel.mappings[number].vmas):
        vpn = vma.vpn_of(index)
        if vpn is None:
            continue
        entry = mm.tables.entry(vpn)
        if (
            e.is_present(entry)
            and e.pfn_of(entry) == pfn
            and not (entry & e.SPECIAL and kernel.f.flags[head] & KPF.ZERO_PAGE)
        ):
            yield mm, vma, vpn


# --- helpers -----------------------------------------------------------------------------


def _link(mm: Mm, vma: Vma, anon_vma: AnonVma) -> None:
    vma.chain.append(anon_vma)
    anon_vma.vmas.append((mm, vma))


def _mergeable_anon_vma(mm: Mm, vma: Vma) -> AnonVma | None:
    """find_mergeable_anon_vma(): of the next area, then of the one before."""
    for other, earlier, later in (
        (mm.vmas.after(vma.vpn_end), vma, None),
        (mm.vmas.before(vma.vpn_start), None, vma),
    ):
        if other is None:
            continue
        first, second = (earlier, other) if earlier is not None else (other, later)
        assert first is not None
        assert second is not None
        access = VM.READ | VM.WRITE | VM.EXEC | VM.SOFTDIRTY
        compatible = (
            first.vpn_end == second.vpn_start
            and first.file is second.file
            and first.policy == second.policy
            and not (first.flags ^ second.flags) & ~access
            and second.pgoff == first.pgoff + first.pages
        )
        if compatible and other.anon_vma is not None and len(other.chain) == 1:
            return other.anon_vma
    return None
