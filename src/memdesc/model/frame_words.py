"""The memdesc word of a frame, compiled: build it, read it, follow it.

Words are signed 64-bit numbers here, and `word` holds each XOR `FREE_WORD`. The rules are those
of `memdesc.word`; a test compares the two.
"""

from __future__ import annotations

from typing import Final

from memdesc.model.compiled import compiled, hot
from memdesc.model.slab_state import FREE_WORD, G_DIRECT_MAP, SlabState

__all__ = ["address_of", "misc_word", "pointer_word", "read_word"]

_TYPE_MASK: Final = 15


@compiled
def misc_word(subtype: int, order: int, mappable: int, node: int, zone: int) -> int:
    """A word of type 0 (`memdesc.word.encode_misc`, Debian amd64 widths), as a signed number."""
    top = node if node < 512 else node - 1024
    return subtype << 4 | mappable << 11 | order << 12 | zone << 51 | top << 54


@hot
def pointer_word(s: SlabState, tag: int, address: int) -> int:
    """The word that points to the descriptor at a physical address, as a signed number."""
    return (s.cell[G_DIRECT_MAP] + address) | tag


@hot
def read_word(s: SlabState, pfn: int) -> int:
    """The word of a frame, as a signed number."""
    return s.word[pfn] ^ FREE_WORD


@hot
def address_of(s: SlabState, word: int) -> int:
    """Physical address of the descriptor that a word points to."""
    return (word & ~_TYPE_MASK) - s.cell[G_DIRECT_MAP]
