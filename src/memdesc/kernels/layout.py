"""How this kernel lays out a struct page, probed from its type information.

Nothing here compares releases: a member or an enumerator is there or it is not.  Where what
is there fits no kernel that was read, `PageLayout.probe` refuses with a `LayoutError`
instead of reading nonsense.

Sources: `include/linux/mm_types.h`, `page-flags.h`, `page-flags-layout.h`, `mmzone.h` of
6.1.192, 6.12.117 and 7.2.13, and type information of those and of a running 6.18.44.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

from memdesc.errors import LayoutError
from memdesc.kernels.page_types import ActiveLowTypes, PageType, PageTypes, TopByteTypes
from memdesc.kernels.type_info import Member, TypeInfo, place_of
from memdesc.types import Certainty

__all__ = [
    "FIRST_MASK",
    "MAPPING_KIND_MASK",
    "TAIL_WORD_BITS",
    "MappingKind",
    "PageLayout",
    "SectionBits",
    "head_address",
]


class MappingKind(enum.IntEnum):
    """The low two bits of `mapping` (`include/linux/page-flags.h`: PAGE_MAPPING_* @6.1,
    FOLIO_MAPPING_* @6.18). They are macros, which no type information holds."""

    FILE = 0
    """A struct address_space, or nothing at all."""
    ANON = 1
    """A struct anon_vma."""
    MOVABLE = 2
    """A struct movable_operations (up to 6.16)."""
    KSM = 3
    """A struct ksm_stable_node."""


MAPPING_KIND_MASK: Final = 3

TAIL_WORD_BITS: Final = 7
"""On kernels whose tails show their own flags, so many bits above the flags hold a code for
the tail's own flags word: tails have few."""

_PP_SIGNATURE: Final = 0xDEAD000000000040
_PP_MASK: Final = ~(((1 << 39) - (1 << 7)) | 3) & (1 << 64) - 1
_MOST_FLAGS: Final = 32
FIRST_MASK: Final = (1 << 64) - (1 << 32)
"""The lowest value of `compound_info` that can be a mask: no struct page lies above it."""


@dataclass(frozen=True, slots=True)
class SectionBits:
    """The low bits of `mem_section.section_mem_map` (`include/linux/mmzone.h`)."""

    present: int = 1 << 0
    has_mem_map: int = 1 << 1
    online: int = 1 << 2
    early: int = 1 << 3
    device: int = 1 << 4
    """Some of the section is ZONE_DEVICE."""
    address_mask: int = ~((1 << 5) - 1) & (1 << 64) - 1
    """What remains is the address of frame 0's struct page, for vmemmap kernels."""


@dataclass(frozen=True)
class PageLayout:
    """Where everything in a struct page and in the pages of a folio lies.

    Offsets are bytes from the start of the page; those named `folio_*` from the start of
    the folio's head, and so lie in its second page. None: this kernel has none.
    """

    origin: str
    """Where the type information comes from."""
    size_bytes: int
    """Of a struct page."""
    flags: int
    compound: int
    """The word that leads from a tail to its head (`head_address`)."""
    compound_may_be_mask: bool
    """That word may hold a mask instead of an address (`compound_info`, 7.2)."""
    mapping: int
    index: int
    private: int
    page_type: int
    """32 bits, shared by the page type and by `_mapcount`."""
    refcount: int
    memcg_data: int | None
    pp_magic: int | None
    lru: int
    flag_bits: Mapping[str, int]
    """Name of a flag without PG_, aliases included -> bit number."""
    nr_flags: int
    """Bits of the flags word that are flags (__NR_PAGEFLAGS)."""
    types: PageTypes
    folio_order: int
    """One byte: log2 of the folio's frames."""
    folio_large_mapcount: int | None
    """int: user mappings of any of the folio's frames, minus one."""
    folio_entire_mapcount: int | None
    """int: user mappings of the folio as a whole, minus one."""
    folio_nr_pages_mapped: int | None
    folio_pincount: int | None
    folio_nr_pages: int | None
    folio_dtor: int | None
    """One byte that tells hugetlb and THP (6.1)."""
    dtor_hugetlb: int | None
    dtor_thp: int | None
    folio_flags_1: int
    """Flags word of the second page: has `large_rmappable` from 6.6 on."""
    has_subpage_mapcounts_only: bool
    """A large folio is mapped when any of its frames is: it has no count of its own (6.1)."""
    folios_charge_objcg: bool
    """memcg_data of every folio leads over an obj_cgroup, not only that of kernel pages (7.2:
    obj_cgroup has the mark `is_root`)."""
    has_unaccepted: bool
    """Memory can be unaccepted (NR_UNACCEPTED counts it, 6.5 and later)."""
    sections: SectionBits
    section_shift: int
    """log2 of the bytes of a memory section: 27 on x86-64 (SECTION_SIZE_BITS, a macro)."""
    device_zone: int | None
    """Number of ZONE_DEVICE in enum zone_type; None without it."""
    node_field: tuple[int, int] | None
    """(lowest bit, width) in the flags word; None where type information leaves it open."""
    zone_field: tuple[int, int] | None
    max_order: int = 10
    """The largest block of the page allocator (MAX_PAGE_ORDER, a macro on x86-64)."""
    pp_mask: int = _PP_MASK
    pp_signature: int = _PP_SIGNATURE
    """`pp_magic & pp_mask == pp_signature` marks a page of a page_pool (`include/linux/mm.h`:
    page_pool_page_is_pp @7.2; kernels before the mask fit it as well)."""

    @classmethod
    def probe(cls, types: TypeInfo) -> PageLayout:
        """Find every member. Raises LayoutError for a layout that no known kernel has."""
        return _Probe(types).layout()

    @property
    def section_pages(self) -> int:
        return 1 << self.section_shift - 12

    @property
    def flag_mask(self) -> int:
        """The bits of the flags word that are flags."""
        return (1 << self.nr_flags) - 1

    @property
    def tail_word_shift(self) -> int:
        """Where a signature keeps the code of a tail's own flags word (`page_state`)."""
        return min(self.nr_flags, 32 - TAIL_WORD_BITS)

    def flag(self, name: str) -> int:
        """Mask of the flag `name` (without PG_); 0 where this kernel has none."""
        bit = self.flag_bits.get(name)
        return 0 if bit is None else 1 << bit

    def names_of(self, flags: int) -> list[str]:
        """Names of the flags set in `flags`, lowest first, first names only."""
        by_bit: dict[int, str] = {}
        for name, bit in self.flag_bits.items():
            by_bit.setdefault(bit, name)
        return [by_bit[bit] for bit in sorted(by_bit) if flags >> bit & 1]


def head_address(layout: PageLayout, page_address: int, word: int) -> int:
    """Address of the head of the page at `page_address`, whose compound word is `word`.

    The page itself where it is no tail. A mask is told from an address by its content
    (`include/linux/page-flags.h:_compound_head` @7.2): all ones above its lowest bits, as no
    address of a struct page is.
    """
    if not word & 1:
        return page_address
    if layout.compound_may_be_mask and word >= FIRST_MASK:
        return page_address & (word - 1)
    return word - 1


# --- helpers -----------------------------------------------------------------------------

_NEEDED_FLAGS = (
    "locked", "referenced", "uptodate", "dirty", "lru", "active", "writeback", "head",
    "reserved", "private", "reclaim", "swapbacked", "unevictable", "owner_priv_1",
)  # fmt: skip

_TYPE_NAMES = {
    "PGTY_buddy": PageType.BUDDY,
    "PGTY_offline": PageType.OFFLINE,
    "PGTY_table": PageType.TABLE,
    "PGTY_guard": PageType.GUARD,
    "PGTY_hugetlb": PageType.HUGETLB,
    "PGTY_slab": PageType.SLAB,
    "PGTY_zsmalloc": PageType.ZSMALLOC,
    "PGTY_unaccepted": PageType.UNACCEPTED,
    "PGTY_large_kmalloc": PageType.LARGE_KMALLOC,
}
_ACTIVE_LOW_MACROS = {
    PageType.BUDDY: 0x80,
    PageType.OFFLINE: 0x100,
    PageType.TABLE: 0x200,
    PageType.GUARD: 0x400,
}
"""`include/linux/page-flags.h` @6.1: macros. Accepted only beside the other marks of such a
kernel: a compound destructor in struct page, and slab as a flag."""


class _Probe:
    """Asks one kernel's type information."""

    def __init__(self, types: TypeInfo) -> None:
        self.types = types

    def layout(self) -> PageLayout:
        page = self.types.find_struct("page")
        if page is None:
            raise self._refused("there is no struct page")
        if page.size_bytes % 8 or page.size_bytes & (page.size_bytes - 1):
            raise self._refused(f"struct page has {page.size_bytes} bytes, not a power of two")
        bits, nr_flags = self._flags()
        size = page.size_bytes
        dtor = self._find("page", "compound_dtor")
        large = self._offset("folio", "_large_mapcount")
        entire = self._offset("folio", "_entire_mapcount")
        old = self._offset("page", "compound_mapcount")
        if large is None and old is None:
            raise self._refused("a large folio has neither _large_mapcount nor compound_mapcount")
        layout = PageLayout(
            origin=self.types.origin,
            size_bytes=size,
            flags=self._word("page", "flags.f", "flags"),
            compound=self._word("page", "compound_info", "compound_head"),
            compound_may_be_mask=self._find("page", "compound_info") is not None,
            mapping=self._word("page", "mapping"),
            index=self._word("page", "__folio_index", "index"),
            private=self._word("page", "private"),
            page_type=self._place("page", 4, "page_type"),
            refcount=self._place("page", 4, "_refcount"),
            memcg_data=self._offset("page", "memcg_data"),
            # The overlay has the same places, should struct page lose its own.
            pp_magic=self._offset("page", "pp_magic") or self._offset("netmem_desc", "pp_magic"),
            lru=self._place("page", 16, "lru"),
            flag_bits=bits,
            nr_flags=nr_flags,
            types=self._page_types(has_dtor=dtor is not None, flags=bits),
            folio_order=self._order(size),
            folio_large_mapcount=large,
            folio_entire_mapcount=entire if old is None else size + old,
            folio_nr_pages_mapped=self._offset("folio", "_nr_pages_mapped"),
            folio_pincount=self._offset("folio", "_pincount"),
            folio_nr_pages=self._offset("folio", "_nr_pages", "_folio_nr_pages"),
            folio_dtor=None if dtor is None else size + dtor.offset,
            dtor_hugetlb=self.types.find_enumerator("HUGETLB_PAGE_DTOR"),
            dtor_thp=self.types.find_enumerator("TRANSHUGE_PAGE_DTOR"),
            folio_flags_1=size + self._word("page", "flags.f", "flags"),
            has_subpage_mapcounts_only=large is None,
            folios_charge_objcg=self._find("obj_cgroup", "is_root") is not None,
            has_unaccepted=self.types.find_enumerator("NR_UNACCEPTED") is not None,
            sections=self._sections(),
            section_shift=27,
            device_zone=self.types.find_enumerator("ZONE_DEVICE"),
            node_field=None,
            zone_field=None,
        )
        return self._with_high_fields(self._checked(layout))

    def _flags(self) -> tuple[Mapping[str, int], int]:
        found = self.types.find_enum("pageflags")
        if not found or "__NR_PAGEFLAGS" not in found:
            raise self._refused("enum pageflags is missing")
        nr_flags = found["__NR_PAGEFLAGS"]
        bits = {
            name.removeprefix("PG_"): bit
            for name, bit in found.items()
            if name.startswith("PG_") and 0 <= bit < nr_flags
        }
        missing = [name for name in _NEEDED_FLAGS if name not in bits]
        if missing:
            raise self._refused(f"enum pageflags has no PG_{missing[0]}")
        if nr_flags > _MOST_FLAGS:
            raise self._refused(f"{nr_flags} page flags")
        return MappingProxyType(bits), nr_flags

    def _page_types(self, *, has_dtor: bool, flags: Mapping[str, int]) -> PageTypes:
        source = self.types.origin
        codes = {
            kind: code
            for name, kind in _TYPE_NAMES.items()
            if (code := self.types.find_enumerator(name)) is not None
        }
        if PageType.BUDDY in codes:
            if not all(0xF0 <= code < 0xFF for code in codes.values()):
                raise self._refused("page types are no top bytes from 0xf0 to 0xfe")
            return TopByteTypes(MappingProxyType(codes), Certainty.EXACT, source)
        if has_dtor and "slab" in flags and self.types.find_enumerator("PG_buddy") is None:
            return ActiveLowTypes(MappingProxyType(_ACTIVE_LOW_MACROS), Certainty.INFERRED, source)
        raise self._refused("page types are stored in a way that was not read")

    def _order(self, size: int) -> int:
        """Offset of the byte that holds a folio's order."""
        old = self._offset("page", "compound_order")
        if old is not None:
            return size + old
        if (own := self._offset("folio", "_folio_order")) is not None:
            return own
        if self._find("folio", "_flags_1") is None:
            raise self._refused("the order of a folio is nowhere that was read")
        return size + self._word("page", "flags.f", "flags")

    def _sections(self) -> SectionBits:
        """Bits from enum, in its order, or the macros that came before it."""
        names = {
            "present": "SECTION_MARKED_PRESENT_BIT",
            "has_mem_map": "SECTION_HAS_MEM_MAP_BIT",
            "online": "SECTION_IS_ONLINE_BIT",
            "early": "SECTION_IS_EARLY_BIT",
        }
        found = {field: self.types.find_enumerator(name) for field, name in names.items()}
        last = self.types.find_enumerator("SECTION_MAP_LAST_BIT")
        values = {field: bit for field, bit in found.items() if bit is not None}
        if last is None or len(values) != len(names):
            return SectionBits()
        device = self.types.find_enumerator("SECTION_TAINT_ZONE_DEVICE_BIT")
        return SectionBits(
            present=1 << values["present"],
            has_mem_map=1 << values["has_mem_map"],
            online=1 << values["online"],
            early=1 << values["early"],
            device=0 if device is None else 1 << device,
            address_mask=~((1 << last) - 1) & (1 << 64) - 1,
        )

    def _with_high_fields(self, layout: PageLayout) -> PageLayout:
        """Node and zone lie at the top of the flags word, with vmemmap no section before them.

        Their widths follow from MAX_NUMNODES (the size of nodemask_t tells it where it is a
        multiple of 64) and from the number of zones (`page-flags-layout.h`).
        """
        zones = self.types.find_enumerator("__MAX_NR_ZONES")
        mask = place_of(self.types, "nodemask_t", "bits")
        if zones is None or mask is None:
            return layout
        nodes = mask.size_bits
        if nodes <= 64 or nodes & (nodes - 1):
            return layout
        node_width = nodes.bit_length() - 1
        zone_width = (zones - 1).bit_length()
        return replace(
            layout,
            node_field=(64 - node_width, node_width),
            zone_field=(64 - node_width - zone_width, zone_width),
        )

    def _checked(self, layout: PageLayout) -> PageLayout:
        """Refuse what the readers of columns take for granted."""
        words = (layout.flags, layout.compound, layout.mapping, layout.private)
        if any(offset % 8 for offset in words):
            raise self._refused("a word of struct page is not aligned")
        if layout.pp_magic not in (None, layout.compound):
            raise self._refused("pp_magic is not where tails keep their link")
        if layout.page_type % 8 or layout.refcount != layout.page_type + 4:
            raise self._refused("page_type and _refcount do not share a word")
        return layout

    # Places.

    def _find(self, struct: str, *paths: str) -> Member | None:
        found = (place_of(self.types, struct, path) for path in paths)
        return next((member for member in found if member is not None), None)

    def _offset(self, struct: str, *paths: str) -> int | None:
        member = self._find(struct, *paths)
        return None if member is None else member.offset

    def _place(self, struct: str, size_bytes: int, *paths: str) -> int:
        member = self._find(struct, *paths)
        if member is None:
            raise self._refused(f"struct {struct} has no {paths[-1]}")
        if member.size_bits != size_bytes * 8:
            raise self._refused(f"{struct}.{paths[-1]} has {member.size_bits} bits")
        return member.offset

    def _word(self, struct: str, *paths: str) -> int:
        return self._place(struct, 8, *paths)

    def _refused(self, what: str) -> LayoutError:
        return LayoutError(
            f"struct page of {self.types.origin} is laid out as in no known kernel: {what}",
            hint="memdesc refuses unknown layouts; docs/new-kernel.md says how to add one",
        )
