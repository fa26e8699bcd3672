"""The rows below `expect`: from words to checks.

count ksm.pages_shared 1
p buf page A a . .
p buf[0] flags UPTODATE LRU
p vmas buf[0:2] rw, buf[2:4] r +lo
p smaps buf Rss=8 Anonymous=8
old refs 1                          frames that `remember` named
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Final

from memdesc.errors import FormatError
from memdesc.kernels.kpageflags import KPF
from memdesc.scenarios.expectation import GONE, WAITS, AreaCheck, Check, Subject
from memdesc.scenarios.observation import ASKED_SMAPS_FIELDS, LETTERS, SMAPS_FIELDS
from memdesc.scenarios.places import Placement, is_tag
from memdesc.scenarios.words import Span, did_you_mean, parse_count, parse_span, spread

__all__ = ["parse_row"]

_SUBJECTS: Final = {subject.value: subject for subject in Subject}
_PERMS = re.compile(r"(?:[r-]?[w-]?[x-]?)[ps]?")
_VMFLAG = re.compile(r"[+-][a-z0-9]{2}")
_FIELD = re.compile(r"([A-Za-z_]+)=([0-9]{1,12})")
_LETTER = re.compile(r"[^*](?:\*[0-9]{1,7})?|\*")
"""Letters may stand together, each with how often: Aa.*2"""
_NONE: Final = "."
_COUNTED: Final = ("ksm", "meminfo", "vmstat", "thp")
"""What stands before the dot of a counter."""
_OF_FRAMES: Final = frozenset(
    {Subject.FLAGS, Subject.REFS, Subject.MAPCOUNT, Subject.CONTENT, Subject.FRAME}
)


def parse_row(
    text: str,
    line: int,
    group: int,
    placed: Mapping[str, Mapping[str, Placement]],
    remembered: Mapping[str, int] = MappingProxyType({}),
) -> Check:
    """Read one row. `placed` says what lives and where it lies, `remembered` how many frames have
    a name. Raises FormatError."""
    words = text.split()
    waits = len(words) > 1 and words[-1] == WAITS[0]
    said = words[:-1] if waits else words
    name = words[0].partition("[")[0]
    if name in remembered and len(words) > 1:
        frames = {name: Placement(0, remembered[name])}
        check = _pages(said, text, line, group, "", frames, waits)
        if check.subject not in _OF_FRAMES:
            raise FormatError(
                f"not something that frames have by themselves: {check.subject.value}",
                hint="rows about them are " + ", ".join(sorted(each.value for each in _OF_FRAMES)),
            )
    else:
        check = _row(said, text, line, group, placed, waits)
    return replace(check, waits=waits, cells=check.cells or WAITS) if waits else check


# --- helpers -----------------------------------------------------------------------------


def _row(
    words: list[str],
    text: str,
    line: int,
    group: int,
    placed: Mapping[str, Mapping[str, Placement]],
    waits: bool,
) -> Check:
    if words[0] == "count":
        return _count(words[1:] + ["0"] * waits, text, line, group)
    process = words[0]
    if process not in placed:
        raise FormatError(
            f"there is no process {process[:40]!r}",
            hint=did_you_mean(process, placed) or "a row is written as: p buf page A a . .",
        )
    names = placed[process]
    if len(words) < 2:
        raise FormatError("the row says nothing", hint="write it as: p buf page A a . .")
    if words[1] == "vmas":
        areas = _areas(" ".join(words[2:]), names, process, waits)
        return Check(line, text, Subject.VMAS, group, process, areas=areas)
    if words[1] == "smaps":
        return _smaps(words[2:], text, line, group, process, names, waits)
    return _pages(words[1:], text, line, group, process, names, waits)


def _count(words: list[str], text: str, line: int, group: int) -> Check:
    if len(words) != 2 or not re.fullmatch(r"[a-z]+\.[A-Za-z0-9_.\-]+", words[0]):
        raise FormatError(
            "a counter is written as: count ksm.pages_shared 1",
            hint="counters are ksm.NAME, meminfo.NAME, vmstat.NAME and thp.SIZE.NAME; the last two "
            "count from the scenario's start",
        )
    kind = words[0].partition(".")[0]
    if kind not in _COUNTED:
        raise FormatError(
            f"no counters are called {kind[:40]!r}", hint=did_you_mean(kind, _COUNTED)
        )
    return Check(line, text, Subject.COUNT, group, fields={words[0]: parse_count(words[1])})


def _pages(
    words: list[str],
    text: str,
    line: int,
    group: int,
    process: str,
    names: Mapping[str, Placement],
    waits: bool,
) -> Check:
    name, first, pages = _placed(parse_span(words[0]), names, process)
    rest = words[1:]
    if rest[:1] == ["all"]:
        rest = rest[1:]
    subject = _SUBJECTS.get(rest[0]) if rest else None
    if subject is None or not (subject.is_per_page or subject is Subject.FLAGS):
        known = [item.value for item in Subject if item.is_per_page] + [Subject.FLAGS.value]
        word = rest[0] if rest else ""
        raise FormatError(
            f"not something that pages have: {word[:40]!r}", hint=did_you_mean(word, known)
        )
    cells = rest[1:]
    if waits:
        found = tuple(cells)
    elif subject is Subject.FLAGS:
        found = _flags(cells)
    else:
        found = _cells(subject, cells, pages)
        if len(found) != pages:
            raise FormatError(
                f"{words[0]} has {pages} pages, the row has {len(found)}",
                hint="give one per page; A*4 is A A A A",
            )
        _check_cells(subject, found)
    return Check(line, text, subject, group, process, name, first, pages, found)


def _cells(subject: Subject, words: list[str], pages: int) -> tuple[str, ...]:
    """One cell per page: letters may stand together, as in Aa.."""
    if subject is Subject.PAGE:
        return spread(part for word in words for part in _LETTER.findall(word))
    cells = spread(words)
    if subject is Subject.FRAME and len(cells) != pages:
        letters = tuple(letter for cell in cells for letter in cell)
        return letters if len(letters) == pages else cells
    return cells


def _check_cells(subject: Subject, cells: tuple[str, ...]) -> None:
    for cell in cells:
        if subject is Subject.PAGE and cell not in LETTERS:
            raise FormatError(
                f"not a letter of a page: {cell[:40]!r}",
                hint="the letters are " + " ".join(LETTERS),
            )
        if subject is Subject.CONTENT and cell not in ("?", _NONE) and not is_tag(cell):
            raise FormatError(
                f"not a content: {cell[:40]!r}",
                hint="contents are letters and words; 0 is zeroes, ? anything else, . nothing",
            )
        if subject in (Subject.MAPCOUNT, Subject.REFS) and cell != _NONE:
            parse_count(cell)
        if subject is Subject.SOFT_DIRTY and cell not in ("0", "1"):
            raise FormatError(
                f"softdirty is 1 or 0: {cell[:40]!r}", hint="1 for pages that were written to"
            )


def _flags(words: list[str]) -> tuple[str, ...]:
    signed = [word[:1] in "+-" for word in words]
    if any(signed) and not all(signed):
        raise FormatError(
            "flags are given all, or as +NAME and -NAME", hint="not both ways in one row"
        )
    for word in words:
        bare = word[1:] if word[:1] in "+-" else word
        if bare not in KPF.__members__ and word != "none":
            raise FormatError(
                f"not a page flag: {bare[:40]!r}", hint=did_you_mean(bare, KPF.__members__)
            )
        if word in _opposite(words):
            raise FormatError(
                f"{bare} is wanted and not wanted", hint=f"write either +{bare} or -{bare}"
            )
    return tuple(words) if words else ("none",)


def _opposite(words: list[str]) -> set[str]:
    return {("-" if word[0] == "+" else "+") + word[1:] for word in words}


def _areas(
    text: str, names: Mapping[str, Placement], process: str, waits: bool
) -> tuple[AreaCheck, ...]:
    found = []
    for part in text.split(","):
        words = part.split()
        if not words:
            raise FormatError(
                "an area is written as: buf[0:4] rw", hint="several with commas between them"
            )
        span = parse_span(words[0])
        place = _known(names, span.name, process)
        end = place.pages if span.end is None else span.end
        perms = words[1] if len(words) > 1 else GONE if waits else ""
        if perms == "none":
            perms = "---"
        if not perms or not (perms == GONE or _PERMS.fullmatch(perms)):
            raise FormatError(
                f"not permissions: {perms[:40]!r}",
                hint="write rw, r, rwx, none, or as rw-s; gone where there is no area",
            )
        flags = tuple(words[2:])
        wrong = next((flag for flag in flags if not _VMFLAG.fullmatch(flag)), None)
        if wrong is not None:
            raise FormatError(
                f"not a flag of an area: {wrong[:40]!r}", hint="flags are written +lo or -mg"
            )
        found.append(AreaCheck(span.name, span.first, end - span.first, perms, flags))
    return tuple(found)


def _smaps(
    words: list[str],
    text: str,
    line: int,
    group: int,
    process: str,
    names: Mapping[str, Placement],
    waits: bool,
) -> Check:
    if len(words) < 2:
        raise FormatError(
            "smaps lacks its mapping or its fields",
            hint="it is written as: p smaps buf Rss=8 Anonymous=8",
        )
    name, first, pages = _placed(parse_span(words[0]), names, process)
    fields: dict[str, int] = {}
    for word in words[1:]:
        found = _FIELD.fullmatch(f"{word}=0" if waits and "=" not in word else word)
        if found is None:
            raise FormatError(f"not FIELD=kB: {word[:40]!r}", hint="write Rss=8")
        known = (*SMAPS_FIELDS, *ASKED_SMAPS_FIELDS)
        if found[1] not in known:
            raise FormatError(
                f"not a field of smaps that is observed: {found[1][:40]!r}",
                hint=did_you_mean(found[1], known),
            )
        fields[found[1]] = int(found[2])
    return Check(line, text, Subject.SMAPS, group, process, name, first, pages, fields=fields)


def _placed(span: Span, names: Mapping[str, Placement], process: str) -> tuple[str, int, int]:
    place = _known(names, span.name, process)
    end = place.pages if span.end is None else span.end
    if end > place.pages or span.first >= end:
        raise FormatError(
            f"{span.name} has {place.pages} pages, the row is about [{span.first}:{end}]",
            hint=f"rows are about pages that were mapped: {span.name}[0:{place.pages}]",
        )
    return span.name, span.first, end - span.first


def _known(names: Mapping[str, Placement], name: str, process: str) -> Placement:
    place = names.get(name)
    if place is None:
        raise FormatError(f"{process} has no mapping {name[:40]!r}", hint=did_you_mean(name, names))
    return place
