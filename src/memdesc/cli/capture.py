"""`memdesc capture`."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from memdesc.cli.common import (
    add_source_arguments,
    envelope,
    notice,
    open_from,
    print_json,
    progress,
    size,
)
from memdesc.errors import MemdescError, QuestionError
from memdesc.sources.source import ProcSource, RawSource, Scan
from memdesc.types import PAGE_SIZE_BYTES

DESCRIPTION = (
    "Record the map of a machine in a directory of plain Parquet tables that DuckDB and polars\n"
    "read without memdesc. Private by default: mode 0600, and every name that somebody chose\n"
    "(host, processes, files, cgroups) is replaced by a hash."
)
EXAMPLES = """
  memdesc capture                                  into ./HOST-DATE.memdesc
  memdesc capture --output /tmp/before --names     keep the names
  memdesc capture --source vmcore --output crash   a crash dump, in a few hundred kB
  memdesc capture --source flags.bin --kernel 6.12.117 --output recorded
  memdesc capture --verify /tmp/before             is it whole and undamaged?
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output", metavar="DIR", type=Path, help="where to write (default: HOST-DATE.memdesc)"
    )
    parser.add_argument("--names", action="store_true", help="keep names; by default hashed")
    parser.add_argument(
        "--no-processes",
        action="store_true",
        help="leave out who maps what (`memdesc who` will not work on the capture)",
    )
    parser.add_argument("--force", action="store_true", help="replace a capture that exists")
    parser.add_argument(
        "--verify", metavar="DIR", type=Path, help="check a capture against its manifest instead"
    )
    add_source_arguments(parser)


def run(options: argparse.Namespace) -> int:
    if options.verify is not None:
        return _verify(options.verify, as_json=options.json)
    from memdesc.sources.capture import Capture
    from memdesc.sources.capture_write import write_capture
    from memdesc.sources.structs import DumpSource, LiveStructSource

    source = open_from(options)
    if isinstance(source, Capture):
        raise QuestionError(
            f"{source.name} is a capture already",
            hint="copy the directory; `memdesc capture --verify DIR` checks it",
        )
    assert isinstance(source, ProcSource | RawSource | LiveStructSource | DumpSource)
    scan: Scan = source.scan()
    attribution = None
    if options.no_processes:
        scan.unseen["processes"] = "left out when this was captured (--no-processes)"
    elif not isinstance(source, RawSource):
        try:
            with progress("reading processes") as tell:
                attribution = source.attribution(tell)
        except MemdescError as error:
            scan.unseen["processes"] = str(error)
            notice(f"note: without processes: {error}")
    started = time.perf_counter()
    output = options.output or Path(_name(source.machine.hostname, names=options.names))
    with progress("recording") as tell:
        info = write_capture(
            output,
            scan,
            attribution=attribution,
            names=options.names,
            force=options.force,
            progress=tell,
            after=source.counters if isinstance(source, ProcSource | LiveStructSource) else None,
        )
    seconds = time.perf_counter() - started
    if options.json:
        value = {"path": str(output), "seconds": round(seconds, 3), **info.to_json()}
        print_json(envelope(value, source=options.source, kernel=source.machine.release))
    else:
        print(output)
        notice(
            f"{size(info.size_bytes)} for {size(info.pfn_end * PAGE_SIZE_BYTES)} of frames, "
            f"{info.extents:,} extents, {seconds:.1f} s; "
            + ("names kept" if options.names else "names hashed (--names keeps them)")
        )
    return 0


def _verify(path: Path, *, as_json: bool) -> int:
    from memdesc.sources.capture import Capture

    capture = Capture(path)
    capture.verify()
    if as_json:
        value = {"path": str(path), "verified": True, **capture.info.to_json()}
        print_json(envelope(value, source=str(path), kernel=capture.machine.release))
    else:
        print(f"{path}: whole and undamaged, {capture.info.extents:,} extents")
    return 0


def _name(hostname: str, *, names: bool) -> str:
    stamp = time.strftime("%Y%m%dT%H%M%S")
    host = "".join(c if c.isalnum() or c in "-." else "_" for c in hostname) if names else ""
    return f"{host or 'capture'}-{stamp}.memdesc"
