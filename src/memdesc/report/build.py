"""What a report says, gathered as typed values: nothing here knows HTML.

A part that the source cannot show is an `Absent` with the reason, never an empty table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

from memdesc import __version__
from memdesc.answers.blocks import Blocks, blocks
from memdesc.answers.failure import Failure, failure
from memdesc.answers.ledger import By, Ledger, LedgerRow, ledger
from memdesc.answers.overview import Overview, overview
from memdesc.answers.savings import Savings, savings
from memdesc.answers.titles import title_of
from memdesc.answers.usage import Usage
from memdesc.answers.who import ProcessRow, sizes_by_process
from memdesc.errors import MemdescError
from memdesc.kernels.type_table import TYPE_TABLE, UNIONS
from memdesc.map.attribution import Attribution
from memdesc.map.extents import MemoryMap
from memdesc.map.machine import SlabCache
from memdesc.report import words
from memdesc.report.outlook import Outlook, outlook_of
from memdesc.report.picture import Picture, picture_of
from memdesc.types import PAGE_SIZE_BYTES, MemoryType, TypeSet

__all__ = [
    "Absent",
    "Part",
    "ReportData",
    "Split",
    "Term",
    "TypeText",
    "report_data",
    "type_text",
]

_MOST_OWNERS = 20


@dataclass(frozen=True, slots=True)
class Absent:
    """A part of the report that this source cannot fill."""

    reason: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a split ledger: its rows by type, largest first."""

    name: str
    rows: tuple[LedgerRow, ...]
    detail: str = ""
    """What stands beside the name: how large a block of an order is."""

    @property
    def size_bytes(self) -> int:
        return sum(row.size_bytes for row in self.rows)


@dataclass(frozen=True, slots=True)
class Split:
    """The ledger cut into parts, and what is only summed up."""

    parts: tuple[Part, ...]
    smaller: Part | None = None
    """All parts beyond the largest, as one."""
    nr_smaller: int = 0
    rest: Part | None = None
    """What belongs to no part."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TypeText:
    """A type for people: its title, what it is, and why it is not told apart further."""

    title: str
    description: str
    members: tuple[str, ...] = ()
    """Titles of the types of a union; empty for a single type."""
    helps: str = ""
    """What would tell them apart."""


@dataclass(frozen=True, slots=True)
class Term:
    """One line of the glossary."""

    kind: MemoryType
    title: str
    sentence: str
    is_certain: bool
    """False for a type that is only a member of a union here."""


@dataclass(frozen=True)
class ReportData:
    """Everything that the page shows."""

    version: str
    source: str
    """How the user named the source."""
    overview: Overview
    picture: Picture
    unseen: tuple[tuple[str, str], ...]
    """(what, why) of all that could not be read."""
    by_zone: Split | Absent
    by_order: Split | Absent
    by_cgroup: Split | Absent
    slab_caches: tuple[SlabCache, ...] | Absent
    nr_slab_caches: int
    processes: tuple[ProcessRow, ...] | Absent
    nr_processes: int
    process_notes: tuple[str, ...]
    glossary: tuple[Term, ...]
    failure: Failure
    blocks: Blocks | Absent
    """Blocks of 2 MiB."""
    outlook: Outlook | Absent
    """What could be moved away."""
    savings: Savings | Absent
    """Against the 8-byte memdesc, by type."""

    @property
    def ledger(self) -> Ledger:
        return self.overview.ledger

    @cached_property
    def present_bytes(self) -> int:
        return self.ledger.frames_present * PAGE_SIZE_BYTES

    @cached_property
    def unknown_bytes(self) -> int:
        """Bytes whose type is an honest union."""
        return sum(item.size_bytes for item in self.overview.unknown)

    @cached_property
    def types(self) -> tuple[TypeSet, ...]:
        """Every type on the page; a type's place is the number of its colour class."""
        rows = [*self.ledger.rows, *self.ledger.not_present]
        return tuple(dict.fromkeys([*self.picture.types, *(row.types for row in rows)]))


SlabCaches: TypeAlias = tuple[SlabCache, ...]


def report_data(
    result: MemoryMap, *, source: str, attribution: Callable[[], Attribution]
) -> ReportData:
    """Gather the report of `result`. `attribution` is asked once, and may raise MemdescError."""
    summary = overview(result, owners=0)
    book = summary.ledger
    picture = picture_of(result, [row.types for row in (*book.rows, *book.not_present)])
    processes, nr_processes, notes = _processes(result, attribution)
    caches = _slab_caches(result)
    return ReportData(
        version=__version__,
        source=source,
        overview=summary,
        picture=picture,
        unseen=tuple({**result.machine.unseen, **result.unseen}.items()),
        by_zone=_by_zone(result),
        by_order=_split(result, "order", _order_rank),
        by_cgroup=_split(result, "cgroup", None, most=_MOST_OWNERS),
        slab_caches=caches if isinstance(caches, Absent) else caches[:_MOST_OWNERS],
        nr_slab_caches=0 if isinstance(caches, Absent) else len(caches),
        processes=processes,
        nr_processes=nr_processes,
        process_notes=notes,
        glossary=_glossary(book),
        failure=failure(result),
        blocks=_blocks(result),
        outlook=_outlook(result),
        savings=_savings(result),
    )


def type_text(types: TypeSet) -> TypeText:
    """What to say about one type or union."""
    kind = types.only
    if kind is not None:
        facts = TYPE_TABLE[kind]
        return TypeText(facts.title, facts.description)
    members = tuple(TYPE_TABLE[member].title for member in types)
    known = [union for union in UNIONS if union.kinds.mask & types.mask == types.mask]
    best = min(known, key=lambda union: len(union.kinds), default=None)
    if best is None:
        best = next((union for union in UNIONS if union.kinds.mask & types.mask), None)
    why, helps = (best.why, best.helps) if best else ("", "")
    return TypeText(title_of(types), why, members, helps)


# --- helpers -----------------------------------------------------------------------------


def _blocks(result: MemoryMap) -> Blocks | Absent:
    try:
        return blocks(result)
    except MemdescError as error:
        return Absent(str(error), error.hint)


def _savings(result: MemoryMap) -> Savings | Absent:
    try:
        return savings(result)
    except MemdescError as error:
        return Absent(str(error), error.hint)


def _outlook(result: MemoryMap) -> Outlook | Absent:
    try:
        return outlook_of(result)
    except MemdescError as error:
        return Absent(str(error), error.hint)


def _split(
    result: MemoryMap,
    by: By,
    rank: Callable[[Part, int | str | None], tuple[int, int]] | None,
    *,
    most: int = 0,
) -> Split | Absent:
    """The ledger `by`, its parts in the order of `rank` or the largest first."""
    try:
        book = ledger(result, by)
    except MemdescError as error:
        return Absent(str(error), error.hint)
    rows: dict[tuple[str, int | str | None], list[LedgerRow]] = {}
    for row in book.rows:
        rows.setdefault((row.part, row.part_key), []).append(row)
    charged_to_none = ("(charged to none)", 0) if by == "cgroup" else None
    none = rows.pop(charged_to_none, None) if charged_to_none else None
    parts = [
        (Part(name, tuple(group), _block(by, key)), key) for (name, key), group in rows.items()
    ]
    if rank is None:
        parts.sort(key=lambda item: (-item[0].size_bytes, item[0].name))
    else:
        parts.sort(key=lambda item: rank(*item))
    shown = [part for part, _key in (parts[:most] if most else parts)]
    rest = [part for part, _key in parts[len(shown) :]]
    left = Part("charged to none", tuple(none)) if none else None
    return Split(tuple(shown), _joined(rest), len(rest), left, book.notes)


def _block(by: By, key: int | str | None) -> str:
    if by != "order" or not isinstance(key, int):
        return ""
    return words.round_size(PAGE_SIZE_BYTES << key)


def _joined(parts: Iterable[Part]) -> Part | None:
    frames: dict[TypeSet, int] = {}
    for part in parts:
        for row in part.rows:
            frames[row.types] = frames.get(row.types, 0) + row.frames
    if not frames:
        return None
    ordered = sorted(frames.items(), key=lambda item: (-item[1], item[0].mask))
    return Part("", tuple(LedgerRow(types, number) for types, number in ordered))


def _by_zone(result: MemoryMap) -> Split | Absent:
    if not result.machine.zones:
        return Absent(
            "zones are not visible in this source",
            result.machine.unseen.get("zoneinfo", "it has no /proc/zoneinfo"),
        )
    start = {zone.name: zone.pfn_start for zone in result.machine.zones}

    def rank(part: Part, _key: int | str | None) -> tuple[int, int]:
        return start.get(part.name.split(" ")[0], 1 << 60), -part.size_bytes

    return _split(result, "zone", rank)


def _order_rank(_part: Part, key: int | str | None) -> tuple[int, int]:
    return (0, key) if isinstance(key, int) else (1, 0)


def _slab_caches(result: MemoryMap) -> SlabCaches | Absent:
    machine = result.machine
    if not machine.slabinfo:
        return Absent(
            "slab caches are not visible in this source",
            machine.unseen.get("slabinfo", "it has no /proc/slabinfo"),
        )
    ordered = sorted(machine.slabinfo, key=lambda cache: (-cache.size_bytes, cache.name))
    return tuple(cache for cache in ordered if cache.size_bytes)


def _processes(
    result: MemoryMap, attribution: Callable[[], Attribution]
) -> tuple[tuple[ProcessRow, ...] | Absent, int, tuple[str, ...]]:
    try:
        sizes = sizes_by_process(Usage.of(result, attribution()))
    except MemdescError as error:
        return Absent(str(error), error.hint), 0, ()
    return sizes.processes[:_MOST_OWNERS], len(sizes.processes), sizes.notes


def _glossary(book: Ledger) -> tuple[Term, ...]:
    """Types in the order in which the ledger names them, members of unions after."""
    rows = [*book.rows, *book.not_present]
    certain = dict.fromkeys(row.types.only for row in rows if row.types.only is not None)
    maybe = dict.fromkeys(kind for row in rows if not row.types.is_certain for kind in row.types)
    return tuple(
        Term(kind, TYPE_TABLE[kind].title, _sentence(TYPE_TABLE[kind].description), sure)
        for sure, kinds in ((True, certain), (False, maybe))
        for kind in kinds
        if kind is not None and (sure or kind not in certain)
    )


def _sentence(text: str) -> str:
    """The first sentence of `text`."""
    head, stop, _rest = text.partition(". ")
    return head + "." if stop else text
