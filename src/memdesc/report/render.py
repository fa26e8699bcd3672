"""From `ReportData` to one HTML page that loads nothing.

Everything the page needs is in it: styles, script, picture and data.  Its security policy
allows exactly this style sheet and this script, by their hashes.  Names that come from
the machine pass the template engine's escaping, or `_json_text` for the script's data.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from memdesc.answers.brief import failure_ends, failure_errnos, failure_verdicts, movement_text
from memdesc.answers.ledger import LedgerRow
from memdesc.answers.savings import DesignCost, Savings
from memdesc.report import words
from memdesc.report.build import Absent, ReportData, type_text
from memdesc.report.outlook import failure_kinds
from memdesc.report.palette import colour_css, colour_of
from memdesc.report.picture import TILE_ORDER
from memdesc.report.png import picture_png
from memdesc.types import PAGE_SIZE_BYTES, TypeSet

__all__ = ["SECTIONS", "render"]


@dataclass(frozen=True, slots=True)
class Section:
    """One section of the page: its anchor, its title, and the template that fills it."""

    id: str
    title: str
    template: str


SECTIONS = (
    Section("picture", "The memory", "picture.html.j2"),
    Section("ledger", "Where it went", "ledger.html.j2"),
    Section("adds-up", "Does it add up?", "reconcile.html.j2"),
    Section("where", "Where it lies", "where.html.j2"),
    Section("owners", "Who holds it", "owners.html.j2"),
    Section("blocks", "Huge pages", "blocks.html.j2"),
    Section("move", "What can move", "move.html.j2"),
    Section("failure", "If memory fails", "failure.html.j2"),
    Section("savings", "What describing it costs", "savings.html.j2"),
    Section("glossary", "What the words mean", "glossary.html.j2"),
)
"""The page's sections in order. A new one is a line here and a template."""

_SCRIPTS = ("tables", "cells", "layout", "paint", "box", "hands")
_PNG_COLUMNS = 8


def render(data: ReportData) -> bytes:
    """Return the page as UTF-8. Equal data give equal pages."""
    environment = Environment(
        loader=PackageLoader("memdesc.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        size=words.size,
        round_size=words.round_size,
        count=words.count,
        moment=words.moment,
        name=words.visible,
        first_few=lambda rows, most: rows[:most],
    )
    environment.tests["absent"] = lambda value: isinstance(value, Absent)
    script, style = _script(), _asset("report.css") + colour_css(data.types)
    number = {kind: index for index, kind in enumerate(data.types)}
    page = environment.get_template("page.html.j2").render(
        data=data,
        sections=SECTIONS,
        policy=_policy(script, style),
        script=Markup(script),  # noqa: S704  our own file
        style=Markup(style),  # noqa: S704  our own file and colours
        picture_json=_json_text(_picture_json(data)),
        png_light=_png(data, dark=False),
        png_dark=_png(data, dark=True),
        share=words.share,
        page_bytes=PAGE_SIZE_BYTES,
        tile_bytes=PAGE_SIZE_BYTES << (data.picture.order + 2 * TILE_ORDER),
        cell_bytes=PAGE_SIZE_BYTES << data.picture.order,
        type_class=lambda kind: (
            f"t{number[kind]}" + (" hatched" if colour_of(kind).is_hatched else "")
        ),
        type_text=type_text,
        movement_text=movement_text,
        failure_kinds=failure_kinds,
        failure_verdicts=failure_verdicts,
        failure_ends=failure_ends,
        failure_errnos=failure_errnos,
        segments=lambda rows: _segments(rows, number),
        cost_bar=_cost_bar,
    )
    return page.encode("utf-8", "backslashreplace")


# --- helpers -----------------------------------------------------------------------------


def _asset(name: str) -> str:
    text = resources.files("memdesc.report").joinpath("templates", name).read_text("utf-8")
    assert "</" not in text, f"{name} would end its element"
    return text


def _script() -> str:
    """The parts of the script as one, none of its names outside it."""
    parts = "\n".join(_asset(f"script/{name}.js") for name in _SCRIPTS)
    return f'"use strict";\n(() => {{\n{parts}}})();\n'


def _policy(script: str, style: str) -> str:
    """Only this script, this style and embedded pictures; nothing from anywhere."""
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src '{_hash(script)}'",
            f"style-src '{_hash(style)}'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _json_text(value: Any) -> Markup:
    """JSON that cannot end the element it stands in, nor start a comment in it."""
    text = json.dumps(value, separators=(",", ":"))
    for char in "<>&":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return Markup(text)  # noqa: S704  no markup is left in it


def _picture_json(data: ReportData) -> dict[str, Any]:
    machine = data.overview.machine
    several = len({zone.node for zone in machine.zones}) > 1
    return {
        **data.picture.to_json(),
        "page_size": PAGE_SIZE_BYTES,
        "types": [type_text(kind).title for kind in data.types],
        "hatched": [int(colour_of(kind).is_hatched) for kind in data.types],
        "zones": [
            [
                zone.pfn_start,
                zone.pfn_end,
                words.visible(zone.name) + (f" (node {zone.node})" if several else ""),
            ]
            for zone in machine.zones
        ],
    }


def _png(data: ReportData, *, dark: bool) -> str:
    picture = data.picture
    plane = picture.layout(min(_PNG_COLUMNS, picture.nr_tiles))
    png = picture_png(plane, [colour_of(kind) for kind in picture.types], dark=dark)
    return "data:image/png;base64," + base64.b64encode(png).decode()


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of a bar; position and width in thousandths of it."""

    types: TypeSet
    x: float
    width: float


def _segments(rows: Sequence[LedgerRow], number: dict[TypeSet, int]) -> list[Segment]:
    """The bar of some rows: the same order of types in every bar, so that bars compare."""
    whole = sum(row.frames for row in rows)
    segments = []
    x = 0.0
    for row in sorted(rows, key=lambda row: number[row.types]):
        width = 1000 * row.frames / whole
        segments.append(Segment(row.types, round(x, 2), round(width, 2)))
        x += width
    return segments


@dataclass(frozen=True, slots=True)
class CostPiece:
    """A piece of a design's bar; position and width in thousandths of it."""

    what: str
    """"cost-map", "cost-descriptors", or "cost-open": the rest up to the most it can be."""
    x: float
    width: float


def _cost_bar(answer: Savings, one: DesignCost) -> list[CostPiece]:
    """The bar of one design; the dearest of all designs fills its whole width."""
    most = max(other.cost.total_bytes[1] for other in answer.designs)
    low, high = one.cost.total_bytes
    memmap, descriptors = one.cost.memmap_bytes[0], one.cost.descriptor_bytes[0]
    pieces = []
    x = 0.0
    for what, size in (
        ("cost-map", memmap),
        ("cost-descriptors", descriptors),
        ("cost-open", high - low),
    ):
        width = 1000 * size / most if most else 0.0
        if size:
            pieces.append(CostPiece(what, round(x, 2), round(width, 2)))
        x += width
    return pieces
