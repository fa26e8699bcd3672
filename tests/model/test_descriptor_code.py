"""The compiled batch does not count references of arrays."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from memdesc.model.compiled import COMPILED

_CODE = """
from memdesc.model.described import DescribedMachine
from memdesc.model.operations import run
from memdesc.model.zones import Layout
from memdesc.types import MemoryType
machine = DescribedMachine(Layout.pc(32 << 20))
machine.alloc(MemoryType.ANON)
(text,) = run.inspect_llvm().values()
assert "define" in text
counted, inside = 0, False
for line in text.splitlines():
    if line.startswith("define"):
        inside = "cpython" not in line and "cfunc" not in line
    if inside:
        counted += "call void @NRT_incref" in line
print(counted)
"""


@pytest.mark.skipif(not COMPILED, reason="looks at compiled code: unset MEMDESC_MODEL_COMPILED")
def test_no_reference_is_counted_in_a_batch(tmp_path: Path) -> None:
    """In a process of its own: what comes from the cache on disk has no code to look at."""
    done = subprocess.run(
        [sys.executable, "-c", _CODE],
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == 0
