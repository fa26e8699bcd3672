"""From lines to steps: names become addresses, words become arguments, by the table of verbs.

A `Resolver` follows a scenario on one kernel: which processes live, what is mapped under which
name, which files are open. It believes what a line says will happen: after `-> ENOMEM` nothing
was mapped.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from memdesc.errors import FormatError
from memdesc.scenarios.expectation import WAITS
from memdesc.scenarios.language import FILE_SYSTEMS, REQUIRED, Kind, Parameter, Result, Verb
from memdesc.scenarios.outcome import ANYTHING, CODES, is_errno
from memdesc.scenarios.places import PAGE, ZERO_TAG, Placement, Places, is_tag, word_of_tag
from memdesc.scenarios.reference_steps import ENDS_REFERENCES
from memdesc.scenarios.steps import KNOBS, VERBS, Step
from memdesc.scenarios.usage import usage
from memdesc.scenarios.words import did_you_mean, is_name, parse_count, parse_span, spread

__all__ = ["Names", "Resolver"]

_STEP = re.compile(r"(?:(?P<process>[^\s:\[\]]+):(?:\s+|$))?(?P<rest>.*)", re.DOTALL)
_MOST_PAGES: Final = 1 << 24
"""64 GiB: more is a slip of the finger."""


@dataclass(slots=True)
class Names:
    """What one process knows by name."""

    mappings: dict[str, Placement] = field(default_factory=dict)
    files: set[str] = field(default_factory=set)

    def copy(self) -> Names:
        return Names(dict(self.mappings), set(self.files))


@dataclass(slots=True)
class _Effects:
    """What a line changes once it has succeeded."""

    mappings: dict[str, Placement] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    pins: list[str] = field(default_factory=list)
    processes: list[str] = field(default_factory=list)


class Resolver:
    """Reads the lines of one scenario in order."""

    def __init__(self) -> None:
        self.processes: dict[str, Names] = {}
        self.tags: dict[int, str] = {0: ZERO_TAG}
        self._places = Places()
        self._pins: dict[str, int] = {}
        self._gone: set[str] = set()

    def step(self, text: str, line: int) -> Step:
        """Read one line. Raises FormatError, which whoever knows the file gives a place."""
        left, arrow, right = text.partition("->")
        found = _STEP.fullmatch(left.strip())
        if found is None:  # pragma: no cover - the pattern takes every text
            raise FormatError(f"not a step: {text[:60]!r}")
        process, tokens = found["process"], found["rest"].split()
        if process is not None:
            self._living(process)
        verb = _verb(tokens, process)
        expected = _expected(verb, right.split()) if arrow else None
        arguments = _Arguments(self, verb, process, tokens[1:])
        args = arguments.read()
        if verb.name == "knob":
            args["path"] = KNOBS[args["name"]].path
        if expected is None or _succeeds(expected):
            self._apply(verb, process, args, arguments.effects)
        if verb.result is Result.CONTENTS and expected and _succeeds(expected):
            self.name_contents(expected)
        name = verb.name
        if verb.alias is not None:
            name, more = verb.alias
            args = {**args, **more}
        watch = {name: dict(names.mappings) for name, names in self.processes.items()}
        return Step(line, text, name, args, process, expected, watch)

    def name_contents(self, cells: Iterable[str]) -> None:
        """Make the contents among `cells` known: what holds their words is shown by their names."""
        for cell in cells:
            if cell not in ("ok", ANYTHING) and is_tag(cell):
                self.tags.setdefault(word_of_tag(cell), cell)

    # --- what arguments ask ------------------------------------------------------------------

    def names_of(self, process: str) -> Names:
        """What a living process knows. Raises FormatError."""
        self._living(process)
        return self.processes[process]

    def take(self, pages: int, offset: int, grows_down: bool) -> Placement:
        """The next slot."""
        return self._places.take(pages, offset=offset, grows_down=grows_down)

    def check_new_process(self, name: str) -> None:
        if name in self.processes or name in self._gone:
            raise FormatError(f"there is a process {name} already", hint="give it another name")

    def pages_of_pin(self, name: str) -> int:
        """Pages that references were taken to. Raises FormatError."""
        if name not in self._pins:
            raise FormatError(
                f"no references are called {name!r}",
                hint=did_you_mean(name, self._pins) or "`p: pin NAME RANGE` takes some",
            )
        return self._pins[name]

    # --- helpers -----------------------------------------------------------------------------

    def _living(self, process: str) -> None:
        if process in self.processes:
            return
        if process in self._gone:
            raise FormatError(f"process {process} has ended", hint="it ended in a line above")
        known = did_you_mean(process, self.processes)
        raise FormatError(
            f"there is no process {process[:40]!r}",
            hint=known or f"make one first: `process {process}`",
        )

    def _apply(
        self, verb: Verb, process: str | None, args: Mapping[str, Any], effects: _Effects
    ) -> None:
        for name in effects.processes:
            parent = self.processes.get(process) if process is not None else None
            self.processes[name] = parent.copy() if parent else Names()
        if process is not None:
            mine = self.processes[process]
            mine.mappings.update(effects.mappings)
            mine.files.update(effects.files)
            for name in effects.pins:
                self._pins[name] = int(args["range"]["pages"])
            self._resize(verb, mine, args)
            if verb.name == "close":
                mine.files.discard(args["file"])
        if verb.name in ENDS_REFERENCES:
            self._pins.pop(args["pin"], None)
        if verb.ends:
            ended = args.get("process", process)
            del self.processes[ended]
            self._gone.add(ended)

    def _resize(self, verb: Verb, names: Names, args: Mapping[str, Any]) -> None:
        """A mapping that grows in place is observed as far as it reaches then."""
        if verb.name != "remap" or args["to"] is not None or args["new_pages"] is None:
            return
        name = args["range"]["name"]
        place = names.mappings[name]
        pages = max(place.pages, args["range"]["first"] + args["new_pages"])
        names.mappings[name] = Placement(place.address, pages)


class _Arguments:
    """Reads the words of one line by its verb's row."""

    def __init__(
        self, resolver: Resolver, verb: Verb, process: str | None, tokens: list[str]
    ) -> None:
        self.effects = _Effects()
        self._resolver = resolver
        self._verb = verb
        self._process = process
        self._tokens = tokens
        self._args: dict[str, Any] = {}
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
            self._tokens.pop(0)
            for parameter in option.values:
                self._read(parameter)
            if not option.values:
                self._args[option.name] = word if option.is_choice else True
            return
        raise FormatError(
            f"{self._verb.name} does not take {word[:40]!r}",
            hint=_options_hint(self._verb, word),
        )

    def _read(self, parameter: Parameter) -> None:
        missing = not self._tokens or (
            parameter.is_optional
            and (self._tokens[0] in self._option_words or not self._tokens[0][:1].isdigit())
        )
        if missing:
            if parameter.default is REQUIRED:
                raise FormatError(
                    f"{self._verb.name} lacks its {_called(parameter)}",
                    hint=f"write it as: {usage(self._verb)}",
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
        if not span.beyond and end > place.pages:
            raise FormatError(
                f"{span.name} has {place.pages} pages, {span.name}[{span.first}:{end}] is beyond",
                hint=f"if that is meant, write {span.name}[{span.first}:{end}]!",
            )
        if span.first >= end:
            raise FormatError(f"{span.name}[{span.first}:] has no pages")
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
        if parameter.name.endswith("pages") and number > _MOST_PAGES:
            raise FormatError(f"{number} pages are more than any scenario needs")
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
        pages = self._pages_to_fill()
        if pages is not None and len(tags) not in (1, pages):
            raise FormatError(
                f"{len(tags)} contents for {pages} pages",
                hint="give one for all, or one for each page (A*4 is A A A A)",
            )
        for tag, word in zip(tags, words, strict=True):
            self._resolver.tags[word] = tag
        return {"tags": list(tags), "words": words}

    def _pages_to_fill(self) -> int | None:
        for name in ("range", "file", "pin"):
            found = self._args.get(name)
            if isinstance(found, dict):
                pages: int | None = found["pages"]
                return pages
            if name == "pin" and isinstance(found, str):
                return self._resolver.pages_of_pin(found)
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
        self.effects.pins.append(name)
        return name

    def _pin(self, _: Parameter) -> str:
        name = self._next()
        self._resolver.pages_of_pin(name)
        return name

    # --- what needs all of the line ------------------------------------------------------------

    def _finish(self) -> None:
        """Give new mappings their places."""
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
            if pages is None:
                pages = self._args["range"]["pages"]
            if not pages:
                raise FormatError("a mapping needs at least one page")
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


def _verb(tokens: list[str], process: str | None) -> Verb:
    if not tokens:
        raise FormatError(
            "nothing to do",
            hint=f"`{process}: map buf 4`" if process else "a step begins with a verb",
        )
    verb = VERBS.get(tokens[0])
    if verb is None:
        raise FormatError(f"unknown verb: {tokens[0][:40]!r}", hint=did_you_mean(tokens[0], VERBS))
    if verb.by_process and process is None:
        raise FormatError(f"{verb.name} is done by a process", hint=f"write it as: {usage(verb)}")
    if not verb.by_process and process is not None:
        raise FormatError(f"{verb.name} is done by no process", hint=f"write it as: {usage(verb)}")
    return verb


def _expected(verb: Verb, words: list[str]) -> tuple[str, ...]:
    """What stands behind the arrow, as cells. Raises FormatError where it cannot happen."""
    if not words:
        raise FormatError("nothing stands behind ->", hint="leave it out where a step must succeed")
    first = words[0]
    if tuple(words) == WAITS:
        return WAITS
    if first in CODES:
        if len(words) > 2 or (len(words) == 2 and words[1] not in CODES[first]):
            raise FormatError(
                f"not a code of {first}: {' '.join(words[1:])[:40]!r}",
                hint=did_you_mean(words[1], CODES[first]),
            )
        return tuple(words)
    if is_errno(first) or first in ("ok", ANYTHING):
        if len(words) > 1:
            raise FormatError(f"nothing can stand behind {first}")
        return (first,)
    if re.fullmatch(r"E[A-Z0-9]{2,}", first) or first.startswith("SIG"):
        raise FormatError(
            f"not an error or signal that a step can give: {first[:40]!r}",
            hint="errors are written as EFAULT, signals as SIGSEGV ACCERR",
        )
    match verb.result:
        case Result.NOTHING:
            raise FormatError(
                f"{verb.name} returns nothing: {first[:40]!r}",
                hint="behind -> can stand an error (EFAULT) or a signal (SIGSEGV ACCERR)",
            )
        case Result.CONTENTS:
            cells = spread(words)
            wrong = next((cell for cell in cells if cell != "?" and not is_tag(cell)), None)
            if wrong is not None:
                raise FormatError(
                    f"not a content: {wrong[:40]!r}",
                    hint="contents are letters and words, 0 is zeroes, ? is anything else",
                )
            return cells
        case Result.NUMBER | Result.NUMBERS:
            cells = spread(words)
            numbers = tuple(str(parse_count(cell)) for cell in cells)
            if verb.result is Result.NUMBER and len(numbers) != 1:
                raise FormatError(f"{verb.name} returns one number, not {len(numbers)}")
            return numbers
        case Result.WORD:
            return tuple(words)


def _succeeds(expected: tuple[str, ...]) -> bool:
    return not (is_errno(expected[0]) or expected[0] in CODES)


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
