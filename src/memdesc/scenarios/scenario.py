"""A scenario: the lines of one fenced block, and what they mean on one kernel.

Which lines hold depends on the kernel (`# version`), and what a line means on the lines before
it, so steps are made per release: `Scenario.on`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from memdesc.errors import FormatError
from memdesc.kernels.conditions import Condition
from memdesc.scenarios.expectation import Check
from memdesc.scenarios.step import Step

__all__ = ["Line", "Plan", "Scenario", "ScenarioError"]


class ScenarioError(FormatError):
    """A scenario file is not written as it must be. `str()` begins with "path:line: "."""

    def __init__(self, message: str, *, path: str, line: int, hint: str = "") -> None:
        super().__init__(f"{path}:{line}: {message}", hint=hint)
        self.path = path
        self.line = line


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a block that says something: no comment, not empty."""

    number: int
    """In the file, from 1."""
    text: str
    """Without indentation and comment."""
    is_indented: bool
    condition: Condition


@dataclass(frozen=True, slots=True)
class Plan:
    """The steps of a scenario on one kernel."""

    steps: tuple[Step, ...]
    tags: Mapping[int, str]
    """Word -> the content that it stands for; 0 is "0"."""
    counters: tuple[str, ...] = ()
    """Counters of the system that some row of `expect` asks for."""
    soft_dirty: bool = False
    """Whether soft-dirty bits are compared."""
    referenced: bool = False
    """Whether the line Referenced of smaps is compared."""
    changes_system: bool = False
    """Whether some step changes a setting of the whole machine."""

    @property
    def checks(self) -> tuple[Check, ...]:
        return tuple(check for step in self.steps for check in step.checks)


@dataclass(frozen=True, slots=True)
class Scenario:
    """One block of a file."""

    title: str
    """The heading above the block."""
    path: Path
    line: int
    """Of the line that opens the block."""
    lines: tuple[Line, ...]
    prose: str = ""
    """Text between the heading and the block."""
    plans: Mapping[str, Plan] = field(default_factory=dict, compare=False, repr=False)
    """Series -> steps, for the kernels that every scenario is read for."""

    @property
    def name(self) -> str:
        """Short and unique: topic/file, with the line where a file has several."""
        return f"{self.path.parent.name}/{self.path.stem}:{self.line}"

    @property
    def digest(self) -> str:
        """A hash of what its lines say: results that were recorded for other lines are stale."""
        said = "\n".join(f"{line.condition} {line.is_indented} {line.text}" for line in self.lines)
        return hashlib.sha256(said.encode()).hexdigest()[:16]
