"""What was checked on one kernel, as kept in `data/SERIES.json` ("memdesc-checked/1").

    for run in recorded_runs():
        for row in run.rows:
            print(row.types.label, row.source, row.cell.exact)

A run file is written by `memdesc.checks.run`, and nothing in it is written by hand.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from memdesc.checks.planted import PlantedScore
from memdesc.checks.score import Outcome, TypeScore
from memdesc.errors import FormatError
from memdesc.types import TypeSet
from memdesc.written import read_json, write_text

__all__ = [
    "FOLDER",
    "SCHEMA",
    "Cell",
    "Label",
    "Open",
    "Peer",
    "Planted",
    "Proved",
    "Row",
    "Run",
    "Walk",
    "read_run",
    "recorded_runs",
    "write_run",
]

SCHEMA = "memdesc-checked/1"
FOLDER = Path(__file__).parent / "data"


@dataclass(frozen=True, slots=True)
class Cell:
    """How one source judged the frames of one type or kind, in frames."""

    exact: int
    union: int
    not_visible: int
    wrong: int
    open: int
    named: tuple[tuple[TypeSet, int], ...]
    """What they were named, most frames first."""

    @property
    def frames(self) -> int:
        return self.exact + self.union + self.not_visible + self.wrong + self.open

    @property
    def mean_width(self) -> float:
        """Types named per frame: 1.0 where every frame is named exactly."""
        return sum(len(types) * frames for types, frames in self.named) / max(1, self.frames)

    @classmethod
    def of(cls, score: TypeScore | PlantedScore) -> Self:
        return cls(
            **{outcome.value: score.frames[outcome] for outcome in Outcome},
            named=tuple(score.named.most_common()),
        )

    def to_json(self) -> dict[str, Any]:
        value: dict[str, Any] = {"frames": self.frames}
        value |= {name: count for name in _OUTCOMES if (count := getattr(self, name))}
        value["mean_width"] = round(self.mean_width, 2)
        value["named"] = [[types.json, frames] for types, frames in self.named]
        return value

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        named = tuple((_types(types), int(frames)) for types, frames in value["named"])
        return cls(**{name: int(value.get(name, 0)) for name in _OUTCOMES}, named=named)


_OUTCOMES = tuple(outcome.value for outcome in Outcome)


@dataclass(frozen=True, slots=True)
class Row:
    """The frames of one true type, as one source judged them."""

    source: str
    types: TypeSet
    """The truth: one type, or several where it is open."""
    cell: Cell


@dataclass(frozen=True, slots=True)
class Planted:
    """The frames of one planted kind, as one source judged them."""

    source: str
    kind: str
    types: TypeSet
    cell: Cell


@dataclass(frozen=True, slots=True)
class Walk:
    """What a walk found, beside what the kernel counts of the same."""

    what: str
    walked: int
    counted: int
    unit: str
    counter: str
    """Where the kernel says so."""

    @property
    def agrees(self) -> bool:
        return self.walked == self.counted


@dataclass(frozen=True, slots=True)
class Peer:
    """A property of frames, as memdesc and drgn's own helpers read it."""

    what: str
    helper: str
    types_from: str
    """"DWARF" or "BTF"."""
    compared: int
    agreed: int
    differs: tuple[str, ...]
    """Why the others differ, in sentences; empty where all agree."""


@dataclass(frozen=True, slots=True)
class Open:
    """Frames whose truth is still several types, and why."""

    types: TypeSet
    frames: int
    why: str


@dataclass(frozen=True, slots=True)
class Proved:
    """What the kernel's books settled beyond struct pages and walks."""

    types: TypeSet
    frames: int
    text: str


@dataclass(frozen=True, slots=True)
class Label:
    """Owners of the frames of one type: how many frames have one, and some of the names."""

    types: TypeSet
    frames: int
    labelled: int
    owners: int
    """Different names."""
    examples: tuple[str, ...]


@dataclass(frozen=True)
class Run:
    """Everything that was checked on one kernel, in one recording."""

    series: str
    release: str
    package: str
    date: str
    """Of the recording, YYYY-MM-DD."""
    how: str
    """The machine, in one line."""
    frames: int
    moved: Mapping[str, int]
    """By source: frames that changed between the two readings, and were not judged."""
    rows: tuple[Row, ...]
    planted: tuple[Planted, ...]
    walks: tuple[Walk, ...]
    peers: tuple[Peer, ...]
    labels: tuple[Label, ...]
    proofs: tuple[Proved, ...]
    open: tuple[Open, ...]

    @property
    def sources(self) -> tuple[str, ...]:
        """The sources that were judged, in the order of the file."""
        return tuple(self.moved)

    @property
    def frames_wrong(self) -> int:
        """Frames that any source named wrongly, planted ones counted again."""
        cells = [row.cell for row in self.rows] + [row.cell for row in self.planted]
        return sum(cell.wrong for cell in cells)

    @property
    def frames_open(self) -> int:
        return sum(row.frames for row in self.open)

    def to_json(self) -> dict[str, Any]:
        value: dict[str, Any] = {"schema": SCHEMA}
        for name in ("series", "release", "package", "date", "how", "frames"):
            value[name] = getattr(self, name)
        value["moved"] = dict(self.moved)
        value["rows"] = [
            {"source": row.source, "type": row.types.json, **row.cell.to_json()}
            for row in self.rows
        ]
        value["planted"] = [
            {"source": row.source, "kind": row.kind, "type": row.types.json, **row.cell.to_json()}
            for row in self.planted
        ]
        value["walks"] = [asdict(row) for row in self.walks]
        value["peers"] = [asdict(row) for row in self.peers]
        for name in ("labels", "proofs", "open"):
            value[name] = [_plain(row) for row in getattr(self, name)]
        return value

    @classmethod
    def from_json(cls, value: Any, *, path: str = "") -> Self:
        """Read what `to_json` wrote. Raises FormatError for anything else."""
        name = path or "this"
        if not isinstance(value, dict) or value.get("schema") != SCHEMA:
            raise FormatError(f"{name} is no run file of schema {SCHEMA}")
        try:
            return cls(
                series=str(value["series"]),
                release=str(value["release"]),
                package=str(value["package"]),
                date=str(value["date"]),
                how=str(value["how"]),
                frames=int(value["frames"]),
                moved={str(name): int(frames) for name, frames in value["moved"].items()},
                rows=tuple(
                    Row(row["source"], _types(row["type"]), Cell.from_json(row))
                    for row in value["rows"]
                ),
                planted=tuple(
                    Planted(row["source"], row["kind"], _types(row["type"]), Cell.from_json(row))
                    for row in value["planted"]
                ),
                walks=tuple(Walk(**row) for row in value["walks"]),
                peers=tuple(
                    replace(peer, differs=tuple(peer.differs))
                    for peer in (Peer(**row) for row in value["peers"])
                ),
                labels=tuple(
                    Label(
                        _types(row["type"]),
                        row["frames"],
                        row["labelled"],
                        row["owners"],
                        tuple(row["examples"]),
                    )
                    for row in value["labels"]
                ),
                proofs=tuple(
                    Proved(_types(row["type"]), row["frames"], row["text"])
                    for row in value["proofs"]
                ),
                open=tuple(
                    Open(_types(row["type"]), row["frames"], row["why"]) for row in value["open"]
                ),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise FormatError(f"{name} is no run file: {error!r}"[:300]) from error


def read_run(path: Path) -> Run:
    """Read a run file. Raises FormatError, and OSError where it cannot be read."""
    return Run.from_json(read_json(path), path=str(path))


def write_run(run: Run, folder: Path) -> Path:
    """Write `SERIES.json` into `folder`, one row a line; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{run.series}.json"
    write_text(path, _lines(run.to_json()))
    return path


def recorded_runs(folder: Path = FOLDER) -> list[Run]:
    """Every run that is kept in `folder`, by series. Raises what `read_run` raises."""
    runs = [read_run(path) for path in folder.glob("[0-9]*.json")]
    return sorted(runs, key=lambda run: _order(run.series))


# --- helpers -----------------------------------------------------------------------------


def _order(series: str) -> tuple[tuple[int, ...], str]:
    """6.1 comes before 6.12, and 6.12 before its flavours."""
    head, _, rest = series.partition("-")
    return tuple(int(part) for part in head.split(".") if part.isdecimal()), rest


def _types(value: str | Iterable[str]) -> TypeSet:
    return TypeSet.from_names([value] if isinstance(value, str) else value)


def _plain(row: Label | Open | Proved) -> dict[str, Any]:
    value = {name: getattr(row, name) for name in row.__dataclass_fields__}
    return {"type": row.types.json, **{k: v for k, v in value.items() if k != "types"}}


def _lines(value: Mapping[str, Any]) -> str:
    """JSON with one row of a list on one line, so that a change shows as few lines."""
    parts = []
    for name, item in value.items():
        if isinstance(item, list) and item:
            rows = ",\n".join("  " + json.dumps(row, ensure_ascii=False) for row in item)
            parts.append(f" {json.dumps(name)}: [\n{rows}\n ]")
        else:
            parts.append(f" {json.dumps(name)}: {json.dumps(item, ensure_ascii=False)}")
    return "{\n" + ",\n".join(parts) + "\n}\n"
