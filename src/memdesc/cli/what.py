"""`memdesc what`."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Mapping

from memdesc.answers.places import parse_place
from memdesc.answers.titles import title_of
from memdesc.answers.what import NoAnswer, NoPage, PageAnswer, each_place, what
from memdesc.cli.common import (
    add_source_arguments,
    envelope,
    open_from,
    print_json,
    screen_width,
    size,
    visible,
)
from memdesc.descriptors import NOT_LOOKED, AnonFolio, Nobody, NotVisible
from memdesc.types import PAGE_SHIFT, PAGE_SIZE_BYTES, MemoryType, phys_of

DESCRIPTION = (
    "What a page is: its type and the rule that named it, the whole folio or slab it belongs\n"
    "to, flags in words, counts, owner. A place is a frame (0x1234, or decimal: 4660), a\n"
    "physical address (phys:0x1234000) or an address of a process (PID:0x7f0000001000).\n"
    "Exits 2 when any of the places could not be answered; its row says why."
)
EXAMPLES = """
  memdesc what 0x1234
  memdesc what phys:0x1234000 $$:0x$(head -c 12 /proc/$$/maps)     this shell's first page
  memdesc what 0x8000 --source bundled:debian-6.1 --json
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("places", nargs="+", metavar="PLACE", help="0xPFN, phys:0xADDR, PID:0xADDR")
    parser.add_argument(
        "--raw",
        action="store_true",
        help="also the words of its struct page, kernel addresses and all (live:struct and dumps)",
    )
    add_source_arguments(parser)


def run(options: argparse.Namespace) -> int:
    if len(options.places) == 1:
        parse_place(options.places[0])  # whose error needs no source
    source = open_from(options)
    answers = each_place(options.places, lambda place: what(source, place, raw=options.raw))
    if options.json:
        value = {"schema": "memdesc-what/1", "rows": [answer.to_json() for answer in answers]}
        print_json(envelope(value, source=options.source, kernel=source.machine.release))
    else:
        print("\n\n".join(_text(answer) for answer in answers))
    return 2 if any(isinstance(answer, NoAnswer) for answer in answers) else 0


def _text(answer: PageAnswer | NoPage | NoAnswer) -> str:
    if isinstance(answer, NoAnswer):
        lines = [f"{answer.asked}  error: {answer.error}"]
        return "\n".join([*lines, *([_line("hint", answer.hint)] if answer.hint else [])])
    if isinstance(answer, NoPage):
        return f"{answer.asked}  {answer.reason}"
    lines = [
        f"{answer.asked}  {title_of(answer.types)}",
        _line("why", f"{answer.rule.text} ({answer.rule.certainty.value})"),
        _line("frame", f"{answer.pfn:#x}, physical {phys_of(answer.pfn):#x}{_zone(answer)}"),
    ]
    if answer.pages.nr_pages > 1:
        which = answer.pfn - answer.pages.pfn_start
        place = "head" if which == 0 else f"tail {which}"
        lines.append(
            _line(
                "part of",
                f"frames {answer.pages}, {size(answer.pages.nr_pages * PAGE_SIZE_BYTES)} "
                f"(order {answer.order}), this is its {place}",
            )
        )
    names = " ".join(answer.flag_names) or "(none)"
    lines.append(_line("flags", f"{names}  {answer.flags:#x}"))
    lines.append(_line("mapped", _mapped(answer)))
    lines.append(_line("charged", _charged(answer)))
    row = answer.to_json()["descriptor"]
    for name, value in row.items():
        # What this kind of source never looks at is said in --json, not on every screen.
        if name in _ELSEWHERE or value == _NOT_LOOKED:
            continue
        if name == "mapcount" and (value == answer.mapcount or isinstance(value, dict)):
            continue
        if isinstance(getattr(answer.descriptor, name), Nobody):
            value = "nobody"
        if name == "pins" and value and answer.pages.nr_pages == 1 and isinstance(value, int):
            value = f"at most {value}: references and pins of a single frame share one counter"
        if name == "index" and isinstance(value, int) and isinstance(answer.descriptor, AnonFolio):
            # The page number of an address in its process (`mm/rmap.c:vma_address` @6.12).
            value = f"{value:#x}, for address {value << PAGE_SHIFT:#x} of its process"
        if isinstance(named := row.get(f"{name}_name"), str) and isinstance(value, int):
            value = f"{value} ({named})"
        if name.endswith("_size_bytes") and isinstance(value, int) and value >= PAGE_SIZE_BYTES:
            name, value = name.removesuffix("_bytes"), size(value)
        lines.append(_line(name.replace("_", " "), _field(value)))
    if answer.struct_page is not None:
        lines.append(_line("struct page", _words(answer.struct_page)))
    for fact, source in answer.sources().items():
        lines.append(_line("source" if fact == "type" else "", f"{fact}: {source}"))
    return "\n".join(lines)


_ELSEWHERE = ("kind", "flags", "cgroup", "owner_name", "task_name")
"""Fields of descriptors that another line says."""
_NOT_LOOKED = {"not_visible": NOT_LOOKED.reason}


def _line(name: str, text: str) -> str:
    first, rest = f"  {name:<11} ", " " * 14
    width = screen_width()
    if width is None or len(first) + len(text) <= width:
        return first + text
    return textwrap.fill(
        text,
        max(width, 40),
        initial_indent=first,
        subsequent_indent=rest,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _words(words: Mapping[str, int] | NotVisible) -> str:
    if isinstance(words, NotVisible):
        return str(words)
    return ", ".join(f"{name} {word:#x}" for name, word in words.items())


def _zone(answer: PageAnswer) -> str:
    return f", zone {answer.zone}, node {answer.node}" if answer.zone else ""


def _mapped(answer: PageAnswer) -> str:
    if isinstance(answer.mapcount, NotVisible):
        return f"not visible: {answer.mapcount.reason}"
    if answer.types.only is MemoryType.ZERO:
        return (
            f"where memory was read and never written (`memdesc who {answer.pfn:#x}`); not counted"
        )
    if not answer.mapcount:
        return "by nobody"
    times = "once" if answer.mapcount == 1 else f"{answer.mapcount} times"
    return f"{times} (`memdesc who {answer.pfn:#x}` says by whom)"


def _charged(answer: PageAnswer) -> str:
    if isinstance(answer.cgroup, NotVisible):
        return f"not visible: {answer.cgroup.reason}"
    if not answer.cgroup:
        return "to no memory cgroup"
    return f"to {visible(answer.cgroup_name)} (inode {answer.cgroup})"


def _field(value: object) -> str:
    if isinstance(value, dict) and "not_visible" in value:
        return f"not visible: {value['not_visible']}"
    if isinstance(value, dict):
        parts = ((name, part) for name, part in value.items() if part != _NOT_LOOKED)
        return ", ".join(f"{name} {_field(part)}" for name, part in parts)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return " ".join(map(str, value))
    return visible(str(value))
