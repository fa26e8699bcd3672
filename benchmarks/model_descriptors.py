"""What a dynamically allocated descriptor costs the model: nanoseconds per operation.

    python -m benchmarks.model_descriptors --rounds 7

Order-0 allocate and free of anonymous memory, on one CPU, in batches; each design against the
page allocator alone (`Machine.run`) in the same round. Three shapes:

    lifo     bursts of 32: what is freed is allocated again; slabs and lists stay as they are
    bulk     all at once, then freed in reverse: slabs are made and given back on the way
    random   a random live page is replaced by a new one, memory four fifths full
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from memdesc.model.batch import Op, operations
from memdesc.model.cache_types import column
from memdesc.model.compiled import Column, array
from memdesc.model.described import ALLOCATED, KIND_CODES, DescribedMachine
from memdesc.model.designs import DESIGNS, Design
from memdesc.model.machine import Machine
from memdesc.model.operations import ALLOC, FREE, Operations
from memdesc.model.zones import Layout
from memdesc.types import MemoryType

MEMORY_BYTES = 2 << 30
KIND = MemoryType.ANON

Shape = tuple[NDArray[np.bool_], NDArray[np.int64]]
"""Whether a row allocates, and its handle."""


def lifo(count: int) -> Shape:
    burst = np.arange(32)
    allocates = np.tile(np.repeat([True, False], 32), count // 64)
    return allocates, np.tile(np.concatenate([burst, burst[::-1]]), count // 64)


def bulk(count: int) -> Shape:
    count = min(count, int(MEMORY_BYTES * 1.6) >> 12)
    handles = np.arange(count // 2)
    return np.repeat([True, False], count // 2), np.concatenate([handles, handles[::-1]])


def random(count: int) -> Shape:
    """Four fifths of the memory, then replacements; the fill is part of it, and one half."""
    live = min(int(MEMORY_BYTES * 0.8) >> 12, count // 2)
    victims = np.random.default_rng(1).integers(0, live, (count - live) // 2)
    replace = np.tile([False, True], victims.size)
    return (
        np.concatenate([np.ones(live, np.bool_), replace]),
        np.concatenate([np.arange(live), np.repeat(victims, 2)]),
    )


SHAPES: dict[str, Callable[[int], Shape]] = {"lifo": lifo, "bulk": bulk, "random": random}


def alone(shape: Shape) -> Callable[[], float]:
    """A round of the page allocator: nanoseconds per operation."""
    allocates, handles = shape
    codes = np.where(allocates, int(Op.ALLOC), int(Op.FREE_SLOT))
    batch = operations(
        codes, flags=int(ALLOCATED[KIND]), argument=handles, slots=int(handles.max()) + 1
    )

    def once() -> float:
        machine = Machine(Layout.pc(MEMORY_BYTES))
        begin = time.perf_counter()
        machine.run(batch)
        return (time.perf_counter() - begin) / codes.size * 1e9

    return once


def described(shape: Shape, design: Design, kernel: str) -> Callable[[], float]:
    """A round of a design, on a fresh machine."""
    allocates, handles = shape
    count = allocates.size

    def filled(value: object, kind: type[np.generic]) -> Column:
        return column(np.full(count, value, kind))

    def once() -> float:
        batch = Operations(
            code=column(np.where(allocates, ALLOC, FREE).astype(np.uint8)),
            kind=filled(KIND_CODES[KIND], np.int16),
            order=filled(0, np.uint8),
            cpu=filled(0, np.uint16),
            handle=column(handles.astype(np.int32)),
            arg=filled(0, np.int32),
            into=filled(0, np.int32),
            result=filled(0, np.int64),
            handles=column(np.full(int(handles.max()) + 1, -1, np.int64)),
        )
        machine = DescribedMachine(Layout.pc(MEMORY_BYTES), design, kernel)
        begin = time.perf_counter()
        machine.slabs.run(batch)
        took = (time.perf_counter() - begin) / count * 1e9
        assert (array(batch.result) >= 0).all(), "an operation failed"
        return took

    return once


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.model_descriptors",
        description=(__doc__ or "").partition("\n")[0],
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--operations", type=int, default=2_000_000)
    parser.add_argument("--json", action="store_true", help="machine-readable output")
    given = parser.parse_args()
    rows: list[dict[str, object]] = []
    for name, make in SHAPES.items():
        shape = make(given.operations)
        sides: dict[tuple[str, str], Callable[[], float]] = {
            ("page allocator alone", "6.12"): alone(shape)
        }
        for design in DESIGNS.values():
            for kernel in ("6.12", "7.2"):
                sides[design.title, kernel] = described(shape, design, kernel)
        for once in sides.values():
            once()
        rounds = [{key: once() for key, once in sides.items()} for _ in range(given.rounds)]
        base = ("page allocator alone", "6.12")
        for key in sides:
            rows.append(
                {
                    "shape": name,
                    "design": key[0],
                    "kernel": key[1],
                    "ns_median": statistics.median(each[key] for each in rounds),
                    "ns_min": min(each[key] for each in rounds),
                    "of_alone": statistics.median(each[key] / each[base] for each in rounds),
                }
            )
    if given.json:
        print(json.dumps(rows, indent=1))
        return
    print(f"{'shape':<8}{'design':<22}{'kernel':<8}{'ns/op':>8}{'least':>8}{'x alone':>9}")
    for row in rows:
        print(
            f"{row['shape']:<8}{row['design']:<22}{row['kernel']:<8}"
            f"{row['ns_median']:>8.1f}{row['ns_min']:>8.1f}{row['of_alone']:>9.2f}"
        )


if __name__ == "__main__":
    main()
