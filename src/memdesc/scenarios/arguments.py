"""The words of one line behind its verb: parameters and options, read into arguments.

What a word means depends on what the lines above have made: the `Resolver` knows that.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from memdesc.errors import FormatError
from memdesc.scenarios.language import (
    FILE_SYSTEMS,
    MOST_FILE_PAGES,
    MOST_PAGES,
    REQUIRED,
    Kind,
    Option,
    Parameter,
    Verb,
)  # fmt: skip
from memdesc.scenarios.names import Effects, Names
from memdesc.scenarios.places import PAGE, Placement, word_of_tag
from memdesc.scenarios.usage import usage
from memdesc.scenarios.words import (
    Span,
    did_you_mean,
    is_name,
    parse_count,
    parse_span,
    spread,
)  # fmt: skip

if TYPE_CHECKING:
    from memdesc.scenarios.resolve import Resolver

__all__ = ["Arguments"]

_MOST_REFUSED: Final = 1 << 24
"""64 GiB: a mapping that a line says will be refused may be as large."""


class Arguments:
    """Reads the words of one line by its verb's row."""

    def __init__(
        self,
        resolver: Resolver,
        verb: Verb,
        process: str | None,
        tokens: list[str],
        *,
        fails: bool,
    ) -> None:
        self.effects = Effects()
        self._resolver = resolver
        self._verb = verb
        self._process = process
        self._tokens = tokens
        self._fails = fails
        self._args: dict[str, Any] = {}
        self._given: dict[str, str] = {}
        """Options that were read -> the word."""
        self._option_words = {word for option in verb.options for word in option.words}
        self._readers: dict[Kind, Callable[[Parameter], Any]] = {
            Kind.NEW_PROCESS: self._new_process,
            Kind.PROCESS: self._other_process,
            Kind.NEW: self._new,
            Kind.RANGE: self._range,
            Kind.PLACE: self._place,
            Kind.COUNT: self._count,
            Kind.WORD: self._word,
            Kind.TEXT: lambda _: self._next(),
            Kind.TAGS: self._tags,
            Kind.NEW_FILE: self._new_file,
            Kind.FILE: self._file,
            Kind.FILE_RANGE: self._file_range,
            Kind.PATH: self._path,
            Kind.NEW_PIN: self._new_pin,
            Kind.PIN: self._pin,
            Kind.NEW_FRAMES: self._new_frames,
            Kind.NEW_SEGMENT: self._new_segment,
            Kind.SEGMENT: self._segment,
        }

    def read(self) -> dict[str, Any]:
        """Every argument of the step, by name."""
        for parameter in self._verb.parameters:
            self._read(parameter)
        for option in self._verb.options:
            for parameter in option.values:
                self._args[parameter.name] = None
            if not option.values:
                self._args[option.name] = option.default
        while self._tokens:
            self._option()
        self._finish()
        return self._args

    def _option(self) -> None:
        word = self._tokens[0]
        for option in self._verb.options:
            if word not in option.words:
                continue
            self._give(option, self._tokens.pop(0))
            for parameter in option.values:
                self._read(parameter)
            if not option.values:
                self._args[option.name] = word if option.is_choice else True
            return
        raise FormatError(
            f"{self._verb.name} does not take {word[:40]!r}",
            hint=_options_hint(self._verb, word),
        )

    def _give(self, option: Option, word: str) -> None:
        before = self._given.get(option.name)
        if before is not None:
            said = f"{word} twice" if before == word else f"both {before} and {word}"
            raise FormatError(f"{self._verb.name} is given {said}", hint="leave one of them out")
        self._given[option.name] = word

    def _read(self, parameter: Parameter) -> None:
        missing = not self._tokens or (
            parameter.is_optional
            and (self._tokens[0] in self._option_words or not self._tokens[0][:1].isdigit())
        )
        if missing:
            if parameter.default is REQUIRED:
                raise FormatError(
                    f"{self._verb.name} lacks its {_called(parameter)}",
                    hint=f"write it as: {usage(self._verb, options=False)}",
                )
            self._args[parameter.name] = parameter.default
            return
        self._args[parameter.name] = self._readers[parameter.kind](parameter)

    def _next(self) -> str:
        return self._tokens.pop(0)

    # --- one method per kind -------------------------------------------------------------------

    def _new_process(self, _: Parameter) -> str:
        name = _a_name(self._next(), "a process")
        self._resolver.check_new_process(name)
        self.effects.processes.append(name)
        return name

    def _other_process(self, _: Parameter) -> str:
        name = self._next()
        self._resolver.names_of(name)
        return name

    def _mine(self) -> Names:
        if self._process is None:
            raise FormatError(f"{self._verb.name} is done by a process", hint="write `p: ...`")
        return self._resolver.names_of(self._process)

    def _new(self, _: Parameter) -> str:
        """Only the name: the place is known when all options are (`_finish`)."""
        name = _a_name(self._next(), "a mapping")
        if name in self._mine().mappings:
            raise FormatError(
                f"{self._process} has a mapping {name} already", hint="give it another name"
            )
        return name

    def _range(self, parameter: Parameter) -> dict[str, Any]:
        whose = str(self._args[parameter.of]) if parameter.of else self._process
        names = self._resolver.names_of(whose) if whose is not None else self._mine()
        span = parse_span(self._next())
        if self._tokens[:1] == ["all"]:
            self._tokens.pop(0)
        place = _mapping(names, span.name, whose)
        end = place.pages if span.end is None else span.end
        _check_span(span, MOST_PAGES)
        if not span.beyond and end > place.pages:
            raise FormatError(
                f"{span.name} has {place.pages} pages, {span.name}[{span.first}:{end}] is beyond",
                hint=f"if that is meant, write {span.name}[{span.first}:{end}]!",
            )
        if span.first >= end:
            raise FormatError(
                f"{span.name}[{span.first}:] has no pages",
                hint=f"{span.name} has pages 0 to {place.pages - 1}",
            )
        return {
            "address": place.address + span.first * PAGE,
            "pages": end - span.first,
            "name": span.name,
            "first": span.first,
        }

    def _place(self, _: Parameter) -> dict[str, Any]:
        text = self._next()
        found = re.fullmatch(r"([A-Za-z_]\w*)(?:([+-])([0-9]{1,9}))?", text)
        if found is None:
            raise FormatError(
                f"not an address: {text[:40]!r}", hint="write buf or buf+4 (pages behind its start)"
            )
        place = _mapping(self._mine(), found[1], self._process)
        first = int(found[3] or 0) * (-1 if found[2] == "-" else 1)
        return {"address": place.address + first * PAGE, "name": found[1], "first": first}

    def _count(self, parameter: Parameter) -> int:
        number = parse_count(self._next())
        refused = self._fails and self._verb.name in ("map", "remap")
        most = _MOST_REFUSED if refused else parameter.most
        if number > most:
            raise FormatError(
                f"{self._verb.name}: {_called(parameter)} is too large: {number}",
                hint=f"scenarios are small: it may be {most}",
            )
        if number < parameter.least:
            raise FormatError(
                f"{self._verb.name}: {_called(parameter)} is too small: {number}",
                hint=f"it is at least {parameter.least}",
            )
        return number

    def _word(self, parameter: Parameter) -> str:
        word = self._next()
        if word not in parameter.choices:
            raise FormatError(
                f"{self._verb.name}: {_called(parameter)} cannot be {word[:40]!r}",
                hint=did_you_mean(word, parameter.choices),
            )
        return word

    def _tags(self, _: Parameter) -> dict[str, Any]:
        taken: list[str] = []
        while self._tokens and not (taken and self._tokens[0] in self._option_words):
            taken.append(self._next())
        tags = spread(taken)
        words = [word_of_tag(tag) for tag in tags]
        pages = self.pages
        if pages is not None and len(tags) not in (1, pages):
            raise FormatError(
                f"{len(tags)} contents for {pages} pages",
                hint="give one for all, or one for each page (A*4 is A A A A)",
            )
        for tag, word in zip(tags, words, strict=True):
            self._resolver.tags[word] = tag
        return {"tags": list(tags), "words": words}

    @property
    def pages(self) -> int | None:
        """How many pages the line is about, where it says so."""
        for name in ("range", "file", "pin"):
            found = self._args.get(name)
            if isinstance(found, dict):
                pages: int | None = found["pages"]
                return pages
            if name == "pin" and isinstance(found, str):
                return self._mine().pins[found][1]
        return None

    def _new_file(self, _: Parameter) -> str:
        name = _a_name(self._next(), "a file")
        if name in self._mine().files:
            raise FormatError(
                f"{self._process} has a file {name} open already", hint="give it another name"
            )
        self.effects.files.append(name)
        return name

    def _file(self, _: Parameter) -> str:
        return self._known_file(self._next())

    def _known_file(self, name: str) -> str:
        files = self._mine().files
        if name in self._mine().closed:
            raise FormatError(
                f"{self._process} has closed {name[:40]}", hint="it was closed in a line above"
            )
        if name not in files:
            raise FormatError(
                f"{self._process} has no open file {name[:40]!r}",
                hint=did_you_mean(name, files) or "`p: memfd f 4` or `p: open f tmpfs:a create`",
            )
        return name

    def _file_range(self, _: Parameter) -> dict[str, Any]:
        span = parse_span(self._next())
        if self._tokens[:1] == ["all"]:
            self._tokens.pop(0)
        self._known_file(span.name)
        _check_span(span, MOST_FILE_PAGES)
        pages = None if span.end is None else span.end - span.first
        return {"file": span.name, "first": span.first, "pages": pages}

    def _path(self, _: Parameter) -> dict[str, Any]:
        text = self._next()
        where, colon, name = text.partition(":")
        if where not in FILE_SYSTEMS or not colon or not is_name(name):
            raise FormatError(
                f"not a path: {text[:40]!r}",
                hint="write tmpfs:NAME or ext4:NAME, without folders; file systems are "
                + ", ".join(FILE_SYSTEMS),
            )
        return {"where": where, "name": name}

    def _new_pin(self, _: Parameter) -> str:
        name = _a_name(self._next(), "references")
        if name in self._mine().pins:
            raise FormatError(
                f"{self._process} holds references {name} already", hint="give them another name"
            )
        self.effects.pins.append(name)
        return name

    def _pin(self, parameter: Parameter) -> str:
        name, pins = self._next(), self._mine().pins
        makers = parameter.of.split()
        taker = f"`p: {makers[0] if makers else 'pin'} NAME RANGE` takes some"
        if name not in pins:
            raise FormatError(
                f"{self._process} holds no references {name[:40]!r}",
                hint=did_you_mean(name, pins) or taker,
            )
        if makers and pins[name][0] not in makers:
            wanted = " or ".join(f"`{maker}`" for maker in makers)
            raise FormatError(f"{name} was taken by `{pins[name][0]}`, not by {wanted}", hint=taker)
        return name

    def _new_frames(self, _: Parameter) -> str:
        name = _a_name(self._next(), "frames")
        self._resolver.check_new_frames(name)
        self.effects.frames.append(name)
        return name

    def _new_segment(self, _: Parameter) -> str:
        name = _a_name(self._next(), "a segment")
        if name in self._resolver.segments:
            raise FormatError(f"there is a segment {name} already", hint="give it another name")
        self.effects.segments.append(name)
        return name

    def _segment(self, _: Parameter) -> str:
        name, segments = self._next(), self._resolver.segments
        if name not in segments:
            raise FormatError(
                f"there is no segment {name[:40]!r}",
                hint=did_you_mean(name, segments) or "`shm NAME PAGES` makes one",
            )
        return name

    # --- what needs all of the line ------------------------------------------------------------

    def _finish(self) -> None:
        """Give new mappings their places."""
        references = (self._args.get("times") or 0) * (self.pages or 0)
        if references > MOST_FILE_PAGES:
            raise FormatError(
                f"{references} references are more than any scenario needs",
                hint=f"pages times TIMES may be {MOST_FILE_PAGES}",
            )
        options = {option.name: option for option in self._verb.options}
        for option in options.values():
            needed = options.get(option.needs)
            if needed is None or not self._args.get(option.name):
                continue
            if self._args[needed.values[0].name] is None:
                text = " ".join([needed.name, *(_called(one) for one in needed.values)])
                raise FormatError(
                    f"{self._verb.name} with {option.name} lacks `{needed.name}`",
                    hint=f"write `{text}` as well: {needed.help}",
                )
        for parameter in (*self._verb.parameters, *self._values()):
            name = self._args.get(parameter.name)
            if parameter.kind is not Kind.NEW or name is None:
                continue
            pages = self._args.get("new_pages") or self._args.get("pages")
            if pages is None and self._verb.name == "attach":
                pages = self._resolver.segments[self._args["segment"]]
            if pages is None:
                pages = self._args["range"]["pages"]
            if not pages:
                raise FormatError(
                    "a mapping needs at least one page",
                    hint=f"write it as: {usage(self._verb, options=False)}, with PAGES 1 or more",
                )
            place = self._placement(int(pages))
            self.effects.mappings[name] = place
            self._args[parameter.name] = {
                "address": place.address,
                "pages": place.pages,
                "name": name,
            }

    def _values(self) -> list[Parameter]:
        return [parameter for option in self._verb.options for parameter in option.values]

    def _placement(self, pages: int) -> Placement:
        at = self._args.get("at")
        if at is not None:
            return Placement(int(at["address"]), pages)
        return self._resolver.take(
            pages, int(self._args.get("offset") or 0), bool(self._args.get("growsdown"))
        )


def _check_span(span: Span, most: int) -> None:
    last = span.first if span.end is None else span.end
    if last > most:
        raise FormatError(
            f"{span.name}[{last}] is farther than any scenario needs",
            hint=f"scenarios are small: ranges end at {most} or before",
        )


def _called(parameter: Parameter) -> str:
    return parameter.name.upper() if parameter.kind is not Kind.TAGS else "CONTENT"


def _options_hint(verb: Verb, word: str) -> str:
    known = [one for option in verb.options for one in option.words]
    if not known:
        return f"write it as: {usage(verb)}"
    return did_you_mean(word, known)


def _a_name(text: str, what: str) -> str:
    if not is_name(text):
        raise FormatError(
            f"not a name for {what}: {text[:40]!r}", hint="letters, digits and _, not `all`"
        )
    return text


def _mapping(names: Names, name: str, whose: str | None) -> Placement:
    place = names.mappings.get(name)
    if place is None:
        raise FormatError(
            f"{whose} has no mapping {name[:40]!r}",
            hint=did_you_mean(name, names.mappings) or f"`{whose}: map {name} 4` makes one",
        )
    return place
