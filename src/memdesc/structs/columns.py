"""From raw struct pages to columns: the inner loop of a struct page scan.

One chunk of at most a memory section goes in, uint8[n, page_size]; a signature per frame
(`memdesc.kernels.page_state`) comes out, and, where asked for, map counts, cgroups and
owners.  Facts that every frame has are packed as bits of one byte and looked up in a table
of 256 words; whatever few frames have (a page type, a head, a tail, a special mapping) is
done for those frames alone.

Torn or damaged struct pages cannot make it fail: every index is checked before it is used,
and a tail whose head cannot be is marked so and counted.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from memdesc.kernels.layout import FIRST_MASK, MAPPING_KIND_MASK
from memdesc.kernels.page_state import (
    SIG_ACCOUNTED,
    SIG_DEVICE,
    SIG_HAS_MAPPING,
    SIG_HUGE_ZERO,
    SIG_IDENTITY_SHIFT,
    SIG_IN_FREE_BLOCK,
    SIG_KIND_SHIFT,
    SIG_KNOWN,
    SIG_MAPPED,
    SIG_MAPPING_SHIFT,
    SIG_NET_POOL,
    SIG_REFCOUNT_0,
    SIG_RMAPPABLE,
    SIG_TAIL,
    SIG_TYPE_SHIFT,
    SIG_ZERO_PAGE,
    TypeCode,
    code_of_type,
)
from memdesc.kernels.page_types import ActiveLowTypes, TopByteTypes
from memdesc.structs import counts
from memdesc.structs.memmap import MemMap
from memdesc.structs.owned import OwnedRanges
from memdesc.structs.pointers import Pointers
from memdesc.structs.references import references as references_of
from memdesc.structs.tails import Tails
from memdesc.structs.work import (
    B_ACCOUNTED,
    B_EMPTY,
    B_EMPTY_MASK,
    B_HAS_MAPPING,
    B_IN_FREE_BLOCK,
    B_MAPPED,
    B_MAPPING_MASK,
    B_MAPPING_SHIFT,
    B_MOVABLE,
    B_TAIL,
    B_UNREFERENCED,
    I64,
    U64,
    Chunk,
    Special,
    Work,
)
from memdesc.types import PAGE_SIZE_BYTES

__all__ = ["StateReader"]

_KERNEL_BYTE: Final = np.uint8(0xFF)
"""The highest byte of every address of the kernel."""
_HUGE_ORDER: Final = 9
_ALL_ONES: Final = np.uint64((1 << 64) - 1)
_SAYS_MORE: Final = (
    SIG_HAS_MAPPING | SIG_MAPPED | SIG_REFCOUNT_0 | SIG_RMAPPABLE | 15 << SIG_TYPE_SHIFT
)


class StateReader:
    """Turns chunks of struct pages into columns. One per scan, for all its threads."""

    def __init__(
        self,
        memmap: MemMap,
        *,
        special: Special,
        pointers: Pointers,
        owned: OwnedRanges | None = None,
        tails_show_own_flags: bool = False,
    ) -> None:
        self.memmap = memmap
        self.layout = layout = memmap.layout
        self.special = special
        self.pointers = pointers
        self.owned = owned
        self.tails = Tails(memmap, show_own_flags=tails_show_own_flags, read_head=self._read_head)
        self._table = _table()
        self._head = layout.flag("head")
        self._rmappable = layout.flag("large_rmappable")
        self._hwpoison = layout.flag("hwpoison")
        self._reserved = layout.flag("reserved")
        self._unevictable = layout.flag("unevictable")
        self._lru = layout.flag("lru")
        self._no_plain_file = layout.flag("swapbacked") | layout.flag("slab")
        self._type_of_byte = _types_by_top_byte(layout.types)

    def read(
        self,
        pfn_start: int,
        pages: NDArray[np.uint8],
        *,
        mapcounts: bool = False,
        memcgs: bool = False,
        owners: bool = False,
        references: bool = False,
    ) -> Chunk:
        """Read `pages` (uint8[n, page_size], frames from `pfn_start`).

        n is at most a memory section; `pfn_start` is a multiple of the largest free block,
        or blocks that began before are not seen. `pages` is written to where a struct page
        stands for another one (poison of CONFIG_DEBUG_VM, fake heads of hugetlb).
        """
        work = self._begin(pfn_start, pages)
        if work.blank.size == work.size:
            # Nobody has initialised these yet: all that there is to say.
            zero = np.zeros_like(work.signatures)
            return Chunk(
                pfn_start,
                work.signatures,
                zero if mapcounts else None,
                zero if memcgs else None,
                zero if owners else None,
                np.full(work.size, -1, np.int8) if references else None,
            )
        self._heads(work)
        self._rare_marks(work)
        torn = self.tails.resolve(work)
        self._special_frames(work)
        self._kinds(work)
        chunk = Chunk(pfn_start, work.signatures, torn=torn)
        if mapcounts:
            chunk.mapcounts = counts.mapcounts(work)
        if memcgs:
            chunk.memcgs = counts.memcgs(work)
        if owners:
            chunk.owners = counts.owners(work, self.pointers, self.owned)
        if references:
            chunk.references = references_of(work)
        return chunk

    # --- one step each -------------------------------------------------------------------

    def _begin(self, pfn_start: int, pages: NDArray[np.uint8]) -> Work:
        """The facts that every frame has, packed into a byte and looked up at once.

        Each column is read once, in steps of a struct page: that is a nanosecond per frame
        and column, and most of the time that a scan takes. What follows works on columns.
        """
        layout = self.layout
        halves = pages.view(np.uint32)
        flags = halves[:, layout.flags // 4] & np.uint32(layout.flag_mask)
        self._clear_poison(pages, flags)
        shares = halves[:, layout.page_type // 4] + np.uint32(1)
        packed = (shares - np.uint32(1) < np.uint32(1 << 31)).view(np.uint8)
        _add(packed, (halves[:, layout.refcount // 4] == 0).view(np.uint8), 1)
        links = pages[:, layout.compound].copy()
        _add(packed, links & np.uint8(1), 2)
        _add(packed, (pages[:, layout.mapping + 7] == _KERNEL_BYTE).view(np.uint8), 3)
        if layout.memcg_data is not None:
            _add(packed, pages[:, layout.memcg_data] & np.uint8(2), 3)
        _add(packed, pages[:, layout.mapping] & np.uint8(MAPPING_KIND_MASK), B_MAPPING_SHIFT)
        work = Work(layout, pfn_start, pages, pages.view(np.uint64), flags, packed, shares, links)
        self._types_and_blocks(work)
        work.signatures = signatures = self._table.take(packed)
        signatures.view(np.uint32)[::2] = flags
        if work.typed.size:
            signatures[work.typed] |= work.codes.astype(np.uint64) << np.uint64(SIG_TYPE_SHIFT)
            self._blocks_of_one_type(work)
        # A struct page of zeroes: neither reference nor type, and really nothing else.
        empty = np.flatnonzero(packed & B_EMPTY_MASK == B_EMPTY)
        if empty.size == len(pages):
            blank = empty if not pages.any() else empty[~work.words.any(axis=1)]
        else:
            blank = empty[~work.words[empty].any(axis=1)]
        signatures[blank] = 0
        work.blank = blank
        return work

    def _types_and_blocks(self, work: Work) -> None:
        """Page types, and every frame of the free blocks they head."""
        work.typed = np.flatnonzero(work.counts > np.uint32(1 << 31))
        if work.typed.size:
            work.codes = self._codes(work.counts[work.typed] - np.uint32(1))
            heads = work.typed[work.codes == TypeCode.BUDDY]
            if heads.size:
                self._free_blocks(work, heads)

    def _clear_poison(self, pages: NDArray[np.uint8], flags: NDArray[np.uint32]) -> None:
        """With CONFIG_DEBUG_VM a struct page that nobody has initialised is all ones
        (`mm/debug.c:page_init_poison`): read it as the zeroes of other kernels, and not as a
        frame with every flag."""
        maybe = np.flatnonzero(flags == np.uint32(self.layout.flag_mask))
        if maybe.size:
            blank = maybe[(pages.view(np.uint64)[maybe] == _ALL_ONES).all(axis=1)]
            pages[blank] = 0
            flags[blank] = 0

    def _blocks_of_one_type(self, work: Work) -> None:
        """Unaccepted memory and guards have their type in the first frame of a block only: the
        others say no more than that nobody holds them (`mm/page_alloc.c:__free_unaccepted`,
        always of the largest order; `mm/debug_page_alloc.c:__set_page_guard`, the order in
        `private`, both @6.12)."""
        largest = self.layout.max_order
        chosen = (work.codes == TypeCode.UNACCEPTED) | (work.codes == TypeCode.GUARD)
        for code, head in zip(
            work.codes[chosen].tolist(), work.typed[chosen].tolist(), strict=True
        ):
            order = largest
            if code == TypeCode.GUARD:
                order = int(work.words[head, self.layout.private // 8])
            if order > largest or (head + work.pfn_start) & ((1 << order) - 1):
                continue
            rest = slice(head + 1, min(head + (1 << order), work.size))
            bare = work.packed[rest] == B_UNREFERENCED
            bare &= work.counts[rest] == 0
            work.signatures[rest][bare] |= np.uint64(code << SIG_TYPE_SHIFT)

    def _codes(self, raw: NDArray[np.uint32]) -> NDArray[np.uint8]:
        """uint8: `TypeCode` of page_type words that are typed or have overflowed."""
        if self._type_of_byte is not None:
            return self._type_of_byte.take(raw >> np.uint32(24))
        types = self.layout.types
        assert isinstance(types, ActiveLowTypes)
        codes = np.full(raw.size, TypeCode.OVERFLOW, np.uint8)
        base = np.uint32(0xF0000000)
        for page_type, flag in reversed(list(types.flags.items())):
            codes[raw & (base | np.uint32(flag)) == base] = code_of_type(page_type)
        return codes

    def _free_blocks(self, work: Work, heads: I64) -> None:
        """Mark every frame of the blocks that begin at `heads`.

        A block is aligned to its size, in memory and in the chunk: the blocks of one order are
        rows of one table.
        """
        orders = work.words[heads, self.layout.private // 8]
        largest = self.layout.max_order
        inside = np.zeros(-(-work.size >> largest) << largest, np.uint8)
        for order in range(1, largest + 1):
            low = heads[orders == np.uint64(order)]
            unaligned = (1 << order) - 1
            low = low[(low & unaligned == 0) & (low + work.pfn_start & unaligned == 0)]
            if low.size:
                inside.reshape(-1, 1 << order)[low >> order] = B_IN_FREE_BLOCK
        work.packed |= inside[: work.size]

    def _heads(self, work: Work) -> None:
        """What a folio keeps in its second page: how it is mapped, and whether users may."""
        layout = self.layout
        signatures = work.signatures
        heads = np.flatnonzero(work.flags & np.uint32(self._head) != 0)
        heads = heads[(work.packed[heads] & B_TAIL == 0) & (heads < work.size - 1)]
        work.heads = heads = self._real_heads(work, heads)
        if not heads.size:
            return
        found = signatures[heads]
        if layout.folio_large_mapcount is not None:
            large = work.folio_int(heads, layout.folio_large_mapcount)
            found &= np.uint64(~SIG_MAPPED & (1 << 64) - 1)
            found |= (large >= 0).view(np.uint8) * np.uint64(SIG_MAPPED)
            rmappable = work.flags[heads + 1] & np.uint32(self._rmappable) != 0
        else:
            entire = work.entire(heads)
            found |= (entire > 0).view(np.uint8) * np.uint64(SIG_MAPPED)
            rmappable = np.zeros(heads.size, np.bool_)
        if layout.folio_dtor is not None:
            dtors = work.folio_byte(heads, layout.folio_dtor)
            rmappable = dtors == layout.dtor_thp
            hugetlb = (dtors == layout.dtor_hugetlb).view(np.uint8)
            found |= hugetlb * np.uint64(TypeCode.HUGETLB << SIG_TYPE_SHIFT)
        found |= rmappable.view(np.uint8) * np.uint64(SIG_RMAPPABLE)
        signatures[heads] = found
        if self.special.is_huge_zero is not None:
            self._ask_for_huge_zero(work, found)

    def _real_heads(self, work: Work, heads: I64) -> I64:
        """`heads` less the fake ones, which become the tails that they are.

        Where hugetlb gives back the struct pages of its tails, those of a huge page all show
        the page of memory with the head's: each begins with what looks like the head, and goes
        on with a tail that leads to the real one
        (`include/linux/page-flags.h:page_fixed_fake_head` @6.1, @6.12). With masks, which no
        longer tell one huge page from another, there are none (7.2).
        """
        per_page = PAGE_SIZE_BYTES // self.layout.size_bytes
        maybe = heads[(heads + work.pfn_start) & (per_page - 1) == 0]
        if not maybe.size:
            return heads
        place = self.layout.compound // 8
        links = work.words[maybe + 1, place]
        own = self.memmap.page_address(maybe + work.pfn_start) + np.uint64(1)
        is_fake = (links & np.uint64(1) != 0) & (links != own)
        if self.layout.compound_may_be_mask:
            is_fake &= links < np.uint64(FIRST_MASK)
        fake = maybe[is_fake & (links < own)]
        if not fake.size:
            return heads
        work.words[fake, place] = work.words[fake + 1, place]
        work.packed[fake] |= B_TAIL
        return np.setdiff1d(heads, fake, assume_unique=True)

    def _ask_for_huge_zero(self, work: Work, found: U64) -> None:
        """The huge zero folio is a compound page of 2 MiB in use, with nothing else to say."""
        ask = self.special.is_huge_zero
        assert ask is not None
        plain = np.flatnonzero(found & np.uint64(_SAYS_MORE) == 0)
        heads = work.heads[plain]
        orders = work.folio_byte(heads, self.layout.folio_order)
        for head in heads[orders == _HUGE_ORDER].tolist():
            if ask(work.pfn_start + head):
                work.signatures[head] |= np.uint64(SIG_HUGE_ZERO)

    def _rare_marks(self, work: Work) -> None:
        """page_pool pages, and mappings whose operations say what they are."""
        layout = self.layout
        if layout.pp_magic is not None:  # in the word of the link, by `PageLayout`
            # The signature's lowest byte, without the bits that may vary, spares the rest.
            low = work.links & np.uint8(layout.pp_mask & 0xFF)
            maybe = np.flatnonzero(low == layout.pp_signature & 0xFF)
            if maybe.size:
                magic = work.words[maybe, layout.pp_magic // 8] & np.uint64(layout.pp_mask)
                pool = maybe[magic == np.uint64(layout.pp_signature)]
                work.signatures[pool] |= np.uint64(SIG_NET_POOL)
        if layout.device_zone is not None and layout.zone_field is not None:
            # Every frame of device memory is reserved too (`mm/mm_init.c` @6.12).
            reserved = np.flatnonzero(work.flags & np.uint32(self._reserved) != 0)
            place, width = layout.zone_field
            zones = work.words[reserved, layout.flags // 8] >> np.uint64(place)
            zones &= np.uint64((1 << width) - 1)
            work.signatures[reserved[zones == layout.device_zone]] |= np.uint64(SIG_DEVICE)
        # secretmem and guest_memfd are unevictable, but not before they have reached the LRU.
        # A driver may set `mapping` on its pages, which never reach it.
        plain = work.packed & (B_HAS_MAPPING | B_MAPPING_MASK | B_TAIL) == B_HAS_MAPPING
        plain &= work.flags & np.uint32(self._unevictable | self._lru) != np.uint32(self._lru)
        special = np.flatnonzero(plain)
        if special.size:
            types = work.signatures[special] >> np.uint64(SIG_TYPE_SHIFT) & np.uint64(15)
            others = work.flags[special] & np.uint32(self._no_plain_file)
            self._name(work, special[(types == TypeCode.NONE) & (others == 0)])
        movable = work.packed & (B_HAS_MAPPING | B_MAPPING_MASK) == B_MOVABLE
        if movable.any():
            self._name(work, np.flatnonzero(movable))

    def _name(self, work: Work, frames: I64) -> None:
        if frames.size:
            identities = self.pointers.identities(work.words[frames, self.layout.mapping // 8])
            work.signatures[frames] |= identities << np.uint64(SIG_IDENTITY_SHIFT)

    def _special_frames(self, work: Work) -> None:
        for frames, bit in (
            (self.special.zero, SIG_ZERO_PAGE),
            (self.special.huge_zero, SIG_HUGE_ZERO),
        ):
            low = max(frames.start - work.pfn_start, 0)
            high = min(frames.stop - work.pfn_start, work.size)
            if low < high:
                work.signatures[low:high] |= np.uint64(bit)

    def _kinds(self, work: Work) -> None:
        """What the walks say, for the frames of this chunk."""
        owned = self.owned
        if owned is None or not len(owned):
            return
        offsets, index = counts.owned_frames(work, owned)
        kinds = owned.kinds[index].astype(np.uint64)
        work.signatures[offsets] |= kinds << np.uint64(SIG_KIND_SHIFT)

    def _read_head(self, pfn: int, pages: NDArray[np.uint8]) -> Work:
        """A head that lies outside the chunk at hand, read alone."""
        work = self._begin(pfn, pages)
        self._heads(work)
        self._rare_marks(work)
        return work


# --- helpers -----------------------------------------------------------------------------


def _add(packed: NDArray[np.uint8], bits: NDArray[np.uint8], shift: int) -> None:
    """Put `bits` (freshly made, overwritten) into `packed`, `shift` places up."""
    bits *= np.uint8(1 << shift)  # numpy multiplies bytes eight times as fast as it shifts
    packed |= bits


def _table() -> U64:
    """uint64[256]: the part of a signature for each byte of packed facts."""
    table = np.zeros(256, np.uint64)
    for byte in range(256):
        word = SIG_KNOWN
        word |= SIG_MAPPED if byte & B_MAPPED else 0
        word |= SIG_REFCOUNT_0 if byte & B_UNREFERENCED else 0
        word |= SIG_TAIL if byte & B_TAIL else 0
        word |= SIG_HAS_MAPPING if byte & B_HAS_MAPPING else 0
        word |= SIG_ACCOUNTED if byte & B_ACCOUNTED else 0
        word |= SIG_IN_FREE_BLOCK if byte & B_IN_FREE_BLOCK else 0
        word |= (byte >> B_MAPPING_SHIFT & MAPPING_KIND_MASK) << SIG_MAPPING_SHIFT
        table[byte] = word
    return table


def _types_by_top_byte(types: object) -> NDArray[np.uint8] | None:
    """uint8[256]: `TypeCode` by the top byte; None for types that are single bits."""
    if not isinstance(types, TopByteTypes):
        return None
    table = np.zeros(256, np.uint8)
    table[0x80:0xF0] = TypeCode.OVERFLOW
    table[0xF0:0xFF] = TypeCode.UNKNOWN
    for page_type, code in types.codes.items():
        table[code] = code_of_type(page_type)
    return table
