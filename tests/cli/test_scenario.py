"""`memdesc scenario`: what it prints, writes and returns, on a place that needs no machine."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fake_runner import FakeRunner

from memdesc.cli import main
from memdesc.errors import MemdescError, NotReadableError, QuestionError
from memdesc.kernels.release import KernelRelease
from memdesc.scenarios import reader
from memdesc.scenarios.outcome import Outcome
from memdesc.scenarios.results import Results, ScenarioResult
from memdesc.scenarios.scenario import Plan, Scenario
from memdesc.scenarios.skipped import SkippedError
from memdesc.scenarios.step import Step
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
        self.unable: dict[str, MemdescError] = {}
        self.skips = False

    @contextmanager
    def open(self, where: Where) -> Iterator[FakeRunner]:
        self.asked.append(str(where))
        runner = FakeRunner(where.series or "6.12", flaw=self.flaws.get(str(where), ""))
        do = runner.do

        def attempt(step: Step) -> Outcome:
            if step.verb in self.unable:
                raise self.unable[step.verb]
            return do(step)

        runner.do = attempt  # type: ignore[method-assign]
        if self.skips and where.kind != "model":

            def refuse(*_: object) -> None:
                raise SkippedError("no memory to lock", line=4, hint="as root")

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
    said = capsys.readouterr().out
    assert said.startswith("skipped  all/")
    assert said.splitlines()[0].endswith(" on here: no memory to lock")
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


def test_record_follows_a_link_and_refuses_what_is_no_file(
    folder: Path, places: Places, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("bad.md").write_text(BAD)
    Path("link.md").symlink_to("bad.md")
    os.mkfifo("pipe")
    assert main(["scenario", "run", "link.md", "pipe", "--record"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "error: cannot write pipe: it is no regular file"
    assert said[1].startswith("hint: save the scenarios to a file first")
    assert Path("pipe").is_fifo()
    assert Path("bad.md").read_text() == BAD
    assert not places.asked
    assert main(["scenario", "run", "link.md", "--record"]) == 0
    assert Path("link.md").is_symlink()
    assert Path("bad.md").read_text() == GOOD


@pytest.mark.parametrize("more", [[], ["--record"]])
def test_bytes_that_are_no_text_are_no_traceback(
    folder: Path, places: Places, capsys: pytest.CaptureFixture[str], more: list[str]
) -> None:
    Path("bytes.md").write_bytes(GOOD.replace("A child", "caf\xe9").encode("latin1"))
    assert main(["scenario", "run", "bytes.md", *more]) == 2
    assert capsys.readouterr().err.startswith("error: bytes.md:1: not UTF-8 text: byte 0xe9")


def test_a_step_that_cannot_be_done_does_not_keep_others_from_running(
    folder: Path, places: Places, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "# Frozen\n```scenario\nprocess p\np: lockall\n```\n"
    Path("frozen.md").write_text(text)
    places.unable["lockall"] = QuestionError("the disk is frozen", hint="thaw it")
    assert main(["scenario", "run", "frozen.md", "all"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "FAILS    frozen.md:2 Frozen on model:6.12",
        "  frozen.md:4: the disk is frozen",
        "      thaw it",
        "holds    all/01-fork/01-good.md:3 A child shares its parent's pages on model:6.12",
        "1 hold, 1 fail",
    ]
    assert main(["scenario", "run", "frozen.md", "--json"]) == 1
    (found,) = json.loads(capsys.readouterr().out)["rows"]
    assert (found["holds"], found["error"]) == (False, "frozen.md:4: the disk is frozen")
    assert main(["scenario", "compare", "frozen.md", "all", "--on", "6.12"]) == 2
    out = capsys.readouterr().out.splitlines()
    assert out[1] == "  frozen.md:4: the disk is frozen"
    assert out[-1] == "1 holds, 1 broken"


def test_a_scenario_of_another_kernel_does_not_hold(
    folder: Path, places: Places, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("new.md").write_text("# New\n```scenario\n# version 7.2\nprocess p\n```\n")
    assert main(["scenario", "run", "new.md"]) == 2
    assert capsys.readouterr().out.splitlines() == [
        "skipped  new.md:2 New on model:6.12: it has no steps on 6.12",
        "0 hold, 0 fail, 1 skipped",
    ]
    assert main(["scenario", "run", "new.md", "all"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "1 hold, 0 fail, 1 skipped"
    assert main(["scenario", "run", "new.md", "--on", "model:7.2"]) == 0


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


def test_compare_does_nothing_where_it_could_not_save(
    folder: Path, places: Places, capsys: pytest.CaptureFixture[str]
) -> None:
    for path, why in (("none/r.json", "No such file"), ("all", "Is a directory")):
        assert main(["scenario", "compare", "all", "--save", path]) == 2
        said = capsys.readouterr()
        assert said.err.startswith(f"error: cannot write {path}: {why}")
        assert not said.out
    assert not places.asked
    assert not list(folder.glob("*.json*"))


def test_compare_keeps_what_it_has_when_it_is_interrupted(
    folder: Path, places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "all/01-fork/02-more.md").write_text(GOOD.replace("A child", "Once more, a child"))
    seen: list[list[str]] = []
    entries = places.open

    @contextmanager
    def open_runner(where: Where) -> Iterator[FakeRunner]:
        path = Path("r.json")
        seen.append([e.title for e in Results.read(path).entries] if path.exists() else [])
        with entries(where) as runner:
            start, calls = runner.start, []

            def interrupted(*words: Any) -> None:
                calls.append(words)
                if str(where) == "vm:6.12" and len(calls) == 2:
                    raise KeyboardInterrupt
                start(*words)

            runner.start = interrupted  # type: ignore[method-assign]
            yield runner

    monkeypatch.setattr("memdesc.scenarios.where.open_runner", open_runner)
    words = ["scenario", "compare", "all", "--save", "r.json", "--on", "6.1", "--on", "6.12"]
    assert main(words) == 130
    # After each kernel, and when it ends early.
    assert [len(titles) for titles in seen] == [0, 0, 2, 2]
    saved = Results.read(Path("r.json")).entries
    assert [entry.series for entry in saved] == ["6.1", "6.1", "6.12"]


def test_results_that_cannot_be_written_are_named_as_they_were_asked_for(tmp_path: Path) -> None:
    with pytest.raises(NotReadableError, match=r"cannot write .*/none/r\.json: No such") as caught:
        Results().write(tmp_path / "none/r.json")
    assert caught.value.hint == f"there is no folder {tmp_path / 'none'}"


def test_run_reads_standard_input(
    folder: Path,
    places: Places,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(GOOD.encode())))
    assert main(["scenario", "run", "-"]) == 0
    assert capsys.readouterr().out.startswith("holds    <standard input>:3 A child shares")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xff")))
    assert main(["scenario", "run", "-"]) == 2
    assert capsys.readouterr().err.startswith("error: <standard input>:1: not UTF-8 text")


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["run", "all", "--stpe"], "did you mean --step? `memdesc scenario run --help` shows"),
        (["table", "--zzz"], "`memdesc scenario table --help` shows"),
        (["run", "all", "--on", "6.12"], "did you mean model:6.12 or vm:6.12?"),
        (["run", "all", "--on", "hre"], "did you mean here?"),
        (["compare", "all", "--on", "6.13"], "give 6.1, 6.12, 7.2 or here"),
        (["compare", "all", "--on", "hre"], "give 6.1, 6.12, 7.2 or here"),
    ],
)
def test_hints_are_about_what_was_asked(
    folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], hint: str
) -> None:
    assert main(["scenario", *words]) == 2
    assert capsys.readouterr().err.splitlines()[1].startswith(f"hint: {hint}")


def test_help_of_an_action(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["help", "scenario", "run"])
    assert capsys.readouterr().out.startswith("usage: memdesc scenario run ")


def test_list_plans_a_scenario_once(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "all/02-more.md").write_text(
        "```scenario\nprocess p\n# version >= 6.12\np: exit\n```\n"
    )
    planned: list[str] = []

    def plan_for(scenario: Scenario, release: KernelRelease) -> Plan:
        planned.append(scenario.path.name)
        return real(scenario, release)

    real = reader.plan_for
    monkeypatch.setattr(reader, "plan_for", plan_for)
    assert main(["scenario", "list", "all"]) == 0
    assert planned == ["01-good.md", "02-more.md", "02-more.md"]


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
        (["run", "-", "--record"], "--record writes into files"),
        (["list"], "there is no file scenarios\nhint: memdesc's own"),
        (["table"], "there is no file scenarios/results.json\nhint: run it in the checkout"),
        (["random", "3", "--steps", "x"], "argument --steps: not a number: 'x'"),
        (["random", "x"], "argument SEED: not a number: 'x'"),
        (["random", "3", "--steps", "0"], "argument --steps: 1 to 100000 steps"),
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
