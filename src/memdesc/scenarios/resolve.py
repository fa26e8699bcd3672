"""From lines to steps: names become addresses, words become arguments, by the table of verbs.

A `Resolver` follows a scenario on one kernel: which processes live, what is mapped under which
name, which files are open. It believes what a line says will happen: after `-> ENOMEM` nothing
was mapped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from memdesc.errors import FormatError
from memdesc.scenarios.arguments import Arguments
from memdesc.scenarios.arrow import check_count, read_expected, succeeds
from memdesc.scenarios.knobs import KNOBS
from memdesc.scenarios.language import Result, Verb
from memdesc.scenarios.names import Effects, Names
from memdesc.scenarios.outcome import ANYTHING
from memdesc.scenarios.places import ZERO_TAG, Placement, Places, is_tag, word_of_tag
from memdesc.scenarios.step import Step
from memdesc.scenarios.usage import usage
from memdesc.scenarios.verbs import ENDS_REFERENCES, VERBS
from memdesc.scenarios.words import did_you_mean, is_name

__all__ = ["Resolver"]

_STEP = re.compile(r"(?:(?P<process>[^\s:\[\]]+):(?:\s+|$))?(?P<rest>.*)", re.DOTALL)
_OWED: Final = {"dma": "release", "dma_from": "dma_taken"}
"""Verbs that let a device begin -> the verb that lets it go on, without which it never ends."""


class Resolver:
    """Reads the lines of one scenario in order."""

    def __init__(self) -> None:
        self.processes: dict[str, Names] = {}
        self.tags: dict[int, str] = {0: ZERO_TAG}
        self.remembered: dict[str, int] = {}
        """Name of remembered frames -> how many they are."""
        self.segments: dict[str, int] = {}
        """Segment of System V shared memory -> its pages; also of one that was removed."""
        self._places = Places()
        self._gone: set[str] = set()
        self._watch: Mapping[str, Mapping[str, Placement]] = {}
        self._owed: dict[tuple[str, str], tuple[str, int]] = {}
        """Process and references -> the verb that must end them, the line that took them."""

    def step(self, text: str, line: int) -> Step:
        """Read one line. Raises FormatError, which whoever knows the file gives a place."""
        left, arrow, right = text.partition("->")
        found = _STEP.fullmatch(left.strip())
        if found is None:  # pragma: no cover - the pattern takes every text
            raise FormatError(f"not a step: {text[:60]!r}")
        process, tokens = found["process"], found["rest"].split()
        if process is not None:
            self._living(process)
        verb = _verb(tokens, process, self.processes)
        expected = read_expected(verb, right.split(), self.tags.values()) if arrow else None
        fails = expected is not None and not succeeds(expected)
        arguments = Arguments(self, verb, process, tokens[1:], fails=fails)
        args = arguments.read()
        if expected is not None and not fails:
            check_count(verb, expected, arguments.pages)
        if verb.name == "knob":
            knob = KNOBS[args["name"]]
            knob.check(args["name"], args["value"])
            args["path"] = knob.path
        if not fails:
            self._apply(verb, process, args, arguments.effects)
            self._owe(verb, process, args, line)
        if verb.result is Result.CONTENTS and expected and succeeds(expected):
            self.name_contents(expected)
        name = verb.name
        if verb.alias is not None:
            name, more = verb.alias
            args = {**args, **more}
        watch = self._watch = self._watched()
        remembered = dict(self.remembered)
        return Step(line, text, name, args, process, expected, watch, remembered=remembered)

    def name_contents(self, cells: Iterable[str]) -> None:
        """Make the contents among `cells` known: what holds their words is shown by their names."""
        for cell in cells:
            if cell not in ("ok", ANYTHING) and is_tag(cell):
                self.tags.setdefault(word_of_tag(cell), cell)

    def unfinished(self) -> tuple[int, FormatError] | None:
        """At the end of the lines: a line whose device waits forever, and what is wrong."""
        for (process, pin), (verb, line) in self._owed.items():
            return line, FormatError(
                f"the device of `{verb} {pin}` never goes on",
                hint=f"write `{process}: {_OWED[verb]} {pin}` in a line below",
            )
        return None

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
        self._check_not_remembered(name)

    def check_new_frames(self, name: str) -> None:
        """Rows begin with such a name or with a process, so it must be neither."""
        if name in self.processes:
            raise FormatError(f"{name} is a process", hint="give the frames another name")
        self._check_not_remembered(name)

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
        self, verb: Verb, process: str | None, args: Mapping[str, Any], effects: Effects
    ) -> None:
        for name in effects.processes:
            parent = self.processes.get(process) if process is not None else None
            self.processes[name] = parent.copy() if parent else Names()
        if process is not None:
            mine = self.processes[process]
            mine.mappings.update(effects.mappings)
            mine.files.update(effects.files)
            mine.closed.difference_update(effects.files)
            for name in effects.pins:
                mine.pins[name] = verb.name, int(args["range"]["pages"])
            for name in effects.frames:
                self.remembered[name] = int(args["range"]["pages"])
            self._resize(verb, mine, args)
            if verb.name == "close":
                mine.files.discard(args["file"])
                mine.closed.add(args["file"])
            if verb.name in ENDS_REFERENCES:
                mine.pins.pop(args["pin"], None)
            if verb.name == "hand":
                self.processes[args["other"]].pins[args["pin"]] = mine.pins.pop(args["pin"])
        for name in effects.segments:
            self.segments[name] = int(args["pages"])
        if verb.ends:
            ended = args.get("process", process)
            del self.processes[ended]
            self._gone.add(ended)

    def _watched(self) -> Mapping[str, Mapping[str, Placement]]:
        """What lies where now: as many mappings as before are the same objects as before."""
        found: dict[str, Mapping[str, Placement]] = {}
        for name, names in self.processes.items():
            before = self._watch.get(name)
            if before is None or before != names.mappings:
                before = dict(names.mappings)
            found[name] = before
        return self._watch if found == self._watch else found

    def _owe(self, verb: Verb, process: str | None, args: Mapping[str, Any], line: int) -> None:
        """Note what a device has begun, and what has ended."""
        pin = args.get("pin")
        if process is None or pin is None:
            return
        if verb.name in _OWED:
            self._owed[process, pin] = verb.name, line
        elif verb.name in ENDS_REFERENCES:
            self._owed.pop((process, pin), None)

    def _check_not_remembered(self, name: str) -> None:
        if name in self.remembered:
            raise FormatError(f"frames are remembered as {name} already", hint="take another name")

    def _resize(self, verb: Verb, names: Names, args: Mapping[str, Any]) -> None:
        """A mapping that grows in place is observed as far as it reaches then."""
        if verb.name != "remap" or args["to"] is not None or args["new_pages"] is None:
            return
        name = args["range"]["name"]
        place = names.mappings[name]
        pages = max(place.pages, args["range"]["first"] + args["new_pages"])
        names.mappings[name] = Placement(place.address, pages)


# --- helpers -----------------------------------------------------------------------------


def _verb(tokens: list[str], process: str | None, processes: Iterable[str]) -> Verb:
    if not tokens:
        raise FormatError(
            "nothing to do",
            hint=f"`{process}: map buf 4`" if process else "a step begins with a verb",
        )
    verb = VERBS.get(tokens[0])
    if verb is None:
        name, colon, rest = tokens[0].partition(":")
        hint = did_you_mean(tokens[0], VERBS)
        if process is None and colon and is_name(name):
            hint = f"write a space behind `{name}:`, as `{name}: {rest or 'map'}`"
        elif process is None and tokens[0] in processes:
            hint = f"write a colon behind the process: `{tokens[0]}: {' '.join(tokens[1:])}`"
        raise FormatError(f"unknown verb: {tokens[0][:40]!r}", hint=hint[:200])
    if verb.by_process and process is None:
        raise FormatError(f"{verb.name} is done by a process", hint=f"write it as: {usage(verb)}")
    if not verb.by_process and process is not None:
        raise FormatError(f"{verb.name} is done by no process", hint=f"write it as: {usage(verb)}")
    return verb
