"""Merging one page with another (`mm/ksm.c:cmp_and_merge_page, try_to_merge_one_page,
write_protect_page, replace_page @6.1, @6.12`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memdesc.kernels.kpageflags import KPF
from memdesc.mm import entries as e
from memdesc.mm.areas.mlock_batch import mlock_vma_folio
from memdesc.mm.areas.vma import VM, Vma
from memdesc.mm.faults.zap import drop_mapping
from memdesc.mm.huge.large_folio import split_folio
from memdesc.mm.ksm.ksm import break_ksm
from memdesc.mm.ksm.ksm_tree import RmapItem, StableNode
from memdesc.mm.reclaim.mark_accessed import mark_accessed

if TYPE_CHECKING:
    from memdesc.mm.kernel import Kernel

__all__ = ["cmp_and_merge_page"]


def cmp_and_merge_page(kernel: Kernel, item: RmapItem, pfn: int) -> None:
    """What ksmd does with one page, of which it holds a reference."""
    ksm = kernel.ksm
    node = _node_of(kernel, pfn)
    if node is not None and item.node is node:
        return
    first = kernel.rules.ksm_checksum_first
    if node is None and first:
        ksm.remove_item(kernel, item)
        if _changed(kernel, item, pfn) or _merge_with_zero_page(kernel, item, pfn):
            return
    content = int(kernel.f.content[pfn])
    # A page that fork shared, and that is merged already, only needs to be known.
    found = node if node is not None else ksm.search(kernel, content)
    ksm.remove_item(kernel, item)
    if found is not None:
        if _merge_with_ksm_page(kernel, item, pfn, found.pfn):
            ksm.append(item, found)
        return
    if not first and (_changed(kernel, item, pfn) or _merge_with_zero_page(kernel, item, pfn)):
        return
    _unstable_tree(kernel, item, pfn, content)


# --- helpers -----------------------------------------------------------------------------


def _node_of(kernel: Kernel, pfn: int) -> StableNode | None:
    """page_stable_node()."""
    if not kernel.flags(pfn) & KPF.KSM:
        return None
    # A page that failed to become a shared one is left without a node where a fork maps it, too.
    node: StableNode | None = kernel.mappings.get(int(kernel.f.mapping[kernel.head(pfn)]))
    return node


def _changed(kernel: Kernel, item: RmapItem, pfn: int) -> bool:
    """Whether a page changed since the last visit: then it is remembered, and that is all."""
    content = int(kernel.f.content[pfn])
    if item.checksum == content:
        return False
    item.checksum = content
    kernel.say("cmp_and_merge_page: new or changed since the last pass, only remembered")
    return True


def _merge_with_zero_page(kernel: Kernel, item: RmapItem, pfn: int) -> bool:
    """use_zero_pages: whether the page was one of zeroes, and is dealt with."""
    if kernel.knobs["ksm_zero_pages"] == "0" or kernel.f.content[pfn]:
        return False
    vma = _mergeable_vma(item)
    if vma is None:
        return True
    if not _merge_one_page(kernel, item, vma, pfn, kernel.zero_pfn):
        return False
    kernel.say("try_to_merge_with_zero_page: all zeroes, the zero page takes its place")
    return True


def _unstable_tree(kernel: Kernel, item: RmapItem, pfn: int, content: int) -> None:
    """unstable_tree_search_insert(), and merging with the page that is found."""
    ksm = kernel.ksm
    other = ksm.unstable.get(content)
    if other is None:
        ksm.unstable[content] = item
        item.unstable = True
        kernel.say("unstable_tree_search_insert: the first of its content in this pass")
        return
    tree_pfn = _mergeable_page(kernel, other)
    if tree_pfn is None or tree_pfn == pfn:
        return
    kernel.get(tree_pfn)
    same_folio = kernel.head(pfn) == kernel.head(tree_pfn)
    try:
        merged = _merge_two_pages(kernel, item, pfn, other, tree_pfn)
        if merged:
            node = ksm.insert(kernel, pfn)
            ksm.append(other, node)
            ksm.append(item, node)
    finally:
        kernel.put(tree_pfn)
    if same_folio and not merged:
        # The reference to the other page was one too many for a split; now it is gone.
        kernel.say("cmp_and_merge_page: two pages of one large folio, which is split")
        split_folio(kernel, pfn, held=1)


def _merge_two_pages(
    kernel: Kernel, item: RmapItem, pfn: int, other: RmapItem, tree_pfn: int
) -> bool:
    """try_to_merge_two_pages(): the page that is scanned becomes the shared one."""
    if not _merge_with_ksm_page(kernel, item, pfn, None):
        return False
    if _merge_with_ksm_page(kernel, other, tree_pfn, pfn):
        return True
    # The page is KSM's without a node until its mapper has a copy instead.
    vma = _mergeable_vma(item)
    assert vma is not None
    break_ksm(kernel, item.mm, vma, item.vpn)
    return False


def _merge_with_ksm_page(kernel: Kernel, item: RmapItem, pfn: int, kpage: int | None) -> bool:
    """try_to_merge_with_ksm_page(); without `kpage`, the page itself becomes one."""
    vma = _mergeable_vma(item)
    if vma is None or not _merge_one_page(kernel, item, vma, pfn, kpage):
        return False
    kernel.ksm.remove_item(kernel, item)
    item.anon_vma = vma.anon_vma
    return True


def _merge_one_page(kernel: Kernel, item: RmapItem, vma: Vma, pfn: int, kpage: int | None) -> bool:
    """try_to_merge_one_page()."""
    if pfn == kpage:
        return True
    if not kernel.flags(pfn) & KPF.ANON:
        return False
    if kernel.order_of(pfn):
        if split_folio(kernel, pfn, held=1):
            kernel.say("try_to_merge_one_page: a large folio that cannot be split")
            return False
        if item.mm.tables.entry(item.vpn) & e.SPECIAL:
            return False
    if not _write_protect_page(kernel, item, pfn):
        kernel.say("write_protect_page: somebody else holds it, left alone")
        return False
    if kpage is None:
        kernel.f.flags[pfn] |= int(KPF.KSM)
        kernel.f.mapping[pfn] = 0
        mark_accessed(kernel, pfn)
        kernel.set_flags(pfn, int(KPF.DIRTY))
        return True
    if kernel.f.content[pfn] != kernel.f.content[kpage]:
        return False
    _replace_page(kernel, item, vma, pfn, kpage)
    return True


def _write_protect_page(kernel: Kernel, item: RmapItem, pfn: int) -> bool:
    """write_protect_page(): nobody may be able to write to it past its entries."""
    tables = item.mm.tables
    entry = tables.entry(item.vpn)
    if not e.is_present(entry) or e.pfn_of(entry) != pfn:
        return False
    if kernel.flags(pfn) & KPF.KSM:
        # It has no anon_vma any more, by which page_address_in_vma() would find it.
        return False
    exclusive = kernel.exclusive(pfn)
    if not (entry & (e.RW | e.DIRTY) or exclusive):
        return True
    cached = bool(kernel.flags(pfn) & KPF.SWAPCACHE)
    if kernel.mapcount(pfn) + 1 + cached != kernel.refs(pfn):
        return False
    if exclusive and kernel.may_be_pinned(pfn):
        return False
    kernel.set_exclusive(pfn, False)
    if entry & e.DIRTY:
        kernel.set_flags(pfn, int(KPF.DIRTY))
    tables.set(item.vpn, entry & ~(e.RW | e.DIRTY))
    return True


def _replace_page(kernel: Kernel, item: RmapItem, vma: Vma, pfn: int, kpage: int) -> None:
    """replace_page(): the entry maps the other page from now on."""
    tables = item.mm.tables
    hidden = tables.entry(item.vpn) & (e.PRESENT | e.PROTNONE)
    if kpage == kernel.zero_pfn:
        marked = e.DIRTY if kernel.rules.ksm_marks_zero_pages else 0
        new = e.present(kpage, e.SPECIAL | e.ACCESSED | marked)
    else:
        new = e.present(kpage, e.ACCESSED)
        kernel.get(kpage)
        kernel.f.maps[kpage] += 1
        if vma.flags & VM.LOCKED:
            mlock_vma_folio(kernel, vma, kpage)
    tables.set(item.vpn, new & ~(e.PRESENT | e.PROTNONE) | hidden)
    drop_mapping(kernel, pfn, swap_cache=True)
    kernel.say("replace_page: merged")


def _mergeable_vma(item: RmapItem) -> Vma | None:
    """find_mergeable_vma()."""
    vma = item.mm.vmas.find(item.vpn)
    if vma is None or not vma.flags & VM.MERGEABLE or vma.anon_vma is None:
        return None
    return vma


def _mergeable_page(kernel: Kernel, item: RmapItem) -> int | None:
    """get_mergeable_page(): what an item of the unstable tree maps now."""
    entry = item.mm.tables.entry(item.vpn)
    if _mergeable_vma(item) is None or not e.is_present(entry) or entry & e.SPECIAL:
        return None
    pfn = e.pfn_of(entry)
    return pfn if kernel.flags(pfn) & KPF.ANON else None
