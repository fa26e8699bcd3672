"""What ksmd knows: address spaces, pages that it met, pages that are shared.

`mm/ksm.c:struct ksm_rmap_item, struct ksm_stable_node, remove_rmap_item_from_tree,
stable_node_dup, stable_tree_insert @6.12`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from memdesc.kernels.kpageflags import KPF
from memdesc.mm import entries as e
from memdesc.mm.frames import TABLE_ENTRIES
from memdesc.model.compiled import array

if TYPE_CHECKING:
    from memdesc.mm.areas.vma import Vma
    from memdesc.mm.kernel import Kernel
    from memdesc.mm.process import Mm
    from memdesc.mm.rmap import AnonVma

__all__ = ["Chain", "Ksm", "MmSlot", "RmapItem", "StableNode", "items_of", "zero_pages_of"]


@dataclass(slots=True, eq=False)
class RmapItem:
    """One page of an address space, as ksmd knows it."""

    mm: Mm
    vpn: int
    checksum: int | None = None
    """Content at the last visit."""
    unstable: bool = False
    """It is, or was in the pass before, in the unstable tree."""
    node: StableNode | None = None
    """The shared page that it maps."""
    anon_vma: AnonVma | None = None
    """Of the area when it was merged: through it copies of later forks are found."""
    age: int = 0
    """Passes, for smart_scan."""
    skips: int = 0


@dataclass(slots=True, eq=False)
class StableNode:
    """One shared page. `number` is what the page names."""

    number: int
    pfn: int = -1
    content: int = 0
    items: list[RmapItem] = field(default_factory=list)
    """Who was merged into it, the last one first."""

    @property
    def root(self) -> None:
        """It is of no family of anon_vmas."""
        return None

    @property
    def vmas(self) -> list[tuple[Mm, Vma]]:
        """Areas that may map it."""
        return [(mm, vma) for mm, vma, _ in self.walk()]

    def walk(self) -> Iterator[tuple[Mm, Vma, int]]:
        """rmap_walk_ksm(): places that may map it, first those that were merged, then forks.

        Each comes once, though the family of a fork leads to it more than once.
        """
        seen: set[tuple[int, int]] = set()
        for forks in (False, True):
            for item in self.items:
                assert item.anon_vma is not None
                for mm, vma in tuple(item.anon_vma.vmas):
                    inside = vma.vpn_start <= item.vpn < vma.vpn_end
                    place = (id(mm), item.vpn)
                    if inside and (mm is not item.mm) == forks and place not in seen:
                        seen.add(place)
                        yield mm, vma, item.vpn


@dataclass(slots=True, eq=False)
class Chain:
    """Shared pages of one content; more than one where each may have so many sharers only."""

    nodes: list[StableNode] = field(default_factory=list)
    """The one that is tried first stands first."""
    is_chain: bool = False


@dataclass(slots=True, eq=False)
class MmSlot:
    """An address space that takes part."""

    mm: Mm
    items: list[RmapItem] = field(default_factory=list)
    """By address."""


@dataclass(slots=True, eq=False)
class Ksm:
    """Everything that ksmd knows."""

    run: int = 0
    slots: list[MmSlot] = field(default_factory=list)
    """In the order of registration."""
    stable: dict[int, Chain] = field(default_factory=dict)
    """Content -> shared pages."""
    unstable: dict[int, RmapItem] = field(default_factory=dict)
    """Content -> page of this pass."""
    full_scans: int = 0
    skipped: int = 0
    zero_uncopied: int = 0
    """Zero pages of areas that a fork did not copy, and counted for the child all the same."""

    def slot_of(self, mm: Mm) -> MmSlot | None:
        """The slot of an address space, if it takes part."""
        return next((slot for slot in self.slots if slot.mm is mm), None)

    def nodes(self) -> list[StableNode]:
        """Every shared page that is known, also those that were freed meanwhile."""
        return [node for chain in self.stable.values() for node in chain.nodes]

    def zero_pages(self, kernel: Kernel) -> int:
        """ksm_zero_pages: entries that a merge made the zero page, and marked dirty."""
        return self.zero_uncopied + _marked_zero(kernel, array(kernel.f.entries))

    # --- the stable tree -----------------------------------------------------------------

    def page_of(self, kernel: Kernel, node: StableNode) -> int | None:
        """get_ksm_page(): the frame; None where it was freed, and the node goes."""
        f = kernel.f
        if f.flags[node.pfn] & KPF.KSM and f.mapping[node.pfn] == node.number:
            return node.pfn
        for item in node.items:
            item.node = item.anon_vma = None
        node.items.clear()
        self._drop_node(kernel, node)
        return None

    def search(self, kernel: Kernel, content: int) -> StableNode | None:
        """stable_tree_search(): a page of that content that may have one more sharer.

        Chains of other contents that lie on the way are looked at as well; here, as there is no
        way, all of them.
        """
        found: StableNode | None = None
        for key, chain in list(self.stable.items()):
            if chain.is_chain or key == content:
                node = self._look_at(kernel, chain)
                found = node if key == content else found
                if not chain.nodes:
                    self.stable.pop(key, None)
        return found

    def insert(self, kernel: Kernel, pfn: int) -> StableNode:
        """stable_tree_insert(): a page that was just made a shared one; first in its chain."""
        content = int(kernel.f.content[pfn])
        node = kernel.new_mapping(StableNode)
        node.pfn, node.content = pfn, content
        kernel.f.mapping[pfn] = node.number
        chain = self.stable.setdefault(content, Chain())
        chain.is_chain = bool(chain.nodes) or chain.is_chain
        chain.nodes.insert(0, node)
        return node

    def append(self, item: RmapItem, node: StableNode) -> None:
        """stable_tree_append()."""
        item.node = node
        node.items.insert(0, item)

    def remove_item(self, kernel: Kernel, item: RmapItem) -> None:
        """remove_rmap_item_from_tree(): it is in no tree afterwards."""
        node = item.node
        if node is not None:
            if self.page_of(kernel, node) is not None:
                node.items.remove(item)
            item.node = item.anon_vma = None
        if item.unstable:
            item.unstable = False
            found = next((key for key, value in self.unstable.items() if value is item), None)
            if found is not None:
                del self.unstable[found]

    def drop_all_nodes(self, kernel: Kernel) -> bool:
        """remove_all_stable_nodes(): after all was unmerged; False if a page still lives."""
        for node in self.nodes():
            if self.page_of(kernel, node) is not None and not kernel.mapcount(node.pfn):
                kernel.f.mapping[node.pfn] = 0
                self._drop_node(kernel, node)
        for content in [key for key, chain in self.stable.items() if not chain.nodes]:
            del self.stable[content]
        return not self.stable

    def _look_at(self, kernel: Kernel, chain: Chain) -> StableNode | None:
        """stable_node_chain(): a shared page that has room; the chain is put in order."""
        most = int(kernel.knobs["ksm_max_sharing"])
        # Time does not pass: a chain is due for pruning at every look, or never.
        prunes = chain.is_chain and kernel.knobs["ksm_prune"] == "0"
        node = self._candidate(kernel, chain, most, prunes=prunes)
        if chain.is_chain:
            if len(chain.nodes) == 1 and (
                kernel.rules.ksm_collapses_chains or (prunes and node is not None)
            ):
                chain.is_chain = False
                kernel.say("stable_node_dup: one shared page is left, no chain any more")
            elif node is not None and chain.nodes[0] is not node and len(node.items) + 1 < most:
                chain.nodes.remove(node)
                chain.nodes.insert(0, node)
        return node

    def _candidate(
        self, kernel: Kernel, chain: Chain, most: int, *, prunes: bool
    ) -> StableNode | None:
        """stable_node_dup(): the first that has room; of all, when pruning, the fullest of them."""
        best: StableNode | None = None
        for node in tuple(chain.nodes):
            if self.page_of(kernel, node) is None or len(node.items) >= most:
                continue
            if best is None or len(node.items) > len(best.items):
                best = node
            if not prunes:
                break
        return best

    def _drop_node(self, kernel: Kernel, node: StableNode) -> None:
        """remove_node_from_stable_tree(): a chain stays, even empty, until a search meets it."""
        chain = self.stable[node.content]
        chain.nodes.remove(node)
        if not chain.nodes and not chain.is_chain:
            del self.stable[node.content]
        kernel.forget_mapping(node.number)


def items_of(kernel: Kernel, mm: Mm) -> tuple[int, int]:
    """`mm->ksm_rmap_items` and `mm->ksm_merging_pages`."""
    slot = kernel.ksm.slot_of(mm)
    known = slot.items if slot is not None else []
    items, merging = mm.ksm_counted_before
    return items + len(known), merging + sum(item.node is not None for item in known)


def zero_pages_of(kernel: Kernel, mm: Mm) -> int:
    """`mm->ksm_zero_pages`."""
    tables = [pmd.table for pmd in mm.tables.pmds.values() if pmd.table is not None]
    here = array(kernel.f.entries)
    found = sum(
        _marked_zero(kernel, here[table.first : table.first + TABLE_ENTRIES]) for table in tables
    )
    return mm.ksm_zero_uncopied + found


# --- helpers -------------------------------------------------------------------------------------


def _marked_zero(kernel: Kernel, entries: NDArray[np.int64]) -> int:
    """Entries that KSM made the zero page: a write to one would have made it another page's."""
    marked = e.SPECIAL | e.DIRTY
    zero = (entries >> 12 & ((1 << 40) - 1)) == kernel.zero_pfn
    return int(((entries & marked == marked) & zero).sum())
