"""A dictionary from 64-bit words to small codes that numpy can look up in bulk.

A machine of millions of frames shows a few hundred distinct words.  A multiply-shift
hash leads to a code and the key is compared, so a word never gets a foreign code; words
that share a slot, or are new, take a slower path.  Lookups from several threads need no
lock: the tables are replaced whole.

>>> book = CodeBook()
>>> book.codes(np.array([0, 7, 7, 1 << 40], np.uint64)).tolist()
[0, 1, 1, 2]
>>> book.keys.tolist()
[0, 7, 1099511627776]
"""

from __future__ import annotations

import threading
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from memdesc.errors import FormatError

__all__ = ["CodeBook"]

_SLOT_BITS = 14
_SHIFT = np.uint64(64 - _SLOT_BITS)
_MULTIPLIERS: NDArray[np.uint64] = np.random.default_rng(2021).integers(
    1 << 40, 1 << 63, 64, np.uint64
) | np.uint64(1)


class _Tables(NamedTuple):
    multiplier: np.uint64
    slots: NDArray[np.uint32]
    keys: NDArray[np.uint64]
    sorted_keys: NDArray[np.uint64]
    sorted_codes: NDArray[np.uint32]


class CodeBook:
    """Words seen so far, numbered in order of first sight; word 0 always has code 0.

    `what` names the words in the error raised when there are more than `limit` of them.
    """

    def __init__(self, what: str = "words", *, limit: int = 0x10000) -> None:
        self._what = what
        self._limit = limit
        self._code_of: dict[int, int] = {0: 0}
        self._lock = threading.Lock()
        self._tables = _tables([0])

    def __len__(self) -> int:
        return len(self._code_of)

    @property
    def keys(self) -> NDArray[np.uint64]:
        """The words, indexed by code. uint64[n]."""
        return self._tables.keys

    def codes(self, words: NDArray[np.uint64]) -> NDArray[np.uint32]:
        """Return uint32 codes for uint64 `words`, adding those that are new.

        Raises FormatError when there are more distinct words than `limit`.
        """
        tables = self._tables
        slot = words * tables.multiplier
        slot >>= _SHIFT
        codes = tables.slots[slot]
        missed = np.flatnonzero(tables.keys[codes] != words)
        if missed.size:
            codes[missed] = self._slow(words[missed])
        return codes

    def _slow(self, words: NDArray[np.uint64]) -> NDArray[np.uint32]:
        distinct, back = np.unique(words, return_inverse=True)
        tables = self._tables
        where = np.searchsorted(tables.sorted_keys, distinct)
        where[where == tables.sorted_keys.size] = 0
        codes = tables.sorted_codes[where]
        unknown = tables.sorted_keys[where] != distinct
        if unknown.any():
            codes[unknown] = self._add(distinct[unknown].tolist())
        return codes[back]

    def _add(self, words: list[int]) -> list[int]:
        with self._lock:
            for word in words:
                self._code_of.setdefault(word, len(self._code_of))
            if len(self._code_of) > self._limit:
                raise FormatError(
                    f"more than {self._limit} distinct {self._what}",
                    hint="no kernel writes that: is this really such a file?",
                )
            self._tables = _tables(list(self._code_of))
            return [self._code_of[word] for word in words]


def _tables(words: list[int]) -> _Tables:
    keys = np.array(words, np.uint64)
    codes = np.arange(keys.size, dtype=np.uint32)
    best_used, best = 0, _MULTIPLIERS[0]
    for multiplier in _MULTIPLIERS if keys.size < 512 else _MULTIPLIERS[:2]:
        used = np.unique((keys * multiplier) >> _SHIFT).size
        if used > best_used:
            best_used, best = used, multiplier
        if used == keys.size:
            break
    slots = np.zeros(1 << _SLOT_BITS, np.uint32)
    slots[((keys * best) >> _SHIFT)[::-1]] = codes[::-1]
    order = np.argsort(keys)
    return _Tables(best, slots, keys, keys[order], codes[order])
