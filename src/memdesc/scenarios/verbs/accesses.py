"""Loads and stores, by processes and those who may look into them."""

from __future__ import annotations

from typing import Final

from memdesc.scenarios.language import Kind, Parameter, Result, flag
from memdesc.scenarios.verbs.parts import RANGE, TAGS, row

__all__ = ["ACCESSES"]

_THEIRS: Final = (
    Parameter("other", Kind.PROCESS, "whose memory"),
    Parameter("range", Kind.RANGE, of="other"),
)

ACCESSES: Final = (
    row("read", (RANGE,), "load from each page, ascending", "a load", result=Result.CONTENTS),
    row("write", (RANGE, TAGS), "fill each page, ascending", "a store"),
    row(
        "copy_to",
        (RANGE, TAGS),
        "let the kernel write to user memory (uaccess)",
        "read(2) from a pipe",
        result=Result.NUMBER,
    ),
    row(
        "copy_from",
        (RANGE,),
        "let the kernel read user memory (uaccess)",
        "write(2) to a pipe",
        result=Result.CONTENTS,
    ),
    row(
        "peek",
        _THEIRS,
        "read another process's memory",
        "process_vm_readv(2)",
        result=Result.CONTENTS,
    ),
    row(
        "poke",
        (*_THEIRS, TAGS),
        "write another process's memory",
        "process_vm_writev(2)",
        result=Result.NUMBER,
    ),
    row(
        "ptrace_read",
        _THEIRS,
        "read as a debugger does",
        "read(2) of /proc/PID/mem",
        flag("words", "PTRACE_PEEKDATA, word by word"),
        result=Result.CONTENTS,
    ),
    row(
        "ptrace_write",
        (*_THEIRS, TAGS),
        "write as a debugger does, also where only reading is allowed",
        "write(2) of /proc/PID/mem",
        flag("words", "PTRACE_POKEDATA, word by word"),
        result=Result.NUMBER,
    ),
)
"""Loads and stores."""
