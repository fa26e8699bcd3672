"""Resource limits of a process of a scenario, which is an interpreter besides.

RLIMIT_AS and RLIMIT_DATA count all of its memory.  A scenario speaks of its own mappings only: so
such a limit is what these had when it was set, and so many pages more, and holds during steps
only. How much the interpreter itself has is asked again before each of them.
"""

from __future__ import annotations

import resource
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from .access import PAGE

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Limits"]

_PLAIN = {"fsize": resource.RLIMIT_FSIZE, "memlock": resource.RLIMIT_MEMLOCK}
_COUNTED = {"as": resource.RLIMIT_AS, "data": resource.RLIMIT_DATA}
_ARENA = (0x2000_0000_0000, 0x3000_0000_0000)
"""Where mappings of scenarios lie (`scenarios.places`)."""


class Limits:
    """The limits that steps have set; a forked child has its parent's."""

    def __init__(self) -> None:
        self._most: dict[str, int] = {}
        """Resource -> bytes that the scenario's mappings may have."""

    def set(self, name: str, pages: int) -> None:
        """A limit in pages: of "as" and "data" those that may come yet."""
        if name in _COUNTED:
            self._most[name] = _mapped(name)[0] + pages * PAGE
            return
        _, hard = resource.getrlimit(_PLAIN[name])
        resource.setrlimit(_PLAIN[name], (pages * PAGE, hard))

    @contextmanager
    def held(self) -> Iterator[None]:
        """For a step, limits hold."""
        self._hold()
        try:
            yield
        finally:
            self._release()

    @contextmanager
    def lifted(self) -> Iterator[None]:
        """What the actor does for itself in the middle of a step."""
        self._release()
        try:
            yield
        finally:
            self._hold()

    def _hold(self) -> None:
        for name, most in self._most.items():
            _, others = _mapped(name)
            resource.setrlimit(_COUNTED[name], (others + most, resource.RLIM_INFINITY))

    def _release(self) -> None:
        for name in self._most:
            resource.setrlimit(_COUNTED[name], (resource.RLIM_INFINITY,) * 2)


# --- helpers -------------------------------------------------------------------------------------


def _mapped(name: str) -> tuple[int, int]:
    """Bytes that the limit counts: of the scenario's mappings, and of all else."""
    mine = size = 0
    with Path("/proc/self/smaps").open("rb") as file:
        for line in file:
            word, _, rest = line.partition(b" ")
            if not word.endswith(b":"):
                start, end = (int(part, 16) for part in word.split(b"-"))
                size = end - start if _ARENA[0] <= start < _ARENA[1] else 0
            elif word == b"VmFlags:" and (name == "as" or _is_data(rest.split())):
                mine += size
    field = b"VmSize:" if name == "as" else b"VmData:"
    with Path("/proc/self/status").open("rb") as file:
        line = next(line for line in file if line.startswith(field))
    return mine, int(line.split()[1]) * 1024 - mine


def _is_data(flags: list[bytes]) -> bool:
    """Private and writable, and no stack: `mm/internal.h:is_data_mapping`."""
    return b"wr" in flags and b"sh" not in flags and b"gd" not in flags
