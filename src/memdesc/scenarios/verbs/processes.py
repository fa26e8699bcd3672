"""What processes are, do to each other, and may do."""

from __future__ import annotations

from typing import Final

from memdesc.scenarios.language import Kind, Parameter, Result
from memdesc.scenarios.verbs.parts import row, word

__all__ = ["PROCESSES"]

PROCESSES: Final = (
    row(
        "process",
        (Parameter("name", Kind.NEW_PROCESS),),
        "a fresh process without mappings of the scenario",
        "fork(2) of a process without any",
        by_process=False,
    ),
    row("fork", (Parameter("child", Kind.NEW_PROCESS),), "make a child process", "fork(2)"),
    row("exit", (), "end, in good order", "_exit(2)", ends=True),
    row(
        "kill",
        (Parameter("process", Kind.PROCESS),),
        "end a process from outside",
        "kill(2) with SIGKILL",
        by_process=False,
        ends=True,
    ),
    row(
        "prctl",
        (
            word("option", "thp_disable memory_merge", "PR_SET_THP_DISABLE, PR_SET_MEMORY_MERGE"),
            Parameter("value", Kind.COUNT),
        ),
        "set something for the whole process",
        "prctl(2)",
    ),
    row(
        "clear_refs",
        (Parameter("value", Kind.COUNT, "1 to 3: accessed bits; 4: soft-dirty"),),
        "clear the process's accessed or soft-dirty bits",
        "/proc/PID/clear_refs",
    ),
    row(
        "ksm_stat",
        (word("name", "rmap_items merging_pages zero_pages process_profit", "what is counted"),),
        "what KSM counts for the process; ENOENT where the kernel does not have it",
        "/proc/PID/ksm_stat, /proc/PID/ksm_merging_pages",
        result=Result.NUMBER,
    ),
    row(
        "limit",
        (
            Parameter(
                "resource",
                Kind.WORD,
                "RLIMIT_*; of `as` and `data` what may come yet, and `memlock` holds after `drop`",
                choices=("fsize", "as", "data", "memlock"),
            ),
            Parameter("pages", Kind.COUNT),
        ),
        "a limit of the process, in pages",
        "setrlimit(2)",
    ),
    row(
        "drop",
        (
            Parameter(
                "what",
                Kind.WORD,
                "`capabilities`: all of them, and still user 0; `root`: become user 65534, too",
                choices=("capabilities", "root"),
            ),
        ),
        "give up the rights that a process begins with",
        "capset(2), setresuid(2)",
    ),
)
"""Processes, their limits and their rights."""
