"""The whole story of one page: what it is, who uses it, what would happen to it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from memdesc.answers.failure import Observed, hard_json, knowledge_of, observed_on, soft_json
from memdesc.answers.move import move_json
from memdesc.answers.places import Place
from memdesc.answers.what import NoPage, PageAnswer, what
from memdesc.answers.who import MapperRow, mappers
from memdesc.descriptors import AddressSpace, FileFolio, Folio
from memdesc.errors import FaultError, LayoutError
from memdesc.kernels.kpageflags import KPF
from memdesc.map.machine import Machine
from memdesc.rules.dirty import DirtyOutcome, dirtied
from memdesc.rules.failure import (
    Consequence,
    HardOutcome,
    SoftOutcome,
    hard_failure,
    soft_offline,
)
from memdesc.rules.move import MoveOutcome, by_compaction, by_offlining
from memdesc.rules.references import holds_extra, hugetlb_is_held
from memdesc.rules.subject import Knowledge, Rule, Ruling, Subject, merged
from memdesc.sources.source import Source
from memdesc.types import MemoryType, TypeSet

if TYPE_CHECKING:
    from memdesc.map.attribution import Attribution
    from memdesc.structs.kernel import Kernel
    from memdesc.structs.memmap import MemMap

__all__ = ["Story", "story_of", "tell"]


@dataclass(frozen=True, slots=True)
class Story:
    """Every question about one page, answered by the rules."""

    page: PageAnswer
    hard: Ruling[HardOutcome]
    soft: Ruling[SoftOutcome]
    compaction: Ruling[MoveOutcome]
    offlining: Ruling[MoveOutcome]
    dirtied: Ruling[DirtyOutcome]
    extra_references: bool | None
    would_die: tuple[MapperRow, ...] | None = None
    """Mappings whose processes lose the page, where losing it kills; None: not visible."""
    file: str | None = None
    """Path of the file that it is part of, where that is known."""
    observed_on: tuple[tuple[str, ...], ...] = ()
    """For each hard outcome, the kernel series on which it was seen."""

    def to_json(self) -> dict[str, Any]:
        """One row: that of `what`, with the answers beside it."""
        return {
            **self.page.to_json(),
            "extra_references": self.extra_references,
            "file": self.file,
            "would_die": None
            if self.would_die is None
            else [row.to_json() for row in self.would_die],
            "hard": hard_json(self.hard) | {"observed_on": _seen_json(self)},
            "soft": soft_json(self.soft),
            "compaction": move_json(self.compaction),
            "offlining": move_json(self.offlining),
            "dirtied": {
                "certainty": self.dirtied.certainty.value,
                "outcomes": [
                    {
                        "tells": outcome.tells.value,
                        "callback": outcome.callback or None,
                        "reason": outcome.reason,
                    }
                    for outcome in self.dirtied.outcomes
                ],
                "source": self.dirtied.source,
            },
        }


def tell(
    source: Source,
    place: Place,
    *,
    attribution: Attribution | None = None,
    observed: Observed | None = None,
) -> Story | NoPage:
    """The story of the page at `place`. Raises as `memdesc.answers.what.what`.

    `attribution` names the processes that would die, and `observed` the kernels on which
    these outcomes were seen (`memdesc.answers.failure.Observed`).
    """
    answer = what(source, place)
    if isinstance(answer, NoPage):
        return answer
    story = story_of(answer, source.machine, buffers=_buffers(source, answer))
    rows: tuple[MapperRow, ...] | None = None
    if attribution is not None:
        rows = mappers(source.window(answer.pfn), attribution, answer.pfn).mappers
    ends = {outcome.on_hardware for outcome in story.hard.outcomes}
    kills = bool(ends & {Consequence.KILLED_NOW, Consequence.KILLED_ON_TOUCH})
    return replace(
        story,
        would_die=rows if kills or rows is None else (),
        file=_path(answer, rows or ()),
        observed_on=observed_on(answer.types, story.hard, observed),
    )


def story_of(page: PageAnswer, machine: Machine, *, buffers: bool | None = None) -> Story:
    """Ask every rule about `page`; `buffers` says whether somebody holds buffers of its blocks,
    None where the source does not show that."""
    kernel = knowledge_of(machine)
    flags = KPF(page.flags & _KNOWN)
    if machine.behaviour.tails_show_own_flags and isinstance(page.descriptor, Folio):
        flags |= _flags_of(page.descriptor)
    file_system = _file_system(page)
    extra = {kind: buffers or _extra(kind, page, flags) for kind in page.types}
    # A rule may take it that who names the file system has seen the buffers.
    seen = file_system if buffers is not None else None

    def ask(rule: Rule[Any]) -> Ruling[Any]:
        rulings = [
            rule(Subject(kind, flags, page.order, extra[kind], page.zone, seen), kernel)
            for kind in page.types
        ]
        return merged(rulings)

    def whom(subject: Subject, known: Knowledge) -> Ruling[DirtyOutcome]:
        return dirtied(subject, known, file_system=file_system)

    return Story(
        page,
        ask(hard_failure),
        ask(soft_offline),
        ask(by_compaction),
        ask(by_offlining),
        ask(whom),
        next(iter(extra.values())) if len(set(extra.values())) == 1 else None,
    )


# --- helpers -----------------------------------------------------------------------------

_KNOWN = 0
for _flag in KPF:
    _KNOWN |= _flag.value


def _seen_json(story: Story) -> list[str]:
    """Series on which the likeliest outcome was seen."""
    return list(story.observed_on[0]) if story.observed_on else []


def _path(page: PageAnswer, rows: tuple[MapperRow, ...]) -> str | None:
    """The file's path, from the kernel's memory or from somebody who maps it."""
    mapping = getattr(page.descriptor, "mapping", None)
    if isinstance(mapping, AddressSpace) and isinstance(mapping.path, str):
        return mapping.path
    if page.types.mask & ~_CACHE.mask:
        return None
    return next((row.vma.name for row in rows if row.vma.inode and row.vma.name), None)


_CACHE = TypeSet.of(MemoryType.FILE, MemoryType.SHMEM, MemoryType.HUGETLB, MemoryType.SECRETMEM)


@runtime_checkable
class _WithKernel(Protocol):
    """A source that reads the kernel's own memory."""

    kernel: Kernel
    memmap: MemMap


def _buffers(source: Source, page: PageAnswer) -> bool | None:
    """Whether somebody holds buffers of the page's blocks; None where nobody can say."""
    if not isinstance(source, _WithKernel) or not isinstance(page.descriptor, FileFolio):
        return None
    from memdesc.structs.buffers import Buffers
    from memdesc.structs.describe_folio import FolioPages

    folio = FolioPages(source.memmap, page.pages)
    try:
        if not folio.has_flag("private"):
            return False
        state = Buffers(source.kernel, source.memmap).of(folio.private, folio.address)
    except (FaultError, LayoutError):
        return None
    return state is not None and state.is_held


def _extra(kind: MemoryType, page: PageAnswer, flags: KPF) -> bool | None:
    folio = page.descriptor
    if not isinstance(folio, Folio):
        return None
    refcount, mapcount = folio.refcount, folio.mapcount
    if not isinstance(refcount, int) or not isinstance(mapcount, int):
        return None
    if kind is MemoryType.HUGETLB:
        return hugetlb_is_held(
            refcount=refcount,
            mapcount=mapcount,
            nr_pages=page.pages.nr_pages,
            is_anon=bool(flags & KPF.ANON),
        )
    return holds_extra(
        kind,
        refcount=refcount,
        mapcount=mapcount,
        nr_pages=page.pages.nr_pages,
        private=bool(flags & KPF.PRIVATE),
        on_lru=bool(flags & KPF.LRU),
    )


def _flags_of(folio: Folio) -> KPF:
    """The head's flags, where a tail does not show them."""
    flags = KPF(0)
    if isinstance(folio.flags, frozenset):
        for name in folio.flags:
            if name.upper() in KPF.__members__:
                flags |= KPF[name.upper()]
    return flags & ~(KPF.COMPOUND_HEAD | KPF.COMPOUND_TAIL | KPF.HWPOISON)


def _file_system(page: PageAnswer) -> str | None:
    descriptor = page.descriptor
    if not isinstance(descriptor, FileFolio) or not isinstance(descriptor.mapping, AddressSpace):
        return None
    name = descriptor.mapping.filesystem
    return name if isinstance(name, str) else None
