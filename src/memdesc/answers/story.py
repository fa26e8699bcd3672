"""The whole story of one page: what it is, who uses it, what would happen to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from memdesc.answers.failure import hard_json, knowledge_of, soft_json
from memdesc.answers.move import move_json
from memdesc.answers.places import Place
from memdesc.answers.what import NoPage, PageAnswer, what
from memdesc.descriptors import AddressSpace, FileFolio, Folio
from memdesc.kernels.kpageflags import KPF
from memdesc.map.machine import Machine
from memdesc.rules.dirty import DirtyOutcome, dirtied
from memdesc.rules.failure import HardOutcome, SoftOutcome, hard_failure, soft_offline
from memdesc.rules.move import MoveOutcome, by_compaction, by_offlining
from memdesc.rules.references import holds_extra
from memdesc.rules.subject import Knowledge, Rule, Ruling, Subject, merged
from memdesc.sources.source import Source
from memdesc.types import MemoryType

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

    def to_json(self) -> dict[str, Any]:
        """One row: that of `what`, with the answers beside it."""
        return {
            **self.page.to_json(),
            "extra_references": self.extra_references,
            "hard": hard_json(self.hard),
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


def tell(source: Source, place: Place) -> Story | NoPage:
    """The story of the page at `place`. Raises as `memdesc.answers.what.what`."""
    answer = what(source, place)
    return answer if isinstance(answer, NoPage) else story_of(answer, source.machine)


def story_of(page: PageAnswer, machine: Machine) -> Story:
    """Ask every rule about `page`."""
    kernel = knowledge_of(machine)
    flags = KPF(page.flags & _KNOWN)
    if machine.behaviour.tails_show_own_flags and isinstance(page.descriptor, Folio):
        flags |= _flags_of(page.descriptor)
    file_system = _file_system(page)
    extra = {kind: _extra(kind, page, flags) for kind in page.types}

    def ask(rule: Rule[Any]) -> Ruling[Any]:
        rulings = [
            rule(Subject(kind, flags, page.order, extra[kind], page.zone), kernel)
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


def _extra(kind: MemoryType, page: PageAnswer, flags: KPF) -> bool | None:
    folio = page.descriptor
    if not isinstance(folio, Folio):
        return None
    refcount, mapcount = folio.refcount, folio.mapcount
    if not isinstance(refcount, int) or not isinstance(mapcount, int):
        return None
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
