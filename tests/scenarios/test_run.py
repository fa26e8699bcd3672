"""Running, checking, comparing and recording, on a place small enough to know the answers."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from fake_runner import FakeRunner

from memdesc.errors import MemdescError, QuestionError, VmError
from memdesc.scenarios.compare import first_difference
from memdesc.scenarios.outcome import Outcome
from memdesc.scenarios.reader import read_text
from memdesc.scenarios.record import record_text
from memdesc.scenarios.run import Run, run_scenario
from memdesc.scenarios.scenario import Scenario, ScenarioError
from memdesc.scenarios.skipped import SkippedError
from memdesc.scenarios.step import Step

PATH = Path("topic/file.md")
FORKED = "process p\np: map buf 4\np: write buf[0:2] A\np: fork c\nc: write buf[0] B"


def scenario(steps: str) -> Scenario:
    (found,) = read_text(f"# Title\n\n```scenario\n{steps}\n```\n", PATH)
    return found


def run(steps: str, **how: str) -> Run:
    return run_scenario(FakeRunner(**how), scenario(steps), "fake")


def messages(steps: str, **how: str) -> list[str]:
    return [f"{problem.line}: {problem.message}" for problem in run(steps, **how).problems]


def test_what_is_right_holds() -> None:
    found = run(
        FORKED + "\nexpect\n  p buf page A a . .\n  c buf page Aa..\n"
        "  p buf frame a b . .\n  c buf frame c b . .\n  p buf content A A . .\n"
        "  c buf content B A . .\n  p buf[0:2] mapcount 1 2\n  p buf[0:2] refs 1 2\n"
        "  p buf[1] flags UPTODATE LRU MMAP ANON SWAPBACKED\n"
        "  p buf[0:2] flags +LRU +REFERENCED -DIRTY\n  p vmas buf[0:4] rw\n"
        "  p smaps buf[0] Rss=8\n  count ksm.pages_shared 0\n"
        "p: unmap buf[1:3]\np: protect buf[3] r\np: write buf[3] A -> SIGSEGV ACCERR\n"
        "p: read buf[2] -> SIGSEGV\np: read buf[0] -> A\n"
        "expect\n  p vmas buf[0] rw-p +rd, buf[3] r -lo\n  p buf page A - - ."
    )
    assert found.problems == ()
    assert found.holds
    assert len(found.records) == 10


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("p buf page A A . .", "10: p buf[0:4] page\npage        0 1 2 3\nexpected    A A . .\n"
         "found       A a . .\n              ^"),
        ("p buf[1:3] content B .", "10: p buf[1:3] content\npage        1 2\nexpected    B .\n"
         "found       A .\n            ^"),
        ("p buf[0:2] mapcount 1 1", "10: p buf[0:2] mapcount\npage        0 1\nexpected    1 1\n"
         "found       1 2\n              ^"),
        ("p buf[0] flags LRU", "10: p buf[0] has ANON MMAP OWNER_2 SWAPBACKED UPTODATE besides\n"
         "found       UPTODATE LRU MMAP ANON SWAPBACKED OWNER_2 (REFERENCED)"),
        ("p buf[0:2] flags +OWNER_2", "10: p buf[1] lacks OWNER_2\n"
         "found       UPTODATE LRU MMAP ANON SWAPBACKED (REFERENCED)"),
        ("p vmas buf[0:3] rw", "10: p vmas\nexpected    buf[0:3] rw\n"
         "found       buf[0:4] rw-p (rd)"),
        ("p vmas buf[0:4] rw +lo", "10: p vmas\nexpected    buf[0:4] rw +lo\n"
         "found       buf[0:4] rw-p (rd)"),
        ("p vmas buf gone", "10: p vmas\nexpected    buf[0:4] gone\n"
         "found       buf[0:4] rw-p (rd)"),
        ("p smaps buf Rss=4", "10: p smaps buf\nRss: expected 4 kB, found 8 kB"),
        ("p smaps buf Swap=0", "10: p smaps buf\nthis kernel's smaps has no Swap"),
        ("count ksm.pages_shared 1", "10: count ksm.pages_shared: expected 1, found 0"),
        ("count ksm.other 1", "10: there is no counter ksm.other here"),
        ("p buf page ...", "10: `p buf page ...` is not recorded yet"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_drawn(row: str, message: str) -> None:
    assert messages(f"{FORKED}\nexpect\n  {row}") == [message]


def test_a_wrong_frame_is_marked_where_it_goes_wrong() -> None:
    rows = "\nexpect\n  p buf[0:2] frame a b\n  c buf[0:2] frame a b"
    (found,) = messages(FORKED + rows)
    assert found == (
        "11: c buf[0:2] frame\npage        0 1\nexpected    a b\nfound       c b\n            ^"
    )
    # One letter for two frames.
    assert len(messages(FORKED + "\nexpect\n  p buf[0:2] frame a a")) == 1
    # Two letters for one frame.
    two = "\nexpect\n  p buf[1] frame a\n  c buf[1] frame b"
    assert messages(FORKED + two) == [
        "11: c buf[1] frame\npage        1\nexpected    b\nfound       a\n            ^"
    ]
    # In another expect the letters begin anew.
    anew = "\nexpect\n  p buf[0:2] frame a b\nexpect\n  p buf[0:2] frame b a"
    assert messages(FORKED + anew) == []


def test_long_rows_are_drawn_around_the_difference() -> None:
    (found,) = messages(
        "process p\np: map buf 600\np: write buf[300] A\nexpect\n  p buf page .*600"
    )
    assert found.splitlines()[1:] == [
        "page        296 297 298 299 300 301 302 303 304",
        "expected    .   .   .   .   .   .   .   .   .",
        "found       .   .   .   .   A   .   .   .   .",
        "                            ^",
    ]


def test_how_a_step_ends_is_checked_and_ends_the_run() -> None:
    assert messages("process p\np: map buf 4", refuses="p: map buf 4") == [
        "5: `p: map buf 4` must succeed, found ENOMEM"
    ]
    assert messages("process p\np: map buf 4\np: read buf -> EFAULT\np: exit") == [
        "6: `p: read buf -> EFAULT`: expected EFAULT, found 0*4"
    ]
    early = run("process p\np: map buf 4\np: read buf -> EFAULT\np: exit")
    assert len(early.records) == 3
    assert not early.is_complete
    assert messages("process p\np: map buf 2\np: read buf -> 0 A") == [
        "6: `p: read buf -> 0 A`\npage        0 1\nexpected    0 A\nfound       0 0\n"
        "              ^"
    ]
    wrong = "process p\np: map buf 2 r\np: write buf A -> SIGSEGV MAPERR"
    assert messages(wrong) == [
        "6: `p: write buf A -> SIGSEGV MAPERR`: expected SIGSEGV MAPERR, found SIGSEGV ACCERR"
    ]
    assert messages("process p\np: map buf 2 r\np: write buf A -> any\np: exit") == []


def test_a_step_that_cannot_be_done_is_named_by_its_line() -> None:
    runner = FakeRunner()

    def refuse(step: Step) -> Outcome:
        raise QuestionError("the disk is frozen", hint="thaw it")

    runner.do = refuse  # type: ignore[method-assign]
    with pytest.raises(ScenarioError, match=r"^topic/file\.md:4: the disk is frozen$") as found:
        run_scenario(runner, scenario("process p"))
    assert (found.value.line, found.value.hint) == (4, "thaw it")
    assert not runner.running


@pytest.mark.parametrize("error", [SkippedError("no root", line=4), VmError("the guest ended")])
def test_what_is_wrong_with_the_place_is_not_said_of_the_line(error: MemdescError) -> None:
    runner = FakeRunner()

    def refuse(step: Step) -> Outcome:
        raise error

    runner.do = refuse  # type: ignore[method-assign]
    with pytest.raises(type(error)) as found:
        run_scenario(runner, scenario("process p"))
    assert found.value is error


def test_a_runner_is_ended_also_when_it_breaks() -> None:
    runner = FakeRunner()
    with pytest.raises(AssertionError):
        run_scenario(runner, scenario("process p\np: lockall"))
    assert not runner.running


def test_runs_that_agree_do_not_differ() -> None:
    assert first_difference(run(FORKED), run(FORKED)) is None


def test_the_first_difference_of_pages_is_drawn_with_the_rules() -> None:
    mine = run_scenario(FakeRunner(), scenario(FORKED), "model:6.12")
    real = run_scenario(FakeRunner(flaw="p: fork c"), scenario(FORKED), "vm:6.12")
    found = first_difference(mine, real)
    assert found is not None
    assert (found.line, found.step, found.what) == (7, "p: fork c", "p buf[0]")
    assert found.picture == (
        "page 0",
        "            model:6.12  vm:6.12",
        "  mapcount  2           3",
    )
    assert found.rules == ("a rule of the fake",)


def test_a_different_letter_is_drawn_with_its_row() -> None:
    one, two = FORKED, FORKED.replace("c: write buf[0] B", "c: write buf[1] B")
    found = first_difference(run(one), run(two))
    assert found is not None
    assert found.what == "p buf[0]"
    assert found.picture[:4] == (
        "page    0 1 2 3",
        "fake    A a . .",
        "fake    a A . .",
        "        ^ ^",
    )
    assert "A  anonymous, exclusive to one process" in found.picture


def test_outcomes_and_areas_are_compared() -> None:
    steps = "process p\np: map buf 4\np: write buf A -> any\np: exit"
    ended = first_difference(run(steps), run(steps, refuses="p: write buf A -> any"))
    assert ended is not None
    assert (ended.what, ended.picture) == (
        "how the step ended",
        ("fake: ok", "fake: ENOMEM"),
    )
    other = first_difference(run("process p\np: map buf 4"), run("process p\np: map buf 4 r"))
    assert other is not None
    assert other.picture == ("only fake: buf[0:4] rw-p (rd)", "only fake: buf[0:4] r--p (rd)")
    sooner = first_difference(
        run("process p\np: map buf 4\np: unmap buf\np: exit"),
        run("process p\np: map buf 4\np: unmap buf -> EINVAL\np: exit"),
    )
    assert sooner is not None
    assert sooner.what.startswith("only")


WAITING = """# Title

Prose stays.

```scenario
# a comment of its own
process p
p: map buf 4
p: write buf[0:2]   A      # why
p: fork c
p: read buf -> ...
c: unmap buf[3]
c: read buf[3]
expect
    p buf page      ...   # the picture
    c buf page      A*4
    c buf frame     ...
    c buf[0:2] mapcount ...
    c buf[0] flags  ...
    c buf flags     +DIRTY +LRU
    c vmas          buf ...
    c smaps buf     Rss ...
    count ksm.pages_shared ...
p: write buf A -> any
```
tail
"""

RECORDED = """# Title

Prose stays.

```scenario
# a comment of its own
process p
p: map buf 4
p: write buf[0:2]   A      # why
p: fork c
p: read buf -> A A 0 0
c: unmap buf[3]
c: read buf[3] -> SIGSEGV MAPERR
expect
    p buf page      a a . .   # the picture
    c buf page      a a . -
    c buf frame     a b . .
    c buf[0:2] mapcount 2 2
    c buf[0] flags  UPTODATE LRU MMAP ANON SWAPBACKED
    c buf flags     -DIRTY
    c vmas          buf[0:3] rw
    c smaps buf     Rss=8
    count ksm.pages_shared 0
p: write buf A -> any
```
tail
"""


def on_fake(found: Scenario, series: str) -> Run:
    return run_scenario(FakeRunner(series), found, series)


def test_recording_changes_what_a_run_knows_and_nothing_else() -> None:
    assert record_text(WAITING, PATH, ["6.12"], on_fake) == RECORDED
    assert record_text(RECORDED, PATH, ["6.12", "7.2"], on_fake) == RECORDED
    for found in read_text(RECORDED, PATH):
        assert on_fake(found, "6.12").holds


def test_kernels_that_differ_get_lines_of_their_own() -> None:
    text = (
        "```scenario\nprocess p\np: map buf 2\np: write buf[0] A\nexpect\n"
        "  p buf[0] mapcount ...\n  p buf[0] refs ...\np: exit\n```\n"
    )

    def on_two(found: Scenario, series: str) -> Run:
        flaw = "p: write buf[0] A" if series == "6.1" else ""
        return run_scenario(FakeRunner(series, flaw=flaw), found, series)

    written = record_text(text, PATH, ["6.1", "6.12", "7.2"], on_two)
    assert written.split("\n")[5:] == [
        "# version 6.1",
        "  p buf[0] mapcount 2",
        "# version 6.12 7.2",
        "  p buf[0] mapcount 1",
        "# version all",
        "  p buf[0] refs 1",
        "p: exit",
        "```",
        "",
    ]
    assert record_text(written, PATH, ["6.1", "6.12", "7.2"], on_two) == written


def test_every_line_keeps_its_end() -> None:
    text = WAITING.replace("\n", "\r\n")
    assert record_text(text, PATH, ["6.12"], on_fake) == RECORDED.replace("\n", "\r\n")
    mixed = "\ufeff# Title\n" + text
    assert record_text(mixed, PATH, ["6.12"], on_fake) == "\ufeff# Title\n" + RECORDED.replace(
        "\n", "\r\n"
    )


def test_lines_for_kernels_that_differ_end_as_the_line_did() -> None:
    text = (
        "```scenario\r\nprocess p\r\np: map buf 1\r\np: write buf A\r\nexpect\r\n"
        "  p buf mapcount ...\r\n```\n"
    )

    def on_two(found: Scenario, series: str) -> Run:
        flaw = "p: write buf A" if series == "6.1" else ""
        return run_scenario(FakeRunner(series, flaw=flaw), found, series)

    written = record_text(text, PATH, ["6.1", "6.12"], on_two)
    assert written.split("\n")[5:8] == [
        "# version 6.1\r",
        "  p buf mapcount 2\r",
        "# version 6.12\r",
    ]
    assert written.count("\n") == written.count("\r\n") + 1


def test_a_counter_that_is_not_there_is_not_recorded_as_nothing() -> None:
    text = "```scenario\nprocess p\nexpect\n  count ksm.pages_share ...\n```\n"
    with pytest.raises(
        ScenarioError, match=r"md:4: there is no counter ksm\.pages_share on"
    ) as found:
        record_text(text, PATH, ["6.12"], on_fake)
    assert found.value.hint == "did you mean ksm.pages_shared?"
    far = text.replace("pages_share", "zzz")
    with pytest.raises(ScenarioError, match=r"there is no counter ksm\.zzz") as found:
        record_text(far, PATH, ["6.12"], on_fake)
    assert "# version" in found.value.hint


def test_kernels_that_have_no_steps_are_not_asked() -> None:
    text = "```scenario\n# version 7.2\nprocess p\np: map buf 1\np: read buf\n```\n"
    written = record_text(text, PATH, ["6.12", "7.2"], on_fake)
    assert "p: read buf -> 0\n" in written


def test_comments_are_found_in_time() -> None:
    spaces = " " * 30_000
    text = f"```scenario\nprocess p\np: map buf 1{spaces}x -> ...  # why\n```\n"
    text = text.replace("x -> ...", "rw")
    begin = time.process_time()
    assert record_text(text, PATH, ["6.12"], on_fake) == text
    assert time.process_time() - begin < 1


def test_recording_gives_up_where_runs_never_come_further() -> None:
    calls = []

    def on_moody(found: Scenario, series: str) -> Run:
        calls.append(series)
        refuses = found.plans["6.12"].steps[1].text if len(calls) % 2 else ""
        return run_scenario(FakeRunner(refuses=refuses), found, series)

    with pytest.raises(ScenarioError, match="does not make the next run come further"):
        record_text("```scenario\nprocess p\np: map buf 4\n```", PATH, ["6.12"], on_moody)
