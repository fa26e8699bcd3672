"""Judge what memdesc says about moving pages by what real kernels moved.

    python -m memdesc.checks.moves 6.12 --output moves-6.12.json

boots the kernel, fragments its memory in six ways (`memdesc.checks.fragment`), and writes what
was known of every frame and what the kernel did with it.  `judge` asks today's rules about
such a record:

- what they call not movable must never have moved;
- of what they call movable, what the kernel tried to move must have moved;
- every page that a program held on to must be recognised (from struct pages);
- a frame that the kernel's log names as the one that failed must not be called movable.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from memdesc.answers.move import Movement, move
from memdesc.checks.fragment import MACHINE, WAYS, Tell, fragment
from memdesc.checks.fragment_blocks import BlocksRun, fragmented_of, write_blocks
from memdesc.checks.moves_record import (
    SOURCES,
    Kind,
    MovesRun,
    Program,
    TrialNote,
    program_of,
    sysctls_of,
    write_moves,
)
from memdesc.errors import MemdescError
from memdesc.map.extents import MemoryMap
from memdesc.rules.move import MovedBy, MoveOutcome, by_compaction, by_offlining
from memdesc.rules.subject import Knowledge, Ruling, merged
from memdesc.types import Pfn, PfnRange
from memdesc.vm.kernels import SERIES
from memdesc.vm.workload.fragment import PROGRAMS

__all__ = ["Claim", "Judgement", "answer_for_block", "claim_of", "judge", "main", "run_kernel"]


class Claim(Enum):
    """What the rule says of a kind of frame, in a word."""

    EMPTY = "nothing to move"
    MOVES = "moves"
    STAYS = "never moves"
    NOT_NOW = "not just now"
    """A passing obstacle: a page in a per-CPU batch, or under writeback."""
    OPEN = "depends on what is not visible"


@dataclass(frozen=True, slots=True)
class Judgement:
    """What was claimed of frames, in one trial of one program, and what happened."""

    program: str
    trial: str
    source: str
    claim: Claim
    frames: int
    tried: int
    moved: int
    misses: tuple[Kind, ...]
    """The kinds of frame of which the claim was wrong at least once."""

    @property
    def wrong(self) -> int:
        """Frames that prove the claim wrong."""
        if self.claim is Claim.STAYS:
            return self.moved
        return self.tried - self.moved if self.claim is Claim.MOVES else 0


def judge(run: MovesRun, sources: Sequence[str] = SOURCES) -> list[Judgement]:
    """Ask today's rules about every frame of a record."""
    return [
        row
        for program in run.programs
        for trial in program.trials
        for source in sources
        for row in _judged(program, trial, source, run.knowledge)
    ]


def claim_of(kind: Kind, trial: str, kernel: Knowledge) -> Claim:
    """What the rule for this trial says of a kind of frame."""
    rule = by_compaction if trial == "compaction" else by_offlining
    ruling: Ruling[MoveOutcome] = merged([rule(subject, kernel) for subject in kind.subjects])
    moves = {outcome.moves for outcome in ruling.outcomes}
    if len(moves) > 1:
        return Claim.OPEN
    if moves == {True}:
        nothing = all(outcome.by is MovedBy.NOTHING for outcome in ruling.outcomes)
        return Claim.EMPTY if nothing else Claim.MOVES
    passing = any(outcome.passing for outcome in ruling.outcomes)
    return Claim.NOT_NOW if passing else Claim.STAYS


def answer_for_block(result: MemoryMap, block: int) -> Movement:
    """What `memdesc move block:N` answers for memory block N."""
    size = result.machine.section_pages
    return move(result, PfnRange(Pfn(block * size), Pfn((block + 1) * size)))


def run_kernel(
    series: str,
    folder: Path,
    *,
    programs: Sequence[str] = tuple(PROGRAMS),
    ways: Sequence[str] = tuple(WAYS),
    tell: Tell = lambda _: None,
) -> tuple[MovesRun, BlocksRun]:
    """Fragment a kernel's guest with every program; what moved, and the huge pages got.

    Needs the machine for about ten minutes, and 0.6 GB in `folder`. Raises VmError.
    """
    moments = []
    made: list[Program] = []
    fragmented = []
    for moment in fragment(series, folder, programs=programs, ways=ways, tell=tell):
        made.append(program_of(moment))
        fragmented.append(fragmented_of(moment))
        moments = [moment]
    last = moments[0]
    head = (last.series, last.release, last.package, time.strftime("%Y-%m-%d", time.gmtime()))
    how = f"QEMU, {MACHINE.memory_mb} MiB, {' '.join(MACHINE.words)}"
    return (
        MovesRun(*head, how, sysctls_of(last), tuple(made)),
        BlocksRun(*head, how, tuple(fragmented)),
    )


def main(words: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m memdesc.checks.moves",
        description="Fragment the memory of a guest in six ways, let its kernel move pages and "
        "allocate huge pages, and keep what was known before and what happened.",
    )
    parser.add_argument("kernel", choices=sorted(SERIES), help="series of the kernel to boot")
    parser.add_argument("--output", type=Path, required=True, help="file for what moved (JSON)")
    parser.add_argument("--blocks", type=Path, help="file for the huge pages that were got (JSON)")
    parser.add_argument(
        "--program", action="append", choices=sorted(PROGRAMS), help="only this one (repeatable)"
    )
    arguments = parser.parse_args(words)
    programs = tuple(arguments.program or PROGRAMS)
    try:
        with tempfile.TemporaryDirectory(prefix="memdesc-moves-") as folder:
            moves, blocks = run_kernel(
                arguments.kernel,
                Path(folder),
                programs=programs,
                ways=tuple(WAYS) if arguments.blocks else (),
                tell=lambda text: print(text, file=sys.stderr, flush=True),
            )
    except MemdescError as error:
        print(f"{error}\n{error.hint or ''}".strip(), file=sys.stderr)
        return 1
    write_moves(moves, arguments.output)
    if arguments.blocks:
        write_blocks(blocks, arguments.blocks)
    wrong = 0
    for row in judge(moves):
        if row.claim in (Claim.MOVES, Claim.STAYS):
            wrong += row.wrong
            print(
                f"{row.program:14} {row.trial:11} {row.source:10} {row.claim.value:12} "
                f"{row.frames:7} frames, {row.tried:6} tried, {row.moved:6} moved"
            )
    print(f"{wrong} frames did what memdesc says they do not")
    return 0


# --- helpers -----------------------------------------------------------------------------


def _judged(
    program: Program, trial: TrialNote, source: str, kernel: Knowledge
) -> Iterator[Judgement]:
    sums: dict[Claim, list[int]] = {}
    misses: dict[Claim, list[Kind]] = {}
    for kind in program.kinds:
        if kind.source != source or trial.name not in kind.trials:
            continue
        frames, tried, moved = kind.trials[trial.name]
        if trial.state == "offline":
            # The whole block is gone: what was in it has left, or was free.
            tried = moved = frames
        claim = claim_of(kind, trial.name, kernel)
        cell = sums.setdefault(claim, [0, 0, 0])
        for place, count in enumerate((frames, tried, moved)):
            cell[place] += count
        if (claim is Claim.STAYS and moved) or (claim is Claim.MOVES and moved < tried):
            misses.setdefault(claim, []).append(kind)
    for claim in Claim:
        if claim in sums:
            frames, tried, moved = sums[claim]
            wrong = tuple(misses.get(claim, ()))
            yield Judgement(program.name, trial.name, source, claim, frames, tried, moved, wrong)


if __name__ == "__main__":
    sys.exit(main())
