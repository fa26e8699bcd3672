"""`memdesc report`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from memdesc.cli.common import (
    add_source_arguments,
    notice,
    open_from,
    print_json,
    progress,
    size,
)
from memdesc.errors import QuestionError

DESCRIPTION = (
    "One self-contained HTML file about this machine's memory: the memory as a picture, the\n"
    "ledger and how it adds up, where memory lies and who holds it. It loads nothing, so it\n"
    "can be mailed, archived and opened from disk. Readable by you only: it names processes."
)
EXAMPLES = """
  memdesc report                                 writes memdesc-report.html
  memdesc report --output web01.html --force     replaces an older one
  memdesc report --output - | ssh web02 'cat > web01.html'
  memdesc report --source bundled:debian-6.12    a recorded machine, no privilege needed
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `memdesc report`."""
    parser.add_argument(
        "--output",
        metavar="FILE",
        default="memdesc-report.html",
        help="where to write (default: memdesc-report.html); - is stdout",
    )
    parser.add_argument("--force", action="store_true", help="replace the file if it exists")
    add_source_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Write the report that `options` ask for."""
    import jinja2  # noqa: F401  say that the extra is missing before the long work

    from memdesc.report.save import check_target, save

    to_stdout = options.output == "-"
    path = Path(options.output)
    if to_stdout and options.json:
        raise QuestionError(
            "--output - and --json both write to stdout", hint="leave one of them out"
        )
    if not to_stdout:
        check_target(path, force=options.force)
    source = open_from(options)
    with progress("reading page flags") as tell:
        result = source.map(tell, references=True)

    from memdesc.report.build import report_data
    from memdesc.report.render import render

    with progress("reading processes") as tell:
        data = report_data(result, source=source.name, attribution=lambda: source.attribution(tell))
    page = render(data)
    if to_stdout:
        sys.stdout.flush()
        sys.stdout.buffer.write(page)
        sys.stdout.buffer.flush()
        return 0
    save(path, page, force=options.force)
    if options.json:
        print_json(
            {
                "schema": "memdesc-report/1",
                "path": str(path),
                "size_bytes": len(page),
                "frames_present": data.ledger.frames_present,
            }
        )
    else:
        print(path)
        notice(f"wrote {size(len(page))}; open it in a browser: {path.resolve().as_uri()}")
    return 0
