"""The page: complete, honest, equal to the ledger, and safe against every name."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import itertools
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_worlds import HOSTILE, hostile_attribution, known_source, no_processes
from worlds import raw_map

from memdesc.answers.ledger import ledger
from memdesc.cli import main
from memdesc.errors import MemdescError
from memdesc.map.extents import MemoryMap
from memdesc.report.build import Absent, ReportData, report_data
from memdesc.report.palette import MAIN_TYPES, colour_css, colour_of, rgb
from memdesc.report.render import SECTIONS, render
from memdesc.report.save import save
from memdesc.report.words import moment, share, size, visible
from memdesc.types import MemoryType


class Page(HTMLParser):
    """What a browser would see: elements, texts, and the rows of tables."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.text = page.decode()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.contents: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}))
        self._open.append(tag)
        self.contents.setdefault(tag, []).append("")

    def handle_data(self, data: str) -> None:
        if self._open:
            self.contents[self._open[-1]][-1] += data

    def handle_endtag(self, tag: str) -> None:
        if tag in self._open:
            while self._open.pop() != tag:
                pass

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture
def page(data: ReportData) -> Page:
    return Page(render(data))


def picture_columns(page: Page) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The data that the page's script reads, unpacked as it unpacks them."""
    import zlib

    value = json.loads(page.contents["script"][0])
    raw = zlib.decompress(base64.b64decode(value["columns"]["zlib"]))
    columns, offset = {}, 0
    for column in value["columns"]["layout"]:
        end = offset + column["width"] * column["length"]
        columns[column["name"]] = np.frombuffer(raw[offset:end], f"<u{column['width']}")
        offset = end
    assert offset == len(raw)
    return value, columns


# --- what is on the page -----------------------------------------------------------------


def test_every_section_is_there_with_its_heading(page: Page) -> None:
    ids = [attributes["id"] for attributes in page.all("section")]
    assert ids == [section.id for section in SECTIONS]
    headings = {attributes.get("id") for attributes in page.all("h2")}
    for attributes in page.all("section"):
        assert attributes["aria-labelledby"] in headings
    assert len(page.all("h1")) == 1
    links = {attributes["href"] for attributes in page.all("a")}
    assert {f"#{name}" for name in ids} <= links


def test_ids_are_unique_and_references_lead_somewhere(page: Page) -> None:
    ids = [attributes["id"] for _tag, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _tag, attributes in page.elements:
        for name in ("aria-labelledby", "aria-describedby"):
            assert attributes.get(name, ids[0]) in ids


def test_the_ledger_on_the_page_is_the_ledger(page: Page, known: MemoryMap) -> None:
    want = {" ".join(row.types.names): (row.size_bytes, row.frames) for row in ledger(known).rows}
    got, types = {}, ""
    values: list[int] = []
    for tag, attributes in page.elements:
        if tag == "tr":
            if types:
                got[types] = (values[0], values[2])
            types, values = attributes.get("data-types", ""), []
        elif tag == "td" and types and "data-value" in attributes:
            values.append(int(attributes["data-value"]))
    assert got == want
    assert sum(frames for _size, frames in got.values()) == ledger(known).frames_present


def test_every_line_of_the_reconciliation_is_there(page: Page, data: ReportData) -> None:
    counters = [a["data-counter"] for a in page.all("tr") if "data-counter" in a]
    assert counters == [line.counter for line in data.overview.reconciliation.lines]
    for line in data.overview.reconciliation.lines:
        assert line.status in page.text


def test_what_is_not_visible_is_said(page: Page, data: ReportData) -> None:
    assert data.unknown_bytes == 8 * 4096
    assert size(data.unknown_bytes) in page.text
    assert isinstance(data.processes, Absent)
    assert "nobody was asked" in page.text


def test_a_raw_file_says_what_it_cannot_show(tmp_path: Path) -> None:
    data = report_data(
        raw_map(tmp_path, [0x400] * 5000), source="flags.bin", attribution=no_processes
    )
    for part in (data.by_zone, data.by_cgroup, data.slab_caches, data.processes):
        assert isinstance(part, Absent)
        assert part.reason
    text = render(data).decode()
    assert "a raw file holds page flags only" in text
    assert "no counters to compare with" in text


def test_an_empty_map_makes_a_page(tmp_path: Path) -> None:
    data = report_data(raw_map(tmp_path, []), source="empty", attribution=no_processes)
    assert b"</html>" in render(data)


# --- the picture -------------------------------------------------------------------------


def test_the_picture_on_the_page_adds_up_to_the_map(tmp_path: Path) -> None:
    random = np.random.default_rng(5)
    kinds = np.array([0x400, 0x5828, 0x868, 0x80, 0x0], np.uint64)
    words = np.repeat(random.choice(kinds, 60_000), random.geometric(1 / 12, 60_000))
    result = raw_map(tmp_path, words)
    data = report_data(result, source="mixed", attribution=no_processes)
    value, columns = picture_columns(Page(render(data)))
    (start, end, _cell) = value["spans"][0]
    assert (start, end) == (0, words.size)
    assert value["fine"] < value["order"]
    starts = np.append(np.arange(0, end, 1 << value["fine"]), end)
    assert starts.size == value["cells"] + 1 == columns["top"].size + 1
    cell = np.repeat(np.arange(value["cells"]), columns["more"])
    assert cell.size == columns["type"].size == columns["frames"].size
    left = np.diff(starts) - np.bincount(cell, columns["frames"], value["cells"]).astype(int)
    assert (left > 0).all()
    frames = np.bincount(columns["top"], left, len(data.types))
    frames += np.bincount(columns["type"], columns["frames"], len(data.types))
    book = ledger(result)
    assert [row.frames for row in book.rows] == [
        int(frames[data.types.index(row.types)]) for row in book.rows
    ]
    assert frames.sum() == words.size


def test_the_still_picture_is_a_png(page: Page) -> None:
    sources = [page.all("img")[0]["src"], page.all("source")[0]["srcset"]]
    assert sources[0] != sources[1]
    for source in sources:
        assert base64.b64decode(source.removeprefix("data:image/png;base64,"))[:4] == b"\x89PNG"


# --- one file, nothing loaded, nothing run -----------------------------------------------


def test_nothing_is_loaded(data: ReportData) -> None:
    text = render(data).decode()
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)", text)
    page = Page(text.encode())
    for tag, attributes in page.elements:
        assert tag not in ("link", "iframe", "object", "embed", "form", "base")
        for name in ("src", "srcset"):
            assert attributes.get(name, "data:").startswith("data:"), (tag, attributes)
        assert attributes.get("href", "#").startswith("#")


def test_the_policy_allows_exactly_this_script_and_style(page: Page) -> None:
    policy = next(
        a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    for tag, content in (
        ("script", page.contents["script"][1]),
        ("style", page.contents["style"][0]),
    ):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_hostile_names_stay_text(hostile: ReportData, data: ReportData) -> None:
    raw = render(hostile)
    page = Page(raw)
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        assert "style" not in attributes
    assert len(page.all("script")) == 2
    assert len(page.all("img")) == 1
    json.loads(page.contents["script"][0])
    assert "<!--" not in page.text
    for char in "\u202e\x00\x1b":
        assert char not in page.text
    # All six are there, as text: hosts, cgroups, zones, caches, processes, missing files.
    for name in HOSTILE:
        shown = visible(name)
        assert sum(shown in text for text in page.contents["bdi"]) >= 2, shown
    # And the page is the same page: the same elements around other names.
    assert page.contents["script"][1] == Page(render(data)).contents["script"][1]


def test_the_same_map_makes_the_same_page(known: MemoryMap) -> None:
    pages = {
        render(report_data(known, source="x", attribution=hostile_attribution)) for _ in range(2)
    }
    assert len(pages) == 1


def test_a_large_messy_machine_stays_small(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    kinds = np.array([0x400, 0x5828, 0x868, 0x80, 0x0, 1 << 26], np.uint64)
    lengths = random.geometric(1 / 40, 200_000)
    words = np.repeat(random.choice(kinds, lengths.size), lengths)
    data = report_data(raw_map(tmp_path, words), source="large", attribution=no_processes)
    assert len(data.picture.cells) <= 1 << 17
    page = render(data)
    assert len(page) < 1_500_000, len(page)


# --- colours -----------------------------------------------------------------------------

_SIMULATIONS = {
    "normal": "1 0 0  0 1 0  0 0 1",
    "protanopia": "0.152286 1.052583 -0.204868  0.114503 0.786281 0.099216"
    "  -0.003882 -0.048116 1.051998",
    "deuteranopia": "0.367322 0.860646 -0.227968  0.280085 0.672501 0.047413"
    "  -0.011820 0.042940 0.968881",
    "tritanopia": "1.255528 -0.076749 -0.178779  -0.078411 0.930809 0.147602"
    "  0.004733 0.691367 0.303900",
}
"""Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB."""


def matrix_of(text: str) -> np.ndarray:
    return np.array(text.split(), float).reshape(3, 3)


_LMS = matrix_of(
    "0.4122214708 0.5363325363 0.0514459929  0.2119034982 0.6806995451 0.1073969566"
    "  0.0883024619 0.2817188376 0.6299787005"
)
_LAB = matrix_of(
    "0.2104542553 0.7936177850 -0.0040720468  1.9779984951 -2.4285922050 0.4505937099"
    "  0.0259040371 0.7827717662 -0.8086757660"
)


def linear(colour: str) -> np.ndarray:
    value = np.array(rgb(colour)) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def oklab(light: np.ndarray) -> np.ndarray:
    return _LAB @ np.cbrt(_LMS @ np.clip(light, 0, 1))


@pytest.mark.parametrize("sight", _SIMULATIONS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_main_types_look_different_to_everybody(sight: str, scheme: str) -> None:
    matrix = matrix_of(_SIMULATIONS[sight])
    seen = {kind: oklab(matrix @ linear(getattr(colour_of(kind), scheme))) for kind in MAIN_TYPES}
    for one, two in itertools.combinations(MAIN_TYPES, 2):
        distance = float(np.linalg.norm(seen[one] - seen[two]))
        assert distance > 0.05, (one.label, two.label, distance)


@pytest.mark.parametrize("scheme", [0, 1])
def test_text_has_enough_contrast(page: Page, scheme: int) -> None:
    style = page.contents["style"][0]
    blocks = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", blocks[scheme]))

    def luminance(colour: str) -> float:
        return float(linear(colour) @ np.array([0.2126, 0.7152, 0.0722]))

    for ground in ("paper", "wash"):
        for ink in ("ink-1", "ink-2", "accent", "good", "warn", "bad"):
            pair = sorted((luminance(colours[ground]), luminance(colours[ink])))
            assert (pair[1] + 0.05) / (pair[0] + 0.05) >= 4.5, (ground, ink)


def test_every_type_has_a_colour_and_no_colour_is_shared() -> None:
    from memdesc.types import MemoryType, TypeSet

    colours = [colour_of(TypeSet.of(kind)) for kind in MemoryType]
    assert len({c.light for c in colours}) == len({c.dark for c in colours}) == len(colours)
    assert not any(c.is_hatched for c in colours)
    assert colour_of(MAIN_TYPES[-1]).is_hatched
    assert ".t0{--c:#" in colour_css([MAIN_TYPES[0]])


# --- words -------------------------------------------------------------------------------


def test_words() -> None:
    assert size(0) == "0\u00a0B"
    assert size(1023) == "1023\u00a0B"
    assert size(1048575) == "1.0\u00a0MiB"
    assert size(-24576) == "\N{MINUS SIGN}24.0\u00a0KiB"
    assert size(1 << 62).endswith("PiB")
    assert share(1, 0) == "\N{EN DASH}"
    assert share(1, 10**9) == "<0.1\u00a0%"
    assert moment(0) == "not recorded"
    assert moment(float("nan")) == "not recorded"
    assert moment(1_700_000_000) == "2023-11-14 22:13 UTC"
    assert visible("é /a b") == "é /a b"
    assert len(visible("x" * 5000)) < 300


# --- the command -------------------------------------------------------------------------


def test_a_file_is_never_overwritten_unasked(tmp_path: Path) -> None:
    target = tmp_path / "r.html"
    save(target, b"one", force=False)
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    with pytest.raises(MemdescError, match="exists already") as caught:
        save(target, b"two", force=False)
    assert "--force" in caught.value.hint
    assert target.read_bytes() == b"one"
    target.chmod(0o644)
    save(target, b"two", force=True)
    assert target.read_bytes() == b"two"
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [target]
    for place in (tmp_path, tmp_path / "none" / "r.html"):
        with pytest.raises(MemdescError):
            save(place, b"", force=True)


def test_a_link_is_neither_followed_nor_replaced(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"precious")
    link = tmp_path / "r.html"
    link.symlink_to(other)
    for force in (False, True):
        with pytest.raises(MemdescError, match="symbolic link"):
            save(link, b"new", force=force)
    assert other.read_bytes() == b"precious"
    assert link.is_symlink()


@pytest.mark.parametrize("kind", ["pipe", "socket", "link", "dangling link", "directory"])
def test_only_a_regular_file_is_replaced(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "r.html"
    match kind:
        case "pipe":
            os.mkfifo(target)
        case "socket":
            with socket.socket(socket.AF_UNIX) as end:
                end.bind(str(target))
        case "link":
            target.symlink_to(os.devnull)
        case "dangling link":
            target.symlink_to(tmp_path / "nowhere")
        case _:
            target.mkdir()
    before = target.lstat()
    words = ["report", "--source", "bundled:debian-6.12", "--force", "--output", str(target)]
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert not out
    assert kind.split()[-1] in err
    assert "hint: " in err
    after = target.lstat()
    assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)
    assert list(tmp_path.iterdir()) == [target]


def test_it_can_go_to_stdout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    known_source(tmp_path / "tree")
    words = ["report", "--source", f"tree:{tmp_path / 'tree'}", "--output", "-"]
    command = f"import sys; from memdesc.cli import main; sys.exit(main({words!r}))"
    result = subprocess.run([sys.executable, "-c", command], capture_output=True, check=True)
    assert Page(result.stdout).contents["h1"]
    assert not result.stderr
    assert [entry.name for entry in tmp_path.iterdir()] == ["tree"]
    assert main([*words, "--json"]) == 2


def test_a_signal_while_saving_leaves_nothing_behind(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from memdesc.report import save\n"
        "os.fsync = lambda fd: os.kill(os.getpid(), signal.SIGTERM)\n"
        "save.save(Path(sys.argv[1]), b'page', force=False)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "r.html")]
    result = subprocess.run(command, capture_output=True, check=False)
    assert result.returncode == -signal.SIGTERM
    assert not list(tmp_path.iterdir())


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known_source(tmp_path / "tree")
    target = tmp_path / "r.html"
    words = ["report", "--source", f"tree:{tmp_path / 'tree'}", "--output", str(target)]
    assert main(words) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [str(target)]
    assert target.as_uri() in err
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("error: ")
    assert "hint: --force" in err
    assert main([*words, "--force", "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["schema"] == "memdesc-report/1"
    assert value["size_bytes"] == target.stat().st_size
    assert Page(target.read_bytes()).contents["h1"]


def test_processes_are_listed(known: MemoryMap) -> None:
    data = report_data(known, source="x", attribution=hostile_attribution)
    assert not isinstance(data.processes, Absent)
    assert data.nr_processes == len(HOSTILE)
    assert sum(row.sizes.pss_bytes for row in data.processes) == 4096 * len(HOSTILE)


def test_a_failing_attribution_is_a_reason(known: MemoryMap) -> None:
    def refuse() -> Any:
        raise MemdescError("not today", hint="tomorrow")

    data = report_data(known, source="x", attribution=refuse)
    assert data.processes == Absent("not today", "tomorrow")
    again = dataclasses.replace(data, processes=Absent("changed"))
    assert "Changed" not in render(again).decode()
    assert "changed" in render(again).decode()


def test_the_odds_are_those_of_failure(known: MemoryMap, page: Page) -> None:
    from memdesc.answers.failure import failure

    shown = {row["data-consequence"] for row in page.all("tr") if "data-consequence" in row}
    assert shown == {odds.consequence.name.lower() for odds in failure(known).odds}


def test_the_blocks_are_those_of_blocks(known: MemoryMap, page: Page) -> None:
    from memdesc.answers.blocks import blocks

    answer = blocks(known)
    row = page.text.split('data-state="free now"')[1].split("</tr>")[0]
    assert f">{int(answer.is_free.sum())}<" in row
    assert int(answer.is_free.sum()) == 8
    assert "slab" in page.text.split('class="stacked blockers"')[1].split("</table>")[0]


def test_every_zone_says_what_stays(known: MemoryMap, page: Page) -> None:
    shown = [row["data-zone"] for row in page.all("tr") if "data-zone" in row]
    assert shown == [zone.name for zone in known.machine.zones if zone.present]
    row = page.text.split('data-zone="Normal"')[1].split("</tr>")[0]
    assert "slab" in row
    assert size((4096 // 2 - 4) * 4096) in row


def test_what_stays_is_named_with_its_reason(known: MemoryMap, page: Page) -> None:
    """Slab never moves, the clean page cache of the chessboard may be held; free memory goes."""
    table = page.text.split('class="stacked staying"')[1].split("</table>")[0]
    rows = [row.split("</tr>")[0] for row in table.split("<tbody>")[1].split("<tr>")[1:]]
    slab = next(row for row in rows if ">slab<" in row)
    assert "stays: it never moves" in slab
    assert ">8.0\N{NO-BREAK SPACE}MiB<" in slab
    cache = next(row for row in rows if ">page cache<" in row)
    assert "moves: LRU migration, unless held" in cache
    assert not any("free memory" in row for row in rows)


def test_failures_are_told_by_kind(known: MemoryMap, page: Page) -> None:
    shown = [row["data-kind"] for row in page.all("tr") if "data-kind" in row]
    assert shown[:4] == ["free", "anon", "file", "slab"]
    table = page.text.split('class="stacked kinds"')[1].split("</table>")[0]
    slab = table.split('data-kind="slab"')[1].split("</tr>")[0]
    assert "machine lost" in slab
    assert ">ignored<" in slab
    assert ">EIO<" in slab


def test_reference_counts_sharpen_the_report(known: MemoryMap) -> None:
    """Nobody holds anything: everything of processes moves, and nothing hangs on a reference."""
    plain = report_data(known, source="x", attribution=no_processes)
    result = dataclasses.replace(known, references=np.zeros(len(known), np.int8))
    sharp = report_data(result, source="x", attribution=no_processes)
    assert not isinstance(plain.outlook, Absent)
    assert not isinstance(sharp.outlook, Absent)
    looks = (plain.outlook, sharp.outlook)
    kinds = [{row.types.only for row in look.stays} for look in looks]
    assert kinds[0] - kinds[1] == {MemoryType.ANON, MemoryType.FILE}
    assert sum(one.frames_max for one in sharp.failure.odds) < sum(
        one.frames_max for one in plain.failure.odds
    )


def test_the_costs_are_those_of_savings(known: MemoryMap, page: Page) -> None:
    """Every design and type with its numbers; a bar is as long as its cost is of the dearest."""
    from memdesc.answers.savings import savings

    answer = savings(known)
    most = max(one.cost.total_bytes[1] for one in answer.designs)
    for one in answer.designs:
        row = page.text.split(f'data-design="{one.design.id}"')[1].split("</tr>")[0]
        low, high = one.cost.total_bytes
        widths = {
            what: float(width)
            for what, width in re.findall(r'class="(cost-\w+)".*?width="(.*?)%"', row)
        }
        assert sum(widths.values()) == pytest.approx(100 * high / most, abs=0.01)
        assert ("cost-open" in widths) == (low != high)
        assert ("cost-descriptors" in widths) == one.design.allocates
        assert size(one.cost.memmap_bytes[0]) in row
    shown = [row["data-saved"] for row in page.all("tr") if "data-saved" in row]
    assert shown == [" ".join(row.types.names) for row in answer.rows]
    assert "revision R6" in page.text
