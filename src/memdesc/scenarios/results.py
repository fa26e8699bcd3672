"""What came of comparing scenarios: a file that `compare` saves and `table` shows.

One entry per scenario and kernel: did the model and the kernel agree after every step, and did
what the scenario says hold on both?
"""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final, Self

from memdesc.errors import FormatError, NotReadableError
from memdesc.written import write_text

__all__ = ["SCHEMA", "VERDICTS", "Results", "ScenarioResult"]

SCHEMA: Final = "memdesc-scenarios/1"
VERDICTS: Final = {
    "holds": "the model and the kernel agree after every step, and with the scenario",
    "differs": "the model and the kernel differ",
    "fails": "they agree, but not with what the scenario says",
    "skipped": "this place cannot do some step",
    "broken": "the run did not come to its end",
    "empty": "there is nothing to do on this kernel",
}


@dataclass(frozen=True, slots=True)
class ScenarioResult:
    """One scenario on one kernel."""

    topic: str
    """Folder of the file: a mechanism of the kernel."""
    file: str
    line: int
    title: str
    series: str
    release: str
    """As `uname -r` says it; the series where no kernel was asked."""
    verdict: str
    steps: int = 0
    checks: int = 0
    why: str = ""
    """Of any verdict but "holds": one line."""
    digest: str = ""
    """`Scenario.digest` of what was run."""


@dataclass(frozen=True, slots=True)
class Results:
    """All of them."""

    entries: tuple[ScenarioResult, ...] = ()
    date: str = ""
    notes: tuple[str, ...] = field(default=())

    @property
    def series(self) -> list[str]:
        """Kernels in the order of their first entry."""
        return list(dict.fromkeys(entry.series for entry in self.entries))

    def topics(self) -> dict[str, dict[str, list[ScenarioResult]]]:
        """topic -> series -> its results."""
        found: dict[str, dict[str, list[ScenarioResult]]] = {}
        for entry in sorted(self.entries, key=lambda entry: (entry.topic, entry.file, entry.line)):
            found.setdefault(entry.topic, {}).setdefault(entry.series, []).append(entry)
        return found

    def merged(self, newer: Iterable[ScenarioResult], date: str) -> Results:
        """These, with newer ones in place of the same scenarios on the same kernels."""
        by_key = {(e.file, e.title, e.series): e for e in self.entries}
        by_key.update({(e.file, e.title, e.series): e for e in newer})
        return Results(tuple(by_key.values()), date)

    def write(self, path: Path) -> None:
        """Save; one line per entry, so that changes can be read. Raises NotReadableError."""
        lines = ",\n  ".join(json.dumps(asdict(entry)) for entry in self.entries)
        text = f'{{"schema": "{SCHEMA}", "date": "{self.date}", "scenarios": [\n  {lines}\n]}}\n'
        try:
            write_text(path, text)
        except OSError as error:
            raise _not_written(path, error) from error

    @staticmethod
    def check_writable(path: Path) -> None:
        """Find out whether `write` could write there, before hours of work are spent on what it
        shall write. Raises NotReadableError."""
        try:
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            # `write` makes a file in the folder and renames it: rights to an old file do not count.
            with tempfile.TemporaryFile(dir=path.parent):
                pass
        except OSError as error:
            raise _not_written(path, error) from error

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read what `write` saved. Raises FormatError, NotReadableError."""
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise NotReadableError(
                f"cannot read {path}: {error.strerror}",
                path=path,
                hint="memdesc scenario compare FILE... --save RESULTS makes one",
            ) from error
        except ValueError as error:
            raise FormatError(f"{path} is not JSON") from error
        if not isinstance(found, dict) or found.get("schema") != SCHEMA:
            raise FormatError(f"{path} is no file of scenario results ({SCHEMA})")
        try:
            entries = tuple(ScenarioResult(**entry) for entry in found["scenarios"])
        except (TypeError, KeyError) as error:
            raise FormatError(f"{path} is damaged: {error}") from error
        unknown = next((e.verdict for e in entries if e.verdict not in VERDICTS), None)
        if unknown is not None:
            raise FormatError(f"{path} has an unknown verdict: {unknown[:40]!r}")
        return cls(entries, str(found.get("date", "")))


# --- helpers -----------------------------------------------------------------------------


def _not_written(path: Path, error: OSError) -> NotReadableError:
    hint = "" if path.parent.is_dir() else f"there is no folder {path.parent}"
    return NotReadableError(f"cannot write {path}: {error.strerror}", path=path, hint=hint)
