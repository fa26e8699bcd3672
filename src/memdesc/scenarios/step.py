"""A step: one line of a scenario, read.

What a step's `args` hold, by kind of parameter (all of it JSON):

RANGE        {"address", "pages", "name", "first"}: where it lies, and the mapping it is part of
NEW          {"address", "pages", "name"}: the place that the reader chose
PLACE        {"address", "name", "first"}
FILE_RANGE   {"file", "first", "pages"}; pages is None for "all that it has"
TAGS         {"tags", "words"}: one per page, or one for all; a word fills the page
PATH         {"where", "name"}: one of FILE_SYSTEMS, and the name there
NEW_FRAMES   the name
NEW_SEGMENT  the name
others       the word or number itself
flags        True or False; choices: the word; options that are not given: None
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from memdesc.scenarios.expectation import Check
from memdesc.scenarios.places import Placement

__all__ = ["Step"]


@dataclass(frozen=True, slots=True)
class Step:
    """One line of a scenario, with names resolved to addresses."""

    line: int
    text: str
    """As it stands in the file, without the indentation."""
    verb: str
    args: Mapping[str, Any]
    process: str | None = None
    """Who does it; None where nobody in particular does."""
    expected: tuple[str, ...] | None = None
    """The words behind `->`; None: it must succeed."""
    watch: Mapping[str, Mapping[str, Placement]] = field(default_factory=dict)
    """process -> name -> where it lies: what is observed after the step."""
    checks: tuple[Check, ...] = ()
    """Rows of `expect` that follow."""
    remembered: Mapping[str, int] = field(default_factory=dict)
    """Names that `remember` gave to frames -> how many they are."""

    @property
    def frames(self) -> tuple[str, ...]:
        """Names of remembered frames that rows ask about after this step."""
        return tuple(sorted({check.name for check in self.checks if check.is_of_frames}))

    def as_json(self) -> dict[str, Any]:
        """What is sent to the program that does it on a real kernel."""
        return {
            "line": self.line,
            "process": self.process,
            "verb": self.verb,
            "args": dict(self.args),
            "frames": list(self.frames),
            "watch": {
                process: {
                    name: {"address": place.address, "pages": place.pages}
                    for name, place in names.items()
                }
                for process, names in self.watch.items()
            },
        }
