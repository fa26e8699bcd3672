"""Huge pages that real kernels gave, as kept in `data/blocks-SERIES.json` ("memdesc-got/1").

A record holds, for each fragmented guest, the whole map before and the number of huge pages
that each way of asking got, so that `memdesc.answers.blocks` can be asked again and compared.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import lzma
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from memdesc.answers.blocks import Supply, blocks
from memdesc.checks.fragment import Moment
from memdesc.errors import FormatError
from memdesc.kernels.release import KernelRelease
from memdesc.map.extents import MemoryMap
from memdesc.map.facts import FactTable
from memdesc.map.machine import Counters, Machine
from memdesc.rules.procedure import RULES
from memdesc.written import read_json, write_text

__all__ = [
    "FOLDER",
    "SCHEMA",
    "BlocksRun",
    "Comparison",
    "Fragmented",
    "compare",
    "fragmented_of",
    "read_blocks",
    "recorded_blocks",
    "write_blocks",
]

SCHEMA = "memdesc-got/1"
_HEAD = ("series", "release", "package", "date", "how")
FOLDER = Path(__file__).parent / "data"


@dataclass(frozen=True)
class Fragmented:
    """One guest: its map, with references, and the huge pages that were got. Of a map that was
    kept, map counts say only whether anybody maps a frame (1) or nobody (0)."""

    program: str
    map: MemoryMap
    got: Mapping[str, int]
    """Way of asking (`memdesc.checks.fragment.WAYS`) -> huge pages of 2 MiB."""

    def to_json(self) -> dict[str, Any]:
        return {
            "program": self.program,
            "got": dict(self.got),
            "machine": _machine_json(self.map.machine),
            "map": _packed(self.map),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any], *, path: str = "") -> Self:
        machine = Machine.from_json(value["machine"], path=path)
        got = {str(way): int(count) for way, count in value["got"].items()}
        return cls(str(value["program"]), _unpacked(value["map"], machine), got)


@dataclass(frozen=True)
class BlocksRun:
    """One kernel."""

    series: str
    release: str
    package: str
    date: str
    how: str
    guests: tuple[Fragmented, ...]

    def to_json(self) -> dict[str, Any]:
        value: dict[str, Any] = {"schema": SCHEMA}
        for name in _HEAD:
            value[name] = getattr(self, name)
        value["guests"] = [guest.to_json() for guest in self.guests]
        return value

    @classmethod
    def from_json(cls, value: Any, *, path: str = "") -> Self:
        """Read what `to_json` wrote. Raises FormatError, CaptureError for anything else."""
        try:
            if value["schema"] != SCHEMA:
                raise FormatError(f"{path or 'this'} is of another schema: {value['schema']!r}")
            return cls(
                **{name: str(value[name]) for name in _HEAD},
                guests=tuple(Fragmented.from_json(guest, path=path) for guest in value["guests"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError, lzma.LZMAError) as error:
            raise FormatError(f"{path or 'this'} is no record of blocks: {error!r}") from error


@dataclass(frozen=True, slots=True)
class Comparison:
    """A range that `blocks` gave, and what the kernel gave."""

    program: str
    way: str
    blocks: int
    """Of the guest."""
    lowest: int
    highest: int
    got: int

    @property
    def is_inside(self) -> bool:
        return self.lowest <= self.got <= self.highest

    @property
    def share(self) -> float:
        """Width of the range as a share of the guest's blocks."""
        return (self.highest - self.lowest) / self.blocks


def compare(guest: Fragmented, *, references: bool = True) -> list[Comparison]:
    """The range that `blocks` gives for each way of asking, beside what the kernel gave.

    Without `references` it is asked as if nobody had seen reference counts, as from /proc.
    """
    seen = guest.map if references else dataclasses.replace(guest.map, references=None)
    answer = blocks(seen)
    return [
        Comparison(guest.program, way, answer.pfn_starts.size, *_range(way, answer.supply), got)
        for way, got in guest.got.items()
    ]


def fragmented_of(moment: Moment) -> Fragmented:
    """What is kept of a fragmented guest."""
    return Fragmented(moment.program, moment.map, moment.allocated)


def write_blocks(run: BlocksRun, path: Path) -> None:
    """Write a record."""
    write_text(path, json.dumps(run.to_json(), indent=1) + "\n")


def read_blocks(path: Path) -> BlocksRun:
    """Read a record. Raises FormatError, CaptureError, OSError."""
    return BlocksRun.from_json(read_json(path), path=str(path))


def recorded_blocks(folder: Path = FOLDER) -> list[BlocksRun]:
    """Every record in `folder`, oldest kernel first. Raises what `read_blocks` raises."""
    runs = [read_blocks(path) for path in folder.glob("blocks-*.json")]
    return sorted(runs, key=lambda run: KernelRelease.parse(run.release))


# --- helpers -----------------------------------------------------------------------------


def _range(way: str, supply: Supply) -> tuple[int, int]:
    """What is promised to those who ask in this way."""
    if way == "free blocks":
        return max(0, supply.now - _OWN_BLOCKS), supply.now
    if way.startswith("transparent"):
        return supply.faulted_min, supply.faulted_max
    return supply.reclaimed_min, supply.reclaimed_max


_OWN_BLOCKS = 3
"""What the asking program itself may break up: its own memory, a few MiB."""


def _machine_json(machine: Machine) -> dict[str, Any]:
    """The machine without what blocks do not depend on."""
    return dataclasses.replace(
        machine,
        before=Counters(),
        after=Counters(),
        buddyinfo=(),
        pagetypeinfo=(),
        slabinfo=(),
        cgroups={},
        unseen={},
    ).to_json()


def _packed(result: MemoryMap) -> dict[str, Any]:
    """Runs of equal facts, references and "nobody maps it", as text."""
    unknown = np.full(len(result), -1, np.int8)
    references = unknown if result.references is None else result.references
    keys = (result.facts.astype(np.int64) << 3) + (references.astype(np.int64) + 1 << 1)
    if result.mapcounts is not None:
        # Map counts matter only for frames that nobody maps.
        keys += result.mapcounts == 0
    begins = np.flatnonzero(np.diff(keys, prepend=-1))
    used, codes = np.unique(keys[begins], return_inverse=True)
    table = result.table
    lengths = np.diff(result.pfn_starts[begins].astype(np.int64), append=result.pfn_end)
    return {
        "pfn_start": int(result.pfn_start),
        "kinds": [
            [
                hex(int(table.flags[key >> 3])),
                hex(int(table.types[key >> 3])),
                table.rules[key >> 3],
                (key >> 1 & 3) - 1,
                1 - (key & 1),
            ]
            for key in used.tolist()
        ],
        "lengths": _text(lengths.astype("<u4")),
        "codes": _text(codes.reshape(-1).astype("<u2")),
    }


def _unpacked(value: Mapping[str, Any], machine: Machine) -> MemoryMap:
    lengths = _array(value["lengths"], "<u4").astype(np.int64)
    codes = _array(value["codes"], "<u2")
    kinds = value["kinds"]
    unknown = [kind[2] for kind in kinds if kind[2] not in RULES]
    if unknown:
        raise FormatError(
            f"the record names a rule that there is no more: {unknown[0]}",
            hint="`python -m memdesc.checks.moves` makes it again",
        )
    ends = value["pfn_start"] + np.cumsum(lengths)
    return MemoryMap(
        machine=machine,
        table=FactTable(
            np.array([int(kind[0], 16) for kind in kinds], np.uint64),
            np.array([int(kind[1], 16) for kind in kinds], np.uint64),
            tuple(kind[2] for kind in kinds),
        ),
        pfn_starts=(ends - lengths).astype(np.uint32),
        facts=codes.astype(np.uint16),
        pfn_end=int(ends[-1]),
        pfn_start=int(value["pfn_start"]),
        references=np.array([kind[3] for kind in kinds], np.int8)[codes],
        mapcounts=np.array([kind[4] for kind in kinds], np.uint32)[codes],
        read_from="structs",
    )


def _text(column: NDArray[Any]) -> str:
    """The bytes of a column, one plane after the other, which packs better."""
    planes = column.view(np.uint8).reshape(column.size, -1).T.tobytes()
    return base64.b85encode(lzma.compress(planes, preset=9)).decode()


def _array(text: str, kind: str) -> NDArray[Any]:
    planes = np.frombuffer(lzma.decompress(base64.b85decode(text)), np.uint8)
    width = np.dtype(kind).itemsize
    return np.ascontiguousarray(planes.reshape(width, -1).T).view(kind).reshape(-1)
