"""Whole commands on the bundled captures: what a person sees, word by word.

A mismatch prints the difference. When a change is meant to alter an output, accept it with
`pytest tests/cli/test_snapshots.py --snapshot-update` and read the diff of the files.
"""

from __future__ import annotations

import json
import re

import pytest
from syrupy.assertion import SnapshotAssertion

from memdesc.cli import main

KERNELS = ["debian-6.1", "debian-6.12", "debian-7.2"]
_SECONDS = re.compile(r"read in [0-9.]+ s by [0-9]+ threads")


@pytest.fixture(autouse=True)
def fixed_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "110")
    monkeypatch.setenv("NO_COLOR", "1")


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Exit code, stdout and stderr of a command, without what differs from run to run."""
    code = main(words)
    captured = capsys.readouterr()
    out = _SECONDS.sub("read in N s by N threads", captured.out)
    out = "\n".join(line.rstrip() for line in out.splitlines())
    return f"exit {code}\n--- stdout\n{out}\n--- stderr\n{captured.err}"


@pytest.mark.parametrize("kernel", KERNELS)
def test_overview(
    kernel: str, capsys: pytest.CaptureFixture[str], snapshot: SnapshotAssertion
) -> None:
    assert shown(capsys, "--source", f"bundled:{kernel}") == snapshot


@pytest.mark.parametrize("kernel", KERNELS)
def test_ledger(
    kernel: str, capsys: pytest.CaptureFixture[str], snapshot: SnapshotAssertion
) -> None:
    assert shown(capsys, "ledger", "--source", f"bundled:{kernel}") == snapshot


@pytest.mark.parametrize("by", ["zone", "node", "cgroup", "order"])
def test_ledger_split(
    by: str, capsys: pytest.CaptureFixture[str], snapshot: SnapshotAssertion
) -> None:
    assert shown(capsys, "ledger", "--by", by, "--source", "bundled:debian-6.12") == snapshot


def test_what(capsys: pytest.CaptureFixture[str], snapshot: SnapshotAssertion) -> None:
    places = ["0x1000", "phys:0x8000000", "0x8100", "0x26000"]
    assert shown(capsys, "what", *places, "--source", "bundled:debian-7.2") == snapshot


@pytest.mark.parametrize("view", [[], ["--files"], ["--charged"], ["--pid", "109"]], ids=str)
def test_who(
    view: list[str], capsys: pytest.CaptureFixture[str], snapshot: SnapshotAssertion
) -> None:
    assert shown(capsys, "who", *view, "--source", "bundled:debian-6.1") == snapshot


@pytest.mark.parametrize("kernel", KERNELS)
def test_failure(
    kernel: str, capsys: pytest.CaptureFixture[str], snapshot: SnapshotAssertion
) -> None:
    assert shown(capsys, "failure", "--source", f"bundled:{kernel}") == snapshot


@pytest.mark.parametrize("by", ["zone", "cgroup", "process", "file", "range"])
def test_failure_split(
    by: str, capsys: pytest.CaptureFixture[str], snapshot: SnapshotAssertion
) -> None:
    assert shown(capsys, "failure", "--by", by, "--source", "bundled:debian-6.12") == snapshot


def test_failure_of_pages(capsys: pytest.CaptureFixture[str], snapshot: SnapshotAssertion) -> None:
    places = ["0x1000", "0x8100", "0x14000", "0x26000"]
    assert shown(capsys, "failure", *places, "--source", "bundled:debian-7.2") == snapshot


def test_move(capsys: pytest.CaptureFixture[str], snapshot: SnapshotAssertion) -> None:
    places = ["0x8100", "block:1", "zone:DMA", "0x14000-0x14800"]
    assert shown(capsys, "move", *places, "--source", "bundled:debian-6.12") == snapshot


@pytest.mark.parametrize("kernel", KERNELS)
def test_blocks(
    kernel: str, capsys: pytest.CaptureFixture[str], snapshot: SnapshotAssertion
) -> None:
    assert shown(capsys, "blocks", "--source", f"bundled:{kernel}") == snapshot


@pytest.mark.parametrize("without", ["slab", "process:112", "0x4000"])
def test_blocks_without(
    without: str, capsys: pytest.CaptureFixture[str], snapshot: SnapshotAssertion
) -> None:
    words = ["blocks", "--without", without, "--source", "bundled:debian-6.1"]
    assert shown(capsys, *words) == snapshot


@pytest.mark.parametrize("kernel", KERNELS)
def test_savings(
    kernel: str, capsys: pytest.CaptureFixture[str], snapshot: SnapshotAssertion
) -> None:
    assert shown(capsys, "savings", "--source", f"bundled:{kernel}") == snapshot


@pytest.mark.parametrize(
    "view", [["--design", "32"], ["--by", "zone"], ["--by", "cgroup"]], ids=str
)
def test_savings_split(
    view: list[str], capsys: pytest.CaptureFixture[str], snapshot: SnapshotAssertion
) -> None:
    assert shown(capsys, "savings", *view, "--source", "bundled:debian-6.12") == snapshot


def test_diff(capsys: pytest.CaptureFixture[str], snapshot: SnapshotAssertion) -> None:
    assert shown(capsys, "diff", "bundled:debian-6.12", "bundled:debian-7.2") == snapshot


def test_help(capsys: pytest.CaptureFixture[str], snapshot: SnapshotAssertion) -> None:
    assert shown(capsys, "--help") == snapshot


def test_the_flags(capsys: pytest.CaptureFixture[str], snapshot: SnapshotAssertion) -> None:
    assert shown(capsys, "doctor", "--flags") == snapshot


JSON = [
    ["--json"],
    ["ledger", "--json"],
    ["ledger", "--by", "order", "--json"],
    ["what", "0x1000", "--json"],
    ["who", "--json"],
    ["who", "--files", "--json"],
    ["who", "0x8100", "--json"],
    ["failure", "--json"],
    ["move", "0x14000", "--json"],
    ["blocks", "--json"],
    ["savings", "--json"],
]


@pytest.mark.parametrize("words", JSON, ids=" ".join)
def test_json_has_a_schema_and_rows(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "--source", "bundled:debian-7.2"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert re.fullmatch(r"memdesc-[a-z-]+/1", value["schema"])
    assert value["rows"]
