"""The distinct facts of a map: flag word, type, and the rule that named it.

A map's extents point into this table by a small code, so a terabyte of frames carries
two bytes of type per extent, and a rule runs once per distinct word.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memdesc.errors import FormatError
from memdesc.kernels.kpageflags import KPF
from memdesc.map.codebook import CodeBook
from memdesc.rules.classify import Backing, Context, classify
from memdesc.rules.procedure import RULES, Rule
from memdesc.types import TypeSet

__all__ = ["Fact", "FactBook", "FactTable"]


@dataclass(frozen=True, slots=True)
class Fact:
    """One row: the kpageflags word, the types it can be, and why."""

    flags: int
    types: TypeSet
    rule: Rule


@dataclass(frozen=True)
class FactTable:
    """The facts as columns, indexed by code."""

    flags: NDArray[np.uint64]
    """uint64[n]: the kpageflags word."""
    types: NDArray[np.uint64]
    """uint64[n]: `TypeSet.mask`."""
    rules: tuple[str, ...]
    """Rule names, `memdesc.rules.procedure.RULES`."""

    def __len__(self) -> int:
        return len(self.rules)

    def __getitem__(self, code: int) -> Fact:
        return Fact(int(self.flags[code]), TypeSet(int(self.types[code])), RULES[self.rules[code]])

    def with_flags(self, mask: int) -> NDArray[np.bool_]:
        """bool[n]: which facts have any of the bits in `mask`."""
        marked: NDArray[np.bool_] = (self.flags & np.uint64(mask)) != 0
        return marked

    def within(self, types: TypeSet) -> NDArray[np.bool_]:
        """bool[n]: which facts are certainly one of `types` (every member is in it)."""
        others = self.types & np.uint64(~types.mask & (1 << 64) - 1)
        certain: NDArray[np.bool_] = others == 0
        return certain


_UNSETTLED = 0xFFFF


class FactBook:
    """Grows a `FactTable` while a scan meets new words. Safe for several threads."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.words = CodeBook("page flag words")
        self._tail_keys = CodeBook("page flag words", limit=1 << 20)
        self._lock = threading.Lock()
        self._code_of: dict[tuple[int, int, str], int] = {}
        self._rows: list[tuple[int, int, str]] = []
        self._settled = np.full(0x10000, _UNSETTLED, np.uint16)
        self._order: list[int] = []
        self._plain: dict[Backing, NDArray[np.uint16]] = {}
        self._tails: NDArray[np.uint16] = np.zeros(0, np.uint16)
        self._is_tail: NDArray[np.bool_] = np.zeros(0, np.bool_)
        self._is_head: NDArray[np.bool_] = np.zeros(0, np.bool_)
        behaviour = context.behaviour
        self.tails_need_heads = behaviour.tails_show_own_flags or behaviour.typed_tails_bare

    def table(self) -> FactTable:
        """The facts met so far; where some were settled, those, in their order."""
        rows = [self._rows[code] for code in self._order] or list(self._rows)
        return FactTable(
            flags=np.array([row[0] for row in rows], np.uint64),
            types=np.array([row[1] for row in rows], np.uint64),
            rules=tuple(row[2] for row in rows),
        )

    def settle(self, facts: NDArray[np.uint16]) -> NDArray[np.uint16]:
        """Renumber fact codes by first sight here, and keep only those in the table.

        Which thread meets a word first is chance. In one thread and in frame order, this
        gives every scan of the same words the same codes.
        """
        settled = self._settled.take(facts)
        new = facts[settled == _UNSETTLED]
        if not new.size:
            return settled
        for code in dict.fromkeys(new.tolist()):
            self._settled[code] = len(self._order)
            self._order.append(code)
        return self._settled.take(facts)

    def facts(self, word_codes: NDArray[np.int64], backing: Backing) -> NDArray[np.uint16]:
        """Return uint16 fact codes for frames judged by their own word.

        Raises FormatError, as `tail_facts` does, when there are more facts than codes.
        """
        table = self._plain.get(backing)
        if table is None or table.size < len(self.words):
            table = self._extend_plain(backing)
        return table.take(word_codes)

    def tail_facts(
        self, word_codes: NDArray[np.int64], head_codes: NDArray[np.int64], backing: Backing
    ) -> NDArray[np.uint16]:
        """Return uint16 fact codes for tails judged together with their heads' words."""
        keys = word_codes | head_codes << 24 | int(backing) << 48
        codes = self._tail_keys.codes(keys.view(np.uint64))
        if self._tails.size < len(self._tail_keys):
            self._extend_tails()
        return self._tails.take(codes)

    def compound_marks(
        self, word_codes: NDArray[np.int64]
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return (is tail, is head) per code; a word with both marks is a head."""
        if self._is_tail.size < len(self.words):
            with self._lock:
                keys = self.words.keys
                self._is_head = (keys & np.uint64(KPF.COMPOUND_HEAD)) != 0
                self._is_tail = ((keys & np.uint64(KPF.COMPOUND_TAIL)) != 0) & ~self._is_head
        return self._is_tail.take(word_codes), self._is_head.take(word_codes)

    # --- helpers -------------------------------------------------------------------------

    def _extend_plain(self, backing: Backing) -> NDArray[np.uint16]:
        with self._lock:
            old = self._plain.get(backing, np.zeros(0, np.uint16))
            keys = self.words.keys
            new = [self._fact(word, backing, None) for word in keys[old.size :].tolist()]
            table = np.concatenate([old, np.array(new, np.uint16)])
            self._plain[backing] = table
            return table

    def _extend_tails(self) -> None:
        with self._lock:
            words = self.words.keys
            new = [
                self._fact(
                    int(words[key & 0xFFFFFF]), Backing(key >> 48), int(words[key >> 24 & 0xFFFFFF])
                )
                for key in self._tail_keys.keys[self._tails.size :].tolist()
            ]
            self._tails = np.concatenate([self._tails, np.array(new, np.uint16)])

    def _row(self, word: int, backing: Backing, head: int | None) -> tuple[int, int, str]:
        """(kpageflags word, mask of types, rule) of a distinct word; `StateBook` overrides it."""
        verdict = classify(word, self.context, backing=backing, head_flags=head)
        return word, verdict.types.mask, verdict.rule.name

    def _fact(self, flags: int, backing: Backing, head_flags: int | None) -> int:
        row = self._row(flags, backing, head_flags)
        code = self._code_of.get(row)
        if code is None:
            code = self._code_of[row] = len(self._rows)
            if code >= _UNSETTLED:
                raise FormatError(
                    f"more than {_UNSETTLED} distinct facts about page flag words",
                    hint="no kernel writes that: is this really such a file?",
                )
            self._rows.append(row)
        return code
