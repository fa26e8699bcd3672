"""The format of a capture: its files, their columns, its limits, and its manifest.

A capture is a directory of plain tables that any Parquet engine reads:

    manifest.json       what this is, what was visible, what was redacted, sizes and hashes
    machine.json        zones, counters, slab caches: everything beside the page flags
    extents.parquet     runs of frames with the same facts: pfn_start, nr_pages, fact, ...
    facts.parquet       fact -> kpageflags word, type, rule, certainty
    cgroups.parquet     cgroup -> inode, path
    totals.parquet      frames by region and fact: the extents, summed up
    processes.parquet, vmas.parquet, mappings.parquet    who maps what, where captured

docs/captures.md is the reference.  Everything here is data that the writer and the
reader share; a capture comes from anywhere, so `CaptureInfo.from_json` trusts nothing.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from memdesc.errors import CaptureError
from memdesc.map.extents import ScanStats

__all__ = [
    "ATTRIBUTION_TABLES",
    "CGROUPS",
    "EXTENTS",
    "FACTS",
    "FILE_NAMES",
    "MACHINE",
    "MANIFEST",
    "MAX_PFN",
    "SCHEMA",
    "STRING",
    "TABLE_COLUMNS",
    "TOTALS",
    "CaptureInfo",
    "FileInfo",
    "Redaction",
    "extent_columns",
]

SCHEMA = "memdesc-capture/1"
"""Name and version of the format, in the manifest. A reader refuses any other."""

MANIFEST = "manifest.json"
MACHINE = "machine.json"
EXTENTS = "extents"
FACTS = "facts"
CGROUPS = "cgroups"
TOTALS = "totals"
"""May be missing: it says nothing that the extents do not."""
ATTRIBUTION_TABLES = ("processes", "vmas", "mappings")
"""Tables of an `Attribution`, all or none."""

STRING = "string"
"""The column type of UTF-8 text; every other is a numpy dtype's name."""

TABLE_COLUMNS: Mapping[str, Mapping[str, str]] = {
    EXTENTS: {
        "pfn_start": "int64",
        "nr_pages": "int64",
        "fact": "uint16",
        "mapcount": "uint32",
        "cgroup": "uint32",
    },
    FACTS: {
        "fact": "uint16",
        "flags": "uint64",
        "type": STRING,
        "rule": STRING,
        "certainty": STRING,
    },
    CGROUPS: {"cgroup": "uint32", "inode": "uint64", "path": STRING},
    TOTALS: {"pfn_start": "int64", "fact": "uint16", "frames": "int64"},
}
"""Columns of the tables that describe the machine. `mapcount` and `cgroup` of the extents are
there only where they were visible."""

FILE_NAMES = frozenset(
    [MANIFEST, MACHINE] + [f"{table}.parquet" for table in (*TABLE_COLUMNS, *ATTRIBUTION_TABLES)]
)
"""Every file that a capture can have. Nothing else is ever opened or removed."""

MAX_PFN = 1 << 52
"""No frame lies at or above this: 64-bit physical addresses have 52 bits of frames."""
_MAX_FACTS = 1 << 16
_MAX_CGROUPS = 1 << 24
_MAX_FILE_BYTES = 1 << 40
_MAX_TEXT = 1 << 12
_MAX_SECONDS = 1e11
"""Since 1970, or of a scan: three thousand years."""
_MAX_THREADS = 1 << 20

_COLUMN_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_COLUMN_TYPES = frozenset(
    ["uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", STRING]
)


def extent_columns(*, mapcount: bool, cgroup: bool) -> dict[str, str]:
    """The columns of `extents.parquet`, name -> type, for what was visible."""
    columns = dict(TABLE_COLUMNS[EXTENTS])
    if not mapcount:
        del columns["mapcount"]
    if not cgroup:
        del columns["cgroup"]
    return columns


@dataclass(frozen=True, slots=True)
class FileInfo:
    """One file of a capture, as the manifest declares it."""

    size_bytes: int
    sha256: str
    rows: int = 0
    """Rows of a table; 0 for machine.json."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Column name -> type, in order; empty for machine.json."""


@dataclass(frozen=True, slots=True)
class Redaction:
    """What was done to names before they were written."""

    names: str = "kept"
    """"kept" or "hashed"."""
    rules: Mapping[str, str] = field(default_factory=dict)
    """What -> how, in words; empty when names are kept."""

    @property
    def is_redacted(self) -> bool:
        return self.names != "kept"


@dataclass(frozen=True, slots=True)
class CaptureInfo:
    """The manifest: what a capture says of itself."""

    memdesc: str
    """Version of memdesc that wrote it."""
    kernel: str
    """Kernel release, "" where not visible."""
    time_unix_s: float
    pfn_end: int
    """The map covers frames [0, pfn_end)."""
    extents: int
    facts: int
    cgroups: int
    unseen: Mapping[str, str]
    """Column or file -> why it was not visible."""
    redaction: Redaction
    scan: ScanStats
    files: Mapping[str, FileInfo]
    """File name -> size, hash, rows; all but the manifest itself."""
    attribution_report: Mapping[str, Any] | None = None
    """`ReadReport.to_json()` of the attribution, None where none was captured."""

    @property
    def size_bytes(self) -> int:
        """Sum of the files' sizes, without the manifest."""
        return sum(info.size_bytes for info in self.files.values())

    @property
    def columns(self) -> list[str]:
        """Columns of the extents."""
        return list(self.files[f"{EXTENTS}.parquet"].columns)

    @property
    def has_totals(self) -> bool:
        return f"{TOTALS}.parquet" in self.files

    @property
    def has_attribution(self) -> bool:
        return f"{ATTRIBUTION_TABLES[0]}.parquet" in self.files

    def to_json(self) -> dict[str, Any]:
        """The manifest as a JSON value."""
        return {
            "schema": SCHEMA,
            "memdesc": self.memdesc,
            "kernel": self.kernel,
            "time_unix_s": self.time_unix_s,
            "counts": {
                "frames": self.pfn_end,
                "pfn_end": self.pfn_end,
                "extents": self.extents,
                "facts": self.facts,
                "cgroups": self.cgroups,
            },
            "visible": {"columns": self.columns, "files": sorted(self.files)},
            "unseen": dict(self.unseen),
            "redaction": {"names": self.redaction.names, "rules": dict(self.redaction.rules)},
            "scan": dataclasses.asdict(self.scan),
            "attribution": self.attribution_report,
            "files": {
                name: {
                    "size_bytes": info.size_bytes,
                    "sha256": info.sha256,
                    **({"rows": info.rows, "columns": dict(info.columns)} if info.columns else {}),
                }
                for name, info in self.files.items()
            },
        }

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Read what `to_json` gave, from a file that anybody may have written.

        Raises CaptureError for another schema version or shape, or a number out of range.
        """
        if not isinstance(value, dict):
            raise CaptureError("the manifest is no JSON object")
        schema = value.get("schema")
        if schema != SCHEMA:
            raise CaptureError(
                f"the manifest's schema is {schema!r:.60}, this version reads {SCHEMA!r}",
                hint="a newer memdesc may have written it: update, or capture again",
            )
        try:
            counts, scan, visible = value["counts"], value["scan"], value["visible"]
            frames = _count(counts["frames"], MAX_PFN)
            info = cls(
                memdesc=_text(value["memdesc"]),
                kernel=_text(value["kernel"]),
                time_unix_s=_seconds(value["time_unix_s"]),
                pfn_end=_count(counts["pfn_end"], MAX_PFN),
                extents=_count(counts["extents"], MAX_PFN),
                facts=_count(counts["facts"], _MAX_FACTS),
                cgroups=_count(counts["cgroups"], _MAX_CGROUPS),
                unseen=_texts(value["unseen"]),
                redaction=Redaction(
                    _text(value["redaction"]["names"]), _texts(value["redaction"]["rules"])
                ),
                scan=ScanStats(
                    seconds=_seconds(scan["seconds"]),
                    **{
                        item.name: _count(
                            scan.get(item.name, 0),
                            _MAX_THREADS if item.name == "threads" else MAX_PFN,
                        )
                        for item in dataclasses.fields(ScanStats)
                        if item.name != "seconds"
                    },
                ),
                files=_files(value["files"]),
                attribution_report=value["attribution"],
            )
            listed_files, listed_columns = visible["files"], visible["columns"]
        except CaptureError:
            raise
        except Exception as error:
            raise CaptureError(
                f"the manifest has an unexpected shape: {error!r}"[:300],
                hint="it is no manifest that memdesc wrote",
            ) from error
        info._check()
        _need(frames == info.pfn_end, "the counts of frames differ")
        _need(_same(listed_files, info.files), "the lists of its files differ")
        _need(_same(listed_columns, info.columns), "the lists of visible columns differ")
        return info

    def _check(self) -> None:
        """Raise CaptureError where the parts of the manifest contradict each other."""
        rows = {name: info.rows for name, info in self.files.items()}
        attribution = [name for name in ATTRIBUTION_TABLES if f"{name}.parquet" in self.files]
        _need(MACHINE in self.files, f"it has no {MACHINE}")
        for table, count in ((EXTENTS, self.extents), (FACTS, self.facts), (CGROUPS, self.cgroups)):
            _need(rows.get(f"{table}.parquet") == count, f"the counts of {table} differ")
        _need(self.extents <= self.pfn_end, "there are more extents than frames")
        _need(bool(self.extents) == bool(self.pfn_end), "frames without extents, or the reverse")
        _need(len(attribution) in (0, len(ATTRIBUTION_TABLES)), "a table of processes is missing")
        names = self.columns
        _need(
            self.files[f"{EXTENTS}.parquet"].columns
            == extent_columns(mapcount="mapcount" in names, cgroup="cgroup" in names),
            f"extents with the columns {names}"[:200],
        )
        _need(self.scan.frames_changed <= self.scan.frames_reread, "more changed than was reread")
        for table in (FACTS, CGROUPS, TOTALS):
            if table == TOTALS and not self.has_totals:
                continue
            _need(
                dict(self.files[f"{table}.parquet"].columns) == TABLE_COLUMNS[table],
                f"{table} with unexpected columns",
            )


# --- helpers -----------------------------------------------------------------------------


def _need(condition: bool, what: str) -> None:
    if not condition:
        raise CaptureError(f"the manifest makes no sense: {what}")


def _text(value: Any) -> str:
    if type(value) is not str or len(value) > _MAX_TEXT:
        raise CaptureError(f"the manifest holds no text where one belongs: {value!r:.60}")
    return value


def _texts(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or len(value) > _MAX_TEXT:
        raise CaptureError(f"the manifest holds no texts where they belong: {value!r:.60}")
    return {_text(key): _text(text) for key, text in value.items()}


def _count(value: Any, limit: int) -> int:
    if type(value) is not int or not 0 <= value <= limit:
        raise CaptureError(f"the manifest holds no sensible count: {value!r:.60}")
    return value


def _seconds(value: Any) -> float:
    is_number = type(value) is int or (type(value) is float and math.isfinite(value))
    if not is_number or not 0 <= value <= _MAX_SECONDS:
        raise CaptureError(f"the manifest holds no number where one belongs: {value!r:.60}")
    return float(value)


def _same(listed: Any, known: Iterable[str]) -> bool:
    """Whether a list from the manifest holds exactly the `known` names."""
    names = sorted(known)
    return (
        isinstance(listed, list)
        and len(listed) == len(names)
        and all(name in listed for name in names)
    )


def _files(value: Any) -> dict[str, FileInfo]:
    if not isinstance(value, dict) or len(value) > len(FILE_NAMES):
        raise CaptureError("the manifest lists no files")
    files: dict[str, FileInfo] = {}
    for name, entry in value.items():
        if name not in FILE_NAMES or name == MANIFEST:
            raise CaptureError(f"the manifest lists a file that no capture has: {name!r:.60}")
        columns = _texts(entry.get("columns", {}))
        for column, kind in columns.items():
            if not _COLUMN_NAME.fullmatch(column) or kind not in _COLUMN_TYPES:
                raise CaptureError(f"{name} declares a column {column!r:.60} of {kind!r:.60}")
        if bool(columns) != name.endswith(".parquet"):
            raise CaptureError(f"{name} declares columns, or none, where that cannot be")
        files[name] = FileInfo(
            size_bytes=_count(entry["size_bytes"], _MAX_FILE_BYTES),
            sha256=_text(entry["sha256"]),
            rows=_count(entry.get("rows", 0), MAX_PFN),
            columns=columns,
        )
    return files
