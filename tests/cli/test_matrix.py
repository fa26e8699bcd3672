"""`memdesc matrix`: what has been checked, on a screen, as JSON, as the page."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from memdesc.checks.runs import FOLDER, recorded_runs
from memdesc.cli import main

ROOT = Path(__file__).parent.parent.parent


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["matrix", *words]) == 0
    return capsys.readouterr().out


def test_a_kernel_with_its_frames(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    lines = printed(capsys, "--kernel", "6.12").splitlines()
    rows = {line[:36].strip(): line[36:].split("  ") for line in lines}
    run = next(run for run in recorded_runs() if run.series == "6.12")
    ksm = next(row.cell for row in run.rows if row.types.names == ["ksm"])
    assert [text.strip() for text in rows["ksm"] if text] == [
        f"not visible {ksm.frames}",
        f"exact {ksm.frames}",
        f"exact {ksm.frames}",
    ]
    assert any(line.startswith("union of N: ") for line in lines), "words are explained"


def test_it_fits_on_a_narrow_screen(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = printed(capsys).splitlines()
    assert len(lines) < 70
    assert max(map(len, lines)) <= 80
    assert "kernel stack   no    yes     yes     no" in "\n".join(lines)


def test_json_has_every_cell_and_how_it_came_about(capsys: pytest.CaptureFixture[str]) -> None:
    value = json.loads(printed(capsys, "--json"))
    assert {kernel["series"] for kernel in value["kernels"]} == {
        run.series for run in recorded_runs()
    }
    for row in value["rows"] + value["planted"]:
        judged = sum(row[name] for name in ("exact", "union", "not_visible", "wrong", "open"))
        assert judged == row["frames"] == sum(each["frames"] for each in row["named"])
        assert row["wrong"] == 0
    assert all(kernel["peers"] and kernel["walks"] for kernel in value["kernels"])


def test_json_of_one_source_and_kernel(capsys: pytest.CaptureFixture[str]) -> None:
    value = json.loads(printed(capsys, "--json", "--source", "vmcore", "--kernel", "6.1"))
    assert {(row["kernel"], row["source"]) for row in value["rows"]} == {("6.1", "vmcore")}
    judged = [row for group in value["groups"] for row in group["rows"]]
    assert {(row["kernel"], row["source"]) for row in judged} == {("6.1", "vmcore")}


def test_markdown_is_the_page_of_the_documentation(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys, "--markdown") == (ROOT / "docs/reference/matrix.md").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--kernel", "2.4"], "kernel 2.4 was not checked"),
        (["--source", "telepathy"], "no kernel was checked with the source 'telepathy'"),
        (["--keep", "somewhere"], "--keep goes with --run"),
        (["--from", "somewhere"], "--from goes with --run"),
        (["--run", "--kernel", "2.4"], "unknown kernel: '2.4'"),
    ],
)
def test_questions_that_have_no_answer(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["matrix", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "hint:" in error


def test_judging_an_empty_folder_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (ROOT / "docs/reference/matrix.md").read_bytes()
    assert main(["matrix", "--run", "--from", str(tmp_path)]) == 2
    assert "holds no recording" in capsys.readouterr().err
    assert (ROOT / "docs/reference/matrix.md").read_bytes() == before


def test_an_installed_memdesc_asks_where_results_go(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = tmp_path / "lib/python3/site-packages/memdesc/checks/data"
    shutil.copytree(FOLDER, installed)
    monkeypatch.setattr("memdesc.checks.runs.FOLDER", installed)
    assert main(["matrix", "--run", "--from", str(tmp_path)]) == 2
    assert "--output DIR says where they go" in capsys.readouterr().err


@pytest.mark.vm
def test_a_recording_is_judged_again_into_a_folder(
    tmp_path: Path,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Without the struct page source's map, which a plain recording has not."""
    recording = request.getfixturevalue("recorded")("6.12")
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/6.12").symlink_to(recording.folder)
    out = tmp_path / "out"
    assert main(["matrix", "--run", "--from", str(tmp_path / "kept"), "--output", str(out)]) == 0
    assert " 0 named wrongly" in capsys.readouterr().out
    (run,) = recorded_runs(out)
    assert run.sources == ("live:proc", "vmcore")
    assert run.frames_wrong == 0
    assert "# What was checked" in (out / "matrix.md").read_text()
