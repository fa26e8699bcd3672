"""Buffer heads: whether somebody uses the blocks of a file's page without counting on the page.

A page whose PG_private is set may carry a ring of buffer heads, one for each block.  Who uses
a block counts on its buffer and not on the page (`fs/buffer.c:__find_get_block` @6.1, @7.2):
ext4 so holds the descriptors of its block groups.  As long as one is held, dirty or locked,
the buffers cannot be taken off, and the page can neither be dropped nor moved
(`fs/buffer.c:buffer_busy`, `mm/migrate.c:__buffer_migrate_folio` @6.1, @6.12, @7.2).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from memdesc.errors import FaultError
from memdesc.structs.kernel import Kernel
from memdesc.structs.memmap import MemMap
from memdesc.structs.walk.view import View

__all__ = ["BufferState", "Buffers"]

_DIRTY_OR_LOCKED: Final = 0b110
"""BH_Dirty and BH_Lock (`include/linux/buffer_head.h`: enum bh_state_bits @6.1, @7.2)."""
_MOST_BUFFERS: Final = 64
"""A page has at most 8 blocks of 512 bytes; a large folio of 64 KiB with blocks of 4 KiB, 16."""


@dataclass(frozen=True, slots=True)
class BufferState:
    """What the buffers of one folio say."""

    nr_buffers: int
    held: int
    """Buffers that somebody uses, the per-CPU lists of recent ones left out: those are
    emptied before a page is dropped or moved (`fs/buffer.c:invalidate_bh_lrus`)."""
    dirty_or_locked: int

    @property
    def is_held(self) -> bool:
        """Whether a migration has to leave the folio alone."""
        return self.held > 0

    @property
    def is_busy(self) -> bool:
        """Whether the buffers cannot be taken off."""
        return self.held > 0 or self.dirty_or_locked > 0


class Buffers:
    """Reads the buffers of one kernel's pages."""

    def __init__(self, kernel: Kernel, memmap: MemMap) -> None:
        self.kernel = kernel
        self._view = View.of(kernel, memmap)
        # Renamed on the way from pages to folios; for a while one name each, in a union.
        has_folio = kernel.has("buffer_head", "b_folio")
        self._page = "b_folio" if has_folio else "b_page"

    def of(self, private: int, page: int) -> BufferState:
        """The ring that begins at `private`, that word of the page with PG_private whose struct
        lies at `page`.

        Raises FaultError where it leads to no buffers of that page (file systems keep other
        things there too), cannot be read, or does not close, and LayoutError.
        """
        held = dirty = count = 0
        address = private
        while True:
            if count >= _MOST_BUFFERS:
                raise FaultError("a ring of buffer heads does not close", private)
            buffer = self.kernel.load("buffer_head", address)
            if buffer[self._page] != page:
                raise FaultError("no buffer head of that page", address)
            count += 1
            held += buffer["b_count.counter"] > self._recent[address]
            dirty += bool(buffer["b_state"] & _DIRTY_OR_LOCKED)
            address = buffer["b_this_page"]
            if address == private:
                return BufferState(count, held, dirty)

    @cached_property
    def _recent(self) -> Counter[int]:
        """Buffer -> on how many per-CPU lists of recently used ones it is."""
        found: Counter[int] = Counter()
        member = self.kernel.member("bh_lru", "bhs")
        for address in self._view.per_cpu(self._view.symbol("bh_lrus")).values():
            words = self.kernel.memory.read(address + member.offset, member.size_bits // 8)
            for at in range(0, len(words), 8):
                found[int.from_bytes(words[at : at + 8], "little")] += 1
        return found
