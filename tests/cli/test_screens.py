"""What fits a terminal: the overview's height, the tables' width."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios

import pytest

from memdesc import types
from memdesc.answers.overview import Overview, overview
from memdesc.answers.words import UNION_WORDS
from memdesc.cli import main
from memdesc.cli.common import elide, table
from memdesc.cli.overview import show
from memdesc.sources.open import open_source


@pytest.fixture(scope="module")
def answer() -> Overview:
    return overview(open_source("bundled:debian-7.2").map())


@pytest.mark.parametrize(("height", "width"), [(24, 80), (40, 100), (30, 120)])
def test_the_overview_fits(
    height: int,
    width: int,
    answer: Overview,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    show(answer, "bundled:debian-7.2", height=height)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= height - 1  # the prompt follows
    assert max(map(len, lines)) <= width
    assert sum(line.startswith(("cgroup ", "slab cache ")) for line in lines) <= (
        5 if height >= 30 else 3
    )
    assert any("more kind" in line for line in lines)
    if height < 40:
        assert any("smaller types (memdesc ledger)" in line for line in lines)


def test_a_pipe_gets_everything(answer: Overview, capsys: pytest.CaptureFixture[str]) -> None:
    show(answer, "bundled:debian-7.2")
    out = capsys.readouterr().out
    assert "smaller types" not in out
    assert "more kinds" not in out
    assert out.index("free memory") < out.index("zero page")


@pytest.mark.parametrize("width", [60, 80, 100])
@pytest.mark.parametrize("view", [[], ["--files"], ["--charged"], ["--pid", "1"]], ids=str)
def test_one_line_per_row(
    view: list[str],
    width: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["who", *view, "--source", "bundled:debian-6.1", "--all"]
    assert main(words) == 0
    whole = capsys.readouterr().out.splitlines()
    monkeypatch.setenv("COLUMNS", str(width))
    assert main(words) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "note:" not in line]
    if width >= 80:
        rows = [line for line in whole if "note:" not in line]
        notes = len(whole) - len(rows)
        assert len(rows) <= len(lines) <= len(rows) + 3 * notes
    assert max(map(len, lines)) <= width
    if not view:
        assert ("cgroup" in lines[0]) == (width >= 90)


def test_long_lines_of_what_hang(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    assert main(["what", "0x1000", "--source", "bundled:debian-7.2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 60
    assert all(line.startswith("  ") for line in lines[1:])


def test_the_middle_goes() -> None:
    assert elide("/a/long/path/of/a/service", 12) == "/a/l\u2026service"
    assert elide("short", 12) == "short"


def test_a_column_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    made = table(["size", "path"], [["1.0 MiB", "/x" * 40]], elastic=(1,))
    assert [len(cell.plain) for cell in made.columns[1].cells] == [29]


def test_the_words_of_a_union_name_one() -> None:
    assert {family.label for family in types._FAMILIES} == set(UNION_WORDS)
    assert all(len(words) <= 68 for words in UNION_WORDS.values())


COMMANDS = [
    ["failure"],
    ["failure", "--by", "zone"],
    ["failure", "--by", "process"],
    ["failure", "--by", "file"],
    ["failure", "--by", "range"],
    ["failure", "0x14000", "0x8100"],
    ["move", "zone:DMA32"],
    ["blocks", "--without", "slab"],
    ["savings"],
    ["savings", "--design", "32"],
    ["savings", "--by", "cgroup"],
]


@pytest.mark.parametrize("width", [80, 100])
@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_rows_fit_the_width(
    words: list[str],
    width: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    main([*words, "--source", "bundled:debian-7.2"])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width


@pytest.mark.parametrize("words", [w for w in COMMANDS if "0x8100" not in w], ids=" ".join)
def test_a_terminal_of_24_lines_is_enough(words: list[str]) -> None:
    """Run on a real terminal of 24 lines: nothing scrolls away before the prompt."""
    lines = on_terminal([*words, "--source", "bundled:debian-7.2"], rows=24, columns=80)
    assert 2 <= len(lines) <= 23


def on_terminal(words: list[str], *, rows: int, columns: int) -> list[str]:
    """What `memdesc WORDS` prints on a terminal of that size."""
    main_end, other_end = pty.openpty()
    try:
        fcntl.ioctl(other_end, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        environment = {
            name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")
        }
        child = subprocess.Popen(
            [sys.executable, "-m", "memdesc", *words],
            stdout=other_end,
            stderr=subprocess.DEVNULL,
            stdin=other_end,
            env={**environment, "TERM": "xterm", "NO_COLOR": "1"},
        )
    finally:
        os.close(other_end)
    text = b""
    try:
        while piece := os.read(main_end, 1 << 16):
            text += piece
    except OSError:  # the other end is closed: all has been read
        pass
    finally:
        os.close(main_end)
        child.wait(timeout=60)
    return text.decode().splitlines()
