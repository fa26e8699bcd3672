"""The flags word of struct page: which bit is PG_lru on this kernel?

Flags grow from bit 0; section, node, zone and a few more fields grow down from bit
63.  The numbers are an enum in the kernel, so an option that inserts a flag shifts
every later one: the numbers depend on the release *and* on its configuration.

A crash dump or BTF names the bits itself; use those where they exist.  This table is
for reading a bare flags word, and for saying what changed.

Sources: `include/linux/page-flags.h` of 6.1.192, 6.12.117, 7.2.13, 7.3.4, type
information of built kernels of those and of 6.18.44; `page-flags-layout.h` for the
fields.  5.15 is assembled from 5.10 and 6.1.

>>> page_flag_bits(KernelRelease.parse("6.12.117"), DEBIAN_6_12)["hwpoison"]
20
>>> page_flag_bits(KernelRelease.parse("6.1.192"), DEBIAN_6_1)["hwpoison"]
23
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from memdesc.errors import FormatError, QuestionError
from memdesc.kernels.release import KernelRelease

__all__ = [
    "DEBIAN_6_1",
    "DEBIAN_6_12",
    "DEBIAN_7_2",
    "DEBIAN_FIELDS",
    "GUEST_6_18",
    "GUEST_6_18_FIELDS",
    "FieldBits",
    "FlagAlias",
    "FlagConfig",
    "HighFields",
    "page_flag_aliases",
    "page_flag_bits",
]


@dataclass(frozen=True, slots=True)
class FlagConfig:
    """The options that insert a flag. Names as in the kernel configuration, shortened."""

    memory_failure: bool = True
    """CONFIG_MEMORY_FAILURE: hwpoison."""
    page_idle_flag: bool = True
    """CONFIG_PAGE_IDLE_FLAG (with 64BIT): young and idle."""
    arch_2: bool = True
    """arch_2: any 64-bit kernel up to 6.1, CONFIG_ARCH_USES_PG_ARCH_2 later."""
    arch_3: bool = False
    """CONFIG_ARCH_USES_PG_ARCH_3 (not in 6.1)."""
    uncached: bool = False
    """CONFIG_ARCH_USES_PG_UNCACHED (6.1 and before; x86 has it)."""
    kasan_hw_tags: bool = False
    """CONFIG_KASAN_HW_TAGS: skip_kasan_poison (6.1 and before)."""


DEBIAN_6_1: Final = FlagConfig(uncached=True, page_idle_flag=False)
DEBIAN_6_12: Final = FlagConfig()
DEBIAN_7_2: Final = FlagConfig()
GUEST_6_18: Final = FlagConfig(memory_failure=False)
"""A 6.18.44 guest kernel without memory failure handling."""


@dataclass(frozen=True, slots=True)
class FlagAlias:
    """A second name for a flag's bit. `where` is "" or the page of a folio it applies to."""

    name: str
    flag: str
    where: str = ""


def page_flag_bits(release: KernelRelease, config: FlagConfig) -> Mapping[str, int]:
    """Return flag name (as `PG_*`, without the prefix) -> bit number.

    Raises QuestionError for a release whose enum was not read and does not lie
    between two equal ones.
    """
    version = (release.major, release.minor)
    if (5, 15) <= version <= (6, 1):
        order = [*_ORDER_6_1]
        if config.uncached:
            order.append("uncached")
        order += _tail(config)
        if config.kasan_hw_tags:
            order.append("skip_kasan_poison")
    elif version == (6, 12):
        order = [*_ORDER_6_12, "mlocked", *_tail(config)]
        order += ["arch_3"] if config.arch_3 else []
    elif (6, 18) <= version <= (7, 3):
        order = [*_ORDER_6_12, "dropbehind", "mlocked", *_tail(config)]
        order += ["arch_3"] if config.arch_3 else []
    else:
        raise QuestionError(
            f"page flag numbers of kernel {release} are not known",
            hint="known: 5.15 to 6.1, 6.12, 6.18 to 7.3; else take them from its debug information",
        )
    return MappingProxyType({name: bit for bit, name in enumerate(order)})


def page_flag_aliases(release: KernelRelease) -> tuple[FlagAlias, ...]:
    """Return the second meanings of bits in `release`. Raises QuestionError as above."""
    page_flag_bits(release, FlagConfig())
    version = (release.major, release.minor)
    if version < (6, 12):
        return _ALIASES_6_1
    if version < (6, 17):
        return _ALIASES_6_12
    return (*_ALIASES_6_12, FlagAlias("movable_ops", "uptodate"))


@dataclass(frozen=True, slots=True)
class FieldBits:
    """Where a field of the flags word lies."""

    low: int
    width: int

    def of(self, word: int) -> int:
        """Return the field's value in `word`."""
        return word >> self.low & ((1 << self.width) - 1)


@dataclass(frozen=True, slots=True)
class HighFields:
    """Widths in bits of the fields above the flags, from the top down."""

    section: int = 0
    node: int = 0
    zone: int = 0
    last_cpupid: int = 0
    kasan_tag: int = 0
    lru_gen: int = 0
    lru_refs: int = 0

    def positions(self) -> Mapping[str, FieldBits]:
        """Return name -> place of every field that has a width. Raises FormatError above 64."""
        places: dict[str, FieldBits] = {}
        top = 64
        for name in (
            "section",
            "node",
            "zone",
            "last_cpupid",
            "kasan_tag",
            "lru_gen",
            "lru_refs",
        ):
            width: int = getattr(self, name)
            top -= width
            if width:
                places[name] = FieldBits(top, width)
        if top < 0:
            raise FormatError("the fields of the flags word need more than 64 bits")
        return MappingProxyType(places)


DEBIAN_FIELDS: Final = HighFields(node=10, zone=3, last_cpupid=21, lru_gen=3, lru_refs=2)
"""Debian amd64: NODES_SHIFT 10, 5 zones, 8192 CPUs, multi-generation LRU."""
GUEST_6_18_FIELDS: Final = HighFields(node=10, zone=3, last_cpupid=16)
"""A 6.18.44 guest kernel: 256 CPUs, no multi-generation LRU."""

_ORDER_6_1: Final = (
    "locked",
    "referenced",
    "uptodate",
    "dirty",
    "lru",
    "active",
    "workingset",
    "waiters",
    "error",
    "slab",
    "owner_priv_1",
    "arch_1",
    "reserved",
    "private",
    "private_2",
    "writeback",
    "head",
    "mappedtodisk",
    "reclaim",
    "swapbacked",
    "unevictable",
    "mlocked",
)
_ORDER_6_12: Final = (
    "locked",
    "writeback",
    "referenced",
    "uptodate",
    "dirty",
    "lru",
    "head",
    "waiters",
    "active",
    "workingset",
    "owner_priv_1",
    "owner_2",
    "arch_1",
    "reserved",
    "private",
    "private_2",
    "reclaim",
    "swapbacked",
    "unevictable",
)

_SECOND_PAGE: Final = "second page of a large folio"
_ALIASES_6_1: Final = (
    FlagAlias("readahead", "reclaim"),
    FlagAlias("isolated", "reclaim"),
    FlagAlias("swapcache", "owner_priv_1"),
    FlagAlias("checked", "owner_priv_1"),
    FlagAlias("pinned", "owner_priv_1"),
    FlagAlias("foreign", "owner_priv_1"),
    FlagAlias("xen_remapped", "owner_priv_1"),
    FlagAlias("vmemmap_self_hosted", "owner_priv_1"),
    FlagAlias("anon_exclusive", "mappedtodisk"),
    FlagAlias("fscache", "private_2"),
    FlagAlias("reported", "uptodate"),
    FlagAlias("has_hwpoisoned", "error", _SECOND_PAGE),
    FlagAlias("double_map", "workingset", _SECOND_PAGE),
)
_ALIASES_6_12: Final = (
    FlagAlias("readahead", "reclaim"),
    FlagAlias("isolated", "reclaim"),
    FlagAlias("partially_mapped", "reclaim", _SECOND_PAGE),
    FlagAlias("swapcache", "owner_priv_1"),
    FlagAlias("checked", "owner_priv_1"),
    FlagAlias("pinned", "owner_priv_1"),
    FlagAlias("foreign", "owner_priv_1"),
    FlagAlias("xen_remapped", "owner_priv_1"),
    FlagAlias("vmemmap_self_hosted", "owner_priv_1"),
    FlagAlias("anon_exclusive", "owner_2"),
    FlagAlias("mappedtodisk", "owner_2"),
    FlagAlias("fscache", "private_2"),
    FlagAlias("reported", "uptodate"),
    FlagAlias("has_hwpoisoned", "active", _SECOND_PAGE),
    FlagAlias("large_rmappable", "workingset", _SECOND_PAGE),
)


def _tail(config: FlagConfig) -> list[str]:
    names: list[str] = []
    if config.memory_failure:
        names.append("hwpoison")
    if config.page_idle_flag:
        names += ["young", "idle"]
    if config.arch_2:
        names.append("arch_2")
    return names
