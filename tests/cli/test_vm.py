"""`memdesc vm`: what it lists, refuses, and passes through."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from guests import KERNELS, kernel_or_skip

from memdesc.cli import main
from memdesc.vm import host
from memdesc.vm.kernels import SERIES


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(host, "_PLACES", ("/nowhere",))


@pytest.mark.usefixtures("nothing_installed")
def test_list_says_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["vm", "list"]) == 1
    captured = capsys.readouterr()
    for name in SERIES:
        assert f"\n{name} " in captured.out
    assert "missing: qemu-system-x86_64" in captured.out
    assert captured.err.startswith("hint: apt install qemu-system-x86 busybox-static")
    assert main(["vm", "list", "--json"]) == 1
    value = json.loads(capsys.readouterr().out)
    assert [row["release"] for row in value["rows"]] == [None] * len(SERIES)
    assert {row["package"] for row in value["missing"]} >= {"qemu-system-x86", "busybox-static"}


@pytest.mark.usefixtures("nothing_installed")
@pytest.mark.parametrize("action", ["fetch", "run", "dump", "record", "trace"])
def test_without_the_tools_each_action_ends_with_two_lines(
    action: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = tmp_path / "program.py"
    program.touch()
    rest = {
        "fetch": [],
        "run": ["--", str(program)],
        "dump": ["--output", str(tmp_path / "out")],
        "record": ["--output", str(tmp_path / "out")],
        "trace": ["--output", str(tmp_path / "out")],
    }[action]
    assert main(["vm", action, "6.12", *rest]) == 2
    error, hint = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ")
    assert "not installed" in error
    assert hint.startswith("hint: apt install ")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["fetch", "9.9"], "unknown kernel: '9.9'"),
        (["run", "6.12", "--", "/no/such.py"], "no such program: /no/such.py"),
        (["run", "6.12"], "-- PROGRAM.py"),
        (["run", "6.12", "--memory", "7", "--", "x.py"], "between 256 and 65536"),
        (["dump", "6.12", "--output", __file__], "exists"),
        (["record", "6.12", "--output", str(Path(__file__).parent)], "exists"),
        (["fly"], "invalid choice: 'fly'"),
        ([], "required: ACTION"),
    ],
)
def test_what_cannot_be_done_is_refused_at_once(
    words: list[str], error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["vm", *words]) == 2
    said = capsys.readouterr().err
    assert error in said
    assert "hint: " in said


@pytest.mark.vm
def test_a_program_of_ours_runs_inside_and_its_status_is_ours(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kernel = kernel_or_skip(KERNELS[1])
    program = tmp_path / "program.py"
    program.write_text(
        "import os, sys, memdesc\n"
        "print(os.uname().release, memdesc.__version__, sys.argv)\n"
        "print('careful', file=sys.stderr)\n"
        "sys.exit(3)\n"
    )
    words = ["vm", "run", KERNELS[1], "--memory", "256", "--", str(program), "--flag", "a b"]
    assert main(words) == 3
    captured = capsys.readouterr()
    assert captured.out.startswith(f"{kernel.release} 0.")
    assert captured.out.endswith("['program.py', '--flag', 'a b']\n")
    assert captured.err == "careful\n"
