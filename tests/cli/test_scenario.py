"""`memdesc scenario`: what it prints, writes and returns, on a place that needs no machine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fake_runner import FakeRunner

from memdesc.cli import main
from memdesc.scenarios.results import Results, ScenarioResult
from memdesc.scenarios.skipped import SkippedError
from memdesc.scenarios.where import Where

GOOD = """# A child shares its parent's pages

```scenario
process p
p: map buf 2
p: write buf[0] A
p: fork c
expect
    c buf page   a .
```
"""
BAD = GOOD.replace("a .", "A .")


class Places:
    """In place of `open_runner`: fakes, and a note of which were asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.flaws: dict[str, str] = {}
        self.skips = False

    @contextmanager
    def open(self, where: Where) -> Iterator[FakeRunner]:
        self.asked.append(str(where))
        runner = FakeRunner(where.series or "6.12", flaw=self.flaws.get(str(where), ""))
        if self.skips and where.kind != "model":

            def refuse(*_: object) -> None:
                raise SkippedError("skipped: no memory to lock", line=4, hint="as root")

            runner.start = refuse  # type: ignore[method-assign]
        yield runner


@pytest.fixture
def places(monkeypatch: pytest.MonkeyPatch) -> Places:
    found = Places()
    monkeypatch.setattr("memdesc.scenarios.where.open_runner", found.open)
    return found


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    topic = tmp_path / "all/01-fork"
    topic.mkdir(parents=True)
    (topic / "01-good.md").write_text(GOOD)
    (topic / "README.md").write_text("# No scenario\n")
    return tmp_path


def test_run_says_what_holds(
    folder: Path, places: Places, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["scenario", "run", "all"]) == 0
    out = capsys.readouterr().out
    assert out == (
        "holds    all/01-fork/01-good.md:3 A child shares its parent's pages on model:6.12\n"
        "1 hold, 0 fail\n"
    )
    assert places.asked == ["model:6.12"]


def test_run_draws_what_does_not(
    folder: Path, places: Places, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("bad.md").write_text(BAD)
    assert main(["scenario", "run", "bad.md", "all", "--on", "vm:7.2"]) == 1
    out = capsys.readouterr().out.splitlines()
    assert out[:6] == [
        "FAILS    bad.md:3 A child shares its parent's pages on vm:7.2",
        "  bad.md:9: c buf[0:2] page",
        "      page        0 1",
        "      expected    A .",
        "      found       a .",
        "                  ^",
    ]
    assert out[-1] == "1 hold, 1 fail"


def test_run_step_by_step(folder: Path, places: Places, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scenario", "run", "all", "--step"]) == 0
    out = capsys.readouterr().out
    assert "\n  7: p: fork c\n        by a rule of the fake\n      p buf   a .\n" in out
    assert "  a  anonymous, not exclusive\n" in out


def test_run_as_json(folder: Path, places: Places, capsys: pytest.CaptureFixture[str]) -> None:
    Path("bad.md").write_text(BAD)
    assert main(["scenario", "run", "bad.md", "--json", "--on", "vm:6.1"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["schema"] == "memdesc-scenario-run/1"
    (run,) = found["rows"]
    assert (run["on"], run["holds"], run["complete"]) == ("vm:6.1", False, True)
    last = run["steps"][-1]
    assert last["pages"]["c"]["buf"][0]["letter"] == "a"
    assert last["problems"][0]["line"] == 9


def test_what_a_place_cannot_do_is_skipped_and_said(
    folder: Path, places: Places, capsys: pytest.CaptureFixture[str]
) -> None:
    places.skips = True
    assert main(["scenario", "run", "all", "--on", "here"]) == 2
    assert "skipped: no memory to lock" in capsys.readouterr().out
    assert main(["scenario", "compare", "all", "--on", "6.12"]) == 2
    assert capsys.readouterr().out.splitlines()[-1] == "1 skipped"


def test_record_writes_the_file(
    folder: Path, places: Places, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("bad.md").write_text(BAD.replace("A .", "..."))
    words = ["scenario", "run", "bad.md", "--record", "--on", "vm:6.1", "--on", "vm:7.2"]
    assert main(words) == 0
    assert capsys.readouterr().out == "recorded  bad.md\n"
    assert Path("bad.md").read_text() == GOOD
    assert main(words) == 0
    assert capsys.readouterr().out == "as it was  bad.md\n"
    assert main(["scenario", "run", "all", "--record", "--json"]) == 2
    assert main([*words, "--on", "model:6.1"]) == 2
    assert "are the same kernel" in capsys.readouterr().err


def test_compare_finds_the_first_difference_and_saves(
    folder: Path, places: Places, capsys: pytest.CaptureFixture[str]
) -> None:
    places.flaws["vm:7.2"] = "p: write buf[0] A"
    words = ["scenario", "compare", "all", "--save", "results.json"]
    assert main(words) == 1
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "holds    01-fork/01-good.md:3 A child shares its parent's pages on vm:6.1"
    assert out[2:10] == [
        "DIFFERS  01-fork/01-good.md:3 A child shares its parent's pages on vm:7.2",
        "  all/01-fork/01-good.md:6: after `p: write buf[0] A`",
        "    p buf[0]",
        "      page 0",
        "                  model:7.2  vm:7.2",
        "        mapcount  1          2",
        "    the model: a rule of the fake",
        "2 holds, 1 differs",
    ]
    assert places.asked == ["model:6.1", "vm:6.1", "model:6.12", "vm:6.12", "model:7.2", "vm:7.2"]
    assert main(["scenario", "table", "results.json"]) == 1
    table = capsys.readouterr().out.splitlines()
    assert table[0].split() == ["mechanism", "scenarios", "6.1", "6.12", "7.2"]
    assert table[1].split() == ["fork", "1", "1", "1", "0", "of", "1"]
    assert table[3].startswith("differs: 01-fork/01-good.md, A child")
    # What is compared again takes the place of what was there.
    places.flaws.clear()
    assert main([*words, "--on", "7.2"]) == 0
    assert [entry.verdict for entry in Results.read(Path("results.json")).entries] == ["holds"] * 3
    capsys.readouterr()
    assert main(["scenario", "table", "results.json", "--markdown"]) == 0
    assert capsys.readouterr().out.splitlines()[2] == "| fork | 1 | 1 | 1 | 1 |"


def test_compare_tells_where_both_are_unlike_the_file(
    folder: Path, places: Places, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("bad.md").write_text(BAD)
    assert main(["scenario", "compare", "bad.md", "--on", "6.12", "--json"]) == 1
    (found,) = json.loads(capsys.readouterr().out)["rows"]
    assert (found["verdict"], found["why"]) == ("fails", "lines 9")


def test_list(folder: Path, places: Places, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "all/02-more.md").write_text(
        "```scenario\nknob thp always\nprocess p\n# version 7.2\np: exit\n```\n"
    )
    assert main(["scenario", "list", "all"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[1][-4:] == ["4", "1", "alike", "anywhere"]
    assert rows[2][-5:] == ["2", "0", "differ", "in", "guests"]
    assert main(["scenario", "list", "all", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["rows"]) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "absent.md"], "there is no file absent.md"),
        (["run", "empty"], "no scenario files below empty"),
        (["run", "wrong.md"], "wrong.md:2: unknown verb: 'proces'"),
        (["run", "all", "--on", "moon"], "not a place for scenarios: 'moon'"),
        (["run", "all", "--on", "vm:5.4"], "not a kernel that scenarios run on: '5.4'"),
        (["compare", "all", "--on", "vm:6.1"], "compare takes a kernel, not a place"),
        (["table", "absent.json"], "cannot read absent.json"),
        (["table", "wrong.md"], "wrong.md is not JSON"),
        (["table", "other.json"], "other.json is no file of scenario results"),
        (["table", "damaged.json"], "damaged.json is damaged"),
    ],
)
def test_what_cannot_be_answered(
    folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    Path("empty").mkdir()
    Path("wrong.md").write_text("```scenario\nproces p\n```\n")
    Path("other.json").write_text("[]")
    Path("damaged.json").write_text('{"schema": "memdesc-scenarios/1", "scenarios": [{}]}')
    assert main(["scenario", *words]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {message}")


def test_results_come_back_as_they_were_saved(tmp_path: Path) -> None:
    entry = ScenarioResult("01-a", "01-a/b.md", 3, "T", "6.1", "6.1.192", "broken", 4, 2, "why")
    saved = Results((entry,), "2026-01-01")
    saved.write(tmp_path / "r.json")
    assert Results.read(tmp_path / "r.json") == saved
