"""A kernel whose struct pages are written by hand, laid out as in 6.1, 6.12 or 7.2.

    world = World("6.12", nr_pages=4096)
    world.free_block(0, order=10)
    world.page(1024, "uptodate", "lru", mapping=FILE)
    scan = StructScan(world.kernel, world.memmap, Machine(release=world.kernel.release))

The places are those of the real kernels' own type information; nothing else of a kernel is
there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from memdesc.errors import FaultError, FormatError
from memdesc.kernels.layout import PageLayout
from memdesc.kernels.release import KernelRelease
from memdesc.kernels.type_info import Kind, Member, StructType, TypeRef
from memdesc.structs.kernel import Kernel
from memdesc.structs.memmap import MemMap

RELEASES = {"6.1": "6.1.192", "6.12": "6.12.117", "6.18": "6.18.44", "7.2": "7.2.13"}

VMEMMAP = 0xFFFFEA0000000000
DIRECT_MAP = 0xFFFF888000000000
FILE = 0xFFFF888100001000
"""An address_space."""
ANON = 0xFFFF888100002001
"""An anon_vma, with its low bit."""
KSM = 0xFFFF888100003003
NO_TYPE = 0xFFFFFFFF

_Place = tuple[int, int]
"""(offset, size) in bytes."""

_PAGE: dict[str, _Place] = {
    "mapping": (24, 8),
    "private": (40, 8),
    "page_type": (48, 4),
    "_mapcount": (48, 4),
    "_refcount": (52, 4),
    "memcg_data": (56, 8),
    "pp_magic": (8, 8),
    "lru": (8, 16),
}
_OLD: dict[str, _Place] = {"flags": (0, 8), "compound_head": (8, 8), "index": (32, 8)}
_STRUCTS: dict[str, dict[str, dict[str, _Place]]] = {
    "6.1": {
        "page": {
            **_PAGE,
            **_OLD,
            "compound_dtor": (16, 1),
            "compound_order": (17, 1),
            "compound_mapcount": (20, 4),
        },
        "folio": {"_pincount": (88, 4), "_total_mapcount": (84, 4)},
    },
    "6.12": {
        "page": {**_PAGE, **_OLD},
        "folio": {
            "_flags_1": (64, 8),
            "_large_mapcount": (80, 4),
            "_entire_mapcount": (84, 4),
            "_nr_pages_mapped": (88, 4),
            "_pincount": (92, 4),
        },
    },
    "6.18": {
        "page": {**_PAGE, "compound_head": (8, 8), "__folio_index": (32, 8)},
        "folio": {
            "_flags_1": (64, 8),
            "_large_mapcount": (80, 4),
            "_nr_pages_mapped": (84, 4),
            "_entire_mapcount": (88, 4),
            "_pincount": (92, 4),
        },
    },
}
_STRUCTS["7.2"] = {
    "page": {**_PAGE, "compound_info": (8, 8), "__folio_index": (32, 8)},
    "folio": _STRUCTS["6.18"]["folio"],
    "obj_cgroup": {"is_root": (48, 1)},
}

_FLAGS = {
    "6.1": "locked referenced uptodate dirty lru active workingset waiters error slab "
    "owner_priv_1 arch_1 reserved private private_2 writeback head mappedtodisk reclaim "
    "swapbacked unevictable mlocked uncached hwpoison arch_2",
    "6.12": "locked writeback referenced uptodate dirty lru head waiters active workingset "
    "owner_priv_1 owner_2 arch_1 reserved private private_2 reclaim swapbacked unevictable "
    "mlocked hwpoison young idle arch_2",
    "6.18": "locked writeback referenced uptodate dirty lru head waiters active workingset "
    "owner_priv_1 owner_2 arch_1 reserved private private_2 reclaim swapbacked unevictable "
    "dropbehind mlocked hwpoison young idle arch_2",
}
_FLAGS["7.2"] = _FLAGS["6.18"]
_ALIASES = {"6.1": {"double_map": "workingset"}}
_TYPES = "buddy offline table guard hugetlb slab zsmalloc unaccepted"


@dataclass
class DictTypes:
    """Type information from dictionaries; implements `TypeInfo`."""

    structs: dict[str, dict[str, _Place]]
    enumerators: dict[str, int]
    pageflags: dict[str, int]
    nested: dict[str, str] = field(default_factory=dict)
    """"page.flags" -> struct that the member is."""
    pointers: dict[str, str] = field(default_factory=dict)
    """"cgroup.kn" -> struct that the member points to."""
    origin: str = "dictionaries"

    @classmethod
    def of(cls, series: str) -> DictTypes:
        """The type information of a kernel that was read."""
        names = _FLAGS[series].split()
        flags = {f"PG_{name}": bit for bit, name in enumerate(names)}
        flags["__NR_PAGEFLAGS"] = len(names)
        aliases = _ALIASES.get(series, {"large_rmappable": "workingset"})
        flags |= {f"PG_{alias}": flags[f"PG_{name}"] for alias, name in aliases.items()}
        structs = {name: dict(members) for name, members in _STRUCTS[series].items()}
        structs["nodemask_t"] = {"bits": (0, 128)}
        enumerators = {"ZONE_DEVICE": 4, "__MAX_NR_ZONES": 5}
        nested = {}
        if series == "6.1":
            enumerators |= {"HUGETLB_PAGE_DTOR": 2, "TRANSHUGE_PAGE_DTOR": 3}
        else:
            kinds = _TYPES if series == "6.12" else f"{_TYPES} large_kmalloc"
            enumerators |= {f"PGTY_{kind}": 0xF0 + n for n, kind in enumerate(kinds.split())}
            enumerators["NR_UNACCEPTED"] = 9
        if series in ("6.18", "7.2"):
            structs["page"]["flags"] = (0, 8)
            structs["memdesc_flags_t"] = {"f": (0, 8)}
            nested["page.flags"] = "memdesc_flags_t"
        return cls(structs, enumerators, flags, nested)

    def find_struct(self, name: str) -> StructType | None:
        members = self.structs.get(name)
        if members is None:
            return None
        size = 64 if name == "page" else max(offset + size for offset, size in members.values())
        return StructType(
            name, size, {each: self._member(name, each, *at) for each, at in members.items()}
        )

    def struct_of(self, ref: TypeRef) -> StructType:
        found = self.find_struct(ref.name)
        if found is None:
            raise FormatError(f"{ref.name} is no struct")
        return found

    def find_enumerator(self, name: str) -> int | None:
        return self.enumerators.get(name, self.pageflags.get(name))

    def find_enum(self, name: str) -> Mapping[str, int] | None:
        return self.pageflags if name == "pageflags" else None

    def _member(self, struct: str, name: str, offset: int, size: int) -> Member:
        inner = self.nested.get(f"{struct}.{name}")
        kind = Kind.STRUCT if inner else Kind.INT
        if target := self.pointers.get(f"{struct}.{name}"):
            kind, inner = Kind.POINTER, target
        return Member(name, offset * 8, size * 8, TypeRef(kind, size, inner or ""))


class ArrayMemory:
    """Memory in a few arrays by their address; implements `Memory`."""

    def __init__(self, regions: dict[int, NDArray[np.uint8]]) -> None:
        self.regions = regions

    def read(self, address: int, size_bytes: int) -> bytes:
        into = np.empty(size_bytes, np.uint8)
        self.read_into(address, into)
        return into.tobytes()

    def read_into(self, address: int, into: NDArray[np.uint8]) -> None:
        for base, region in self.regions.items():
            if base <= address and address + into.size <= base + region.size:
                into[:] = region[address - base : address - base + into.size]
                return
        raise FaultError(f"nothing at {address:#x}", address)


class NoSymbols:
    """A kernel that keeps its symbols to itself; implements `Symbols`."""

    def __init__(self, addresses: Mapping[str, int] | None = None) -> None:
        self.addresses = dict(addresses or {})

    def address_of(self, name: str) -> int | None:
        return self.addresses.get(name)

    def name_at(self, address: int) -> str | None:
        return None


class World:
    """Struct pages from frame 0 on, all in use by the kernel until something else is written."""

    def __init__(self, series: str, *, nr_pages: int) -> None:
        self.series = series
        self.nr_pages = nr_pages
        self.types = DictTypes.of(series)
        self.layout = PageLayout.probe(self.types)
        self.pages = np.zeros((nr_pages, self.layout.size_bytes), np.uint8)
        self.words = self.pages.view(np.uint64)
        first_page = np.zeros(4096, np.uint8)
        self.memory = ArrayMemory({VMEMMAP: self.pages.reshape(-1), DIRECT_MAP: first_page})
        self.kernel = Kernel(
            self.memory,
            self.types,
            NoSymbols(),
            KernelRelease.parse(RELEASES[series]),
            series,
            False,
        )
        self.memmap = MemMap(self.kernel, self.layout, VMEMMAP, ((0, nr_pages),))
        self.put(slice(None), "page_type", NO_TYPE, 4)
        self.put(slice(None), "refcount", 1, 4)

    def put(self, pfn: int | slice, name: str, value: int, size: int = 8) -> None:
        """Write a member that `PageLayout` names."""
        offset: int = getattr(self.layout, name)
        raw = np.frombuffer(value.to_bytes(size, "little"), np.uint8)
        self.pages[pfn, offset : offset + size] = raw

    def page(
        self,
        pfn: int,
        *flags: str,
        kind: str = "",
        refcount: int = 1,
        mapcount: int = 0,
        mapping: int = 0,
        private: int = 0,
        memcg: int = 0,
    ) -> None:
        """Write a whole struct page; `kind` names a page type, or slab on 6.1."""
        self.pages[pfn] = 0
        word = 0
        if kind == "slab" and self.layout.flag("slab"):
            flags, kind = (*flags, "slab"), ""
        if kind == "hugetlb" and self.layout.dtor_hugetlb is not None:
            kind = ""  # `compound` says it
        for flag in flags:
            word |= self.layout.flag(flag)
        # Zone and node above the flags, as on a real machine.
        self.put(pfn, "flags", word | 0x000FFFFFC0000000)
        self.put(pfn, "page_type", self.type_word(kind) if kind else (mapcount - 1) & NO_TYPE, 4)
        self.put(pfn, "refcount", refcount, 4)
        self.put(pfn, "mapping", mapping)
        self.put(pfn, "private", private)
        self.put(pfn, "memcg_data", memcg)

    def type_word(self, kind: str) -> int:
        """The page_type word of a type."""
        from memdesc.kernels.page_types import PageType

        return self.layout.types.encode(PageType(kind))

    def free_block(self, pfn: int, *, order: int) -> None:
        """A block in the page allocator's free lists."""
        for frame in range(pfn, pfn + (1 << order)):
            self.page(frame, refcount=0)
        self.page(pfn, kind="buddy", refcount=0, private=order)

    def compound(
        self,
        pfn: int,
        *flags: str,
        order: int,
        kind: str = "",
        rmappable: bool = False,
        mappings: int = 0,
        mapping: int = 0,
        memcg: int = 0,
    ) -> None:
        """A compound page; `mappings` is how often the whole of it is mapped."""
        layout = self.layout
        self.page(pfn, "head", *flags, kind=kind, mapping=mapping, memcg=memcg)
        for tail in range(pfn + 1, pfn + (1 << order)):
            self.page(tail, refcount=0)
            self.put(tail, "compound", self.compound_word(pfn, order))
        second = self.pages[pfn : pfn + 2].reshape(-1)
        second[layout.folio_order] = order
        counts = [layout.folio_entire_mapcount, layout.folio_large_mapcount]
        for offset in counts:
            if offset is not None:
                second[offset : offset + 4].view(np.int32)[0] = mappings - 1
        if layout.folio_dtor is not None:
            dtor = layout.dtor_hugetlb if kind == "hugetlb" else layout.dtor_thp
            second[layout.folio_dtor] = dtor or 0 if rmappable or kind == "hugetlb" else 1
        elif rmappable:
            self.words[pfn + 1, 0] |= np.uint64(layout.flag("large_rmappable"))

    def compound_word(self, head: int, order: int) -> int:
        """What leads a tail to its head: an address, or 7.2's mask."""
        if self.layout.compound_may_be_mask:
            return (-(1 << order + 6) & (1 << 64) - 1) | 1
        return VMEMMAP + head * 64 + 1
