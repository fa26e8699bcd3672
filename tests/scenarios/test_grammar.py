"""The documented language is the language: the page is made from the tables, its examples hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from memdesc.scenarios.expectation import Subject
from memdesc.scenarios.grammar import PROGRAM, grammar
from memdesc.scenarios.knobs import KNOBS
from memdesc.scenarios.language import Kind, Parameter, Verb
from memdesc.scenarios.reader import read_file, read_text
from memdesc.scenarios.rows import parse_row
from memdesc.scenarios.usage import usage
from memdesc.scenarios.verbs import TOPICS, VERBS
from memdesc.written import with_generated

PAGE = Path(__file__).parents[2] / "docs/scenarios.md"


def test_the_page_is_as_the_tables_say() -> None:
    page = PAGE.read_text()
    assert page == with_generated(page, grammar(), PROGRAM), f"run python -m {PROGRAM} {PAGE}"


def test_everything_of_the_language_is_on_the_page() -> None:
    text = grammar()
    lines = [usage(verb, options=False).replace("|", "\\|") for verb in VERBS.values()]
    assert [line for line in lines if f"`{line}`" not in text] == []
    assert all(f"`{name}`" in text for name in KNOBS)
    assert all(f" {subject.value} " in text for subject in Subject)


def test_the_pages_own_scenario_can_be_read() -> None:
    (scenario,) = read_file(PAGE)
    assert len(scenario.plans["6.12"].steps) == 8


def test_the_rows_of_the_page_can_be_read() -> None:
    from memdesc.scenarios.grammar import _ROWS
    from memdesc.scenarios.places import Placement

    placed = {"p": {"buf": Placement(0x1000, 4)}}
    for subject, (row, _) in _ROWS.items():
        assert parse_row(row, 1, 1, placed).subject is subject
    assert set(_ROWS) == set(Subject)


def test_verbs_have_one_name_and_say_what_they_are() -> None:
    every = [verb for verbs in TOPICS.values() for verb in verbs]
    assert len(every) == len(VERBS)
    for verb in every:
        assert verb.help
        assert verb.call
        if verb.alias is not None:
            assert verb.alias[0] in VERBS


EXAMPLE = {
    Kind.NEW_PROCESS: "other",
    Kind.PROCESS: "q",
    Kind.NEW: "new",
    Kind.RANGE: "buf[1:3]",
    Kind.PLACE: "buf+4",
    Kind.COUNT: "4",
    Kind.TEXT: "word",
    Kind.TAGS: "A",
    Kind.NEW_FILE: "g",
    Kind.FILE: "f",
    Kind.FILE_RANGE: "f[1:3]",
    Kind.PATH: "ext4:name",
    Kind.NEW_PIN: "more",
    Kind.NEW_FRAMES: "old",
    Kind.NEW_SEGMENT: "late",
    Kind.SEGMENT: "s",
}


def example(verb: Verb, one: Parameter) -> str:
    if one.kind is Kind.PIN:
        return f"held_by_{maker(one)}"
    if verb.name == "knob" and one.kind is Kind.TEXT:
        return "always"  # what the first of all settings takes
    return EXAMPLE.get(one.kind) or one.choices[0]


def maker(one: Parameter) -> str:
    """A verb that takes such references."""
    return one.of.split()[0] if one.of else "pin"


@pytest.mark.parametrize("verb", VERBS.values(), ids=lambda verb: verb.name)
def test_every_row_can_be_written_and_read(verb: Verb) -> None:
    """With each option alone, and with none: its arguments are all there."""
    words = ["p:"] if verb.by_process else []
    words.append(verb.name)
    words += [example(verb, one) for one in verb.parameters]
    lines = [" ".join(words)]
    for option in verb.options:
        values = [example(verb, one) for one in option.values]
        needed = [one for one in verb.options if one.name == option.needs]
        others = [
            word
            for one in needed
            for word in (one.name, *(example(verb, two) for two in one.values))
        ]
        lines += [" ".join([*words, *others, word, *values]) for word in option.words]
    names = {one.name for one in verb.parameters}
    names |= {option.name for option in verb.options if not option.values}
    names |= {one.name for option in verb.options for one in option.values}
    pins = [maker(one) for one in verb.parameters if one.kind is Kind.PIN]
    held = "".join(f"p: {by} held_by_{by} buf\n" for by in pins)
    end = {"dma": "p: release more", "dma_from": "p: dma_taken more"}.get(verb.name, "")
    for line in lines:
        (scenario,) = read_text(
            "```scenario\nprocess p\nprocess q\np: map buf 4\nq: map buf 4\np: memfd f 4\nshm s 4\n"
            f"{held}{line}\n{end}\n```",
            PAGE,
        )
        step = scenario.plans["6.12"].steps[6 + len(pins)]
        assert set(step.args) >= names, line
        assert step.verb == (verb.alias[0] if verb.alias else verb.name)
