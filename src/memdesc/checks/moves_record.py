"""What moved in fragmented guests, as kept in `data/moves-SERIES.json` ("memdesc-moves/1").

A row is a kind of frame: the facts that a rule is asked about, how many frames had them, and
how many of those each trial tried and moved.  Rows hold no opinion of ours, so that today's
rules can be asked about them (`memdesc.checks.moves`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from memdesc.answers.failure import knowledge_of
from memdesc.checks.fragment import Moment, Trial
from memdesc.errors import FormatError
from memdesc.kernels.kpageflags import KPF
from memdesc.kernels.release import KernelRelease, behaviour_of
from memdesc.map.compound import compounds_of
from memdesc.map.extents import MemoryMap
from memdesc.rules.subject import Knowledge, Subject
from memdesc.types import TypeSet
from memdesc.written import read_json, write_text

__all__ = [
    "FOLDER",
    "SCHEMA",
    "SOURCES",
    "HeldPages",
    "Kind",
    "MovesRun",
    "Program",
    "TrialNote",
    "program_of",
    "read_moves",
    "recorded_moves",
    "sysctls_of",
    "write_moves",
]

SCHEMA = "memdesc-moves/1"
_HEAD = ("series", "release", "package", "date", "how")
FOLDER = Path(__file__).parent / "data"
SOURCES = ("vmcore", "live:proc")

I64 = NDArray[np.int64]
Counts = tuple[int, int, int]
"""Frames that a trial was about, that it tried to move, that it moved."""


@dataclass(frozen=True, slots=True)
class Kind:
    """Frames that a rule cannot tell apart."""

    source: str
    types: TypeSet
    flags: int
    order: int | None
    extra_references: bool | None
    frames: int
    trials: Mapping[str, Counts]
    """By name of the trial; one that was not about any of them is left out."""
    named: Mapping[str, int]
    """Frames of it that the kernel's log named as those that cannot move."""

    @property
    def subjects(self) -> list[Subject]:
        """What a rule is asked: one per type of the union."""
        flags = KPF(self.flags & _KNOWN)
        return [Subject(kind, flags, self.order, self.extra_references) for kind in self.types]

    def to_json(self) -> list[Any]:
        value: list[Any] = [self.source, self.types.json, hex(self.flags), self.order]
        value += [self.extra_references, self.frames]
        value += [{name: list(counts) for name, counts in self.trials.items()}]
        return [*value, dict(self.named)] if self.named else value

    @classmethod
    def from_json(cls, value: list[Any]) -> Self:
        source, types, flags, order, extra, frames, trials, *rest = value
        return cls(
            str(source),
            TypeSet.from_names([types] if isinstance(types, str) else types),
            int(flags, 16),
            order,
            extra,
            int(frames),
            {name: (int(a), int(b), int(c)) for name, (a, b, c) in trials.items()},
            {name: int(count) for name, count in (rest[0] if rest else {}).items()},
        )


@dataclass(frozen=True, slots=True)
class TrialNote:
    """What the kernel said about a trial as a whole."""

    name: str
    errno: int
    state: str
    frames_named: int
    no_room: int
    """Failures that the log puts down to a lack of free frames to move to."""
    migrated: int
    """pgmigrate_success of /proc/vmstat."""
    failed: int
    """pgmigrate_fail: attempts, so a page can count more than once."""
    pages_checked: int
    pages_wrong: int


@dataclass(frozen=True, slots=True)
class HeldPages:
    """Pages that a program held on to, and how many the struct pages showed as held."""

    how: str
    frames: int
    recognised: int


@dataclass(frozen=True)
class Program:
    """One fragmented guest."""

    name: str
    trials: tuple[TrialNote, ...]
    held: tuple[HeldPages, ...]
    refused: Mapping[str, str]
    changed: int
    """Frames that were something else by the time of the snapshot than when /proc was read, as
    the guest went on for a moment; of what /proc said they are not judged."""
    kinds: tuple[Kind, ...]


@dataclass(frozen=True)
class MovesRun:
    """One kernel."""

    series: str
    release: str
    package: str
    date: str
    how: str
    sysctls: Mapping[str, int]
    programs: tuple[Program, ...]

    @property
    def knowledge(self) -> Knowledge:
        """The kernel, as the rules ask for it."""
        return Knowledge(behaviour_of(KernelRelease.parse(self.release)), self.sysctls)

    def to_json(self) -> dict[str, Any]:
        value: dict[str, Any] = {"schema": SCHEMA}
        for name in _HEAD:
            value[name] = getattr(self, name)
        value["sysctls"] = dict(self.sysctls)
        value["programs"] = [
            {
                "name": program.name,
                "trials": [_plain(trial) for trial in program.trials],
                "held": [_plain(held) for held in program.held],
                "refused": dict(program.refused),
                "changed": program.changed,
                "kinds": [kind.to_json() for kind in program.kinds],
            }
            for program in self.programs
        ]
        return value

    @classmethod
    def from_json(cls, value: Any, *, path: str = "") -> Self:
        """Read what `to_json` wrote. Raises FormatError for anything else."""
        try:
            if value["schema"] != SCHEMA:
                raise FormatError(f"{path or 'this'} is of another schema: {value['schema']!r}")
            return cls(
                **{name: str(value[name]) for name in _HEAD},
                sysctls={str(name): int(setting) for name, setting in value["sysctls"].items()},
                programs=tuple(
                    Program(
                        str(program["name"]),
                        tuple(TrialNote(**trial) for trial in program["trials"]),
                        tuple(HeldPages(**held) for held in program["held"]),
                        dict(program["refused"]),
                        int(program["changed"]),
                        tuple(Kind.from_json(kind) for kind in program["kinds"]),
                    )
                    for program in value["programs"]
                ),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise FormatError(f"{path or 'this'} is no record of moves: {error!r}") from error


def write_moves(run: MovesRun, path: Path) -> None:
    """Write a record, one kind of frame per line."""
    text = json.dumps(run.to_json(), separators=(",", ":"))
    write_text(path, text.replace('],["', '],\n["').replace('{"name"', '\n{"name"') + "\n")


def read_moves(path: Path) -> MovesRun:
    """Read a record. Raises FormatError, OSError."""
    return MovesRun.from_json(read_json(path), path=str(path))


def recorded_moves(folder: Path = FOLDER) -> list[MovesRun]:
    """Every record in `folder`, oldest kernel first. Raises what `read_moves` raises."""
    runs = [read_moves(path) for path in folder.glob("moves-*.json")]
    return sorted(runs, key=lambda run: KernelRelease.parse(run.release))


def program_of(moment: Moment) -> Program:
    """What is kept of a fragmented guest."""
    stayed = _flags(moment.map) == _flags(moment.proc)
    kinds = [
        kind
        for source, result, judged in (
            ("vmcore", moment.map, np.ones_like(stayed)),
            ("live:proc", moment.proc, stayed),
        )
        for kind in _kinds(source, result, judged, moment.trials)
    ]
    return Program(
        moment.program,
        tuple(
            TrialNote(
                trial.name,
                trial.errno,
                trial.state,
                len(trial.named),
                trial.no_room,
                trial.vmstat.get("pgmigrate_success", 0),
                trial.vmstat.get("pgmigrate_fail", 0),
                trial.pages_checked,
                trial.pages_wrong,
            )
            for trial in moment.trials
        ),
        tuple(
            HeldPages(how, frames.size, _recognised(moment.map, frames))
            for how, frames in moment.held.items()
        ),
        moment.refused,
        int(np.count_nonzero(~stayed)),
        tuple(kinds),
    )


def sysctls_of(moment: Moment) -> Mapping[str, int]:
    """The settings that the rules know of, as they were in the guest."""
    return knowledge_of(moment.proc.machine).sysctls


# --- helpers -----------------------------------------------------------------------------

_KNOWN = 0
for _flag in KPF:
    _KNOWN |= _flag.value


def _plain(row: TrialNote | HeldPages) -> dict[str, Any]:
    return {name: getattr(row, name) for name in row.__dataclass_fields__}


def _recognised(result: MemoryMap, frames: I64) -> int:
    if result.references is None:
        return 0
    extents = np.searchsorted(result.pfn_starts.astype(np.int64), frames, side="right") - 1
    return int(np.count_nonzero(result.references[extents] == 1))


def _flags(result: MemoryMap) -> NDArray[np.uint64]:
    """uint64[frames]: the flag word of each."""
    return np.repeat(result.table.flags[result.facts], result.nr_pages)


def _kinds(
    source: str, result: MemoryMap, judged: NDArray[np.bool_], trials: Iterable[Trial]
) -> list[Kind]:
    """`judged` frames by what a rule is told of them; with what each trial did to them."""
    orders = compounds_of(result).order_of_extent.astype(np.int8)
    table, code_of_extent = _distinct(result, orders)
    extent = np.repeat(np.arange(len(result)), result.nr_pages)
    code = code_of_extent[extent]
    frames = np.bincount(code[judged], minlength=len(table))
    done: list[dict[str, Counts]] = [{} for _ in table]
    named: list[dict[str, int]] = [{} for _ in table]
    for trial in trials:
        tried = _marked(result, orders[extent], trial.tried)
        moved = _marked(result, orders[extent], trial.moved)
        within = _within(result, trial) & judged
        columns = [
            np.bincount(code[chosen], minlength=len(table))
            for chosen in (within, tried & within, moved & within)
        ]
        for row, counts in enumerate(np.stack(columns, axis=1).tolist()):
            if counts[0]:
                done[row][trial.name] = (counts[0], counts[1], counts[2])
        frames_named = np.array(trial.named, np.int64)
        for row in code[frames_named[judged[frames_named]]].tolist():
            named[row][trial.name] = named[row].get(trial.name, 0) + 1
    return [
        Kind(source, types, flags, order, extra, int(frames[row]), done[row], named[row])
        for row, (types, flags, order, extra) in enumerate(table)
        if frames[row]
    ]


def _distinct(
    result: MemoryMap, orders: NDArray[np.int8]
) -> tuple[list[tuple[TypeSet, int, int | None, bool | None]], I64]:
    """(types, flags, order, references) of each kind of frame; and the kind of each extent."""
    unknown = np.full(len(result), -1, np.int64)
    references = unknown if result.references is None else result.references.astype(np.int64)
    keys = (result.facts.astype(np.int64) << 16) + ((orders.astype(np.int64) + 1) << 8)
    distinct, code = np.unique(keys + references + 1, return_inverse=True)
    table: list[tuple[TypeSet, int, int | None, bool | None]] = []
    for key in distinct.tolist():
        fact, order, extra = key >> 16, (key >> 8 & 0xFF) - 1, (key & 0xFF) - 1
        table.append(
            (
                TypeSet(int(result.table.types[fact])),
                int(result.table.flags[fact]),
                None if order < 0 else order,
                None if extra < 0 else bool(extra),
            )
        )
    return table, code.reshape(-1)


def _marked(result: MemoryMap, order: NDArray[np.int8], heads: I64) -> NDArray[np.bool_]:
    """bool[frames]: the folios that begin at `heads`."""
    marked = np.zeros(result.pfn_end, np.bool_)
    heads = heads[(heads >= 0) & (heads < result.pfn_end)]
    marked[heads] = True
    for head in heads[order[heads] > 0].tolist():
        size = 1 << int(order[head])
        if head % size == 0:
            marked[head : head + size] = True
    return marked


def _within(result: MemoryMap, trial: Trial) -> NDArray[np.bool_]:
    """bool[frames]: what the trial was about."""
    what, _, block = trial.name.partition(":")
    inside = np.zeros(result.pfn_end, np.bool_)
    if what == "compaction":
        inside[:] = True
    else:
        size = result.machine.section_pages
        inside[int(block) * size : (int(block) + 1) * size] = True
    return inside
