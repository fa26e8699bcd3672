"""Writing a capture, from a scan that streams or from a map in memory.

The scan's chunks go straight into the Parquet writer: a terabyte of frames passes through
a few megabytes.  The directory appears whole at the end, or not at all (`staging`), and
names are hashed on the way unless the caller wants them kept (`redact`).
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from memdesc import __version__
from memdesc.errors import QuestionError
from memdesc.map.attribution import Attribution
from memdesc.map.extents import MemoryMap, ScanStats
from memdesc.map.facts import FactTable
from memdesc.map.machine import Counters, Machine
from memdesc.map.regions import regions_of
from memdesc.map.sinks import Columns
from memdesc.rules.procedure import RULES
from memdesc.sources.capture_format import (
    CGROUPS,
    EXTENTS,
    FACTS,
    MACHINE,
    MANIFEST,
    STRING,
    TABLE_COLUMNS,
    TOTALS,
    CaptureInfo,
    FileInfo,
    Redaction,
    extent_columns,
)
from memdesc.sources.capture_totals import RegionCounts
from memdesc.sources.pages import Progress
from memdesc.sources.redact import Redactor
from memdesc.sources.source import Scan
from memdesc.sources.staging import Staging
from memdesc.sources.tables import Batch, Column, write_table
from memdesc.types import TypeSet

__all__ = ["write_capture", "write_map"]

_JOIN_ROWS = 1 << 16
"""Extents collected before they go to the writer: small batches cost more than large."""
_SLICE_ROWS = 1 << 18
_SIGNED = frozenset(["pfn_start", "nr_pages"])
"""Columns of an attribution stored as in the extents, so that they join and subtract."""


def write_capture(
    path: Path,
    scan: Scan,
    *,
    attribution: Attribution | None = None,
    names: bool = False,
    force: bool = False,
    progress: Progress | None = None,
    after: Callable[[], Counters] | None = None,
) -> CaptureInfo:
    """Read every frame of `scan` into a new capture at `path`; the map is never whole.

    `names` keeps the names that somebody chose; by default they are hashed. `force`
    replaces a capture that stands at `path`, at the very end. `after` reads the counters
    once more when the scan is done.
    Raises CaptureError where `path` cannot be written, and what the scan raises; in every
    case nothing half-written stays behind.
    """
    if progress is not None:
        scan.progress = progress
    started = time.perf_counter()

    def finish() -> _Rest:
        machine = scan.machine
        if after is not None:
            machine = dataclasses.replace(machine, after=after())
        return _Rest(machine, scan.facts(), scan.cgroup_inodes(), scan.stats(started), scan.unseen)

    # A generator: closing it stops the scan's threads, whatever ends the writing.
    with closing(cast("Generator[Columns]", scan.columns())) as stream:
        return _write(
            path,
            _with_lengths(stream, scan.frames),
            extent_columns(mapcount=scan.has_mapcounts, cgroup=scan.has_cgroups),
            scan.machine,
            scan.frames,
            finish,
            attribution,
            names=names,
            force=force,
        )


def write_map(
    path: Path,
    result: MemoryMap,
    *,
    attribution: Attribution | None = None,
    names: bool = False,
    force: bool = False,
) -> CaptureInfo:
    """Write a map that is in memory as a capture; arguments and errors as `write_capture`.

    Raises QuestionError for a window, which is no whole map.
    """
    if result.pfn_start:
        raise QuestionError("a window of a machine cannot be written as a capture")

    def stream() -> Iterator[Columns]:
        for low in range(0, len(result), _SLICE_ROWS):
            rows = slice(low, low + _SLICE_ROWS)
            yield Columns(
                result.pfn_starts[rows],
                result.facts[rows],
                None if result.mapcounts is None else result.mapcounts[rows],
                None if result.cgroups is None else result.cgroups[rows],
            )

    return _write(
        path,
        _with_lengths(stream(), result.pfn_end),
        extent_columns(mapcount=result.mapcounts is not None, cgroup=result.cgroups is not None),
        result.machine,
        result.pfn_end,
        lambda: _Rest(
            result.machine, result.table, result.cgroup_inodes, result.stats, result.unseen
        ),
        attribution,
        names=names,
        force=force,
    )


@dataclasses.dataclass(frozen=True, slots=True)
class _Rest:
    """What is only known when the last extent was written."""

    machine: Machine
    table: FactTable
    cgroup_inodes: NDArray[np.uint64]
    stats: ScanStats
    unseen: Mapping[str, str]


def _write(
    path: Path,
    extents: Iterator[Batch],
    columns: Mapping[str, str],
    before: Machine,
    pfn_end: int,
    finish: Callable[[], _Rest],
    attribution: Attribution | None,
    *,
    names: bool,
    force: bool,
) -> CaptureInfo:
    redactor = None if names else Redactor()
    with Staging(path, force=force) as staging:
        files: dict[str, FileInfo] = {}

        def table(name: str, columns: Mapping[str, str], batches: Iterator[Batch]) -> int:
            file = staging.create(f"{name}.parquet")
            rows = write_table(file, columns, batches)
            file.finish()
            files[f"{name}.parquet"] = FileInfo(file.size_bytes, file.sha256, rows, columns)
            return rows

        starts = [start for start in regions_of(before).starts if start < pfn_end]
        counts = RegionCounts(starts)
        extent_count = table(EXTENTS, columns, counts.counting(extents))
        rest = finish()
        machine = rest.machine if redactor is None else redactor.machine(rest.machine)
        table(FACTS, TABLE_COLUMNS[FACTS], _fact_rows(rest.table))
        table(CGROUPS, TABLE_COLUMNS[CGROUPS], _cgroup_rows(rest.cgroup_inodes, machine))
        table(TOTALS, TABLE_COLUMNS[TOTALS], counts.rows())
        for name, values in (attribution.to_tables() if attribution else {}).items():
            kinds = {column: _kind(column, part) for column, part in values.items()}
            table(name, kinds, _slices(name, values, kinds, redactor))
        file = staging.write(MACHINE, _json(machine.to_json()))
        files[MACHINE] = FileInfo(file.size_bytes, file.sha256)
        report = attribution.report.to_json() if attribution else None
        info = CaptureInfo(
            memdesc=__version__,
            kernel=machine.release.text,
            time_unix_s=machine.time_unix_s,
            pfn_end=pfn_end,
            extents=extent_count,
            facts=len(rest.table),
            cgroups=rest.cgroup_inodes.size,
            unseen=dict(rest.unseen) if redactor is None else redactor.reasons(rest.unseen),
            redaction=Redaction() if redactor is None else redactor.redaction,
            scan=rest.stats,
            files=files,
            attribution_report=redactor.report(report) if report and redactor else report,
        )
        staging.write(MANIFEST, _json(info.to_json()))
        staging.commit()
    return info


# --- rows --------------------------------------------------------------------------------


def _with_lengths(stream: Iterator[Columns], pfn_end: int) -> Iterator[Batch]:
    """Join the chunks into larger batches and add `nr_pages`.

    An extent ends where the next one starts, so the last of a batch waits for the next.
    """
    parts: list[Columns] = []
    for chunk in stream:
        parts.append(chunk)
        if sum(part.facts.size for part in parts) > _JOIN_ROWS:
            batch = _joined(parts)
            starts = batch["pfn_start"]
            yield {
                **{name: values[:-1] for name, values in batch.items()},
                "nr_pages": np.diff(starts),
            }
            parts = [_last_row(parts)]
    batch = _joined(parts) if parts else {}
    if batch and batch["pfn_start"].size:
        yield {**batch, "nr_pages": np.diff(batch["pfn_start"], append=pfn_end)}


def _joined(parts: Sequence[Columns]) -> dict[str, NDArray[Any]]:
    batch: dict[str, NDArray[Any]] = {
        "pfn_start": np.concatenate([part.pfn_starts.astype(np.int64) for part in parts]),
        "fact": np.concatenate([part.facts for part in parts]),
    }
    mapcounts = [part.mapcounts for part in parts if part.mapcounts is not None]
    cgroups = [part.cgroups for part in parts if part.cgroups is not None]
    if mapcounts:
        batch["mapcount"] = np.concatenate(mapcounts)
    if cgroups:
        batch["cgroup"] = np.concatenate(cgroups)
    return batch


def _last_row(parts: Sequence[Columns]) -> Columns:
    last = next(part for part in reversed(parts) if part.facts.size)
    return Columns(
        last.pfn_starts[-1:],
        last.facts[-1:],
        None if last.mapcounts is None else last.mapcounts[-1:],
        None if last.cgroups is None else last.cgroups[-1:],
    )


def _fact_rows(table: FactTable) -> Iterator[Batch]:
    if len(table):
        yield {
            "fact": np.arange(len(table)),
            "flags": table.flags,
            "type": ["|".join(TypeSet(mask).names) for mask in table.types.tolist()],
            "rule": table.rules,
            "certainty": [RULES[rule].certainty.value for rule in table.rules],
        }


def _cgroup_rows(inodes: NDArray[np.uint64], machine: Machine) -> Iterator[Batch]:
    """Number 0 is "charged to none"; a path is "" where the cgroup is gone."""
    paths = [machine.cgroups.get(inode, "") if inode else "" for inode in inodes.tolist()]
    yield {
        "cgroup": np.arange(inodes.size),
        "inode": inodes,
        "path": [_clean(path) for path in paths],
    }


def _kind(name: str, values: Column) -> str:
    if not isinstance(values, np.ndarray):
        return STRING
    return "int64" if name in _SIGNED else values.dtype.name


def _slices(
    table: str,
    values: Mapping[str, Column],
    kinds: Mapping[str, str],
    redactor: Redactor | None,
) -> Iterator[Batch]:
    """A whole table in batches, its texts redacted."""
    rows = len(next(iter(values.values())))
    for low in range(0, rows, _SLICE_ROWS):
        batch: dict[str, Column] = {}
        for name, column in values.items():
            part = column[low : low + _SLICE_ROWS]
            if kinds[name] == STRING:
                change = _clean if redactor is None else redactor.column(table, name)
                part = [_clean(change(text)) for text in part]
            batch[name] = part
        yield batch


def _clean(text: str) -> str:
    """Text that is valid Unicode: the bytes of a name in /proc need not be."""
    return text.encode("utf-8", "replace").decode()


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, indent=1).encode("utf-8", "replace") + b"\n"
