"""The tables of docs/moves-checked.md, made from the recorded guests.

    python -m memdesc.checks.moves_page docs/moves-checked.md

replaces what lies between the two marks of the page; its prose stays.
"""

from __future__ import annotations

import errno
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence

from memdesc.answers.move import Movement
from memdesc.checks.fragment_blocks import BlocksRun, compare, recorded_blocks
from memdesc.checks.moves import Claim, Judgement, answer_for_block, judge
from memdesc.checks.moves_record import MovesRun, TrialNote, recorded_moves
from memdesc.written import renew_page, table

__all__ = ["PROGRAM", "main", "tables"]

PROGRAM = "memdesc.checks.moves_page"

_SOURCES = {"live:proc": "/proc", "vmcore": "struct pages"}


def tables(moves: Sequence[MovesRun], got: Sequence[BlocksRun]) -> str:
    """All tables, as Markdown."""
    judged = {run.series: judge(run) for run in moves}
    parts = [
        "### Kernels",
        table(
            ["kernel", "release", "guest", "programs", "date", "changed since /proc was read"],
            [_kernel_row(run) for run in moves],
        ),
        "### Does it move?",
        table(
            ["kernel", "asked to", "facts from", "we said", "frames", "tried", "moved", "wrong"],
            [row for series, rows in judged.items() for row in _score_rows(series, rows)],
        ),
        "### Every miss",
        _misses(judged),
        "### Pages that somebody holds",
        table(
            ["kernel", "held by", "frames", "recognised"],
            [
                [run.series, held.how, f"{held.frames:,}", f"{held.recognised:,}"]
                for run in moves
                for program in run.programs
                for held in program.held
            ],
        ),
        "### Memory blocks taken offline",
        table(
            ["kernel", "program", "block", "we said", "what came", "the log named"],
            [row for run in moves for row in _offline_rows(run, got)],
        ),
        "### Huge pages",
        table(
            ["kernel", "program", "asked by", "our range", "width", "got", "inside"],
            [row for run in got for row in _got_rows(run)],
        ),
        "### Huge pages, without reference counts",
        table(
            ["kernel", "numbers in the range", "others: our range, got"],
            [_unseen_row(run) for run in got],
        ),
    ]
    return "\n\n".join(parts)


def main(words: Sequence[str] | None = None) -> int:
    """The command; see --help."""
    return renew_page(words, PROGRAM, lambda: tables(recorded_moves(), recorded_blocks()))


# --- tables ------------------------------------------------------------------------------


def _kernel_row(run: MovesRun) -> list[str]:
    changed = sum(program.changed for program in run.programs)
    programs = str(len(run.programs))
    return [run.series, run.release, run.how, programs, run.date, f"{changed:,} frames"]


def _score_rows(series: str, judged: Iterable[Judgement]) -> Iterator[list[str]]:
    sums: dict[tuple[str, str, Claim], list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    for row in judged:
        cell = sums[row.trial.partition(":")[0], row.source, row.claim]
        for place, count in enumerate((row.frames, row.tried, row.moved, row.wrong)):
            cell[place] += count
    for what in ("compaction", "offline"):
        for source, name in _SOURCES.items():
            for claim in Claim:
                if claim is Claim.EMPTY or (what, source, claim) not in sums:
                    continue
                cells = [f"{count:,}" for count in sums[what, source, claim]]
                if claim not in (Claim.MOVES, Claim.STAYS):
                    cells[3] = ""
                yield [series, _ASKED[what], name, claim.value, *cells]


_ASKED = {"compaction": "compact", "offline": "go offline"}


def _misses(judged: dict[str, list[Judgement]]) -> str:
    found: Counter[tuple[str, ...]] = Counter()
    for series, rows in judged.items():
        for row in rows:
            for kind in row.misses:
                _, tried, moved = kind.trials[row.trial]
                wrong = moved if row.claim is Claim.STAYS else tried - moved
                flags = _flags(kind.flags)
                what = f"{kind.types.label} ({flags})"
                source, trial = _SOURCES[row.source], row.trial
                found[series, row.program, trial, source, row.claim.value, what] += wrong
    if not found:
        return "None."
    head = ["kernel", "program", "trial", "facts from", "we said", "memory", "frames"]
    return table(head, [[*key, str(count)] for key, count in sorted(found.items())])


def _offline_rows(run: MovesRun, got: Sequence[BlocksRun]) -> Iterator[list[str]]:
    guests = {
        guest.program: guest for each in got if each.series == run.series for guest in each.guests
    }
    for program in run.programs:
        for trial in program.trials:
            what, _, block = trial.name.partition(":")
            if what != "offline":
                continue
            guest = guests.get(program.name)
            answer = None if guest is None else answer_for_block(guest.map, int(block))
            said = "" if answer is None else _said(answer)
            came = "offline" if trial.state == "offline" else _error(trial)
            named = Counter[str]()
            for kind in program.kinds:
                if kind.source == "vmcore" and trial.name in kind.named:
                    named[kind.types.label] += kind.named[trial.name]
            words = ", ".join(f"{count} {name}" for name, count in named.most_common())
            yield [run.series, program.name, block, said, came, words]


def _said(answer: Movement) -> str:
    if answer.can_be_emptied is None and answer.lacks_room:
        return f"{answer.frames_to_move:,} pages, room for {answer.room:,}"
    return {True: "can be emptied", False: "cannot be emptied", None: "depends"}[
        answer.can_be_emptied
    ]


def _got_rows(run: BlocksRun) -> Iterator[list[str]]:
    for guest in run.guests:
        for row in compare(guest):
            yield [
                run.series,
                guest.program,
                row.way,
                f"{row.lowest} to {row.highest}" if row.lowest < row.highest else str(row.lowest),
                f"{row.share:.1%}",
                str(row.got),
                "yes" if row.is_inside else "**no**",
            ]


def _unseen_row(run: BlocksRun) -> list[str]:
    rows = [row for guest in run.guests for row in compare(guest, references=False)]
    inside = sum(row.is_inside for row in rows)
    others = [
        f"{row.program}, {row.way}: {row.lowest} to {row.highest}, {row.got}"
        for row in rows
        if not row.is_inside
    ]
    return [run.series, f"{inside} of {len(rows)}", "; ".join(others)]


# --- helpers -----------------------------------------------------------------------------


def _error(trial: TrialNote) -> str:
    if trial.errno >= 0:
        return errno.errorcode.get(trial.errno, "?")
    why = "no room" if trial.no_room else "pages that stay"
    return f"still trying when it was stopped: {why}"


def _flags(word: int) -> str:
    from memdesc.kernels.kpageflags import KPF

    return " ".join(flag.name.lower() for flag in KPF if flag.name and word & flag.value)


if __name__ == "__main__":
    sys.exit(main())
