"""The fields of user memory: what a folio's struct pages say of its kind, mapping and swap slot.

`FolioFields.fill` takes a descriptor of which only the kind and the frames are known.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final, TypeAlias, assert_never

from memdesc.descriptors import (
    AddressSpace,
    AnonFolio,
    Descriptor,
    FileFolio,
    GuestMemfdFolio,
    HugetlbFolio,
    KsmFolio,
    Nobody,
    NotVisible,
    SecretmemFolio,
    ShmemFolio,
    SwapCacheFolio,
)
from memdesc.kernels.layout import MappingKind
from memdesc.kernels.release import behaviour_of
from memdesc.structs.describe_folio import CHANGED, FolioPages, seen
from memdesc.structs.describe_owner import Cgroups, Mappings
from memdesc.structs.kernel import Kernel

__all__ = ["FolioFields", "UserFolio"]

_SWAP_TYPE_SHIFT: Final = 58
"""A swap entry is the area's number above the slot (`include/linux/swapops.h`:
SWP_TYPE_SHIFT @6.1, @7.2; a macro, the same for every 64-bit machine)."""

UserFolio: TypeAlias = (
    AnonFolio
    | SwapCacheFolio
    | KsmFolio
    | FileFolio
    | ShmemFolio
    | HugetlbFolio
    | SecretmemFolio
    | GuestMemfdFolio
)
"""The descriptors of user memory."""


class FolioFields:
    """Fills descriptors of one kernel's folios."""

    def __init__(self, kernel: Kernel, cgroups: Cgroups) -> None:
        self.kernel = kernel
        self.cgroups = cgroups
        self.mappings = Mappings(kernel)
        self._behaviour = behaviour_of(kernel.release)

    def fill(self, plain: UserFolio, folio: FolioPages) -> Descriptor:
        """`plain` with every field that `folio` and what it points to can fill."""
        plain = replace(
            plain,
            flags=seen(folio.flag_names),
            refcount=seen(lambda: folio.refcount),
            mapcount=seen(folio.mapcount),
            pins=seen(folio.pins),
            cgroup=seen(lambda: self.cgroups.of(folio.memcg_data)),
        )
        index = seen(lambda: folio.index)
        match plain:
            case AnonFolio():
                return replace(
                    plain,
                    exclusive=seen(lambda: folio.has_flag("anon_exclusive")),
                    anon_vma=seen(lambda: _expected(folio, MappingKind.ANON)),
                    index=index,
                )
            case SwapCacheFolio():
                entry = seen(lambda: _swap_entry(folio))
                if isinstance(entry, NotVisible):
                    return replace(plain, swap_type=entry, swap_offset=entry)
                return replace(
                    plain,
                    shmem=seen(lambda: folio.mapping_kind is MappingKind.FILE),
                    swap_type=entry >> _SWAP_TYPE_SHIFT,
                    swap_offset=entry & (1 << _SWAP_TYPE_SHIFT) - 1,
                )
            case KsmFolio():
                return replace(
                    plain,
                    stable_node=seen(lambda: _expected(folio, MappingKind.KSM)),
                    sharers=seen(lambda: self._ksm_sharers(folio)),
                )
            case FileFolio() | ShmemFolio() | SecretmemFolio() | GuestMemfdFolio():
                return replace(plain, mapping=seen(lambda: self._mapping(folio)), index=index)
            case HugetlbFolio():
                return replace(
                    plain,
                    in_use=seen(lambda: self._is_huge_page_in_use(folio)),
                    mapping=seen(lambda: self._huge_mapping(folio)),
                    index=seen(lambda: self._huge_index(folio)),
                )
            case _:
                assert_never(plain)

    # --- helpers -------------------------------------------------------------------------

    def _mapping(self, folio: FolioPages) -> AddressSpace | NotVisible:
        if folio.mapping_kind is not MappingKind.FILE:
            return CHANGED
        if not folio.mapping:
            return NotVisible("no mapping: truncated, or not yet in its file")
        return self.mappings.at(folio.mapping)

    def _huge_mapping(self, folio: FolioPages) -> AddressSpace | Nobody | NotVisible:
        if folio.mapping_kind is not MappingKind.FILE or not folio.mapping:
            return Nobody()
        return self._mapping(folio)

    def _is_huge_page_in_use(self, folio: FolioPages) -> bool:
        """By the pool's own mark (`include/linux/hugetlb.h`: HPG_freed); a kernel without it
        keeps no reference to what waits in the pool."""
        freed = self.kernel.types.find_enumerator("HPG_freed")
        if freed is None:
            return folio.refcount > 0
        return not folio.private >> freed & 1

    def _huge_index(self, folio: FolioPages) -> int | NotVisible:
        """In frames, whatever this kernel counts in."""
        if not self._is_huge_page_in_use(folio):
            return NotVisible("free: it belongs to no file")
        if not self._behaviour.knows_release:
            return NotVisible("in frames or in huge pages, which depends on the kernel release")
        counts_huge = self._behaviour.hugetlb_index_in_huge_pages
        return folio.index * (folio.pages.nr_pages if counts_huge else 1)

    def _ksm_sharers(self, folio: FolioPages) -> int | NotVisible:
        """`rmap_hlist_len` of the stable node (`mm/ksm.c` @6.1, @7.2)."""
        node = _expected(folio, MappingKind.KSM)
        if isinstance(node, NotVisible):
            return node
        stable = self.kernel.load("ksm_stable_node", node)
        is_own = stable["kpfn"] == folio.pages.pfn_start
        return stable["rmap_hlist_len"] if is_own else CHANGED


def _expected(folio: FolioPages, kind: MappingKind) -> int | NotVisible:
    """What `mapping` leads to, where it is still of this kind."""
    return folio.mapping if folio.mapping_kind is kind else CHANGED


def _swap_entry(folio: FolioPages) -> int | NotVisible:
    """`folio->swap`, which is `private` (`include/linux/mm_types.h` @6.1, @7.2)."""
    has_slot = folio.has_flag("owner_priv_1") and folio.has_flag("swapbacked")
    return folio.private if has_slot else NotVisible("it has left the swap cache")
