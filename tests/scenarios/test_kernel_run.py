"""Scenarios on real kernels: what is sent and read back, this machine, and guests."""

from __future__ import annotations

import base64
import gzip
import json
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from guests import KERNELS

from memdesc.kernels.release import KernelRelease
from memdesc.scenarios import kernel_run
from memdesc.scenarios.kernel_run import (
    BrokenRunError,
    HereRunner,
    VmRunner,
    actor_files,
    played_of,
    request_of,
)
from memdesc.scenarios.outcome import Outcome
from memdesc.scenarios.places import FIRST_SLOT, word_of_tag
from memdesc.scenarios.reader import plan_for, read_text
from memdesc.scenarios.run import Run, run_scenario
from memdesc.scenarios.scenario import Plan, Scenario
from memdesc.scenarios.skipped import SkippedError
from memdesc.vm.guest import Guest, GuestEndedError

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="frame numbers are shown to root only")
R612 = KernelRelease.parse("6.12")


def scenario(*lines: str) -> Scenario:
    text = "\n".join(("# Title", "", "```scenario", *lines, "```"))
    return read_text(text, Path("made.md"))[0]


def plan(*lines: str) -> Plan:
    return plan_for(scenario(*lines), R612)


SHARING = scenario(
    "process p",
    "p: map buf 4",
    "p: write buf[0:2] A",
    "p: fork c",
    "c: write buf[0] B",
    "p: read buf[0:3] -> A A 0",
    "c: protect buf r",
    "c: write buf[1] C -> SIGSEGV ACCERR",
    "expect",
    "    p buf content  A A 0 .",
    "    c buf content  B A . .",
    "    p buf frame    a b z .",
    "    c buf frame    c b . .",
    "    p buf mapcount 1 2 0 .",
    "    c vmas         buf[0:4] r",
    "c: exit",
    "expect",
    "    p buf mapcount 1 1 0 .",
)


# --- what is sent and read back ------------------------------------------------------------------


def test_an_image_is_sent_only_to_scenarios_with_files_on_it() -> None:
    assert "ext4" not in request_of(plan("process p", "p: open f tmpfs:x create"))
    image = request_of(plan("process p", "p: open f ext4:x create"))["ext4"]
    assert image["bytes"] % 4096 == 0
    assert len(json.dumps(image)) < 1 << 20
    assert image == request_of(plan("process p", "p: open f ext4:y create"))["ext4"]


def test_a_disk_that_may_fail_loses_its_free_blocks_and_nothing_else() -> None:
    asked: list[str] = []

    def modules(names: Sequence[str]) -> list[bytes]:
        asked.extend(names)
        return [b"module"]

    plain = request_of(plan("process p", "p: open f ext4:x create"), modules)
    assert not plain["disk"]
    assert "modules" not in plain
    assert not asked
    request = request_of(plan("process p", "p: open f ext4:x create", "disk fail"), modules)
    assert asked == ["dm_mod"]
    assert zlib.decompress(base64.b64decode(request["modules"][0])) == b"module"
    assert request["disk"]
    free = [(first, first + length) for first, length in request["ext4"]["data"]]
    assert sum(end - first for first, end in free) > request["ext4"]["bytes"] // 2
    # What mkfs wrote describes the file system: none of it may fail.
    for offset, data in request["ext4"]["pieces"]:
        content = zlib.decompress(base64.b64decode(data))
        for at in range(0, len(content), 4096):
            if any(first <= offset + at < end for first, end in free):
                assert not content[at : at + 4096].strip(b"\0")


def test_a_guest_gets_every_module_as_source_and_compiled() -> None:
    names = {Path(path).name for path in actor_files()}
    modules = {path.stem for path in kernel_run.ACTOR_FOLDER.glob("*.py")}
    assert {name.split(".")[0] for name in names if name.endswith(".pyc")} == modules
    assert {Path(name).stem for name in names if name.endswith(".py")} == modules


def test_the_actor_needs_nothing_but_the_standard_library() -> None:
    for source in kernel_run.ACTOR_FOLDER.glob("*.py"):
        words = {line.split()[1] for line in source.read_text().splitlines() if "import " in line
                 and line.lstrip().split()[0] in ("from", "import")}  # fmt: skip
        assert not {w for w in words if w.split(".")[0] in ("memdesc", "numpy")}, source.name


ROW = [1 << 63 | 5, 0x5828, 1, None, 7, False, False, 0]
AREA = {
    "start": FIRST_SLOT,
    "end": FIRST_SLOT + 4096,
    "perms": "rw-p",
    "offset": 0,
    "path": "",
    "flags": ["rd"],
    "sizes": {"Rss": 4},
}


def step(
    rows: list[Any] | None, areas: list[Any] | None, outcome: dict[str, Any]
) -> dict[str, Any]:
    return {
        "outcome": outcome,
        "pages": {"p": {"buf": rows}},
        "vmas": {"p": {"vmas": areas}},
        "counters": {},
        "frames": {},
    }


def test_what_did_not_change_is_as_it_was() -> None:
    answer = {"steps": [step([ROW], [AREA], {"ok": None}), step(None, None, {"errno": "EINVAL"})]}
    (first, seen), (second, later) = played_of(answer).steps
    assert (first, second) == (Outcome(), Outcome(errno="EINVAL"))
    assert seen == later
    (page,) = later.pages["p"]["buf"]
    assert (page.entry & 0xFF, page.flags, page.content, page.huge) == (5, 0x5828, 7, False)
    assert later.vmas["p"][0].sizes["Rss"] == 4


class Canned(kernel_run.KernelRunner):
    """Answers what it is told to."""

    def __init__(self, answer: dict[str, Any]) -> None:
        super().__init__(R612)
        self.answer = answer

    def play(self, request: dict[str, Any]) -> dict[str, Any]:
        return self.answer


def test_a_run_that_breaks_says_so_at_the_step_that_it_did_not_do() -> None:
    made = plan("process p", "p: map buf 1")
    runner = Canned({"steps": [step([], [], {"ok": None})], "broken": "x\nno answer", "line": 5})
    runner.start(made, R612)
    assert runner.do(made.steps[0]).succeeded
    with pytest.raises(BrokenRunError, match="line 5: no answer") as caught:
        runner.do(made.steps[1])
    assert caught.value.line == 5


def test_a_run_that_was_refused_is_skipped() -> None:
    made = plan("process p")
    runner = Canned({"steps": [], "refused": "needs knob thp always", "line": 4})
    with pytest.raises(SkippedError, match="needs knob thp always") as caught:
        runner.start(made, R612)
    assert caught.value.line == 4


def test_what_rows_ask_for_is_sent() -> None:
    def asked(*rows: str) -> tuple[bool, bool, bool]:
        lines = ("process p", "p: map buf 1", "p: write buf A", "p: remember f buf", "expect")
        request = request_of(plan(*lines, *(f"    {row}" for row in rows)))
        return request["accessed"], request["contents"], request["frame_contents"]

    assert asked("p buf page A") == (False, False, False)
    assert asked("p buf flags +LRU -ACTIVE") == (True, False, False)
    assert asked("p smaps buf Referenced=4") == (True, False, False)
    assert asked("p buf content A") == (False, True, False)
    assert asked("f[0] content A") == (False, True, True)


def test_a_kernel_without_soft_dirty_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(self: HereRunner, request: dict[str, Any]) -> dict[str, Any]:
        return {"steps": [], "refused": "played"}

    monkeypatch.setattr(HereRunner, "play", never)
    made = plan("process p", "p: map buf 1", "expect", "    p buf softdirty 1")
    for tracks, message in ((False, "does not track soft-dirty"), (True, "played")):
        monkeypatch.setattr(kernel_run, "tracks_soft_dirty", lambda tracks=tracks: tracks)
        with pytest.raises(SkippedError, match=message):
            HereRunner().start(made, R612)


# --- this machine --------------------------------------------------------------------------------


def run_here(subject: Scenario) -> Run:
    return run_scenario(HereRunner(), subject, "here")


@pytest.mark.live
@needs_root
def test_this_machine_shares_and_copies_as_a_scenario_says() -> None:
    run = run_here(SHARING)
    assert run.holds, run.problems
    assert run.release == KernelRelease.parse(os.uname().release)


@pytest.mark.live
def test_a_new_area_is_soft_dirty_where_the_kernel_is_built_so() -> None:
    config = Path("/proc/config.gz")
    if not config.exists():
        pytest.skip("this kernel does not show how it was built")
    built = b"CONFIG_MEM_SOFT_DIRTY=y\n" in gzip.decompress(config.read_bytes())
    assert kernel_run.tracks_soft_dirty() is built


@pytest.mark.live
@needs_root
def test_looking_does_not_set_the_flags_that_rows_ask_for() -> None:
    steps = ("process p", "p: map buf 1", "p: write buf A", "process q", "process r", "expect")
    run = run_here(scenario(*steps, "    p buf flags +LRU -REFERENCED -ACTIVE"))
    assert run.holds, run.problems


@pytest.mark.live
@needs_root
def test_an_expectation_that_is_wrong_is_found_here() -> None:
    run = run_here(scenario("process p", "p: map b 1", "p: write b A", "p: read b -> B"))
    assert [problem.line for problem in run.problems] == [7]


@pytest.mark.live
@needs_root
def test_files_are_in_a_folder_of_their_own_that_goes_away() -> None:
    before = set(Path("/dev/shm").iterdir())
    run = run_here(
        scenario(
            "process p",
            "p: open f tmpfs:x create",
            "p: pwrite f[0:2] A B",
            "p: map buf 2 shared file f",
            "p: read buf -> A B",
            "p: write buf[1] C",
            "p: pread f -> A C",
            "p: truncate f 1",
            "p: read buf[1] -> SIGBUS ADRERR",
        )
    )
    assert run.holds, run.problems
    assert set(Path("/dev/shm").iterdir()) == before


@pytest.mark.live
@needs_root
def test_references_hold_pages_here() -> None:
    run = run_here(
        scenario(
            "process p",
            "p: map buf 2",
            "p: write buf A",
            "p: splice s buf",
            "p: advise buf dontneed",
            "p: pipe_read s -> A A",
            "p: read buf -> 0 0",
            "p: fork c",
            "c: write buf[0] B",
            "p: peek c buf -> B 0",
            "p: poke c buf[1] C",
            "c: copy_from buf -> B C",
            "c: copy_to buf[0] D",
            "c: read buf -> D C",
            "c: protect buf r",
            "p: ptrace_write c buf[0] E",
            "p: ptrace_read c buf -> E C",
            "c: copy_to buf[0] D -> EFAULT",
        )
    )
    assert run.holds, run.problems


@pytest.mark.live
@needs_root
def test_what_would_change_this_machine_is_skipped() -> None:
    with pytest.raises(SkippedError, match="only in a guest") as caught:
        run_here(scenario("process p", "swap on", "p: map buf 1"))
    assert caught.value.line == 5


@pytest.mark.live
@needs_root
def test_a_process_that_is_killed_is_gone() -> None:
    run = run_here(
        scenario("process p", "process q", "p: map buf 1", "p: write buf A", "kill p", "q: map a 1")
    )
    assert run.holds, run.problems
    assert [sorted(record.observation.pages) for record in run.records[-2:]] == [["q"], ["q"]]


def test_this_machine_is_refused_to_others_than_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(SkippedError, match="root") as caught:
        run_here(SHARING)
    assert "vm:6.12" in caught.value.hint


# --- guests --------------------------------------------------------------------------------------


class FakeGuest:
    """A guest that writes down what it is asked, and ends when it is told to."""

    def __init__(self, error: Exception | None = None) -> None:
        self.asked: list[str] = []
        self.error = error
        self.console = "scenario: line 4\nscenario: line 9\nKernel panic"

    def push(self, data: bytes, path: str) -> None:
        self.asked.append("push " + path.rpartition("/")[2].partition(".")[0])

    def savevm(self, tag: str) -> None:
        self.asked.append("savevm")

    def loadvm(self, tag: str) -> None:
        self.asked.append("loadvm")

    def run(self, program: str, seconds: float) -> Any:
        self.asked.append("run")
        if self.error is not None:
            raise self.error

        return SimpleNamespace(value={"steps": [step([], [], {"ok": None})]})


def test_a_guest_goes_back_to_its_state_for_each_scenario() -> None:
    guest = FakeGuest()
    runner = VmRunner("6.12", guest=guest)  # type: ignore[arg-type]
    for _ in range(3):
        runner.start(plan("process p"), R612)
    states = [asked for asked in guest.asked if not asked.startswith("push")]
    assert states == ["savevm", "run", "loadvm", "run", "loadvm", "run"]
    assert guest.asked.index("push controller") < guest.asked.index("savevm")
    assert guest.asked.count("push request") == 3


def test_a_guest_that_ends_names_the_step() -> None:
    guest = FakeGuest(GuestEndedError("the guest restarted", "Kernel panic"))
    with pytest.raises(BrokenRunError, match="line 9: the guest restarted") as caught:
        VmRunner("6.12", guest=guest).start(plan("process p"), R612)  # type: ignore[arg-type]
    assert caught.value.line == 9
    assert "Kernel panic" in caught.value.hint


@pytest.mark.vm
def test_a_guest_shares_and_copies_as_a_scenario_says(guest: Guest) -> None:
    runner = VmRunner(guest.kernel.series, guest=guest)
    for _ in range(2):
        run = run_scenario(runner, SHARING)
        assert run.holds, run.problems
        last = run.records[-1].observation.pages["p"]["buf"]
        assert [page.refs for page in last[:2]] == [1, 1]
    assert guest.kernel.series in KERNELS


@pytest.mark.vm
def test_a_guest_has_what_this_machine_must_not_be_asked_for(guest: Guest) -> None:
    runner = VmRunner(guest.kernel.series, guest=guest)
    everything = scenario(
        "knob thp always",
        "swap on",
        "process p",
        "p: map big 512",
        "p: write big[0] A",
        "expect",
        "    p big page H*512",
        "p: map buf 4",
        "p: advise buf nohugepage",
        "p: write buf A",
        "p: pin r buf[3]",
        "expect",
        "    p buf refs 1 1 1 1025",
        "p: reclaim buf",
        "expect",
        "    p buf page s s s A",
        "p: read buf -> A A A A",
        "p: release r",
        "p: advise buf mergeable",
        "ksm scan 3",
        "expect",
        "    p buf frame a a a a",
        "p: open f ext4:x create",
        "p: pwrite f[0] A",
        "p: map of 1 shared file f",
        "p: read of -> A",
        "expect",
        "    p of page D",
        "p: fsync f",
        "expect",
        "    p of page F",
    )
    run = run_scenario(runner, everything)
    assert run.holds, run.problems


@pytest.mark.vm
def test_words_of_tags_are_in_the_pages(guest: Guest) -> None:
    runner = VmRunner(guest.kernel.series, guest=guest)
    made = plan("process p", "p: map buf 2", "p: write buf[1] A")
    runner.start(made, R612)
    first, second = runner.see(made.steps[-1]).pages["p"]["buf"]
    assert (first.content, second.content) == (None, word_of_tag("A"))
    assert second.aliased is False
