"""Traces in one small file, with the allocator's state before and after if there is one.

An .npz file (a zip of arrays) that any numpy reads: the columns of the trace, times as
differences, and the lists before and after.  It takes about four bytes an event.
"""

from __future__ import annotations

import io
import json
import lzma
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memdesc.errors import FormatError
from memdesc.traces.events import COLUMNS, Trace, TraceReport
from memdesc.traces.state import AllocatorState

__all__ = ["Recorded", "load_recorded", "save_recorded"]

SCHEMA = "memdesc-trace/1"
_MOST_ARRAY_BYTES = 1 << 31
_MOST_ARRAYS = 256
_KPF_LRU, _KPF_TAIL = 5, 16
_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass
class Recorded:
    """A trace, and what is known of the moments before and after it."""

    trace: Trace
    before: AllocatorState | None = None
    after: AllocatorState | None = None
    flags_before: NDArray[np.uint64] | None = None
    """uint64[frames]: /proc/kpageflags at the marker "before"."""
    flags_after: NDArray[np.uint64] | None = None
    steps: dict[str, str] = field(default_factory=dict)
    """Text files copied in between, by "NUMBER-NAME/FILE"."""
    about: dict[str, Any] = field(default_factory=dict)
    """Kernel, workload, versions: for people."""

    def movable(self) -> NDArray[np.bool_] | None:
        """bool[frames]: frames that could be moved at the beginning, as far as the page flags
        say: those on the LRU, with the tails that 6.1 shows without it. None without flags."""
        if self.flags_before is None:
            return None
        on_lru = self.flags_before >> np.uint64(_KPF_LRU) & np.uint64(1) != 0
        is_tail = self.flags_before >> np.uint64(_KPF_TAIL) & np.uint64(1) != 0
        # A tail goes with the last frame before it that is none.
        head = np.maximum.accumulate(np.where(is_tail, 0, np.arange(on_lru.size)))
        found: NDArray[np.bool_] = on_lru | (is_tail & on_lru[head])
        return found


def save_recorded(path: Path, recorded: Recorded) -> None:
    """Write a file that `load_recorded` reads back; the same input gives the same bytes."""
    trace = recorded.trace
    head: dict[str, Any] = {
        "schema": SCHEMA,
        "texts": trace.texts,
        "sites": trace.sites,
        "report": {**vars(trace.report), "seconds": 0.0},
        "steps": recorded.steps,
        "about": recorded.about,
    }
    arrays: dict[str, NDArray[Any]] = {}
    for name, values in trace.columns.items():
        if name == "time_ns":
            arrays["first_time_ns"] = values[:1]
            values = np.diff(values)
            if values.size and int(values.max()) < 1 << 32:
                values = values.astype(np.uint32)
        elif name in ("call_site", "ptr") and values.size:
            # Few places call, and an object comes and goes at the same address many times.
            different, values = np.unique(values, return_inverse=True)
            arrays[f"{name}_values"] = different
            values = values.astype(np.min_scalar_type(different.size))
        arrays[f"column_{name}"] = values
    for prefix, state in (("before_", recorded.before), ("after_", recorded.after)):
        if state is not None:
            arrays.update(state.to_arrays(prefix))
    for name, flags in (("before", recorded.flags_before), ("after", recorded.flags_after)):
        if flags is not None:
            starts = np.flatnonzero(np.diff(flags, prepend=~flags[:1]))
            arrays[f"flags_{name}_starts"] = starts.astype(np.uint32)
            arrays[f"flags_{name}_words"] = flags[starts]
            arrays[f"flags_{name}_size"] = np.array([flags.size])
    head["arrays"] = sorted(arrays)
    arrays["head"] = np.frombuffer(json.dumps(head).encode(), np.uint8)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        for name in sorted(arrays):
            content = io.BytesIO()
            np.lib.format.write_array(content, np.ascontiguousarray(arrays[name]))
            info = zipfile.ZipInfo(f"{name}.npy", _EPOCH)
            info.compress_type = zipfile.ZIP_LZMA
            archive.writestr(info, content.getvalue())


def load_recorded(path: Path) -> Recorded:
    """Read a file that `save_recorded` wrote. Raises FormatError for anything else."""
    try:
        arrays = _arrays(path)
        head = json.loads(arrays["head"].tobytes())
        _need(head["schema"] == SCHEMA, f"its schema is {head['schema']!r:.40}, not {SCHEMA!r}")
        _need(sorted(arrays) == sorted(["head", *head["arrays"]]), "arrays are missing")
        trace = Trace(
            _columns(arrays),
            tuple(map(str, head["texts"])),
            tuple(map(str, head["sites"])),
            _report(head["report"]),
        )
        _need(int(trace.text.max(initial=0)) < len(trace.texts), "a text does not exist")
        states = {
            prefix: AllocatorState.from_arrays(arrays, prefix)
            for prefix in ("before_", "after_")
            if f"{prefix}about" in arrays
        }
        return Recorded(
            trace,
            states.get("before_"),
            states.get("after_"),
            _flags(arrays, "before"),
            _flags(arrays, "after"),
            {str(key): str(value) for key, value in head["steps"].items()},
            dict(head["about"]),
        )
    except FormatError:
        raise
    except (
        KeyError, ValueError, TypeError, OSError, EOFError, IndexError, AttributeError,
        zipfile.BadZipFile, NotImplementedError, RuntimeError, lzma.LZMAError, zlib.error,
        MemoryError, OverflowError,
    ) as error:  # fmt: skip
        raise FormatError(
            f"{path} is no stored trace, or is damaged: {error!r}"[:300],
            hint="`memdesc vm trace` writes them",
        ) from error


# --- helpers -----------------------------------------------------------------------------


def _report(value: dict[str, Any]) -> TraceReport:
    report = TraceReport(format="stored")
    for name, kept in value.items():
        if name != "format" and type(kept) is type(getattr(report, name)):
            setattr(report, name, kept)
    return report


def _need(condition: bool, what: str) -> None:
    if not condition:
        raise ValueError(what)


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if len(entries) > _MOST_ARRAYS:
            raise ValueError("too many arrays")
        if sum(entry.file_size for entry in entries) > _MOST_ARRAY_BYTES:
            raise ValueError("its arrays are too large")
        return {
            entry.filename.removesuffix(".npy"): np.lib.format.read_array(
                io.BytesIO(archive.read(entry)), allow_pickle=False
            )
            for entry in entries
        }


def _columns(arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    columns: dict[str, NDArray[Any]] = {}
    for name, kind in COLUMNS.items():
        values = arrays[f"column_{name}"]
        if name == "time_ns":
            first = arrays["first_time_ns"].astype(np.int64)
            values = np.cumsum(np.concatenate((first, values.astype(np.int64))))
        elif f"{name}_values" in arrays:
            values = arrays[f"{name}_values"][values]
        columns[name] = values.astype(kind)
    if len({values.shape for values in columns.values()}) != 1 or columns["event"].ndim != 1:
        raise ValueError("its columns differ in length")
    return columns


def _flags(arrays: dict[str, NDArray[Any]], name: str) -> NDArray[np.uint64] | None:
    if f"flags_{name}_starts" not in arrays:
        return None
    starts = arrays[f"flags_{name}_starts"].astype(np.int64)
    size = int(arrays[f"flags_{name}_size"][0])
    lengths = np.diff(starts, append=size)
    if size > 1 << 28 or not (lengths > 0).all():
        raise ValueError("its page flags make no sense")
    flags: NDArray[np.uint64] = np.repeat(arrays[f"flags_{name}_words"].astype(np.uint64), lengths)
    return flags
