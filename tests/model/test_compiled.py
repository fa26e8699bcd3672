"""The same source, compiled and plain: same results; and compiled code counts no references."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from model.worlds import KERNELS, columns, small

from memdesc.model import batch as batches
from memdesc.model import buddy
from memdesc.model.batch import Op, operations
from memdesc.model.compiled import COMPILED
from memdesc.model.machine import GFP

ROOT = Path(__file__).parents[2]


def fingerprint(kernel: str) -> str:
    """A checksum of a small machine's columns, and of all results, after 3000 operations."""
    rng = np.random.default_rng(7)
    machine = small(kernel, log_rows=5000)
    n, slots = 3000, 120
    code = rng.choice(list(Op), n, p=[0.45, 0.4, *[0.15 / 12] * 12])
    argument = rng.integers(0, slots, n)
    argument[code == Op.FREE] = rng.integers(0, 512, n)[code == Op.FREE]
    argument[np.isin(code, (Op.TAKE, Op.SPLIT))] &= -8
    blocks = np.isin(code, (Op.ISOLATE, Op.UNISOLATE))
    argument[blocks] %= 32
    argument[np.isin(code, (Op.UNRESERVE, Op.BALANCED, Op.RECLAIMING))] %= 2
    requests = [GFP.KERNEL, GFP.HIGHUSER_MOVABLE, GFP.ATOMIC, GFP.KERNEL | GFP.RECLAIMABLE]
    flags = rng.choice([int(gfp) for gfp in requests], n)
    flags[code == Op.TAKE] = 0x20
    flags[np.isin(code, (Op.SPLIT, Op.MARK))] = 0
    flags[np.isin(code, (Op.UNISOLATE, Op.UNRESERVE))] %= 3
    batch = operations(
        code,
        order=rng.choice([0, 0, 0, 1, 2, 3, 4, 6], n),
        flags=flags,
        cpu=rng.integers(0, 2, n),
        argument=argument,
        slots=slots,
    )
    results = machine.run(batch)
    whole = hashlib.sha256(results.tobytes())
    for name, column in columns(machine).items():
        whole.update(name.encode() + column.tobytes())
    whole.update(repr([str(event) for event in machine.events()]).encode())
    return whole.hexdigest()


def test_without_compilation_everything_is_the_same_and_numba_stays_away() -> None:
    script = (
        "import sys; sys.path[:0] = ['src', 'tests']\n"
        "from model.test_compiled import fingerprint\n"
        f"print([fingerprint(kernel) for kernel in {KERNELS!r}])\n"
        "print('numba' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={**os.environ, "MEMDESC_MODEL_COMPILED": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    plain = [fingerprint(kernel) for kernel in KERNELS]
    assert done.stdout.splitlines() == [repr(plain), "False"]
    assert len(set(plain)) == len(plain), "kernels differ"


@pytest.mark.skipif(not COMPILED, reason="compilation is off: unset MEMDESC_MODEL_COMPILED")
@pytest.mark.parametrize("name", ["run_batch", "churn"])
def test_hot_loops_count_no_references(name: str) -> None:
    import numba

    machine = small("6.12")
    batch = operations([Op.ALLOC])
    state = numba.typeof(machine.state)
    if name == "run_batch":
        function, arguments = batches.run_batch, (state, numba.typeof(batch), numba.int64)
        arguments = (*arguments, numba.int64)
    else:
        ops, stack = numba.typeof(np.zeros(1, np.int8)), numba.typeof(np.zeros(1, np.int64))
        function, arguments = buddy.churn, (state, ops, numba.int64, numba.int64, stack)
    made = numba.njit(nogil=True, error_model="numpy")(function.py_func)  # type: ignore[attr-defined]
    made.compile(arguments)
    (text,) = made.inspect_llvm().values()
    body = re.search(r"^define [^\n]*@_ZN7memdesc.*?^}", text, re.MULTILINE | re.DOTALL)
    assert body is not None
    # References are counted at most once for each array that is handed in, never in a loop:
    # only blocks of the entry come before the first loop's.
    counted = [m.start() for m in re.finditer("call void @NRT_incref", body[0])]
    assert len(counted) <= len(machine.state) + len(batch)
    loops = [m.start() for m in re.finditer(r"= phi i64", body[0])]
    assert not counted or max(counted) < min(loops), "references are counted in a loop"


def test_a_changed_module_or_one_it_imports_is_compiled_anew() -> None:
    from memdesc.model import compiled

    if not COMPILED:
        pytest.skip("compilation is off: unset MEMDESC_MODEL_COMPILED")
    checksum = compiled._checksum
    assert checksum("memdesc.model.batch") != checksum("memdesc.model.buddy")
    folder = Path(compiled._cache_folder("memdesc.model.batch"))
    assert folder.name == checksum("memdesc.model.batch")
    assert not folder.is_relative_to(ROOT), "nothing is written into the repository"
