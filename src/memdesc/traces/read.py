"""Open a trace, whatever wrote it."""

from __future__ import annotations

import time
from pathlib import Path

from memdesc.errors import FormatError, QuestionError
from memdesc.traces.events import Trace
from memdesc.traces.raw import read_raw
from memdesc.traces.store import Recorded, load_recorded
from memdesc.traces.text import read_text

__all__ = ["open_trace", "read_trace"]

_BINARY = {
    b"\x17\x08\x44tra": "`trace-cmd report -i FILE` prints it as text, which is read",
    b"PERFILE2": "`perf script -i FILE` prints it as text, which is read",
    b"\x7fELF": "a trace is wanted here, not a memory dump",
    b"\x1f\x8b": "unpack it first: gunzip",
}
STORED_NAME = "trace.npz"


def read_trace(path: Path) -> Trace:
    """The events of a trace; see `open_trace`."""
    return open_trace(path).trace


def open_trace(path: Path) -> Recorded:
    """Open a folder copied from tracefs, one that `memdesc vm trace` wrote, a stored trace, or a
    text (tracefs, perf script, trace-cmd report).

    Raises FormatError for anything else, QuestionError where nothing is there.
    """
    started = time.perf_counter()
    if not path.exists():
        raise QuestionError(f"no such trace: {path}")
    if path.is_dir() and (path / STORED_NAME).is_file():
        path = path / STORED_NAME
    if path.is_dir():
        recorded = Recorded(read_raw(path / "trace" if (path / "trace").is_dir() else path))
    else:
        with path.open("rb") as file:
            start = file.read(8)
        if start.startswith(b"PK\x03\x04"):
            recorded = load_recorded(path)
        else:
            for magic, hint in _BINARY.items():
                if start.startswith(magic):
                    raise FormatError(f"{path} is no trace that can be read as it is", hint=hint)
            recorded = Recorded(read_text(path))
    recorded.trace.report.seconds = time.perf_counter() - started
    return recorded
