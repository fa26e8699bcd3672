"""`memdesc savings` on odd sources, and what a terminal leaves out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from worlds import write_words

from memdesc.cli import main
from memdesc.kernels.kpageflags import word_of


def test_a_raw_file_of_an_unknown_kernel(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No counts, no zones, no cgroups, no release: an answer all the same, with wide ranges."""
    file = write_words(tmp_path / "flags.bin", [word_of(["BUDDY"])] * 8 + [0] * 8)
    assert main(["savings", "--json", "--source", str(file)]) == 0
    value = json.loads(capsys.readouterr().out)
    assert (value["kernel"], value["frames_present"]) == (None, 16)
    by_id = {row["design"]: row for row in value["designs"]}
    assert by_id["today"]["total_bytes_min"] == by_id["today"]["total_bytes_max"] == 16 * 64
    eight = by_id["8"]
    assert eight["memmap_bytes_min"] == 16 * 8
    # A frame without a mark may be a page table, or nothing that needs a descriptor.
    assert eight["total_bytes_min"] == 16 * 8
    assert eight["total_bytes_max"] >= 16 * 8 + 8 * 64
    assert any("charged" in note for note in value["notes"])


def test_the_designs_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["savings", "--json", "--source", "bundled:debian-6.12"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["schema"] == "memdesc-savings/1"
    assert value["plan"] == {
        "revision": "R6",
        "date": "26 May 2026",
        "source": value["plan"]["source"],
    }
    assert [one["design"] for one in value["designs"]] == ["2021", "today", "32", "16", "8"]
    assert value["design"] == "8"
    for one in value["designs"]:
        for end, key in (("min", "count_at_least_cost"), ("max", "count_at_most_cost")):
            counted = sum(row["size_bytes"] * row[key] for row in one["by_descriptor"])
            assert counted == one[f"descriptor_bytes_{end}"]
    saved = sum(row["saved_bytes_min"] for row in value["rows"])
    assert saved == value["designs"][-1]["saved_bytes_min"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--by", "cgroup"], "memory cgroups are not visible"),
        (["--design", "12"], "invalid choice"),
    ],
    ids=" ".join,
)
def test_what_cannot_be_answered(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_words(tmp_path / "flags.bin", [0] * 4)
    assert main(["savings", *words, "--source", str(file)]) == 2
    error, hint = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ")
    assert message in error
    assert hint.startswith("hint: ")


def test_the_example_in_the_documentation(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "110")
    page = (Path(__file__).parents[2] / "docs/savings.md").read_text()
    example = page.split("$ memdesc savings --source bundled:debian-6.12\n")[1].split("```")[0]
    assert main(["savings", "--source", "bundled:debian-6.12"]) == 0
    shown = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    wanted = [line for line in example.splitlines() if line != "..."]
    assert len(wanted) > 12
    assert [line for line in wanted if line not in shown] == []


def test_an_empty_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_words(tmp_path / "flags.bin", [])
    assert main(["savings", "--source", str(file)]) == 2
    assert "error: " in capsys.readouterr().err
