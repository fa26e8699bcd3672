"""Large recorded kpageflags files for benchmarks, made from a small seed that a real machine gave.

``seed_runs.npz`` holds runs (flag word, length) of 32 MiB windows of one live map, and nothing
else: no names, no frame numbers. Two files grow from it, of any number of frames, the same bytes
for the same arguments:

* `tile`: the seed's map repeated. It keeps the real order of frames and the long stretches that
  nobody has touched (flag word 0), so a scanner that is good at repetition looks good here.
* `dense`: a full machine without long repetition, the honest input. The untouched stretches are
  taken out; what is left is cut into *blocks*, each of 2^order frames and aligned to its size (a
  folio with its head and tails, a free buddy block; a run of single frames is cut at the same
  borders), and a Markov chain of order 1 walks over them. The chain's state is (flag word and order
  of the last block, alignment of the next frame); each next block is one that followed the same
  state in the seed. So it always fits: heads keep their 2^order - 1 tails, nothing is padded.

    python benchmarks/inputs.py dense out.bin --frames 67108864
    python benchmarks/inputs.py record           # make a new seed from this machine (root)
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Words: TypeAlias = NDArray[np.uint64]
Ints: TypeAlias = NDArray[np.int64]

SEED_FILE = Path(__file__).with_name("seed_runs.npz")
WINDOW = 8192
"""Frames of one recorded window; a multiple of the largest block, so no window cuts one."""
UNTOUCHED = 512
"""A run of flag word 0 of this length or more is memory that nobody has initialised; `dense` leaves
it out."""
MAX_ORDER = 10
REGION = 1 << 16
"""Frames that one chain fills; 1024 chains run side by side, as numpy needs long vectors to be
quick."""
CHAINS = 1024
SLICE = 1 << 20
"""Frames written at a time."""

_GRAINS = MAX_ORDER + 1
_BUDDY, _HEAD, _TAIL = (np.uint64(1 << bit) for bit in (10, 15, 16))


@dataclass(frozen=True, slots=True)
class Runs:
    """A map as runs: `words[i]` for `lengths[i]` frames; neighbours may be equal at a window's
    edge."""

    words: Words
    lengths: Ints

    @property
    def frames(self) -> int:
        """Frames in all runs together."""
        return int(self.lengths.sum())


def runs_of(flags: Words) -> Runs:
    """Run-length encode flag words."""
    starts = np.concatenate(([0], np.flatnonzero(flags[1:] != flags[:-1]) + 1))
    return Runs(flags[starts], np.diff(starts, append=flags.size))


def load_seed(file: Path = SEED_FILE) -> Runs:
    """Read the recorded seed."""
    with np.load(file) as seed:
        return Runs(seed["words"][seed["codes"]], seed["lengths"].astype(np.int64))


def record_seed(flags: Words, file: Path = SEED_FILE, runs: int = 65_536, seed: int = 1) -> Runs:
    """Record windows of a real map, drawn evenly until there are about `runs` runs, in the map's
    order."""
    windows = flags[: flags.size // WINDOW * WINDOW].reshape(-1, WINDOW)
    order = np.random.default_rng(seed).permutation(len(windows))
    cost = np.count_nonzero(windows[:, 1:] != windows[:, :-1], axis=1) + 1
    chosen = np.sort(order[: np.searchsorted(np.cumsum(cost[order]), runs) + 1]).tolist()
    parts = [runs_of(windows[window]) for window in chosen]
    joined = Runs(
        np.concatenate([p.words for p in parts]), np.concatenate([p.lengths for p in parts])
    )
    kinds, codes = np.unique(joined.words, return_inverse=True)
    narrow = np.uint8 if kinds.size <= 256 else np.uint16
    np.savez_compressed(
        file, words=kinds, codes=codes.astype(narrow), lengths=joined.lengths.astype(np.uint16)
    )
    return joined


def tile(frames: int, seed: Runs | None = None) -> Iterator[Words]:
    """Yield `frames` flag words in pieces: the seed's map over and over."""
    runs = seed or load_seed()
    once = np.repeat(runs.words, runs.lengths)
    while frames > 0:
        yield once[:frames]
        frames -= once.size


def dense(frames: int, seed: Runs | None = None, number: int = 1) -> Iterator[Words]:
    """Yield `frames` flag words in pieces of at most `SLICE`: a full map drawn by the chain,
    `number` its seed."""
    chain = _Chain.learn(seed or load_seed())
    random = np.random.default_rng(number)
    while frames > 0:
        chains = min(CHAINS, -(-frames // REGION))
        chosen, owner = chain.walk(chains, random)
        together = SLICE // REGION
        edges = np.searchsorted(owner, np.arange(0, chains + together, together))
        for low, high in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            piece = chain.expand(chosen[low:high])[:frames]
            frames -= piece.size
            if piece.size:
                yield piece


@dataclass(frozen=True, slots=True)
class _Blocks:
    """The seed cut into blocks: each is `runs` runs from run `first` on, `size` frames, begun at
    `start`."""

    runs: Runs
    first: Ints
    count: Ints
    size: Ints
    start: Ints
    order: Ints


def _cut(runs: Runs) -> _Blocks:
    """Cut runs into blocks; what is torn (a tail without a head, a folio of odd size) and untouched
    falls out."""
    words: list[int] = []
    lengths: list[int] = []
    rows: list[tuple[int, int, int, int, int]] = []
    source_words, source_lengths = runs.words.tolist(), runs.lengths.tolist()
    head, tail, buddy = int(_HEAD), int(_TAIL), int(_BUDDY)

    def add(parts: list[tuple[int, int]], position: int, order: int) -> None:
        rows.append((len(words), len(parts), sum(length for _, length in parts), position, order))
        words.extend(word for word, _ in parts)
        lengths.extend(length for _, length in parts)

    index = position = 0
    while index < len(source_words):
        word, length = source_words[index], source_lengths[index]
        here = position
        index += 1
        position += length
        if word & head:
            parts = [(word, length)]
            while index < len(source_words) and source_words[index] & tail:
                parts.append((source_words[index], source_lengths[index]))
                position += source_lengths[index]
                index += 1
            size = position - here
            if (
                length == 1
                and size & (size - 1) == 0
                and here % size == 0
                and size <= 1 << MAX_ORDER
            ):
                add(parts, here, size.bit_length() - 1)
        elif not word & tail and not (word == 0 and length >= UNTOUCHED):
            # A free block may begin with one frame of another word (reported to the host): it
            # stays with its rest.
            rest = source_words[index] if index < len(source_words) else 0
            joined = bool(word & rest & buddy) and length == 1 and here % 2 == 0
            if joined:
                position += source_lengths[index]
                index += 1
            while here < position:
                order = min((here & -here).bit_length() - 1 if here else MAX_ORDER, MAX_ORDER)
                while 1 << order > position - here:
                    order -= 1
                size = 1 << order
                add(
                    [(word, 1), (rest, size - 1)] if joined and size > 1 else [(word, size)],
                    here,
                    order,
                )
                word, joined = (rest, False) if joined else (word, False)
                here += size
    table = np.array(rows, dtype=np.int64).T
    return _Blocks(Runs(np.array(words, np.uint64), np.array(lengths, np.int64)), *table)


@dataclass(frozen=True, slots=True)
class _Chain:
    """What may follow: blocks sorted by the state before them, and where its successors lie."""

    blocks: _Blocks
    kind: Ints
    successors: Ints
    low: Ints
    many: Ints

    @classmethod
    def learn(cls, runs: Runs) -> _Chain:
        """Count the transitions of a real map."""
        blocks = _cut(runs)
        words = np.unique(blocks.runs.words, return_inverse=True)[1][blocks.first]
        kinds, kind = np.unique(words * _GRAINS + blocks.order, return_inverse=True)
        grain = _alignment(blocks.start)
        before = np.concatenate(([kinds.size], kind[:-1]))
        # The last row, the way on for a state that the seed does not have: where any block
        # gives way to another kind.
        turns = np.flatnonzero(before != kind)
        state = np.concatenate((before * _GRAINS + grain, kinds.size * _GRAINS + grain[turns]))
        successors = np.concatenate((np.arange(kind.size), turns))[np.argsort(state, kind="stable")]
        many = np.bincount(state, minlength=(kinds.size + 1) * _GRAINS)
        low = np.cumsum(many) - many
        rows, places = many.reshape(-1, _GRAINS), low.reshape(-1, _GRAINS)
        for finer in range(_GRAINS - 1):  # what follows at a lesser alignment fits at a greater one
            if rows[-1, finer + 1] == 0:
                rows[-1, finer + 1], places[-1, finer + 1] = rows[-1, finer], places[-1, finer]
        for row, place in zip(rows, places, strict=True):
            empty = row == 0
            row[empty], place[empty] = rows[-1, empty], places[-1, empty]
        if not many.all():
            raise ValueError(
                "the seed has no block of a single frame at an odd place: record a larger one"
            )
        return cls(blocks, kind, successors, low, many)

    def walk(self, chains: int, random: np.random.Generator) -> tuple[Ints, Ints]:
        """Fill `chains` regions; return blocks and the chain that each belongs to, in the order of
        the chains."""
        position = np.zeros(chains, np.int64)
        kind = random.choice(self.kind, chains, p=self.blocks.size / self.blocks.size.sum())
        alive = np.arange(chains)
        chosen: list[NDArray[np.int32]] = []  # narrow: there are many
        owner: list[NDArray[np.uint16]] = []
        while alive.size:
            state = kind * _GRAINS + _alignment(position)
            pick = self.successors[
                self.low[state] + (random.random(alive.size) * self.many[state]).astype(np.int64)
            ]
            chosen.append(pick.astype(np.int32))
            owner.append(alive.astype(np.uint16))
            position = position + self.blocks.size[pick]
            kind = self.kind[pick]
            going = position < REGION
            if not going.all():
                alive, position, kind = alive[going], position[going], kind[going]
        owners = np.concatenate(owner)
        order = np.argsort(owners, kind="stable")
        return np.concatenate(chosen)[order].astype(np.int64), owners[order].astype(np.int64)

    def expand(self, chosen: Ints) -> Words:
        """Write out the frames of blocks."""
        count = self.blocks.count[chosen]
        ends = np.cumsum(count)
        index = np.arange(int(ends[-1])) + np.repeat(
            self.blocks.first[chosen] - ends + count, count
        )
        return np.repeat(self.blocks.runs.words[index], self.blocks.runs.lengths[index])


def _alignment(position: Ints) -> Ints:
    """Return the order of the largest block that may begin at each position."""
    lowest = (position & -position) | (position == 0) * (1 << MAX_ORDER)
    grains: Ints = np.minimum(np.log2(lowest).astype(np.int64), MAX_ORDER)
    return grains


def write(file: Path, pieces: Iterator[Words]) -> int:
    """Write pieces as page-types and memdesc read them (little-endian u64 per frame); return the
    frames written."""
    frames = 0
    with file.open("wb", buffering=0) as out:
        for piece in pieces:
            view = piece.astype("<u8", copy=False).data.cast("B")
            while view:
                view = view[out.write(view) :]
            frames += piece.size
    return frames


def main() -> int:
    """Write a file, or record the seed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("kind", choices=("tile", "dense", "record"))
    parser.add_argument(
        "file", type=Path, nargs="?", help="what to write (the seed file when recording)"
    )
    parser.add_argument("--frames", type=int, default=1 << 26, help="default: %(default)s (0.5 GB)")
    parser.add_argument("--number", type=int, default=1, help="the random number generator's seed")
    parser.add_argument(
        "--kpageflags", type=Path, default=Path("/proc/kpageflags"), help="the map to record"
    )
    given = parser.parse_args()
    if given.kind == "record":
        with given.kpageflags.open("rb", buffering=0) as live:
            raw = b"".join(iter(lambda: os.read(live.fileno(), 1 << 20), b""))
        seed = record_seed(np.frombuffer(raw, "<u8"), given.file or SEED_FILE, seed=given.number)
        kinds = np.unique(seed.words).size
        print(f"{seed.words.size} runs of {seed.frames} frames, {kinds} flag words")
        return 0
    if given.file is None:
        parser.error(f"{given.kind}: which file?")
    begin = time.perf_counter()
    pieces = (
        tile(given.frames) if given.kind == "tile" else dense(given.frames, number=given.number)
    )
    frames = write(given.file, pieces)
    print(f"{frames} frames in {time.perf_counter() - begin:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
