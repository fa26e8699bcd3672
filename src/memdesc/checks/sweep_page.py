"""The tables of docs/failure-sweep.md, made from the recorded sweeps.

    python -m memdesc.checks.sweep_page docs/failure-sweep.md

replaces what lies between the two marks of the page; its prose stays.
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence

from memdesc.checks.sweep_judge import FROM, Grade, Judged, Outcome, judge, score
from memdesc.checks.sweep_rows import HOWS, How, Sweep, recorded_sweeps
from memdesc.written import renew_page, table

__all__ = ["PROGRAM", "main", "tables"]

PROGRAM = "memdesc.checks.sweep_page"

_SOURCES = {"proc": "/proc", "structs": "struct pages"}


def tables(sweeps: Sequence[Sweep]) -> str:
    """All tables, as Markdown."""
    judged = {sweep.series: list(judge(sweep)) for sweep in sweeps}
    parts = [
        "### Kernels",
        table(
            ["kernel", "release", "frames of the guest", "strata", "sampled", "date"],
            [
                [
                    sweep.series,
                    sweep.release,
                    f"{sweep.frames_total:,}",
                    str(len({frame.stratum for frame in sweep.frames})),
                    str(len(sweep.frames)),
                    sweep.date,
                ]
                for sweep in sweeps
            ],
        ),
        "### Were we right?",
        table(
            [
                "kernel", "failure", "facts from", "tested", "exact", "several", "wrong",
                "left out", "exact of the sample", "exact of the guest",
            ],
            [row for series, rows in judged.items() for row in _score_rows(series, rows)],
        ),
    ]  # fmt: skip
    for how in HOWS:
        parts += [f"### What came of it: {how}", _came_table(judged, how)]
    parts += ["### Every miss", *_misses(judged)]
    return "\n\n".join(parts)


def main(words: Sequence[str] | None = None) -> int:
    """The command; see --help."""
    return renew_page(words, PROGRAM, lambda: tables(recorded_sweeps()))


# --- tables ------------------------------------------------------------------------------


def _score_rows(series: str, judged: Iterable[Judged]) -> Iterator[list[str]]:
    rows = list(judged)
    for how in HOWS:
        for read_from in FROM:
            result = score(one for one in rows if one.how == how and one.read_from == read_from)
            counts = result.sampled
            left_out = counts[Grade.MOVED] + counts[Grade.UNSEEN]
            tested = counts.total() - left_out
            yield [
                series,
                how,
                _SOURCES[read_from],
                *map(str, (tested, counts[Grade.EXACT], counts[Grade.SEVERAL])),
                *map(str, (counts[Grade.WRONG], left_out)),
                f"{result.share(Grade.EXACT):.1%}",
                f"{result.share(Grade.EXACT, weighted=True):.1%}",
            ]


def _came_table(judged: dict[str, list[Judged]], how: How) -> str:
    """Type of the frame by its struct pages -> what came, in frames per kernel."""
    counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for series, rows in judged.items():
        for one in rows:
            if one.how == how and one.read_from == "structs" and one.grade is not Grade.UNSEEN:
                counts[one.types.label, _words(one.came)][series] += 1
    names = list(judged)
    return table(
        ["memory", "what came", *names],
        [
            [kind, came, *(str(found[name] or "") for name in names)]
            for (kind, came), found in sorted(counts.items())
        ],
    )


def _misses(judged: dict[str, list[Judged]]) -> Iterator[str]:
    """Frames of which struct pages left it open or misled us, and what /proc got wrong."""
    rows = []
    for series, ones in judged.items():
        for one in ones:
            is_miss = one.grade is Grade.WRONG or (
                one.grade is Grade.SEVERAL and one.read_from == "structs"
            )
            if is_miss:
                said = " or ".join(_words(outcome) for outcome in one.named)
                kind = one.frame.kind or one.frame.structs.owner
                memory = f"{one.types.label} ({kind})" if kind else one.types.label
                source = _SOURCES[one.read_from]
                rows.append([series, one.how, source, memory, said, _words(one.came)])
    counted = Counter(tuple(row) for row in rows)
    if not counted:
        yield "None."
        return
    yield table(
        ["kernel", "failure", "facts from", "memory", "we said", "what came", "frames"],
        [[*row, str(frames)] for row, frames in sorted(counted.items())],
    )


# --- helpers -----------------------------------------------------------------------------


def _words(outcome: Outcome) -> str:
    """ "clean LRU page: Recovered" and the errno."""
    if len(outcome) == 1:
        return outcome[0]
    verdict, message, errno = outcome
    text = f"{message}: {verdict.capitalize()}" if message else verdict
    return f"{text}, {errno or 'errno not seen'}"


if __name__ == "__main__":
    sys.exit(main())
