"""docs/processes.md: its table has every module, and its examples say what happens."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import memdesc.mm
from memdesc.mm.areas.mmap import mmap
from memdesc.mm.kernel import Kernel
from memdesc.mm.process import Errno, Signal

PAGE = Path(__file__).parents[2] / "docs/processes.md"


def test_every_module_is_in_the_table() -> None:
    text = PAGE.read_text()
    table = set(re.findall(r"`(\w+)`", text[text.index("| Folder | Modules |") :]))
    modules = {path.stem for path in Path(memdesc.mm.__path__[0]).rglob("*.py")} - {"__init__"}
    assert not modules - table


def test_failures_look_as_the_page_says() -> None:
    text = PAGE.read_text()
    kernel = Kernel("6.12")
    parent = kernel.process("parent")
    mmap(kernel, parent.mm, 0x10000, 4)
    with pytest.raises(Errno) as refused:
        mmap(kernel, parent.mm, 0x10000, 1)
    assert f"error.name  # {refused.value.name!r}" in text
    with pytest.raises(Signal) as brought:
        kernel.read(parent, 0x20000)
    shown = (brought.value.name, brought.value.code)
    assert f"signal.name, signal.code  # {shown!r}" in text
