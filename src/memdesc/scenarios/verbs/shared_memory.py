"""System V shared memory."""

from __future__ import annotations

from typing import Final

from memdesc.scenarios.language import Kind, Parameter, Result, flag, value
from memdesc.scenarios.verbs.parts import row

__all__ = ["SHARED_MEMORY"]

_SEGMENT: Final = Parameter("segment", Kind.SEGMENT)

SHARED_MEMORY: Final = (
    row(
        "shm",
        (Parameter("segment", Kind.NEW_SEGMENT), Parameter("pages", Kind.COUNT)),
        "a segment of System V shared memory, which every process may attach",
        "shmget(2) with IPC_PRIVATE",
        by_process=False,
    ),
    row(
        "shm_control",
        (
            _SEGMENT,
            Parameter(
                "action",
                Kind.WORD,
                "`lock`: its pages must stay in memory; `remove`: it goes with the last area",
                choices=("lock", "unlock", "remove"),
            ),
        ),
        "lock or remove a segment",
        "shmctl(2) with SHM_LOCK, SHM_UNLOCK, IPC_RMID",
        by_process=False,
    ),
    row(
        "shm_attached",
        (_SEGMENT,),
        "how many areas there are of a segment",
        "shmctl(2) with IPC_STAT: shm_nattch",
        result=Result.NUMBER,
        by_process=False,
    ),
    row(
        "attach",
        (Parameter("range", Kind.NEW), _SEGMENT),
        "map a segment, all of it",
        "shmat(2)",
        flag("readonly", "SHM_RDONLY"),
        value("at", "exactly there, and not in a slot", Parameter("at", Kind.PLACE)),
    ),
    row(
        "detach",
        (Parameter("range", Kind.RANGE),),
        "end one `attach`, all areas of it, by where it began",
        "shmdt(2)",
    ),
)
"""System V shared memory."""
