"""Tails of compound pages: which head is theirs, and what it says for them.

A tail of any kernel is what its head is.  A head that cannot be (outside the memory map,
another tail, too small to have this tail) marks the tail as torn.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from memdesc.errors import FaultError
from memdesc.kernels.layout import TAIL_WORD_BITS, head_address
from memdesc.kernels.page_state import (
    SIG_MAPPED,
    SIG_TAIL,
    SIG_TORN,
    SIG_TYPE_SHIFT,
    TypeCode,
)
from memdesc.structs.counts import counted_whole, memcg_words
from memdesc.structs.memmap import MemMap
from memdesc.structs.work import B_MAPPED, B_TAIL, I64, U64, Work

__all__ = ["Tails"]

_MOST_FOREIGN_HEADS: Final = 64
"""Heads outside a chunk that are looked up, at most: a sane chunk has one."""
_MOST_TAIL_WORDS: Final = (1 << TAIL_WORD_BITS) - 1


class Tails:
    """Gives tails what their heads say. One per scan, for all its threads."""

    def __init__(
        self,
        memmap: MemMap,
        *,
        show_own_flags: bool,
        read_head: Callable[[int, NDArray[np.uint8]], Work],
    ) -> None:
        """`show_own_flags`: kpageflags shows a tail's own flags (`Behaviour`). `read_head`
        makes the chunk of a head that lies outside the one at hand, from two struct pages."""
        self.memmap = memmap
        self.layout = memmap.layout
        self.show_own_flags = show_own_flags
        self.words: list[int] = [0]
        """Flags words of tails by their code, for kernels whose tails show their own."""
        self._read_head = read_head
        self._code: dict[int, int] = {0: 0}
        self._hwpoison = memmap.layout.flag("hwpoison")
        self._page_shift = memmap.layout.size_bytes.bit_length() - 1

    def resolve(self, work: Work) -> int:
        """Give tails what their head says; returns how many have none."""
        work.tails = tails = np.flatnonzero(work.packed & B_TAIL != 0)
        if not tails.size:
            return 0
        local = self._offsets_of_heads(work, tails)
        orders = np.zeros(work.size, np.uint8)
        orders[work.heads] = np.minimum(work.folio_byte(work.heads, self.layout.folio_order), 30)
        inside = local >= 0
        whole = bool(inside.all())
        safe = local if whole else np.maximum(local, 0)
        valid = (tails - safe) >> orders[safe] == 0
        if not whole:
            valid &= inside
        work.heads_of = local if valid.all() else np.where(valid, local, -1)
        if self.layout.has_subpage_mapcounts_only:
            self._mapped_by_parts(work, valid)
        base = work.signatures[safe]
        if not whole:
            self._foreign_heads(work, local, base, valid)
        result = base | np.uint64(SIG_TAIL)
        own = work.flags[tails]
        if self.show_own_flags:
            self._keep_own_flags(own, result)
        elif self._hwpoison and (work.flags & np.uint32(self._hwpoison)).any():
            self._keep_own_poison(own, result)
        torn = np.flatnonzero(~valid)
        if torn.size:
            result[torn] = work.signatures[tails[torn]] | np.uint64(SIG_TORN)
        work.signatures[tails] = result
        return int(torn.size)

    # --- helpers -------------------------------------------------------------------------

    def _offsets_of_heads(self, work: Work, tails: I64) -> I64:
        """Offsets of the heads that tails name; -1 for one that lies before the chunk.

        Where the word names no struct page before the tail, -1 as well: `_foreign_heads`
        tells them apart.
        """
        layout = self.layout
        words = work.words[tails, layout.compound // 8]
        if layout.compound_may_be_mask:
            masks = words >= np.uint64((1 << 64) - (1 << 32))
            if masks.any():
                own = self.memmap.page_address(tails + work.pfn_start)
                words = np.where(masks, own & (words - np.uint64(1)), words - np.uint64(1))
                words |= np.uint64(1)
        first = self.memmap.page_address(work.pfn_start)
        distance = words - np.uint64(first + 1)
        # An address before the chunk wraps around to a distance that no chunk has.
        local: I64 = (distance >> np.uint64(self._page_shift)).view(np.int64)
        wild = (distance & np.uint64(layout.size_bytes - 1) != 0) | (local >= tails)
        if wild.any():
            local[wild] = -1
        return local

    def _foreign_heads(self, work: Work, local: I64, base: U64, valid: NDArray[np.bool_]) -> None:
        """Fill `base` and `valid` for tails whose head lies before the chunk."""
        outside = np.flatnonzero(local < 0)
        tails = work.tails[outside]
        words = work.words[tails, self.layout.compound // 8]
        frames = np.full(local.size, -1, np.int64)
        # A gigantic page has 65535 such tails in a chunk: look at each run of equal ones once. A
        # mask means the same head within the largest folio only.
        groups = (tails + work.pfn_start) >> 18
        begins = np.ones(tails.size, np.bool_)
        begins[1:] = (words[1:] != words[:-1]) | (groups[1:] != groups[:-1])
        starts = np.flatnonzero(begins)
        ends = np.append(starts[1:], tails.size).tolist()
        known: dict[tuple[int, int], int] = {}
        for start, end in zip(starts.tolist(), ends, strict=True):
            pfn, word = work.pfn_start + int(tails[start]), int(words[start])
            key = word, pfn >> 18
            if key not in known:
                if len(known) >= _MOST_FOREIGN_HEADS:
                    break
                address = head_address(self.layout, self.memmap.page_address(pfn), word)
                head = self.memmap.pfn_of(address)
                known[key] = head if head < work.pfn_start and self._look_up(work, head) else -1
            frames[outside[start:end]] = known[key]
        work.foreign_of = frames
        for head, (signature, _, _) in work.foreign.items():
            theirs = frames == head
            base[theirs] = signature
            valid |= theirs

    def _look_up(self, work: Work, head: int) -> bool:
        """Read a head that lies outside the chunk; False where it is none."""
        if head in work.foreign:
            return True
        if not self.memmap.has_page(head):
            return False
        try:
            pages = self.memmap.read_pages(head, 2)
        except FaultError:
            return False
        alone = self._read_head(head, pages)
        if alone.heads.size == 0 or alone.heads[0] != 0:
            return False
        whole = int(counted_whole(alone, np.zeros(1, np.int64))[0])
        memcg = int(memcg_words(alone)[0])
        work.foreign[head] = int(alone.signatures[0]), whole, memcg
        return True

    def _mapped_by_parts(self, work: Work, valid: NDArray[np.bool_]) -> None:
        """A compound page counts as mapped when one of its frames is (6.1), hugetlb aside."""
        mapped = valid & (work.packed[work.tails] & B_MAPPED != 0)
        heads = work.heads_of[mapped]
        found = work.signatures[heads] >> np.uint64(SIG_TYPE_SHIFT) & np.uint64(15)
        work.signatures[heads[found != TypeCode.HUGETLB]] |= np.uint64(SIG_MAPPED)

    def _keep_own_poison(self, own: NDArray[np.uint32], result: U64) -> None:
        """Poison is each frame's own, but for hugetlb, whose head has the mark for all."""
        hugetlb = result >> np.uint64(SIG_TYPE_SHIFT) & np.uint64(15) == TypeCode.HUGETLB
        poison = np.uint64(self._hwpoison)
        others = result & ~poison | own & poison
        np.copyto(result, others, where=~hugetlb)

    def _keep_own_flags(self, own: NDArray[np.uint32], result: U64) -> None:
        """Add the codes of the tails' own flags; the last code stands for "one of too many"."""
        result &= ~np.uint64(self._hwpoison)
        result |= own & np.uint64(self._hwpoison)
        marked = np.flatnonzero(own)
        if not marked.size:
            return
        distinct, inverse = np.unique(own[marked], return_inverse=True)
        codes = np.array([self._code_of(flags) for flags in distinct.tolist()], np.uint64)
        result[marked] |= codes[inverse] << np.uint64(self.layout.tail_word_shift)

    def _code_of(self, flags: int) -> int:
        code = self._code.get(flags)
        if code is None:
            if len(self.words) >= _MOST_TAIL_WORDS:
                return _MOST_TAIL_WORDS
            # Two threads may add the same word: both codes then mean it.
            self.words.append(flags)
            code = self._code[flags] = self.words.index(flags)
        return code
