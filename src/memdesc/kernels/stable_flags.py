"""The kpageflags word that a kernel would show for a struct page.

`fs/proc/page.c:stable_page_flags` of 6.1.192, 6.12.117 and 7.2.13, written again over
`PageState`.  A map made from struct pages carries these words, so that it reads like one
made from /proc, and both can be compared bit by bit.
"""

from __future__ import annotations

from memdesc.kernels.kpageflags import KPF
from memdesc.kernels.layout import MappingKind, PageLayout
from memdesc.kernels.page_state import PageState, TypeCode
from memdesc.kernels.release import Behaviour

__all__ = ["StableFlags"]

_COPIED = (
    (KPF.LOCKED, "locked"),
    (KPF.REFERENCED, "referenced"),
    (KPF.UPTODATE, "uptodate"),
    (KPF.DIRTY, "dirty"),
    (KPF.LRU, "lru"),
    (KPF.ACTIVE, "active"),
    (KPF.WRITEBACK, "writeback"),
    (KPF.RECLAIM, "reclaim"),
    (KPF.SWAPBACKED, "swapbacked"),
    (KPF.UNEVICTABLE, "unevictable"),
    (KPF.MLOCKED, "mlocked"),
    (KPF.RESERVED, "reserved"),
    (KPF.OWNER_2, "owner_2"),
    (KPF.OWNER_2, "mappedtodisk"),
    (KPF.PRIVATE, "private"),
    (KPF.PRIVATE_2, "private_2"),
    (KPF.OWNER_PRIVATE, "owner_priv_1"),
    (KPF.ARCH, "arch_1"),
    (KPF.ARCH_2, "arch_2"),
    (KPF.ARCH_3, "arch_3"),
    (KPF.UNCACHED, "uncached"),
    (KPF.ERROR, "error"),
)
"""Bits that are copied from the flags word; a kernel without the flag never sets the bit."""


class StableFlags:
    """Computes the word of one kernel. Call it once per distinct state."""

    def __init__(self, layout: PageLayout, behaviour: Behaviour) -> None:
        self._copied = [(layout.flag(name), bit.value) for bit, name in _COPIED]
        self._head = layout.flag("head")
        self._idle = layout.flag("idle")
        self._hwpoison = layout.flag("hwpoison")
        self._slab = layout.flag("slab")
        self._lru = layout.flag("lru")
        self._swapcache = layout.flag("swapbacked") | layout.flag("owner_priv_1")
        self._behaviour = behaviour

    def word(self, state: PageState, own_flags: int | None = None) -> int:
        """Return the kpageflags word of a frame in `state`.

        `own_flags` is the flags word of a tail itself, where this kernel shows that instead
        of its head's (`Behaviour.tails_show_own_flags`). A frame whose struct page could not
        be read has no word: it reads 0.
        """
        if state.is_hole or state.is_device:
            return 0 if self._behaviour.holes_read_zero else KPF.NOPAGE.value
        if state.is_unreadable or state.is_damaged or not state.is_known:
            return 0
        shows_own = self._behaviour.tails_show_own_flags
        flags = state.flags
        if state.is_tail and shows_own:
            flags = own_flags or 0
        word = self._copied_bits(flags)
        word |= self._mapping_bits(state)
        word |= self._compound_bits(state)
        word |= self._type_bits(state)
        if state.flags & self._idle:
            word |= KPF.IDLE.value
        if state.flags & self._swapcache == self._swapcache:
            word |= KPF.SWAPCACHE.value
        poisoned = flags if shows_own else state.flags
        if poisoned & self._hwpoison:
            word |= KPF.HWPOISON.value
        return word

    # --- helpers -------------------------------------------------------------------------

    def _copied_bits(self, flags: int) -> int:
        word = 0
        for mask, bit in self._copied:
            if flags & mask:
                word |= bit
        return word

    def _is_slab(self, state: PageState) -> bool:
        return state.page_type is TypeCode.SLAB or bool(state.flags & self._slab)

    def _mapping_bits(self, state: PageState) -> int:
        word = 0
        # Kernels with slab as a flag skip the test for slabs: their word at 48 is no count.
        if state.is_mapped and not state.flags & self._slab:
            word |= KPF.MMAP.value
        if state.mapping & MappingKind.ANON:
            word |= KPF.ANON.value
            if state.mapping is MappingKind.KSM or self._behaviour.ksm_bit_on_all_anon:
                word |= KPF.KSM.value
        return word

    def _compound_bits(self, state: PageState) -> int:
        word = 0
        is_large = state.is_tail or bool(state.flags & self._head)
        if state.is_tail:
            word |= KPF.COMPOUND_TAIL.value
        elif is_large:
            word |= KPF.COMPOUND_HEAD.value
        if state.page_type is TypeCode.HUGETLB:
            return word | KPF.HUGE.value
        if self._behaviour.tails_show_own_flags:
            # Any compound page whose head is on the LRU or anonymous counts as a THP.
            in_use = state.flags & self._lru or state.mapping & MappingKind.ANON
            is_thp = is_large and bool(in_use)
        else:
            is_thp = is_large and state.is_rmappable
        if is_thp:
            return word | KPF.THP.value
        if state.is_huge_zero:
            return word | KPF.ZERO_PAGE.value | KPF.THP.value
        if state.is_zero_page:
            return word | KPF.ZERO_PAGE.value
        return word

    def _type_bits(self, state: PageState) -> int:
        word = 0
        if state.page_type is TypeCode.BUDDY or (state.refcount_is_0 and state.in_free_block):
            word |= KPF.BUDDY.value
        if self._is_slab(state):
            word |= KPF.SLAB.value
        if not (state.is_tail and self._behaviour.typed_tails_bare):
            if state.page_type is TypeCode.OFFLINE:
                word |= KPF.OFFLINE.value
            if state.page_type is TypeCode.TABLE:
                word |= KPF.PGTABLE.value
        return word
