"""Where a scenario's mappings lie, and which words its tags stand for.

Addresses are fixed, so that a step means the same in the model and on every kernel. Each mapping
has a slot of its own: it begins at a multiple of 2 MiB (a huge page fits) and at least 2 MiB that
nobody maps follow it, so that neighbours never merge unless a scenario says `at NAME+N`.

A tag's word fills all 512 places of a page. It is odd, so no tag looks like zeroes, and a hash of
the tag's name, so that it is the same in every scenario, process and file.

>>> hex(word_of_tag("A")), word_of_tag("0")
('0x5ba1d58c8d46fbff', 0)
"""

from __future__ import annotations

import functools
import hashlib
import re
from dataclasses import dataclass
from typing import Final

from memdesc.errors import FormatError
from memdesc.types import PAGE_SIZE_BYTES

__all__ = [
    "FIRST_SLOT",
    "HUGE_PAGES",
    "PAGE",
    "ZERO_TAG",
    "Placement",
    "Places",
    "is_tag",
    "word_of_tag",
]

PAGE: Final = PAGE_SIZE_BYTES
HUGE_PAGES: Final = 512
"""Pages of a huge page: slots begin at their multiples."""
FIRST_SLOT: Final = 0x2000_0000_0000
"""Far from where a kernel of x86-64 places a program, its heap, libraries and stack."""
ZERO_TAG: Final = "0"
"""Zeroes: what memory holds before it is written."""

_HUGE: Final = PAGE * HUGE_PAGES
_GROWTH: Final = 2 * _HUGE
"""Kept free below a mapping that grows down: the kernel wants 256 pages (stack_guard_gap)."""
_TAG = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,30}|0")
_OTHER = re.compile(r"ok|any|E[A-Z0-9]{2,}|SIG[A-Z]+")


@dataclass(frozen=True, slots=True)
class Placement:
    """Addresses that a name stands for in one process."""

    address: int
    pages: int

    @property
    def end(self) -> int:
        """First address behind it."""
        return self.address + self.pages * PAGE

    def holds(self, address: int) -> bool:
        return self.address <= address < self.end


class Places:
    """Hands out slots, one after the other."""

    def __init__(self) -> None:
        self._next = FIRST_SLOT

    def take(self, pages: int, *, offset: int = 0, grows_down: bool = False) -> Placement:
        """A slot for `pages` pages, that begin `offset` pages behind a multiple of 2 MiB."""
        address = self._next + offset * PAGE + (_GROWTH if grows_down else 0)
        placed = Placement(address, pages)
        self._next = -(-placed.end // _HUGE) * _HUGE + _HUGE
        return placed


def is_tag(text: str) -> bool:
    """Whether `text` can be the name of a content: no error, no signal, no word behind `->`."""
    return _TAG.fullmatch(text) is not None and _OTHER.fullmatch(text) is None


@functools.cache
def word_of_tag(tag: str) -> int:
    """The word that fills a page whose content is `tag`. Raises FormatError for no tag."""
    if not is_tag(tag):
        raise FormatError(
            f"not a content: {tag[:40]!r}",
            hint="contents are letters and words, as A or first; 0 is zeroes",
        )
    if tag == ZERO_TAG:
        return 0
    digest = hashlib.blake2b(tag.encode(), digest_size=8, person=b"memdesc").digest()
    return int.from_bytes(digest, "little") | 1
