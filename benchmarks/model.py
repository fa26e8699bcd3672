"""The model's page allocator, beside a C one of the same rules, and from 1 GiB to 1 TiB.

    python -m benchmarks.model

Both sides of a ratio run in turns, many short rounds; the best of each side counts, because on
a shared machine everything else only adds. Time is this thread's processor time.
The C side (benchmarks/buddy.c) has the same data structure and does the same operations; what it
hands out is compared.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from memdesc.model.batch import Op, operations, run_batch
from memdesc.model.buddy import churn
from memdesc.model.machine import GFP, Layout, Machine, ZoneLayout

_GIB_FRAMES = 1 << 18
_OPERATIONS = 20_000
HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Figure:
    """One line: what, its value, its unit, and the goal."""

    what: str
    value: float
    unit: str
    goal: str = ""

    def __str__(self) -> str:
        return f"{self.what:<64} {self.value:9.2f} {self.unit:<10} {self.goal}"


# --- what is measured ----------------------------------------------------------------------


def bare(rounds: int) -> list[Figure]:
    """The buddy alone against C: runs of allocations, then frees in the opposite order."""
    library = _c_library()
    if library is None:
        return [Figure("left out: the C side needs gcc", 0, "")]
    found: list[Figure] = []
    frames = _GIB_FRAMES
    machine = _flat(frames)
    other = library.buddy_create(frames)
    for name, run in (("runs of 16, order 0", 16), ("runs of 512, order 0", 512)):
        found += _against_c(name, _runs(np.zeros(run, np.int8)), machine, library, other, rounds)
    mixed = np.random.default_rng(1).choice([0, 0, 0, 1, 2, 3, 5], 256).astype(np.int8)
    found += _against_c("runs of 256, mixed orders", _runs(mixed), machine, library, other, rounds)
    library.buddy_destroy(other)
    return found


def full(rounds: int) -> list[Figure]:
    """Order 0 with per-CPU lists, migratetypes, watermarks and statistics; flat with size."""
    sizes = {"1 GiB": _GIB_FRAMES, "1 TiB": _GIB_FRAMES << 10}
    found: list[Figure] = []
    sides: dict[str, Callable[[], object]] = {}
    for name, frames in sizes.items():
        start = time.process_time()
        machine = Machine(Layout.pc(frames << 12), cpus=2)
        took = time.process_time() - start
        if name == "1 TiB":
            found.append(Figure("a terabyte is ready (processor time)", took, "s", "below 6"))
            per_frame = machine.bytes_per_frame
            found.append(Figure("bytes per frame", per_frame, "bytes", "at most 12, 20 in all"))
        for kind, run in (("LIFO, runs of 64", 64), ("bursts of 4096", 4096)):
            batch = _alloc_free(run)
            size = np.asarray(batch.code).size
            sides[f"{kind}, {name}"] = partial(run_batch, machine.state, batch, 0, size)
    best = _best(sides, rounds)
    per = {name: seconds / _OPERATIONS * 1e9 for name, seconds in best.items()}
    for name, ns in per.items():
        goal = "at most 25" if name.startswith("LIFO") else ""
        found.append(Figure(f"order 0, full semantics: {name}", ns, "ns/op", goal))
    ratio = per["LIFO, runs of 64, 1 TiB"] / per["LIFO, runs of 64, 1 GiB"]
    found.append(Figure("LIFO at 1 TiB to LIFO at 1 GiB", ratio, "times", "at most 1.5"))
    return found


def plain(rounds: int) -> list[Figure]:
    """The same source without compilation, in a process of its own."""
    code = (
        "import time\nfrom benchmarks.model import _alloc_free, _best, _OPERATIONS\n"
        "from memdesc.model.machine import Layout, Machine\n"
        "from memdesc.model.batch import run_batch\n"
        "m = Machine(Layout.pc(1 << 28)); b = _alloc_free(64)\n"
        "best = _best({'x': lambda: run_batch(m.state, b, 0, 2000)}, 3)['x']\n"
        "print(best / 2000 * 1e9)"
    )
    environment = {**os.environ, "MEMDESC_MODEL_COMPILED": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=HERE.parent,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return [Figure("order 0, full semantics: not compiled", float(done.stdout), "ns/op")]


# --- helpers -------------------------------------------------------------------------------


def _against_c(
    name: str, ops: NDArray[np.int8], machine: Machine, library: Any, other: int, rounds: int
) -> list[Figure]:
    stack = np.zeros(2 * ops.size, np.int64)
    one = cast("Any", ops)
    sides: Mapping[str, Callable[[], object]] = {
        "model": lambda: churn(machine.state, one, 0, 1, cast("Any", stack)),
        "C": lambda: library.buddy_churn(other, ops.ctypes.data, ops.size, 0, 1, stack.ctypes.data),
    }
    if sides["model"]() != sides["C"]():
        raise SystemExit(f"{name}: the model and C hand out different frames")
    best = _best(sides, rounds)
    ns = {side: seconds / ops.size * 1e9 for side, seconds in best.items()}
    return [
        Figure(f"bare buddy, {name}: model", ns["model"], "ns/op", "at most 5"),
        Figure(f"bare buddy, {name}: C, gcc -O3 -march=native", ns["C"], "ns/op"),
        Figure(f"bare buddy, {name}: model to C", ns["model"] / ns["C"], "times", "at most 1.2"),
    ]


def _best(sides: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Least processor seconds of each side; they take turns."""
    best = dict.fromkeys(sides, float("inf"))
    for _ in range(rounds):
        for name, side in sides.items():
            start = time.thread_time_ns()
            side()
            best[name] = min(best[name], (time.thread_time_ns() - start) * 1e-9)
    return best


def _flat(frames: int) -> Machine:
    """One zone from frame 0 on, all of it free, as buddy_create makes it."""
    layout = Layout((ZoneLayout("Normal", 0, 0, frames),))
    return Machine(layout, cpus=1, memmap_bytes_per_frame=0)


def _runs(orders: NDArray[np.int8]) -> NDArray[np.int8]:
    """Allocate these orders, free them in the opposite order, again and again."""
    once = np.concatenate([orders, np.full(orders.size, -1, np.int8)])
    return np.tile(once, max(1, _OPERATIONS // once.size))


def _alloc_free(run: int) -> Any:
    """`_OPERATIONS` operations: runs of allocations, each freed in the opposite order."""
    once = np.concatenate([np.full(run, Op.ALLOC), np.full(run, Op.FREE_SLOT)])
    slot = np.concatenate([np.arange(run), np.arange(run)[::-1]])
    times = -(-_OPERATIONS // once.size)
    return operations(
        np.tile(once, times)[:_OPERATIONS],
        flags=int(GFP.HIGHUSER_MOVABLE),
        argument=np.tile(slot, times)[:_OPERATIONS],
        slots=run,
    )


def _c_library() -> Any:
    compiler = shutil.which("gcc")
    if compiler is None:
        return None
    target = Path(tempfile.mkdtemp()) / "buddy.so"
    flags = ["-O3", "-march=native", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([compiler, *flags, "-o", target, HERE / "buddy.c"], check=True)
    library = ctypes.CDLL(str(target))
    pointer, word = ctypes.c_void_p, ctypes.c_int64
    library.buddy_create.restype, library.buddy_create.argtypes = pointer, [ctypes.c_uint64]
    library.buddy_destroy.argtypes = [pointer]
    library.buddy_churn.restype = word
    library.buddy_churn.argtypes = [pointer, pointer, word, ctypes.c_int, ctypes.c_int, pointer]
    return library


def main() -> None:
    """Run all, print lines or JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    figures = [*bare(options.rounds), *full(options.rounds), *plain(options.rounds)]
    if options.json:
        print(json.dumps([asdict(figure) for figure in figures], indent=1))
    else:
        print("\n".join(str(figure) for figure in figures))


if __name__ == "__main__":
    main()
