"""Random scenarios: the same seed gives the same steps, and what fails is made small.

Steps are written as text, so that what fails is a scenario file like any other: it can be read,
kept, and run on a real kernel.  A step may fail (`-> any`): model and kernel must then fail alike.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

__all__ = ["WEIGHTS", "random_scenario", "shrink"]

WEIGHTS: Final[Mapping[str, int]] = {
    "map": 8,
    "write": 24,
    "read": 10,
    "fork": 4,
    "exit": 3,
    "unmap": 5,
    "protect": 5,
    "advise": 10,
    "lock": 3,
    "remap": 3,
    "splice": 3,
    "pin": 2,
    "release": 4,
    "poke": 2,
    "copy_to": 2,
    "ksm": 2,
    "reclaim": 2,
    "file": 2,
    "pwrite": 4,
    "truncate": 2,
    "punch": 1,
}
"""How often each kind of step is tried. A kind that is left out never happens."""

_MOST_PROCESSES: Final = 5
_MOST_MAPPINGS: Final = 10
_MOST_HELD: Final = 6
_TAGS: Final = "ABCD"
_ALONE: Final = {"ksm": "ksm scan 3"}
"""Kinds that no process does."""
_ADVICE: Final = (
    *("dontneed", "free", "cold", "willneed", "random", "normal", "sequential", "mergeable"),
    *("unmergeable", "populate_read", "populate_write", "dontfork", "dofork", "wipeonfork"),
    *("keeponfork", "dontdump", "dodump"),
)


def random_scenario(
    seed: int, steps: int = 300, *, weights: Mapping[str, int] = WEIGHTS, knobs: str = ""
) -> str:
    """The text of a scenario file with so many steps. `knobs`: lines that come first."""
    writer = _Writer(random.Random(seed), dict(weights))
    lines = [line for line in knobs.splitlines() if line.strip()]
    if weights.get("reclaim"):
        lines.append("swap on")
    lines.append(writer.begin())
    while len(lines) < steps:
        line = writer.line()
        if line:
            lines.append(line)
    body = "\n".join(lines)
    return f"# Random steps, seed {seed}\n\n```scenario\n{body}\n```\n"


def shrink(text: str, fails: Callable[[str], bool], *, tries: int = 400) -> str:
    """A smaller text that fails as well: lines of its block are left out while it does.

    `fails` is False also for a text that cannot be read any more, as where a mapping is gone that
    a later line names. At most `tries` texts are tried.
    """
    head, _, rest = text.partition("```scenario\n")
    body, _, tail = rest.rpartition("\n```")
    lines = body.split("\n")
    size = max(1, len(lines) // 2)
    while size and tries > 0:
        at = len(lines)
        while at > 0 and tries > 0:
            low = max(0, at - size)
            fewer = lines[:low] + lines[at:]
            tries -= 1
            if fewer and fails(_joined(head, fewer, tail)):
                lines = fewer
            at = low
        size //= 2
    return _joined(head, lines, tail)


# --- helpers -----------------------------------------------------------------------------


def _joined(head: str, lines: list[str], tail: str) -> str:
    return f"{head}```scenario\n" + "\n".join(lines) + f"\n```{tail}"


@dataclass
class _Writer:
    """Writes lines, and keeps track of the names that they may use."""

    chance: random.Random
    weights: dict[str, int]
    mappings: dict[str, dict[str, int]] = field(default_factory=dict)
    """process -> mapping -> pages."""
    files: dict[str, dict[str, int]] = field(default_factory=dict)
    """process -> open file -> pages."""
    held: dict[str, list[str]] = field(default_factory=dict)
    """process -> pins that it holds; a fork gives them to the child as well."""
    names: int = 0

    def begin(self) -> str:
        name = self._name("p")
        self.mappings[name], self.files[name], self.held[name] = {}, {}, []
        return f"process {name}"

    def line(self) -> str:
        """The next line; "" where what was drawn cannot be done now."""
        kinds = list(self.weights)
        kind = self.chance.choices(kinds, [self.weights[each] for each in kinds])[0]
        if not self.mappings:
            return self.begin()
        process = self.chance.choice(sorted(self.mappings))
        if kind in _ALONE:
            return _ALONE[kind]
        text = getattr(self, f"_{kind}")(process)
        return f"{process}: {text}" if text else ""

    # --- one kind of step each -----------------------------------------------------------

    def _map(self, process: str) -> str:
        if len(self.mappings[process]) >= _MOST_MAPPINGS:
            return ""
        name, pages = self._name("m"), self.chance.choice([1, 2, 4, 8, 16])
        files = sorted(self.files[process])
        how = self.chance.choice(["", "", "", "", "shared", "populate", "file"])
        if how == "file":
            if not files:
                return ""
            share = self.chance.choice(["shared", "private"])
            how = f"file {self.chance.choice(files)} {share}"
        self.mappings[process][name] = pages
        return f"map {name} {pages} {how}".rstrip()

    def _write(self, process: str) -> str:
        return self._on(process, "write", self._tag())

    def _read(self, process: str) -> str:
        return self._on(process, "read")

    def _fork(self, process: str) -> str:
        if len(self.mappings) >= _MOST_PROCESSES:
            return ""
        child = self._name("p")
        self.mappings[child] = dict(self.mappings[process])
        self.files[child] = dict(self.files[process])
        self.held[child] = []
        return f"fork {child}"

    def _exit(self, process: str) -> str:
        if len(self.mappings) < 2:
            return ""
        for owned in (self.mappings, self.files, self.held):
            del owned[process]
        return "exit"

    def _unmap(self, process: str) -> str:
        return self._on(process, "unmap")

    def _protect(self, process: str) -> str:
        return self._on(process, "protect", self.chance.choice(["r", "rw", "rw", "none"]))

    def _advise(self, process: str) -> str:
        return self._on(process, "advise", self.chance.choice(_ADVICE))

    def _lock(self, process: str) -> str:
        return self._on(process, self.chance.choice(["lock", "unlock"]))

    def _remap(self, process: str) -> str:
        if not self.mappings[process] or len(self.mappings[process]) >= _MOST_MAPPINGS:
            return ""
        pages_range, pages = self._range(process)
        name = self._name("m")
        self.mappings[process][name] = pages
        return f"remap {pages_range} to {name} -> any"

    def _splice(self, process: str) -> str:
        return self._take(process, "splice")

    def _pin(self, process: str) -> str:
        return self._take(process, "pin")

    def _release(self, process: str) -> str:
        if not self.held[process]:
            return ""
        return f"release {self.held[process].pop(0)} -> any"

    def _poke(self, process: str) -> str:
        other = self.chance.choice(sorted(self.mappings))
        if not self.mappings[other]:
            return ""
        return f"poke {other} {self._range(other)[0]} {self._tag()} -> any"

    def _copy_to(self, process: str) -> str:
        return self._on(process, "copy_to", self._tag())

    def _reclaim(self, process: str) -> str:
        return self._on(process, "reclaim")

    def _file(self, process: str) -> str:
        if len(self.files[process]) >= 2:
            return ""
        name, pages = self._name("f"), self.chance.choice([2, 8])
        self.files[process][name] = pages
        return f"memfd {name} {pages}"

    def _pwrite(self, process: str) -> str:
        return self._in_file(process, "pwrite", self._tag())

    def _truncate(self, process: str) -> str:
        if not self.files[process]:
            return ""
        name = self.chance.choice(sorted(self.files[process]))
        return f"truncate {name} {self.chance.randrange(9)} -> any"

    def _punch(self, process: str) -> str:
        return self._in_file(process, "punch")

    # --- parts of lines ------------------------------------------------------------------

    def _name(self, prefix: str) -> str:
        self.names += 1
        return f"{prefix}{self.names}"

    def _tag(self) -> str:
        return self.chance.choice(_TAGS)

    def _range(self, process: str) -> tuple[str, int]:
        name = self.chance.choice(sorted(self.mappings[process]))
        pages = self.mappings[process][name]
        if self.chance.random() < 0.4:
            return name, pages
        first = self.chance.randrange(pages)
        end = self.chance.randint(first + 1, pages)
        return f"{name}[{first}:{end}]", end - first

    def _on(self, process: str, verb: str, rest: str = "") -> str:
        if not self.mappings[process]:
            return ""
        return f"{verb} {self._range(process)[0]} {rest}".rstrip() + " -> any"

    def _take(self, process: str, verb: str) -> str:
        if not self.mappings[process] or len(self.held[process]) >= _MOST_HELD:
            return ""
        name = self._name("h")
        self.held[process].append(name)
        return f"{verb} {name} {self._range(process)[0]} -> any"

    def _in_file(self, process: str, verb: str, rest: str = "") -> str:
        if not self.files[process]:
            return ""
        name = self.chance.choice(sorted(self.files[process]))
        pages = self.files[process][name]
        first = self.chance.randrange(pages)
        end = self.chance.randint(first + 1, pages)
        return f"{verb} {name}[{first}:{end}] {rest}".rstrip() + " -> any"
