"""A dictionary from 64-bit words to small codes that numpy can look up in bulk.

A machine of millions of frames shows a few hundred distinct words.  A multiply-shift
hash leads to a slot that holds one word and its code; the word is compared, so no word
ever gets a foreign code.  Words that share a slot, or are new, take a slower path.
Lookups from several threads need no lock: the tables are replaced whole.

>>> book = CodeBook()
>>> book.codes(np.array([0, 7, 7, 1 << 40], np.uint64)).tolist()
[0, 1, 1, 2]
>>> book.keys.tolist()
[0, 7, 1099511627776]
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memdesc.errors import FormatError

__all__ = ["CodeBook"]

_SLOT_BITS = (12, 14, 16, 18)
"""Sizes of the hash table, the smallest first: 4096 slots stay in the first-level cache."""

_MULTIPLIERS = tuple(pow(0x9E3779B97F4A7C15, power, 1 << 64) for power in range(1, 128, 2))
"""Odd, with bits all over: what multiply-shift hashing asks for."""


@dataclass(frozen=True, slots=True)
class _Tables:
    """A code book at one moment; never changed, only replaced."""

    code_of: dict[int, int]
    keys: NDArray[np.uint64]
    """uint64[n]: the words by code."""
    multiplier: int
    shift: int
    slot_keys: NDArray[np.uint64]
    """uint64[slots]: the word that owns each slot. Free slots hold word 0, which never
    matches there: 0 hashes to slot 0, and owns it."""
    slot_codes: NDArray[np.int64]
    """int64[slots]: the owner's code."""
    owners: NDArray[np.int64]
    """int64[owners]: codes of the words that own a slot."""
    owned: NDArray[np.int64]
    """int64[owners]: their slots."""

    def slots(self, words: NDArray[np.uint64]) -> NDArray[np.int64]:
        """int64: where each of `words` is, if it is in the table at all."""
        return _hashed(words, self.multiplier, self.shift)


class CodeBook:
    """Words seen so far, numbered in order of first sight; word 0 always has code 0.

    `what` names the words in the error raised when there are more than `limit` of them.
    """

    def __init__(self, what: str = "words", *, limit: int = 0x10000) -> None:
        self._what = what
        self._limit = limit
        self._lock = threading.Lock()
        self._tables = _tables({0: 0}, _MULTIPLIERS[0])

    def __len__(self) -> int:
        return len(self._tables.code_of)

    @property
    def keys(self) -> NDArray[np.uint64]:
        """The words, indexed by code. uint64[n]."""
        return self._tables.keys

    def codes(self, words: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Return int64 codes for uint64 `words`, adding those that are new.

        Raises FormatError when there are more distinct words than `limit`.
        """
        tables = self._tables
        slots = tables.slots(words)
        codes = tables.slot_codes.take(slots, mode="clip")
        missed = np.flatnonzero(tables.slot_keys.take(slots, mode="clip") != words)
        if missed.size:
            codes[missed] = self._codes_one_by_one(words[missed].tolist())
        return codes

    def count(self, words: NDArray[np.uint64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sum `weights` by code, as `np.bincount(book.codes(words), weights)` but faster.

        Slots serve as codes until the sums are made. Raises FormatError as `codes` does.
        """
        tables = self._tables
        slots = tables.slots(words)
        if not (tables.slot_keys.take(slots, mode="clip") == words).all():
            return np.bincount(self.codes(words), weights).astype(np.float64, copy=False)
        by_slot = np.bincount(slots, weights, minlength=tables.slot_keys.size)
        by_code = np.zeros(tables.keys.size)
        by_code[tables.owners] = by_slot[tables.owned]
        return by_code

    # --- helpers -------------------------------------------------------------------------

    def _codes_one_by_one(self, words: list[int]) -> list[int]:
        code_of = self._tables.code_of
        distinct = dict.fromkeys(words)
        if not code_of.keys() >= distinct.keys():
            code_of = self._add(distinct)
        return list(map(code_of.__getitem__, words))

    def _add(self, words: Iterable[int]) -> dict[int, int]:
        with self._lock:
            code_of = dict(self._tables.code_of)
            for word in words:
                code_of.setdefault(word, len(code_of))
            if len(code_of) > self._limit:
                raise FormatError(
                    f"more than {self._limit} distinct {self._what}",
                    hint="no kernel writes that: is this really such a file?",
                )
            self._tables = _tables(code_of, self._tables.multiplier)
            return code_of


def _tables(code_of: dict[int, int], last_multiplier: int) -> _Tables:
    """Tables for `code_of`: if possible with a slot for each word, and a small table."""
    keys = np.array(list(code_of), np.uint64)
    multiplier, shift = _perfect_hash(keys, last_multiplier)
    slots = _hashed(keys, multiplier, shift)
    slot_codes = np.zeros(1 << 64 - shift, np.int64)
    slot_codes[slots[::-1]] = np.arange(keys.size)[::-1]  # of several, the first word stays
    owners = np.flatnonzero(slot_codes[slots] == np.arange(keys.size))
    return _Tables(
        code_of, keys, multiplier, shift, keys[slot_codes], slot_codes, owners, slots[owners]
    )


def _perfect_hash(keys: NDArray[np.uint64], last_multiplier: int) -> tuple[int, int]:
    """A multiplier and shift that give every key a slot of its own, or else nearly so.

    `last_multiplier` is tried first: with one more word it mostly still does.
    """
    for bits in _SLOT_BITS:
        if keys.size**2 > 8 << bits:  # four collisions on average: no use in trying
            continue
        for multiplier in (last_multiplier, *_MULTIPLIERS):
            if len(set(_hashed(keys, multiplier, 64 - bits).tolist())) == keys.size:
                return multiplier, 64 - bits
    return last_multiplier, 64 - _SLOT_BITS[-1]


def _hashed(words: NDArray[np.uint64], multiplier: int, shift: int) -> NDArray[np.int64]:
    product = words * np.uint64(multiplier)
    product >>= np.uint64(shift)
    return product.view(np.int64)  # int64 indexes twice as fast as uint64
