"""What a sweep found, as kept in `data/sweep-SERIES.csv.gz` ("memdesc-sweep/1").

A row is one frame: what was known of it before, from /proc and from struct pages, and what
the kernel answered when it was made to fail, hard and soft, each time from the same moment.
The rows hold facts and no opinion of ours, so that today's rules can be asked about them
(`memdesc.checks.sweep_judge`).  The first line, behind "# ", is the header as JSON.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from memdesc.errors import FormatError
from memdesc.structs.buffers import BufferState
from memdesc.types import MemoryType, TypeSet

__all__ = [
    "FOLDER",
    "HOWS",
    "SCHEMA",
    "Frame",
    "How",
    "ProcFacts",
    "StructFacts",
    "Sweep",
    "Trial",
    "read_sweep",
    "recorded_sweeps",
    "write_sweep",
]

SCHEMA = "memdesc-sweep/1"
FOLDER = Path(__file__).parent / "data"

How = Literal["hard", "soft"]
HOWS: tuple[How, ...] = ("hard", "soft")


@dataclass(frozen=True, slots=True)
class ProcFacts:
    """One frame as /proc shows it."""

    types: TypeSet
    flags: int
    """The kpageflags word."""
    head_flags: int
    """That of the head of its folio; of a frame that is part of none, its own."""
    mapcount: int | None


@dataclass(frozen=True, slots=True)
class StructFacts:
    """One frame as its struct pages show it; None where a count has no meaning."""

    types: TypeSet
    flags: int
    """The kpageflags word that the kernel would show."""
    head_flags: int
    nr_pages: int
    """Frames of its folio."""
    refcount: int | None
    mapcount: int | None
    pins: int | None
    buffers: BufferState | None
    """Of a file's page that has buffer heads."""
    owner: str
    """Slab cache, caller of vmalloc, file system, task of a stack; "" for nobody."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One failure, and what the kernel made of it."""

    errno: str
    """What the write returned: "ok" or the error's name; "" where nobody lived to see it."""
    message: str
    """What the kernel's log calls the page; "" where it logs nothing."""
    verdict: str
    """The word behind it ("Recovered"), "" as above."""
    flags_before: int | None
    """The kpageflags word when the failure began; None where there is none."""
    flags_after: int | None
    end: str
    """"": all is well; "killed N": planted processes that died; "unwell": no new process can
    be made; "own": it hit the process that made it fail; "reset": the machine restarted;
    "hung": no answer. """
    log: str = ""
    """Everything that the kernel logged, joined with " | ", without the verdict's line."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One sampled frame."""

    pfn: int
    kind: str
    """What was planted there; "" for nothing of ours."""
    stratum: int
    """Number of its stratum: equal facts, equal kind, equal owner."""
    stratum_frames: int
    """Frames of the guest in that stratum."""
    stratum_sampled: int
    proc: ProcFacts
    structs: StructFacts
    trials: Mapping[How, Trial]

    @property
    def weight(self) -> float:
        """Frames of the guest that this one stands for."""
        return self.stratum_frames / self.stratum_sampled


@dataclass(frozen=True)
class Sweep:
    """One kernel's sweep."""

    series: str
    release: str
    package: str
    date: str
    frames_total: int
    """Frames of the guest."""
    sysctls: Mapping[str, int]
    hugetlb_reserved: int | None
    frames: tuple[Frame, ...]
    notes: Mapping[str, Any] = field(default_factory=dict)


def write_sweep(sweep: Sweep, path: Path) -> None:
    """Write a sweep; the same sweep gives the same bytes. Raises OSError."""
    header = {
        "schema": SCHEMA,
        "series": sweep.series,
        "release": sweep.release,
        "package": sweep.package,
        "date": sweep.date,
        "frames_total": sweep.frames_total,
        "sysctls": dict(sweep.sysctls),
        "hugetlb_reserved": sweep.hugetlb_reserved,
        "notes": dict(sweep.notes),
    }
    text = io.StringIO()
    text.write(f"# {json.dumps(header)}\n")
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(_COLUMNS)
    rows.writerows(_cells(frame) for frame in sorted(sweep.frames, key=lambda it: it.pfn))
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as raw, gzip.GzipFile("", "wb", 9, raw, mtime=0) as file:
        file.write(text.getvalue().encode())
    partial.replace(path)


def read_sweep(path: Path) -> Sweep:
    """Read a sweep. Raises OSError, and FormatError for anything that is none."""
    try:
        text = gzip.decompress(path.read_bytes()).decode()
        first, _, rest = text.partition("\n")
        header: dict[str, Any] = json.loads(first.removeprefix("# "))
        schema = header["schema"]
        if schema == SCHEMA:
            frames = tuple(_frame(row) for row in csv.DictReader(io.StringIO(rest)))
            return Sweep(
                header["series"],
                header["release"],
                header["package"],
                header["date"],
                header["frames_total"],
                header["sysctls"],
                header["hugetlb_reserved"],
                frames,
                header["notes"],
            )
    except (ValueError, KeyError, TypeError, EOFError, gzip.BadGzipFile) as error:
        raise FormatError(f"{path} is no sweep: {error!r}"[:300]) from error
    raise FormatError(f"{path} has the schema {schema!r}, not {SCHEMA!r}")


def recorded_sweeps(folder: Path = FOLDER) -> list[Sweep]:
    """The sweeps that ship with memdesc, by release."""
    sweeps = [read_sweep(path) for path in folder.glob("sweep-*.csv.gz")]
    return sorted(sweeps, key=lambda it: [int(part) for part in it.series.split(".")])


# --- rows --------------------------------------------------------------------------------

_FACTS = (
    "pfn", "kind", "stratum", "stratum_frames", "stratum_sampled",
    "proc_types", "proc_flags", "proc_head_flags", "proc_mapcount",
    "types", "flags", "head_flags", "nr_pages", "refcount", "mapcount", "pins", "buffers",
    "owner",
)  # fmt: skip
_TRIAL = ("errno", "message", "verdict", "flags_before", "flags_after", "end", "log")
_COLUMNS = (*_FACTS, *(f"{how}_{name}" for how in HOWS for name in _TRIAL))


def _cells(frame: Frame) -> list[str]:
    proc, structs = frame.proc, frame.structs
    cells = [
        f"{frame.pfn:#x}",
        frame.kind,
        *map(str, (frame.stratum, frame.stratum_frames, frame.stratum_sampled)),
        "|".join(proc.types.names),
        f"{proc.flags:#x}",
        f"{proc.head_flags:#x}",
        _number(proc.mapcount),
        "|".join(structs.types.names),
        f"{structs.flags:#x}",
        f"{structs.head_flags:#x}",
        str(structs.nr_pages),
        *map(_number, (structs.refcount, structs.mapcount, structs.pins)),
        _buffer_cell(structs.buffers),
        structs.owner,
    ]
    for how in HOWS:
        trial = frame.trials.get(how)
        cells += [""] * len(_TRIAL) if trial is None else _trial_cells(trial)
    return cells


def _trial_cells(trial: Trial) -> list[str]:
    before, after = (
        "" if word is None else f"{word:#x}" for word in (trial.flags_before, trial.flags_after)
    )
    return [trial.errno, trial.message, trial.verdict, before, after, trial.end, trial.log]


def _frame(row: Mapping[str, str]) -> Frame:
    trials: dict[How, Trial] = {}
    for how in HOWS:
        cells = [row[f"{how}_{name}"] for name in _TRIAL]
        if any(cells):
            errno, message, verdict, before, after, end, log = cells
            words = (_word(before), _word(after))
            trials[how] = Trial(errno, message, verdict, *words, end, log)
    return Frame(
        int(row["pfn"], 16),
        row["kind"],
        int(row["stratum"]),
        int(row["stratum_frames"]),
        int(row["stratum_sampled"]),
        ProcFacts(
            _types(row["proc_types"]),
            int(row["proc_flags"], 16),
            int(row["proc_head_flags"], 16),
            _count(row["proc_mapcount"]),
        ),
        StructFacts(
            _types(row["types"]),
            int(row["flags"], 16),
            int(row["head_flags"], 16),
            int(row["nr_pages"]),
            _count(row["refcount"]),
            _count(row["mapcount"]),
            _count(row["pins"]),
            _buffers(row["buffers"]),
            row["owner"],
        ),
        trials,
    )


def _types(text: str) -> TypeSet:
    return TypeSet.of(*(MemoryType(name) for name in text.split("|") if name))


def _buffer_cell(buffers: BufferState | None) -> str:
    """ "4/1/0": buffers, held ones, dirty or locked ones."""
    if buffers is None:
        return ""
    return f"{buffers.nr_buffers}/{buffers.held}/{buffers.dirty_or_locked}"


def _buffers(text: str) -> BufferState | None:
    return BufferState(*(int(part) for part in text.split("/"))) if text else None


def _word(text: str) -> int | None:
    return int(text, 16) if text else None


def _count(text: str) -> int | None:
    return int(text) if text else None


def _number(value: int | None) -> str:
    return "" if value is None else str(value)
