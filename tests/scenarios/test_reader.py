"""Texts to steps: what is understood, and that what is not is said with its place."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from memdesc.errors import NotReadableError
from memdesc.kernels.release import KernelRelease
from memdesc.scenarios.expectation import Subject
from memdesc.scenarios.places import FIRST_SLOT, PAGE, word_of_tag
from memdesc.scenarios.reader import plan_for, read_file, read_text
from memdesc.scenarios.scenario import Plan, ScenarioError
from memdesc.scenarios.verbs import VERBS

PATH = Path("topic/file.md")


def plan(steps: str, series: str = "6.12") -> Plan:
    (scenario,) = read_text(f"# Title\n\n```scenario\n{steps}\n```\n", PATH)
    return plan_for(scenario, KernelRelease.parse(series))


def error(steps: str) -> ScenarioError:
    with pytest.raises(ScenarioError) as found:
        plan(steps)
    return found.value


def test_blocks_are_named_by_the_heading_above_and_know_their_prose() -> None:
    one, two = read_text(
        "# File\n\nintro\n\n## First\n\ntext\n\n```scenario\nprocess p\n```\n"
        "```python\nprocess(p\n```\n## Second ##\n~~~scenario\nprocess q\n~~~\n",
        PATH,
    )
    assert (one.title, one.prose, one.line) == ("First", "text", 9)
    assert (two.title, two.prose, two.line) == ("Second", "", 16)
    assert two.plans["7.2"].steps[0].args == {"name": "q"}


def test_mappings_lie_in_slots_of_their_own() -> None:
    found = plan("process p\np: map a 513\np: map b 1\np: map c 2 at a+513\np: map d 1 offset 3")
    a, b, c, d = (step.args["range"]["address"] for step in found.steps[1:])
    huge = 512 * PAGE
    assert a == FIRST_SLOT
    assert b % huge == 0
    assert b - (a + 513 * PAGE) >= huge
    assert c == a + 513 * PAGE
    assert d % huge == 3 * PAGE


def test_a_child_has_its_parents_names_and_an_end_takes_them_away() -> None:
    found = plan("process p\np: map buf 4\np: fork c\nc: exit\np: write buf[1:3] A")
    assert set(found.steps[2].watch) == {"p", "c"}
    assert found.steps[2].watch["c"] == found.steps[2].watch["p"]
    assert set(found.steps[3].watch) == {"p"}
    assert found.steps[4].args["range"] == {
        "address": FIRST_SLOT + PAGE,
        "pages": 2,
        "name": "buf",
        "first": 1,
    }
    assert found.steps[4].args["content"] == {"tags": ["A"], "words": [word_of_tag("A")]}


def test_what_failed_did_not_happen() -> None:
    found = error("process p\np: map buf 4 -> ENOMEM\np: write buf A")
    assert str(found) == "topic/file.md:6: p has no mapping 'buf'"


def test_a_mapping_that_grows_is_observed_as_far_as_it_reaches() -> None:
    found = plan("process p\np: map buf 4\np: remap buf pages 6\np: remap buf pages 2")
    assert [step.watch["p"]["buf"].pages for step in found.steps[1:]] == [4, 6, 6]
    moved = plan("process p\np: map buf 4\np: remap buf[1:3] to new")
    assert moved.steps[2].args["to"]["pages"] == 2
    assert moved.steps[2].watch["p"]["new"].pages == 2


def test_whose_pages_a_step_is_about() -> None:
    found = plan("process p\nprocess q\nq: map theirs 2\np: peek q theirs[1] -> A")
    assert found.steps[3].process == "p"
    assert found.steps[3].args["range"]["address"] == FIRST_SLOT + PAGE
    assert found.tags[word_of_tag("A")] == "A"


def test_options_in_any_order_and_their_absence() -> None:
    found = plan("process p\np: memfd f 4\np: map m 2 populate r file f 1 shared")
    args = found.steps[2].args
    assert (args["sharing"], args["prot"], args["file"], args["page"]) == ("shared", "r", "f", 1)
    assert args["populate"] is True
    assert args["locked"] is False
    assert args["at"] is None
    assert plan("process p\np: memfd f\np: map m 2 file f").steps[2].args["page"] == 0


def test_aliases_are_the_verb_that_they_stand_for() -> None:
    step = plan("process p\np: map buf 2\np: reclaim buf").steps[2]
    assert (step.verb, step.args["advice"]) == ("advise", "pageout")


def test_versions_choose_lines() -> None:
    text = (
        "process p\np: map buf 4\n# version < 6.12\np: write buf A\n# version 6.12 7.2\n"
        "p: write buf B\n# version all\np: read buf"
    )
    assert [s.text for s in plan(text, "6.1").steps[2:]] == ["p: write buf A", "p: read buf"]
    assert [s.text for s in plan(text, "7.2.13").steps[2:]] == ["p: write buf B", "p: read buf"]
    wrong = "process p\n# version 6.1\np: exit\n# version all\np: map buf 4"
    assert str(error(wrong)) == "topic/file.md:8: process p has ended"


def test_rows() -> None:
    found = plan(
        "process p\np: map buf 6\np: write buf[0:2] A B  # comment\nexpect\n"
        "  p buf page Aa.*2-!\n  p buf[0:3] frame ab.\n  p buf[0:2] content A ?\n"
        "  p buf[0:2] mapcount 1*2\n  p buf[0] flags LRU MMAP\n"
        "  p vmas buf[0:2] rw, buf[2:6] r-- +lo\n  p smaps buf Rss=8 Pss=4\n"
        "  count ksm.pages_shared 1\n  p buf[5] softdirty 1"
    )
    checks = found.steps[-1].checks
    assert [check.subject for check in checks] == [
        Subject.PAGE,
        Subject.FRAME,
        Subject.CONTENT,
        Subject.MAPCOUNT,
        Subject.FLAGS,
        Subject.VMAS,
        Subject.SMAPS,
        Subject.COUNT,
        Subject.SOFT_DIRTY,
    ]
    assert checks[0].cells == ("A", "a", ".", ".", "-", "!")
    assert checks[1].cells == ("a", "b", ".")
    assert checks[3].cells == ("1", "1")
    assert [area.flags for area in checks[5].areas] == [(), ("+lo",)]
    assert found.counters == ("ksm.pages_shared",)
    assert found.soft_dirty
    assert not plan("process p\np: map buf 1\nexpect\n  p buf page .").soft_dirty
    assert not found.referenced
    assert plan("process p\np: map buf 1\nexpect\n  p smaps buf Referenced=0").referenced


@pytest.mark.parametrize(
    ("steps", "message", "hint"),
    [
        ("proces p", "4: unknown verb: 'proces'", "did you mean process?"),
        ("p: map buf 4", "4: there is no process 'p'", "make one first: `process p`"),
        ("process p\np: map buf", "5: map lacks its PAGES", "write it as: p: map NAME PAGES"),
        ("process p\np: map buf 4 privat", "5: map does not take 'privat'", "private?"),
        ("process p\np: map buf 4\np: write bux A", "6: p has no mapping 'bux'", "buf?"),
        ("process p\np: map buf 4\np: write buf", "6: write lacks its CONTENT", "p: write RANGE"),
        ("process p\np: map buf 4\np: write buf A B", "6: 2 contents for 4 pages", "A*4"),
        ("process p\np: map buf 4\np: read buf[2:6]", "6: buf has 4 pages", "buf[2:6]!"),
        ("process p\np: map buf 4\np: read buf[2:2]", "6: 'buf[2:2]' has no pages", "half-open"),
        ("process p\np: map buf 4\np: read buf -> EFAUL", "6: not an error or signal", "EFAULT"),
        ("process p\np: map buf 4\np: read buf -> SIGSEGV ACERR", "6: not a code", "ACCERR?"),
        ("process p\np: exit -> A", "5: exit returns nothing: 'A'", "EFAULT"),
        ("process p\np: map buf 4 ->", "5: nothing stands behind ->", "must succeed"),
        ("process p\np: map buf 4\np: map buf 4", "6: p has a mapping buf already", "another"),
        (
            "process p\np: map buf 4\np: remap buf dontunmap",
            "6: remap with dontunmap lacks `to`",
            "write `to TO` as well: move to a place of that name",
        ),
        ("process p\nprocess p", "5: there is a process p already", "another name"),
        ("process p\np: process q", "5: process is done by no process", "process NAME"),
        ("exit", "4: exit is done by a process", "p: exit"),
        ("knob tph always", "4: knob: NAME cannot be 'tph'", "did you mean thp?"),
        ("knob thp allways", "4: knob thp cannot be 'allways'", "did you mean always?"),
        ("knob hugepages -1", "4: knob hugepages cannot be '-1'", "it takes a number"),
        ("process p\np: advise p hugpage", "5: p has no mapping 'p'", "makes one"),
        ("process p\np: pread f[0]", "5: p has no open file 'f'", "p: memfd f 4"),
        ("process p\np: open f ext3:a", "5: not a path: 'ext3:a'", "ext4:NAME"),
        ("process p\np: release v", "5: p holds no references 'v'", "pin NAME RANGE"),
        (
            "process p\np: map b 1\np: splice v b\np: splice v b",
            "7: p holds references v already",
            "another name",
        ),
        (
            "process p\np: map b 1\np: splice v b\np: pin_read v",
            "7: v was taken by `splice`, not by `pin`",
            "pin NAME RANGE",
        ),
        (
            "process p\nprocess q\np: map b 1\np: send v b\np: hand v q",
            "8: v was taken by `send`, not by `splice` or `pin`",
            "splice NAME RANGE",
        ),
        (
            "process p\np: map b 1\np: pin v b\np: fork q\nq: pin_read v",
            "8: q holds no references 'v'",
            "pin NAME RANGE",
        ),
        ("process p\np:map buf 4", "5: unknown verb: 'p:map'", "a space behind `p:`"),
        ("process p\np map buf 4", "5: unknown verb: 'p'", "`p: map buf 4`"),
        ("process p\np: map b x", "5: not a number: 'x'", "4 or 0x10"),
        ("process p\np: map b 0", "5: a mapping needs at least one page", "p: map NAME PAGES"),
        ("process p\np: map b 4 rw r", "5: map is given both rw and r", "leave one"),
        ("process p\np: map b 4 private shared", "5: map is given both private and shared", ""),
        ("process p\np: map b 4 locked locked", "5: map is given locked twice", "leave one"),
        ("process p\np: map b 4 fixed", "5: map with fixed lacks `at`", "write `at AT` as well"),
        ("process p\np: exit -> efault", "5: not an error or signal", "did you mean EFAULT?"),
        ("process p\np: exit -> EFAULTT", "5: not an error or signal", "did you mean EFAULT?"),
        ("process p\np: map b 4\np: read b -> eio", "6: not an error or", "did you mean EIO?"),
        ("process p\np: exit -> any A", "5: nothing can stand behind any", "`-> any` alone"),
        ("process p\np: exit -> SIGKILL NOW", "5: not a code of SIGKILL", "`-> SIGKILL` alone"),
        (
            "process p\np: map b 4\np: read b -> A A A",
            "6: read is about 4 pages, behind -> stand 3",
            "A*4",
        ),
        (
            "process p\np: map b 4\np: peek p b -> A*5",
            "6: peek is about 4 pages, behind -> stand 5",
            "one for each page",
        ),
        (
            "process p\np: map b 2\np: pin v b\np: pin_read v -> A*3",
            "7: pin_read is about 2 pages, behind -> stand 3",
            "one for each page",
        ),
        (
            "process p\np: memfd f 4\np: close f\np: pread f",
            "7: p has closed f",
            "closed in a line above",
        ),
        ("process p\np: map b 262145", "5: map: PAGES is too large", "it may be 262144"),
        ("process p\np: map b 16777217 -> ENOMEM", "5: map: PAGES is too large", "16777216"),
        ("process p\np: memfd f 65537", "5: memfd: PAGES is too large", "65536"),
        ("process p\np: memfd f\np: truncate f 65537", "6: truncate: PAGES is too large", ""),
        ("process p\np: memfd f\np: fallocate f[0:65537]", "6: f[65537] is farther than", "65536"),
        ("process p\np: map b 4\np: write b[0:262145]! A", "6: b[262145] is farther than", ""),
        (
            "process p\np: map b 4\np: remap b[0:2] pages 262145 to c",
            "6: remap: NEW_PAGES is too large",
            "262144",
        ),
        ("process p\np: map b 4\np: splice s b times 4097", "6: splice: TIMES is too large", ""),
        ("process p\np: map b 4\np: splice s b times 0", "6: splice: TIMES is too small: 0", "1"),
        (
            "process p\np: map b 17\np: splice s b times 4096",
            "6: 69632 references are more than",
            "65536",
        ),
        ("process p\np: map_device d 4097 packets", "5: map_device: PAGES is too large", ""),
        ("ksm scan 101", "4: ksm: VALUE is too large: 101", "it may be 100"),
        ("khugepaged 101", "4: khugepaged: PASSES is too large: 101", "it may be 100"),
        (
            "process p\np: map b 1\np: dma d b A\np: exit",
            "6: the device of `dma d` never goes on",
            "`p: release d`",
        ),
        (
            "process p\np: map b 1\np: dma_from d b",
            "6: the device of `dma_from d` never goes on",
            "`p: dma_taken d`",
        ),
        (
            "process p\np: map b 1\np: pin d b\nprocess q\np: hand d q\nq: read b -> ENOMEM",
            "9: q has no mapping 'b'",
            "",
        ),
        ("# version 5.10\nprocess p", "4: no kernel that scenarios know is meant: '5.10'", "6.19"),
        ("# version > 7.2\nprocess p", "4: no kernel that scenarios know is meant", "7.0 to 7.2"),
        ("# version 6.1 6.21\nprocess p", "4: no kernel that scenarios know is meant", "6.19"),
        ("# Version 6.x\nprocess p", "4: not a condition on kernels: '6.x'", ">= 6.12"),
        ("process p\n# version 6.18\np: mapp b 4", "6: unknown verb: 'mapp'", "mean map?"),
        ("process p\nEXPECT\n  p vmas b rw", "5: expect stands alone", "write `expect`"),
        ("process p\nexpect:\n  p vmas b rw", "5: expect stands alone", "write `expect`"),
        (
            "process p\np: map b 1\nexpect\np b page .",
            "7: a row of expect that is not indented: 'p b page .'",
            "spaces before it",
        ),
        (
            "process p\np: map b 1\nexpect\n  p b page .\ncount ksm.full_scans 1",
            "8: a row of expect that is not indented",
            "spaces before it",
        ),
        (
            "process p\nexpect\n  count kms.full_scans 1",
            "6: no counters are called 'kms'",
            "did you mean ksm?",
        ),
        ("process p\np: map b 1\nexpect\n  p b flags ++LRU", "7: not a page flag: '+LRU'", "LRU?"),
        ("process p\np: map b 1\nexpect\n  p b flags +none", "7: not a page flag: 'none'", ""),
        (
            "process p\np: map b 1\nexpect\n  p b flags +LRU -LRU",
            "7: LRU is wanted and not wanted",
            "either +LRU or -LRU",
        ),
        ("process p\np: map b 1\nexpect\n  p b softdirty 2", "7: softdirty is 1 or 0", "written"),
        ("process p\np: map b 1\nexpect\n  p b[1] page .", "7: b has 1 pages, the row", "b[0:1]"),
        ("process p\np: map b 1\nexpect\n  p smaps b", "7: smaps lacks its mapping", "Rss=8"),
        ("# version 6.x\nprocess p", "4: not a condition on kernels: '6.x'", ">= 6.12"),
        ("expect\n  p buf page A", "5: expect needs a step before it", "after that step"),
        ("process p\nexpect now", "5: expect stands alone in its line", "indented"),
        ("process p\nexpect\n  q buf page A", "6: there is no process 'q'", "there is: p"),
        (
            "process p\np: map buf 2\nexpect\n  p buf page A",
            "7: buf has 2 pages, the row has 1",
            "",
        ),
        ("process p\np: map buf 1\nexpect\n  p buf page Q", "7: not a letter of a page: 'Q'", "a"),
        (
            "process p\np: map buf 1\nexpect\n  p buf pages A",
            "7: not something that pages",
            "page?",
        ),
        ("process p\np: map buf 1\nexpect\n  p buf flags LUR", "7: not a page flag: 'LUR'", "LRU?"),
        ("process p\np: map buf 1\nexpect\n  p smaps buf Rs=1", "7: not a field of smaps", "Rss?"),
        ("process p\np: map buf 1\nexpect\n  p vmas buf rq", "7: not permissions: 'rq'", "rwx"),
        ("", "3: this block has no steps", "`process p`"),
    ],
)
def test_errors_say_where_and_what_was_expected(steps: str, message: str, hint: str) -> None:
    found = error(steps)
    assert str(found).startswith(f"topic/file.md:{message}")
    assert hint in found.hint


def test_files_that_hold_no_scenario(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match=r"md:1: no scenario in this file"):
        read_text("# Title\n```python\n```\n", PATH)
    with pytest.raises(ScenarioError, match=r"md:2: the block that begins here has no end"):
        read_text("\n```scenario\nprocess p\n", PATH)
    with pytest.raises(NotReadableError, match="cannot read"):
        read_file(tmp_path / "absent.md")


def test_a_heading_is_named_as_markdown_names_it() -> None:
    for heading in ("# One #two", "## One #two ##", "   ###### One #two   #   ", "#\tOne #two"):
        (found,) = read_text(f"{heading}\n```scenario\nprocess p\n```\n", PATH)
        assert found.title == "One #two"
    for heading in ("#One", "####### One", "# #", "#"):
        (found,) = read_text(f"{heading}\n```scenario\nprocess p\n```\n", PATH)
        assert found.title == "file"


@pytest.mark.parametrize(
    "line",
    [
        "# a" + " " * 30_000 + "b",
        "~" * 30_000 + "`",
        "```" + " " * 30_000 + "`",
        "``` " + "x " * 30_000 + "`",
    ],
    ids=["heading", "fence", "spaces", "words"],
)
def test_the_time_to_read_a_line_grows_with_its_length(line: str) -> None:
    begin = time.process_time()
    read_text(f"{line}\n```scenario\nprocess p\n```\n", PATH)
    assert time.process_time() - begin < 0.5


def test_steps_share_what_they_watch_while_nothing_changes() -> None:
    found = plan("process p\nprocess q\np: map a 1\np: read a\nq: map b 1\nq: read b")
    watch = [step.watch for step in found.steps]
    assert watch[3] is watch[2]
    assert watch[5] is watch[4]
    assert watch[4]["p"] is watch[2]["p"]
    assert (set(watch[1]["p"]), set(watch[2]["p"]), set(watch[4]["q"])) == (set(), {"a"}, {"b"})


def test_what_a_kernel_refuses_may_be_large() -> None:
    assert plan("process p\np: map b 4194304 -> ENOMEM").steps[1].args["pages"] == 1 << 22


def test_a_file_is_opened_again_under_a_name_that_was_closed() -> None:
    found = plan("process p\np: memfd f 4\np: close f\np: memfd f 2\np: pread f -> 0 0")
    assert found.steps[4].args["file"]["file"] == "f"


def test_what_a_device_reads_or_writes_comes_to_an_end() -> None:
    begun = "process p\np: map b 1\np: dma d b A\np: dma_from e b\n"
    assert len(plan(begun + "p: release d\np: dma_taken e -> 0").steps) == 6
    assert len(plan("process p\np: map b 1\np: dma d b A -> EFAULT").steps) == 3


def test_conditions_are_understood_in_any_case() -> None:
    steps = "process p\n# VERSION 6.1\np: map b 1\n#Version all\np: map c 1"
    assert [len(plan(steps, series).steps) for series in ("6.1", "6.12")] == [3, 2]


PIECES = """
p: q: p q buf buf[0] buf[1:9] buf[9]! f f[0:2] 4 0 9999999999 rw r shared file at buf+4 expect
page frame vmas smaps flags count -> ... EFAULT SIGSEGV ACCERR A B*3 A*99999999 # version 6.1 >=
all , +lo ext4:a tmpfs:b on run scan thp always gone Rss=4 Rss ksm.a to pages populate_read -1 [ ]
[:] buf[:] buf[] any ok
"""
WORDS = st.sampled_from([*VERBS, *PIECES.split(), "\t"])
LINES = st.lists(WORDS | st.text(max_size=6), max_size=8).map(" ".join)


def what_is_wrong(text: str) -> ScenarioError | None:
    """None where the text is a scenario file. Any other exception comes through."""
    try:
        read_text(text, PATH)
    except ScenarioError as found:
        return found
    return None


@given(st.text())
@example("```scenario\n" + "A*1000000 " * 9 + "\n```")
def test_no_text_brings_a_traceback(text: str) -> None:
    found = what_is_wrong(text)
    assert found is None or str(found).startswith("topic/file.md:")


@given(st.lists(LINES | LINES.map(lambda line: "  " + line), max_size=12))
@example(["process p", "p: map buf 4", "p: prctl name", "p: remap buf to"])
def test_no_steps_bring_a_traceback(lines: list[str]) -> None:
    steps = "\n".join(["process p", "p: map buf 4", "p: memfd f 2", *lines])
    found = what_is_wrong(f"```scenario\n{steps}\n```\n")
    if found is not None:
        assert 1 <= found.line <= steps.count("\n") + 2
        assert str(found).startswith(f"topic/file.md:{found.line}: ")
