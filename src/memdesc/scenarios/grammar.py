"""The language of scenarios as a page, made from the tables that the reader goes by.

    python -m memdesc.scenarios.grammar docs/scenarios.md

replaces what lies between the two marks of the page; its prose stays.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

from memdesc.kernels.kpageflags import flag_names
from memdesc.scenarios.expectation import Subject
from memdesc.scenarios.knobs import KNOBS
from memdesc.scenarios.language import Kind, Option, Parameter, Result, Verb
from memdesc.scenarios.observation import ASKED_SMAPS_FIELDS, LETTERS, SMAPS_FIELDS, VOLATILE
from memdesc.scenarios.usage import option_usage, usage
from memdesc.scenarios.verbs import TOPICS
from memdesc.written import renew_page, table

__all__ = ["PROGRAM", "grammar", "main"]

PROGRAM = "memdesc.scenarios.grammar"

_ROWS = {
    Subject.PAGE: ("p buf page A a . .", "a letter per page, see above"),
    Subject.FRAME: (
        "p buf frame a b . .",
        "identity: the same letter is the same frame, over all rows of one `expect`; "
        "`.` where there is none",
    ),
    Subject.CONTENT: ("p buf content A 0 ? .", "contents; `.` where nothing is present"),
    Subject.MAPCOUNT: ("p buf mapcount 1 2 . .", "how often the page is mapped (kpagecount)"),
    Subject.REFS: (
        "p buf refs 1 2 . .",
        "references of the page's folio; not checked where a kernel does not let it be seen",
    ),
    Subject.SOFT_DIRTY: ("p buf softdirty 1 0 1 1", "pagemap's bit 55"),
    Subject.FLAGS: (
        "p buf[0] flags UPTODATE LRU",
        "names of kpageflags, of every page of the range: exactly these, or `+NAME` and `-NAME`",
    ),
    Subject.VMAS: (
        "p vmas buf[0:2] rw, buf[2:4] r +lo",
        "areas that lie in the mappings which the row names: exactly these, with permissions and, "
        "where given, VmFlags that are there or not; `buf gone` where there is no area",
    ),
    Subject.SMAPS: (
        "p smaps buf Rss=8 Anonymous=8",
        "kB, added up over the areas of the mapping",
    ),
    Subject.COUNT: (
        "count ksm.pages_shared 1",
        "a counter: `ksm.NAME`, `meminfo.NAME`, or one that counts from the scenario's start: "
        "`vmstat.NAME`, and since 6.10 `thp.64kB.NAME`, of large folios of a size",
    ),
}


def grammar() -> str:
    """The generated part of the page, as Markdown."""
    parts = ["### Letters", table(["letter", "the page is"], _code_first(LETTERS.items()))]
    parts += ["### Rows below `expect`", _rows()]
    parts += ["### Parameters", _kinds()]
    for topic, verbs in TOPICS.items():
        parts += [f"### {topic}", _verbs(verbs), *_details(verbs)]
    knobs = [(f"`{name}`", f"`{k.path}`", k.help, k.values) for name, k in KNOBS.items()]
    parts += ["### Knobs", table(["knob", "file", "what it decides", "values"], knobs)]
    return "\n\n".join(parts)


def main(words: list[str] | None = None) -> int:
    """Renew the page that is named."""
    return renew_page(words, PROGRAM, grammar)


# --- helpers -----------------------------------------------------------------------------


def _code_first(rows: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(f"`{first}`", second) for first, second in rows]


def _rows() -> str:
    rows = table(["row", "what it says"], [(f"`{row}`", text) for row, text in _ROWS.values()])
    volatile = ", ".join(flag_names(VOLATILE.value))
    return (
        f"{rows}\n\nThese flags come and go by themselves and count only where a row names them: "
        f"{volatile}. Fields of smaps that can be asked for: {', '.join(SMAPS_FIELDS)}; "
        f"and {', '.join(ASKED_SMAPS_FIELDS)}, compared only in scenarios that ask for it."
        "\n\nRows about frames that `remember` named begin with that name, and say flags, refs, "
        "mapcount, content or frame of them: `old[0] flags UPTODATE ANON`, `old refs 1 0`. A free "
        "frame has no flags (`none`) and no references. They are compared only after steps that "
        "have such rows, for a frame that was freed may soon be somebody else's."
    )


def _kinds() -> str:
    kinds = [(kind.name.replace("_", " ").lower(), kind.value) for kind in Kind]
    results = [(result.name.lower(), result.value) for result in Result]
    return (
        table(["kind", "what is written"], kinds)
        + "\n\nWhat a step returns, and what may stand behind `->`:\n\n"
        + table(["result", "what it is"], results)
    )


def _verbs(verbs: Iterable[Verb]) -> str:
    rows = [
        (
            f"`{usage(verb, options=False)}`",
            verb.help,
            verb.call,
            "" if verb.result is Result.NOTHING else verb.result.value,
        )
        for verb in verbs
    ]
    return table(["step", "what it does", "by", "returns"], rows)


def _details(verbs: Iterable[Verb]) -> list[str]:
    """Options and words of the verbs that have any."""
    found = []
    for verb in verbs:
        rows = [(f"`{option_usage(option)}`", option.help) for option in verb.options]
        rows += [_words(parameter) for parameter in verb.parameters if _has_more(parameter)]
        rows += [row for option in verb.options for row in _values(option)]
        if rows:
            found += [f"`{verb.name}`:", table(["word", "what it means"], rows)]
    return found


def _has_more(parameter: Parameter) -> bool:
    many = parameter.kind is Kind.WORD and len(parameter.choices) > 4
    return bool(parameter.help) or (many and parameter.name != "name")


def _words(parameter: Parameter) -> tuple[str, str]:
    words = ", ".join(f"`{word}`" for word in parameter.choices)
    text = f"{parameter.help}: {words}" if parameter.help and words else parameter.help or words
    return parameter.name.upper(), text


def _values(option: Option) -> list[tuple[str, str]]:
    return [_words(parameter) for parameter in option.values if parameter.help]


if __name__ == "__main__":
    sys.exit(main())
