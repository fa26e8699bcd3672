"""What a read of many processes met: how many were read, and why others were not."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Self

from memdesc.errors import CaptureError

__all__ = ["ReadReport"]


@dataclass(frozen=True, slots=True)
class ReadReport:
    """How the attribution was read, and what could not be. Processes, unless said."""

    seen: int = 0
    read: int = 0
    kernel_threads: int = 0
    zombies: int = 0
    vanished: int = 0
    """Ended while we read; nothing of them is kept."""
    refused: int = 0
    """Could not be opened or read: their mappings are missing."""
    changed: int = 0
    """Had another size or resident set after the read than before (/proc/PID/statm)."""
    truncated: int = 0
    """Their pagemap could not be read to its end: what lies behind is missing."""
    bad_lines: int = 0
    """Lines of maps files that are none; left out."""
    entries_read: int = 0
    """Pagemap entries read, present or not."""
    pages_skipped: int = 0
    """Virtual pages that were not read because nothing is there (PAGEMAP_SCAN, file holes)."""
    seconds: float = 0.0
    problems: tuple[tuple[int, str], ...] = ()
    """(pid, reason) of the refused and truncated, at most 1000."""

    @property
    def is_complete(self) -> bool:
        """True when no process that has memory was left out or cut short."""
        return not (self.refused or self.truncated or self.bad_lines)

    def to_json(self) -> dict[str, Any]:
        """Plain values; `from_json` reads them back."""
        value = {item.name: getattr(self, item.name) for item in fields(self)}
        value["problems"] = [list(problem) for problem in self.problems]
        return value

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Inverse of `to_json`. Raises CaptureError for any other shape."""
        if not isinstance(value, dict) or len(value) > 64:
            raise CaptureError("the report of the attribution is no JSON object")
        known: dict[str, Any] = {}
        for item in fields(cls):
            given = value.get(item.name, item.default)
            if item.name == "problems":
                known[item.name] = tuple(_problem(problem) for problem in given or ())
            elif item.name == "seconds":
                known[item.name] = float(given) if isinstance(given, (int, float)) else 0.0
            elif type(given) is int and 0 <= given < 1 << 63:
                known[item.name] = given
            else:
                raise CaptureError(f"not a count: {item.name} = {given!r:.40}")
        return cls(**known)


def _problem(value: Any) -> tuple[int, str]:
    if (
        isinstance(value, (list, tuple))
        and len(value) == 2
        and type(value[0]) is int
        and isinstance(value[1], str)
    ):
        return value[0], value[1][:1000]
    raise CaptureError(f"not a problem of an attribution: {value!r:.60}")
