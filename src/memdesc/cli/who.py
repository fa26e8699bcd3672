"""`memdesc who`."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from memdesc.answers.places import Place, VirtPlace
from memdesc.answers.titles import title_of
from memdesc.answers.usage import Usage
from memdesc.answers.what import NoAnswer, NoPage, each_place, pfn_at
from memdesc.answers.who import (
    ChargedByMapped,
    FileSizes,
    Mappers,
    ProcessSizes,
    VmaSizes,
    charged_by_mapped,
    mappers,
    process_by_vma,
    sizes_by_file,
    sizes_by_process,
)
from memdesc.cli.common import (
    add_source_arguments,
    console,
    envelope,
    open_from,
    print_json,
    progress,
    size,
    table,
    visible,
)
from memdesc.errors import QuestionError
from memdesc.types import PAGE_SIZE_BYTES, Pfn, Pid

if TYPE_CHECKING:
    from collections.abc import Sequence

    from memdesc.answers.sizes import Sizes
    from memdesc.map.attribution import Attribution
    from memdesc.sources.source import Source

DESCRIPTION = (
    "Who uses memory. With places: which processes map them, where, through which file.\n"
    "Without: sizes per process from inverted pagemaps: resident (rss), proportional (pss),\n"
    "unique (uss); or per file, one process by area, or who is charged for what others map."
)
EXAMPLES = """
  memdesc who                          every process, largest proportional size first
  memdesc who 0x12345 phys:0x1234000   who maps these frames
  memdesc who --pid 1234               one process, area by area
  memdesc who --files                  mapped files
  memdesc who --charged                charged to cgroup A, mapped by B
  memdesc who --source bundled:debian-6.12 --json
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("places", nargs="*", metavar="PLACE", help="0xPFN, phys:0xADDR, PID:0xADDR")
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--pid", type=int, metavar="PID", help="one process, area by area")
    group.add_argument("--files", action="store_true", help="sizes per mapped file")
    group.add_argument(
        "--charged", action="store_true", help="the matrix of cgroups that pay and that map"
    )
    parser.add_argument(
        "--all", action="store_true", help="every row; a terminal shows the 40 largest, a pipe all"
    )
    add_source_arguments(parser)


def run(options: argparse.Namespace) -> int:
    source = open_from(options)
    if options.places:
        return _places(options, source)
    with progress("reading processes") as tell:
        attribution = source.attribution(tell)
    if options.pid is not None:
        _need_process(attribution, options.pid)
    with progress("reading page flags") as tell:
        usage = Usage.of(source.map(tell), attribution)
    most = 40 if sys.stdout.isatty() and not options.all else 0
    answer: ProcessSizes | FileSizes | VmaSizes | ChargedByMapped
    if options.pid is not None:
        answer = process_by_vma(usage, Pid(options.pid))
    elif options.files:
        answer = sizes_by_file(usage)
    elif options.charged:
        answer = charged_by_mapped(usage)
    else:
        answer = sizes_by_process(usage)
    if options.json:
        value = answer.to_json()
        print_json(envelope(value, source=options.source, kernel=source.machine.release))
        return 0
    head, right, rows = _rows(answer)
    elastic = [i for i, name in enumerate(head) if name in _ELASTIC]
    unwanted = ("perms", "uss") if isinstance(answer, VmaSizes) else ("swap", "cgroup")
    drop = [i for i, name in enumerate(head) if name in unwanted]
    out = console()
    if isinstance(answer, VmaSizes):
        out.print(
            f"{visible(answer.process.comm)} ({answer.process.pid})", style="bold", markup=False
        )
    shown = rows[:most] if most else rows
    out.print(table(head, shown, right=right, elastic=elastic, drop=drop))
    if most and len(rows) > most:
        out.print(f"... and {len(rows) - most} smaller rows (--all)", style="dim")
    for note in answer.notes:
        out.print(f"note: {note}", markup=False)
    return 0


# --- helpers -----------------------------------------------------------------------------

_ELASTIC = ("process", "mostly", "cgroup", "file", "area", "charged to", "mapped by")
"""Columns that give way on a narrow screen."""


def _need_process(attribution: Attribution, pid: int) -> None:
    """Say so where `pid` is there and could not be read."""
    reason = next((why for number, why in attribution.report.problems if number == pid), "")
    if reason and pid not in attribution.processes.pid:
        raise QuestionError(
            f"process {pid} could not be read: {reason}",
            hint="`memdesc doctor` says which privilege is missing, and how to get it",
        )


def _places(options: argparse.Namespace, source: Source) -> int:
    # Where a page lies may change while all processes are read: first things first.
    found = each_place(options.places, lambda place: (place, pfn_at(source, place)))
    with progress("reading processes") as tell:
        attribution = source.attribution(tell)

    def ask(one: tuple[Place, Pfn | NoPage] | NoAnswer) -> Mappers | NoPage | NoAnswer:
        if isinstance(one, NoAnswer):
            return one
        place, pfn = one
        if isinstance(pfn, NoPage):
            return pfn
        at = (place.pid, place.address) if isinstance(place, VirtPlace) else None
        try:
            return mappers(source.window(pfn), attribution, pfn, at=at)
        except QuestionError as error:
            if len(found) == 1:
                raise
            return NoAnswer(place.text, str(error), error.hint)

    answers = [(text, ask(one)) for text, one in zip(options.places, found, strict=True)]
    failed = any(isinstance(answer, NoAnswer) for _text, answer in answers)
    if options.json:
        rows = [{"asked": text, **answer.to_json()} for text, answer in answers]
        for row in rows:
            row.pop("schema", None)
        value = {"schema": "memdesc-who-places/1", "rows": rows}
        print_json(envelope(value, source=options.source, kernel=source.machine.release))
        return 2 if failed else 0
    for text, answer in answers:
        if isinstance(answer, NoAnswer):
            print(f"{text}  error: {answer.error}")
        elif isinstance(answer, NoPage):
            print(f"{text}  {answer.reason}")
        else:
            _show_mappers(text, answer)
    return 2 if failed else 0


def _show_mappers(text: str, answer: Mappers) -> None:
    out = console()
    count = len(answer.mappers)
    many = {0: "no process that was read maps it", 1: "mapped once"}.get(
        count, f"mapped {count} times"
    )
    if answer.zero is not None:
        many = f"shared by {_many(answer.zero.processes, 'process', 'processes')}"
    out.print(f"{text}  {title_of(answer.types)}, {many}", style="bold", markup=False)
    rows = [
        [
            str(m.process.pid),
            m.process.comm,
            f"{m.address:#x}",
            m.vma.perms,
            m.vma.name or "-",
        ]
        for m in answer.mappers
    ]
    if rows:
        out.print(table(["pid", "process", "address", "", "area"], rows, right=(0,), elastic=(4,)))
    if answer.zero is not None and answer.zero.pages > len(rows):
        # Nobody keeps the places: the page stands wherever memory was read and never written.
        places = _many(answer.zero.pages, "place", "places")
        print(f"it stands in {places} of theirs, which are not listed one by one")
    if answer.unread and answer.zero is None:
        out.print(f"the kernel counts {answer.unread} more mappings that were not read")
    for note in answer.notes:
        out.print(f"note: {note}", markup=False)


def _many(count: int, one: str, several: str) -> str:
    return f"{count:,} {one if count == 1 else several}"


def _rows(
    answer: ProcessSizes | FileSizes | VmaSizes | ChargedByMapped,
) -> tuple[list[str], Sequence[int], list[list[str]]]:
    """Column heads, the columns that align right, and the cells."""
    match answer:
        case ProcessSizes():
            head = ["pid", "process", "pss", "rss", "uss", "swap", "mostly", "cgroup"]
            return (
                head,
                (0, 2, 3, 4, 5),
                [
                    [
                        str(row.process.pid),
                        row.process.comm,
                        *_sizes(row.sizes),
                        size(row.swap_bytes) if row.swap_bytes else "-",
                        _mostly(row.sizes),
                        row.process.cgroup or "-",
                    ]
                    for row in answer.processes
                ],
            )
        case FileSizes():
            return (
                ["file", "resident", "pss", "uss", "processes"],
                (1, 2, 3, 4),
                [
                    [
                        row.name,
                        size(row.resident_bytes),
                        size(row.pss_bytes),
                        size(row.uss_bytes),
                        str(row.processes),
                    ]
                    for row in answer.files
                ],
            )
        case VmaSizes():
            return (
                ["address", "perms", "size", "pss", "rss", "uss", "mostly", "area"],
                (2, 3, 4, 5),
                [
                    [
                        f"{row.vma.start:x}",
                        row.vma.perms,
                        size(row.vma.end - row.vma.start),
                        *_sizes(row.sizes),
                        _mostly(row.sizes),
                        row.vma.name or "-",
                    ]
                    for row in answer.vmas
                ],
            )
        case ChargedByMapped():
            return (
                ["size", "charged to", "mapped by", ""],
                (0,),
                [
                    [
                        size(row.frames * PAGE_SIZE_BYTES),
                        row.charged or "nobody",
                        "nobody" if row.mapped_by is None else row.mapped_by or "(not visible)",
                        "another pays" if row.is_foreign else "",
                    ]
                    for row in answer.cells
                ],
            )


def _sizes(sizes: Sizes) -> list[str]:
    return [size(sizes.pss_bytes), size(sizes.rss_bytes), size(sizes.uss_bytes)]


def _mostly(sizes: Sizes) -> str:
    return title_of(sizes.types[0].types) if sizes.types else "-"
