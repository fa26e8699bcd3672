"""The recorded traces of tests/data/traces: real kernels, with their lists before and after.

Made by `memdesc vm trace KERNEL --workload WORKLOAD`; each is the folder's trace.npz.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from memdesc.traces.read import open_trace
from memdesc.traces.state import AllocatorState
from memdesc.traces.store import Recorded

FOLDER = Path(__file__).parent.parent / "data" / "traces"
NAMES = sorted(path.stem for path in FOLDER.glob("*.npz"))
STEPS = [name for name in NAMES if name.endswith("-steps")]


@cache
def recorded(name: str) -> Recorded:
    return open_trace(FOLDER / f"{name}.npz")


def states(name: str) -> tuple[AllocatorState, AllocatorState]:
    found = recorded(name)
    assert found.before is not None
    assert found.after is not None
    return found.before, found.after
