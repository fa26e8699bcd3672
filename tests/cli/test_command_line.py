"""The command line as a whole: exit codes, errors with hints, streams, and no tracebacks."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import worlds
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memdesc.answers.what import PageAnswer
from memdesc.cli import COMMANDS, main
from memdesc.cli.what import _text
from memdesc.descriptors import (
    AnonFolio,
    Descriptor,
    KernelStack,
    Nobody,
    PageTable,
    Vmalloc,
)
from memdesc.kernels.kpageflags import word_of
from memdesc.rules.procedure import RULES
from memdesc.sources import kpage
from memdesc.types import MemoryType, Pfn, PfnRange, Pid, TypeSet

FREE = word_of(["BUDDY"])
ANON = word_of(["UPTODATE", "LRU", "MMAP", "ANON", "SWAPBACKED", "OWNER_2"])


@pytest.fixture
def raw(tmp_path: Path) -> str:
    return str(worlds.write_words(tmp_path / "flags.bin", [FREE] * 6 + [ANON] * 2))


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    for name in COMMANDS:
        assert name in out


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_its_own_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    assert "examples:" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("memdesc 0.")


def test_data_goes_to_stdout_as_json(raw: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ledger", "--source", raw, "--kernel", "7.2", "--json"]) == 0
    captured = capsys.readouterr()
    value = json.loads(captured.out)
    assert captured.err == ""
    assert value["schema"] == "memdesc-ledger/1"
    assert value["frames_present"] == 8
    assert {row["type"]: row["frames"] for row in value["rows"]} == {"free": 6, "anon": 2}


def test_what_takes_any_number_of_places(raw: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["what", "0x0", "phys:0x6000", "--source", raw, "--kernel", "7.2", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["type"] for row in rows] == ["free", "anon"]
    assert [row["pfn"] for row in rows] == [0, 6]


def test_a_place_without_an_answer_stays_in_its_row(
    raw: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["what", "0x0", "0x99", "zz", "0x6", "--source", raw, "--kernel", "7.2"]
    assert main([*words, "--json"]) == 2
    captured = capsys.readouterr()
    rows = json.loads(captured.out)["rows"]
    assert [row["asked"] for row in rows] == ["0x0", "0x99", "zz", "0x6"]
    assert set(rows[1]) == {"asked", "pfn", "type", "error", "hint"}
    assert rows[1]["pfn"] is rows[1]["type"] is None
    assert "outside the map" in rows[1]["error"]
    assert rows[2]["error"] == "not a place: 'zz'"
    assert captured.err == ""
    assert main(words) == 2
    out = capsys.readouterr().out
    order = ("0x0  free", "0x99  error: ", "zz  error: ", "0x6  anonymous")
    assert [out.index(text) for text in order] == sorted(out.index(text) for text in order)


@pytest.mark.parametrize("command", ["failure", "who", "move"])
def test_one_bad_place_stops_no_other_question(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = ["--source", "bundled:debian-7.2"]
    assert main([command, "zz", "0x99999999", "0x4000", *source, "--json"]) == 2
    first, second, third = json.loads(capsys.readouterr().out)["rows"]
    assert first["error"] == "not a place: 'zz'"
    assert "outside the map" in second["error"]
    assert "error" not in third
    assert main([command, "zz", "0x4000", *source]) == 2
    assert "zz  error: not a place" in capsys.readouterr().out


def test_fields_of_descriptors_are_in_the_words_of_people() -> None:
    """An anonymous page's index is an address; tasks, owners and areas have names and sizes."""
    pages = PfnRange(Pfn(8), Pfn(9))
    texts = [
        _text(_answer(descriptor))
        for descriptor in (
            AnonFolio(pages, index=0x7F00AA001),
            KernelStack(pages, task=Pid(7), task_name="ksoftirqd/0"),
            PageTable(pages, owner=Nobody(), owner_name=Nobody()),
            Vmalloc(pages, area=0xFFFFC90000011000, area_size_bytes=3 << 20),
        )
    ]
    assert "index       0x7f00aa001, for address 0x7f00aa001000 of its process\n" in texts[0]
    assert "task        7 (ksoftirqd/0)\n" in texts[1]
    assert "owner       nobody\n" in texts[2]
    assert "area size   3.0 MiB\n" in texts[3]
    assert not any("name" in line.split() for text in texts for line in text.splitlines())


def _answer(descriptor: Descriptor) -> PageAnswer:
    return PageAnswer(
        asked="0x8",
        pfn=Pfn(8),
        types=TypeSet.of(MemoryType.ANON),
        rule=RULES["anon"],
        flags=0,
        flag_names=(),
        pages=descriptor.pages,
        descriptor=descriptor,
        mapcount=0,
        cgroup=0,
        cgroup_name="",
        zone="",
        node=None,
    )


@pytest.mark.parametrize(("kernel", "word"), [("99.9", "newer"), ("5.4", "older")])
def test_a_kernel_that_nobody_read_is_noted(
    kernel: str, word: str, raw: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ledger", "--source", raw, "--kernel", kernel]) == 0
    assert capsys.readouterr().err.startswith(f"note: {kernel} is {word} than any kernel")


def test_diff_of_raw_files_says_why_frames_are_not_compared(
    raw: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["diff", raw, raw]) == 0
    assert "are not known (--kernel)" in capsys.readouterr().out
    assert main(["diff", raw, raw, "--kernel", "7.2", "--threads", "1"]) == 0
    assert capsys.readouterr().out == "nothing changed\n"


def test_a_raw_file_says_itself_what_it_does_not_show(
    raw: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--source", raw]) == 0
    out = capsys.readouterr().out
    assert "not readable: kernel release: not given (--kernel RELEASE)" in out
    assert "doctor" not in out


def test_a_process_that_was_refused_is_said_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from memdesc.map.attribution import Attribution, ReadReport
    from memdesc.sources.capture import Capture

    report = ReadReport(seen=15, read=14, refused=1, problems=((1, "Permission denied"),))
    whole = Capture.attribution

    def refused(capture: Capture, _progress: object = None) -> Attribution:
        read = whole(capture)
        read.processes.pid[read.processes.pid == 1] = 2
        return Attribution(read.processes, read.vmas, read.mappings, report)

    monkeypatch.setattr(Capture, "attribution", refused)
    source = ["--source", "bundled:debian-7.2"]
    assert main(["who", "--pid", "1", *source]) == 2
    err = capsys.readouterr().err
    assert "process 1 could not be read: Permission denied" in err
    assert "memdesc doctor" in err
    assert main(["who", *source]) == 0
    assert "1 of 15 processes could not be read (PID 1: Permission denied)" in (
        capsys.readouterr().out
    )


def test_kpagecount_beside_a_raw_file(
    raw: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    counts = worlds.write_words(tmp_path / "counts.bin", [0] * 6 + [1, 5])
    code = main(
        ["what", "7", "--source", raw, "--kpagecount", str(counts), "--kernel", "7.2", "--json"]
    )
    assert code == 0
    assert json.loads(capsys.readouterr().out)["rows"][0]["mapcount"] == 5


ERRORS: list[tuple[list[str], str, str]] = [
    (["bogus"], "unknown command", "memdesc --help"),
    (["leger"], "unknown command", "did you mean `memdesc ledger`"),
    (["serve"], "`memdesc serve` is not part of this version", "overview, ledger"),
    (["what", "-0x1", "--source", "RAW"], "not negative", "a frame is 0x1234"),
    (["what", "phys:1234000", "--source", "RAW"], "not a place", "phys:0x1234000"),
    (["what", "12:7f05aa000", "--source", "RAW"], "not a place", "with 0x: 12:0x7f05aa000"),
    (["ledger", "--source", ""], "the source has no name", "--source takes"),
    (["ledger", "--source", "RAW", "--kernel", ""], "not a kernel release", "uname -r"),
    (["ledger", "--source", "RAW", "--threads", "-1"], "not between 1 and", "CPUs"),
    (["ledger", "--source", "RAW", "--threads", "9999"], "not between 1 and", "CPUs"),
    (["diff", "bundled:debian-6.1", "bundled:debian-7.2", "--kernel", "6.1"], "raw", "know"),
    (["what"], "required", "memdesc what --help"),
    (["what", "zz", "--source", "RAW"], "not a place", "phys:0x"),
    (["what", "0x99", "--source", "RAW"], "outside the map", "phys:0x"),
    (["what", "1:0x1000", "--source", "RAW"], "does not know processes", "0x..."),
    (["who", "--source", "RAW"], "does not say who maps", "live"),
    (["ledger", "--source", "/nowhere"], "cannot open /nowhere", "--source takes"),
    (["ledger", "--source", "ODD"], "ends in the middle of a word", "copy it again"),
    (["ledger", "--source", "ELF"], "memdesc reads dumps of x86-64", "dump"),
    (["ledger", "--source", "RAW", "--kernel", "new"], "not a kernel release", "uname -r"),
    (["ledger", "--source", "RAW", "--kpagecount", "ODD"], "middle of a word", "copy it again"),
    (["ledger", "--source", "RAW", "--by", "cgroup"], "cgroups are not visible", "no cgroups"),
    (["ledger", "--source", "live", "--kernel", "6.1"], "raw kpageflags file only", "both"),
    (["ledger", "--source", "bundled:none"], "none", "debian-6.12"),
    (["ledger", "--by", "colour"], "invalid choice", "memdesc ledger --help"),
    (["ledger", "--source", "EMPTYDIR"], "manifest", ""),
]


@pytest.mark.parametrize(("words", "message", "hint"), ERRORS, ids=lambda v: str(v)[:60])
def test_errors_are_two_lines_and_exit_2(
    words: list[str],
    message: str,
    hint: str,
    raw: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "odd").write_bytes(b"x" * 13)
    (tmp_path / "elf").write_bytes(b"\x7fELF" + b"\0" * 60)
    (tmp_path / "empty").mkdir()
    stands_for = {
        "RAW": raw,
        "ODD": str(tmp_path / "odd"),
        "ELF": str(tmp_path / "elf"),
        "EMPTYDIR": str(tmp_path / "empty"),
    }
    assert main([stands_for.get(word, word) for word in words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert message in captured.err
    if hint:
        assert "\nhint: " in captured.err
        assert hint in captured.err


def test_an_interrupt_ends_with_130(
    raw: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(kpage.PageFile, "read_into", interrupt)
    assert main(["ledger", "--source", raw]) == 130
    assert capsys.readouterr().err == "error: interrupted\n"


def test_an_interrupt_while_modules_load_ends_with_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(_name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("importlib.import_module", interrupt)
    assert main(["ledger"]) == 130
    assert capsys.readouterr().err == "error: interrupted\n"


def test_a_read_error_in_the_middle_names_the_frame(
    raw: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_args: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "preadv", fail)
    assert main(["ledger", "--source", raw]) == 2
    assert "Input/output error" in capsys.readouterr().err


def test_a_closed_pipe_is_no_error(raw: str) -> None:
    command = f"{sys.executable} -m memdesc ledger --source {raw} --by flags | head -n 1"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert done.stderr == ""


@pytest.mark.parametrize("words", [[], ["--help"], ["ledger", "--help"], ["ledger", "--json"]])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_is_one_line(words: list[str], unbuffered: str) -> None:
    source = [] if "--help" in words else ["--source", "bundled:debian-7.2"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "memdesc", *words, *source],
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    assert done.stderr == "error: cannot write the output: No space left on device\n"


def test_a_terminal_of_another_encoding_gets_other_bars() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "memdesc", "--source", "bundled:debian-7.2"],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "####" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize("words", [[], ["ledger", "--by", "order"], ["who"], ["what", "0x1000"]])
def test_no_line_of_a_pipe_ends_in_a_space(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--source", "bundled:debian-7.2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [line.rstrip() for line in lines]


def test_no_colour_when_asked(raw: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "memdesc", "ledger", "--source", raw],
        env={**os.environ, "NO_COLOR": "1", "FORCE_COLOR": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "\x1b[" not in done.stdout


WORD = st.sampled_from(
    ["what", "who", "ledger", "diff", "doctor", "--json", "--by", "--source", "0x1", "phys:0x1"]
) | st.text(min_size=1, max_size=8).filter(lambda text: "\0" not in text)


@given(words=st.lists(WORD, max_size=5))
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_no_words_give_a_traceback(
    words: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    raw = worlds.write_words(tmp_path_factory.mktemp("w") / "flags.bin", [FREE, ANON])
    try:
        code = main(["ledger", "--source", str(raw), *words])
    except SystemExit as stop:
        code = int(stop.code or 0)
    assert code in (0, 1, 2)


def test_a_hostile_name_cannot_talk_to_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {"proc/sys/kernel/hostname": "evil\x1b]0;owned\x07\n", "cgroups.tsv": "7\t/we\x1bb\n"}
    worlds.tree(tmp_path, [ANON] * 4, cgroups=[7] * 4, files=files)
    for words in ([], ["ledger", "--by", "cgroup"], ["what", "0x1"]):
        assert main([*words, "--source", f"tree:{tmp_path}"]) in (0, 1)
        out = capsys.readouterr().out
        assert "\x1b" not in out
        assert "\x07" not in out


def test_a_capture_says_why_it_has_no_processes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    worlds.tree(tmp_path / "machine", [ANON] * 4)
    target = str(tmp_path / "capture")
    words = ["capture", "--source", f"tree:{tmp_path / 'machine'}", "--output", target]
    assert main([*words, "--no-processes"]) == 0
    capsys.readouterr()
    assert main(["who", "--source", target]) == 2
    assert "--no-processes" in capsys.readouterr().err
