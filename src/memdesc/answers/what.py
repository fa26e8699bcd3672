"""What is this page? Its type, the whole range it belongs to, its owner, and how we know.

Every answer says which rule named the type and where each fact comes from. A place that
holds no page at all (swapped out, never touched, a guard) gets the reason instead.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, assert_never

from memdesc.answers.places import FramePlace, PhysPlace, Place, VirtPlace, parse_place
from memdesc.answers.titles import title_of
from memdesc.descriptors import (
    AddressSpace,
    Descriptor,
    DescriptorLookup,
    Nobody,
    NotVisible,
    Page,
    RawPageLookup,
)
from memdesc.errors import NotReadableError, QuestionError
from memdesc.kernels.kpageflags import KPF, flag_names
from memdesc.kernels.pagemap import EntryKind, Present
from memdesc.map.describe import MapDescriber
from memdesc.map.extents import MemoryMap, ReadFrom
from memdesc.rules.procedure import Rule
from memdesc.sources.source import Source
from memdesc.types import PAGE_SIZE_BYTES, MemoryType, Pfn, PfnRange, TypeSet, pfn_of, phys_of

__all__ = ["NoAnswer", "NoPage", "PageAnswer", "describe_page", "each_place", "pfn_at", "what"]


@dataclass(frozen=True, slots=True)
class PageAnswer:
    """All that is known of one frame."""

    asked: str
    pfn: Pfn
    types: TypeSet
    rule: Rule
    flags: int
    flag_names: tuple[str, ...]
    pages: PfnRange
    """The folio, slab or huge page that holds the frame; the frame alone where none does."""
    descriptor: Descriptor
    mapcount: int | NotVisible
    cgroup: int | NotVisible
    """Inode of the memory cgroup charged; 0 for none."""
    cgroup_name: str
    zone: str
    node: int | None
    struct_page: Mapping[str, int] | NotVisible | None = None
    """The words of the frame's own struct page, where they were asked for."""
    read_from: ReadFrom = "proc"

    @property
    def order(self) -> int:
        return self.pages.nr_pages.bit_length() - 1

    def sources(self) -> dict[str, str]:
        """Where each fact comes from, and how far it can be trusted."""
        if self.read_from == "structs":
            return {
                "type": self.rule.source,
                "flags": "struct page, as /proc/kpageflags would show it",
                "counts": "struct page of the folio, read when it was asked for",
            }
        found = {
            "type": self.rule.source,
            "flags": "/proc/kpageflags, one word, exact when it was read",
            "pages": "HEAD and TAIL marks of its neighbours in /proc/kpageflags",
        }
        if isinstance(self.mapcount, int):
            found["mapcount"] = self._mapcount_source()
        if isinstance(self.cgroup, int):
            found["cgroup"] = "/proc/kpagecgroup; slab is charged per object and shows none"
        if self.zone:
            found["zone"] = "/proc/zoneinfo"
        return found

    def _mapcount_source(self) -> str:
        if not self.flags & KPF.MMAP:
            return "not read: a frame without MMAP has no mapping (fs/proc/page.c)"
        if MemoryType.ZSMALLOC in self.types:
            return "/proc/kpagecount; false for zsmalloc on 6.1 (mm/zsmalloc.c)"
        return "/proc/kpagecount, user page-table entries; PFN mappings are not counted"

    def to_json(self) -> dict[str, Any]:
        """One row; schema memdesc-what/1."""
        raw = self.struct_page
        return {
            "asked": self.asked,
            "pfn": self.pfn,
            "phys": phys_of(self.pfn),
            "type": self.types.json,
            "label": title_of(self.types),
            "certainty": self.rule.certainty.value,
            "rule": self.rule.name,
            "reason": self.rule.text,
            "flags": self.flags,
            "flag_names": list(self.flag_names),
            "pfn_start": self.pages.pfn_start,
            "pfn_end": self.pages.pfn_end,
            "nr_pages": self.pages.nr_pages,
            "size_bytes": self.pages.nr_pages * PAGE_SIZE_BYTES,
            "order": self.order,
            "zone": self.zone or None,
            "node": self.node,
            "mapcount": _json(self.mapcount),
            "cgroup": _json(self.cgroup),
            "cgroup_name": self.cgroup_name or None,
            "sources": self.sources(),
            "descriptor": {
                "kind": type(self.descriptor).__name__,
                **_fields_json(self.descriptor, but=("pages", "kinds", "reason")),
            },
            **({} if raw is None else {"struct_page": _words_json(raw)}),
        }


@dataclass(frozen=True, slots=True)
class NoPage:
    """The place holds no page frame, and why."""

    asked: str
    kind: EntryKind
    reason: str

    def to_json(self) -> dict[str, Any]:
        return {
            "asked": self.asked,
            "pfn": None,
            "type": None,
            "entry": self.kind.value,
            "reason": self.reason,
        }


@dataclass(frozen=True, slots=True)
class NoAnswer:
    """The place could not be answered: outside the map, no such process, not readable."""

    asked: str
    error: str
    hint: str

    def to_json(self) -> dict[str, Any]:
        return {
            "asked": self.asked,
            "pfn": None,
            "type": None,
            "error": self.error,
            "hint": self.hint or None,
        }


_Answer = TypeVar("_Answer")


def each_place(texts: Sequence[str], ask: Callable[[Place], _Answer]) -> list[_Answer | NoAnswer]:
    """What `ask` says of each place, in their order.

    A place that cannot be read or answered is a NoAnswer among several, so that the others get
    theirs; alone, it raises QuestionError or NotReadableError.
    """
    answers: list[_Answer | NoAnswer] = []
    for text in texts:
        try:
            answers.append(ask(parse_place(text)))
        except (QuestionError, NotReadableError) as error:
            if len(texts) == 1:
                raise
            answers.append(NoAnswer(text, str(error), error.hint))
    return answers


def what(source: Source, place: Place, *, raw: bool = False) -> PageAnswer | NoPage:
    """Answer for one place; with `raw`, with the words of its struct page.

    Reads only the neighbourhood of the frame on a live machine. Raises QuestionError for a
    frame outside the map or a process that is not there.
    """
    pfn = pfn_at(source, place)
    if isinstance(pfn, NoPage):
        return pfn
    result = source.window(pfn)
    lookup = source.describer(result)
    answer = describe_page(result, pfn, place.text, lookup=lookup)
    if not raw:
        return answer
    words: Mapping[str, int] | NotVisible = NotVisible("this source sees no struct pages")
    if isinstance(lookup, RawPageLookup):
        words = lookup.raw_page(pfn)
    return dataclasses.replace(answer, struct_page=words)


def pfn_at(source: Source, place: Place) -> Pfn | NoPage:
    """The frame that `place` names, or why there is none. Raises QuestionError as `what`."""
    match place:
        case FramePlace():
            return place.pfn
        case PhysPlace():
            return pfn_of(place.address)
        case VirtPlace():
            entry = source.pagemap(place.pid, place.address)
            if not isinstance(entry.target, Present):
                return NoPage(place.text, entry.kind, _ABSENT[entry.kind])
            if isinstance(entry.target.pfn, NotVisible):
                return NoPage(place.text, EntryKind.HIDDEN, entry.target.pfn.reason)
            return entry.target.pfn
        case _:
            assert_never(place)


def describe_page(
    result: MemoryMap, pfn: Pfn, asked: str = "", *, lookup: DescriptorLookup | None = None
) -> PageAnswer:
    """All that `result` knows of frame `pfn`; `lookup` may know more than the map."""
    lookup = lookup or MapDescriber(result)
    extent = result.extent(result.index_of(pfn))
    descriptor = Page(pfn, lookup).descriptor()
    zone = result.regions.of(pfn).zone
    cgroup: int | NotVisible = (
        NotVisible(result.unseen.get("cgroups", "the source has no kpagecgroup"))
        if extent.cgroup is None
        else extent.cgroup
    )
    name = ""
    if isinstance(cgroup, int) and cgroup:
        name = result.machine.cgroups.get(cgroup, "(name not visible: deleted, or redacted)")
    return PageAnswer(
        asked=asked or f"{pfn:#x}",
        pfn=pfn,
        types=extent.fact.types,
        rule=extent.fact.rule,
        flags=extent.fact.flags,
        flag_names=tuple(flag_names(extent.fact.flags, result.machine.release)),
        pages=descriptor.pages,
        descriptor=descriptor,
        mapcount=NotVisible(result.unseen.get("mapcounts", "the source has no kpagecount"))
        if extent.mapcount is None
        else extent.mapcount,
        cgroup=cgroup,
        cgroup_name=name,
        zone=zone.name if zone else "",
        node=zone.node if zone else None,
        read_from=result.read_from,
    )


# --- helpers -----------------------------------------------------------------------------

_ABSENT: dict[EntryKind, str] = {
    EntryKind.EMPTY: "no page: never touched, freed, or memory that the kernel does not show here",
    EntryKind.PRESENT: "present",
    EntryKind.SWAP: "swapped out",
    EntryKind.HWPOISON: "lost to a memory error; touching it gives SIGBUS",
    EntryKind.MIGRATION: "being migrated right now; ask again",
    EntryKind.DEVICE_PRIVATE: "in device memory",
    EntryKind.DEVICE_EXCLUSIVE: "lent to a device",
    EntryKind.MARKER: "a marker: userfaultfd, poison or a guard page",
    EntryKind.SWAPIN_ERROR: "its swap slot could not be read",
    EntryKind.SPECIAL: "not present; several meanings are possible on this kernel",
    EntryKind.HIDDEN: "frame numbers are hidden without CAP_SYS_ADMIN",
}


_ADDRESSES = frozenset(
    ["address", "anon_vma", "area", "chunk", "dma_addr", "pgmap", "pool", "stable_node", "zspage"]
)
"""Fields that hold addresses: JSON gives them as hexadecimal text, because a number that large
loses its last digits in many readers."""


def _fields_json(value: Descriptor | AddressSpace, *, but: tuple[str, ...] = ()) -> dict[str, Any]:
    """The fields of a dataclass by name."""
    row = {}
    for item in dataclasses.fields(value):
        if item.name not in but:
            field = getattr(value, item.name)
            is_address = item.name in _ADDRESSES and isinstance(field, int)
            row[item.name] = f"{field:#x}" if is_address else _json(field)
    return row


def _words_json(words: Mapping[str, int] | NotVisible) -> Any:
    if isinstance(words, NotVisible):
        return _json(words)
    return {name: f"{word:#x}" for name, word in words.items()}


def _json(value: object) -> Any:
    match value:
        case AddressSpace():
            return _fields_json(value)
        case NotVisible():
            return {"not_visible": value.reason}
        case Nobody():
            return 0
        case TypeSet():
            return value.json
        case frozenset():
            return sorted(str(item) for item in value)
        case bool() | int() | str() | None:
            return value
        case _:
            return getattr(value, "value", str(value))
