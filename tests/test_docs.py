"""The documentation holds: its links lead somewhere, its commands exist and run."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
from pathlib import Path

import pytest

from memdesc.cli import COMMANDS, main

ROOT = Path(__file__).parent.parent
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
EXPECTED = {ROOT / "docs/performance.md"}
"""Pages that may be linked before they are written."""


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


# --- links -------------------------------------------------------------------------------


def links(page: Path) -> list[str]:
    """Targets of links and images, without code and without other sites."""
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(), flags=re.DOTALL)
    found = re.findall(r"\]\(<?([^)\s>]+)", text) + re.findall(r"(?m)^\[[^\]]+\]: +(\S+)", text)
    found += re.findall(r"(?:src|href)=\"([^\"]+)\"", text)
    return [link for link in found if not re.match(r"[a-z]+:", link)]


def anchors(page: Path) -> set[str]:
    """What `page.md#...` can name: its headings, as the forges spell them."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    headings = re.findall(r"(?m)^#+ +(.*?) *$", text)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings)
    return {*plain, *re.findall(r"(?:id|name)=\"([^\"]+)\"", text)}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_relative_to(ROOT), link
        assert target.exists() or target in EXPECTED, f"{name_of(page)} links to {link}"
        if anchor and target.suffix == ".md" and target.exists():
            assert anchor in anchors(target), f"{name_of(page)} links to {link}"


def test_links_are_found() -> None:
    assert any(links(page) for page in PAGES)


# --- commands ----------------------------------------------------------------------------


def shown(page: Path) -> list[list[str]]:
    """Command lines of `memdesc` in blocks of code, as words, from the name on."""
    fence = re.compile(r"(?ms)^```(\w*)\n(.*?)^```$")
    blocks = [
        block
        for language, block in fence.findall(page.read_text())
        if language in ("", "sh", "bash", "console", "text")
    ]
    blocks += re.findall(r"(?m)^ {4}(\S.*)$", fence.sub("", page.read_text()))
    found = []
    for line in "\n".join(blocks).splitlines():
        line = re.sub(r"^\s*(\$ +)?(sudo +)?", "", line)
        # A command, and not a line of output that begins with the host's name.
        if re.match(r"memdesc(?= |$)", line):
            found.append(shlex.split(re.split(r" [|>] ?", line)[0], comments=True)[1:])
    return found


LINES = [words for page in PAGES for words in shown(page)]


def parser_of(words: list[str]) -> tuple[argparse.ArgumentParser, list[str]]:
    """The parser of the command that `words` name, and the words after its name."""
    command, rest = (
        ("overview", words) if not words or words[0][0] == "-" else (words[0], words[1:])
    )
    assert command in COMMANDS, f"there is no command {command}"
    parser = argparse.ArgumentParser(allow_abbrev=False, exit_on_error=False)
    importlib.import_module(f"memdesc.cli.{command}").arguments(parser)
    return parser, rest


def test_there_are_commands() -> None:
    assert len(LINES) > 5


@pytest.mark.parametrize("words", LINES, ids=shlex.join)
def test_commands_parse(words: list[str]) -> None:
    parser, rest = parser_of(words)
    _known, unknown = parser.parse_known_args(rest)
    assert not unknown


@pytest.mark.parametrize(
    "words", [words for words in LINES if any("bundled:" in word for word in words)], ids=shlex.join
)
def test_commands_that_need_no_privilege_run(
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) in (0, 1), capsys.readouterr().err


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_in_the_text_exist(page: Path) -> None:
    text = re.sub(r"(?ms)^```.*?^```", "", page.read_text())
    for code in re.findall(r"`(?:sudo )?memdesc( [^`]*)?`", text):
        words = code.split()
        if words and words[0] in ("--help", "--version"):
            continue
        parser, rest = parser_of(words)
        known = {option for action in parser._actions for option in action.option_strings}
        for word in rest:
            option = re.match(r"\[?(--?[a-z][a-z-]*)", word)
            assert not option or option[1] in known, f"{name_of(page)}: memdesc {code}"
