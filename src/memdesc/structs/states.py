"""The distinct states of struct pages that a scan meets, and what each one means.

`StateBook` is a `FactBook` whose words are signatures: a state is judged once, and its
fact carries the kpageflags word that the kernel would show.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from memdesc.errors import FormatError
from memdesc.kernels.layout import TAIL_WORD_BITS
from memdesc.kernels.page_state import (
    SIG_DAMAGED,
    SIG_KNOWN,
    SIG_TAIL,
    PageState,
)
from memdesc.kernels.stable_flags import StableFlags
from memdesc.map.codebook import CodeBook
from memdesc.map.facts import FactBook
from memdesc.rules.classify import Backing
from memdesc.rules.structpage import StructContext, judge

__all__ = ["StateBook"]

_MOST_STATES = 1 << 14
"""A machine of 6.5 million frames shows a few hundred."""


class StateBook(FactBook):
    """Grows a `FactTable` while a scan meets new signatures. Safe for several threads."""

    def __init__(self, known: StructContext, tail_words: Sequence[int]) -> None:
        """`tail_words` are the flags words of tails by their code (`StateReader`)."""
        super().__init__(known.context)
        self.known = known
        self.words = _States("states of struct pages", limit=_MOST_STATES)
        self.tails_need_heads = False
        self._tail_words = tail_words
        self._stable = StableFlags(known.layout, known.context.behaviour)
        self._tail_shift = known.layout.tail_word_shift

    def _row(self, word: int, backing: Backing, head: int | None) -> tuple[int, int, str]:
        own = None
        if self.context.behaviour.tails_show_own_flags and word & SIG_TAIL:
            code = word >> self._tail_shift & (1 << TAIL_WORD_BITS) - 1
            own = self._tail_words[code] if code < len(self._tail_words) else 0
            word &= ~((1 << TAIL_WORD_BITS) - 1 << self._tail_shift)
        state = PageState.unpack(word)
        verdict = judge(state, self.known)
        return self._stable.word(state, own), verdict.types.mask, verdict.rule.name


class _States(CodeBook):
    """Codes of signatures. Beyond the limit a new one is a damaged struct page, no error."""

    def codes(self, words: NDArray[np.uint64]) -> NDArray[np.int64]:
        try:
            return super().codes(words)
        except FormatError:
            return super().codes(self._without_new(words))

    def count(self, words: NDArray[np.uint64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
        try:
            return super().count(words, weights)
        except FormatError:
            return super().count(self._without_new(words), weights)

    def _without_new(self, words: NDArray[np.uint64]) -> NDArray[np.uint64]:
        return np.where(np.isin(words, self.keys), words, np.uint64(SIG_DAMAGED | SIG_KNOWN))
