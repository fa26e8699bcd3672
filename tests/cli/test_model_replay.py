"""`memdesc model replay`: what it prints of real traces, what it refuses, its exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from syrupy.assertion import SnapshotAssertion
from traces.pages import unpack
from traces.recorded import FOLDER

from memdesc.cli import main


@pytest.fixture(autouse=True)
def fixed_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "110")
    monkeypatch.setenv("NO_COLOR", "1")


def stored(name: str) -> str:
    return str(FOLDER / f"{name}.npz")


@pytest.mark.parametrize("name", ["6.12-compile", "7.2-steps"])
def test_a_recorded_trace(
    name: str, capsys: pytest.CaptureFixture[str], snapshot: SnapshotAssertion
) -> None:
    assert main(["model", "replay", stored(name)]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "\n".join(line.rstrip() for line in captured.out.splitlines()) == snapshot


def test_json_has_the_lists_order_by_order(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model", "replay", stored("6.1-churn"), "--own", "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["schema"] == "memdesc-replay/1"
    assert value["follow"] is None
    rows = value["rows"]
    assert [row["order"] for row in rows[:11]] == list(range(11))
    assert {row["migratetype"] for row in rows} >= {"Unmovable", "Movable", "Reclaimable"}
    assert all(row["own"] == row["kernel"] and row["follow"] is None for row in rows)
    assert any(row["start"] != row["kernel"] for row in rows)
    assert value["own"]["is_exact"] is True
    assert value["explained"]["frames_unexplained"] == 0
    assert value["trace"]["complete"] is True


def test_the_rules_of_another_kernel_do_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["model", "replay", stored("6.12-steps"), "--own", "--kernel", "6.1.192"]
    assert main(words) == 1
    assert "blocks too many or too few" in capsys.readouterr().out


def test_a_trace_alone_asks_for_the_machine_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["model", "replay", str(unpack("6.12", tmp_path))]) == 2
    assert "--before" in capsys.readouterr().err


def test_a_capture_of_another_machine_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A frame that is in none of its zones: 4 TiB up."""
    trace = tmp_path / "trace.txt"
    trace.write_text("t-1 [000] ..... 1.000001: mm_page_free: page=1 pfn=0x40000000 order=0\n")
    assert main(["model", "replay", str(trace), "--before", "bundled:debian-6.12"]) == 2
    assert "the same machine" in capsys.readouterr().err


def test_a_text_trace_starts_from_a_capture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "trace.txt"
    trace.write_text(
        "t-1 [000] ..... 1.000001: mm_page_alloc: page=1 pfn=0x5000 order=0 migratetype=1 "
        "gfp_flags=GFP_HIGHUSER_MOVABLE\n"
        "t-1 [000] ..... 1.000002: mm_page_free: page=1 pfn=0x5000 order=0\n"
    )
    words = ["model", "replay", str(trace), "--before", "bundled:debian-6.12", "--json"]
    assert main(words) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["exact"] is False
    assert value["own"]["counts"]["allocated"] == 1
    assert value["kernel"].startswith("6.12")
    assert any("only a dump does" in note for note in value["notes"])
    assert any("no mm_page_alloc_zone_locked" in note for note in value["notes"])


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["model", "--help"], ["model", "replay", "--help"]):
        with pytest.raises(SystemExit) as end:
            main(words)
        assert end.value.code == 0
        assert "examples:" in capsys.readouterr().out
