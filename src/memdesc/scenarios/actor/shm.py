"""System V shared memory: segments of the controller, which its processes attach."""

from __future__ import annotations

import ctypes
import struct
from typing import TYPE_CHECKING, Any

from . import calls
from .access import PAGE
from .verbs import verb

if TYPE_CHECKING:
    from .process import Process

__all__ = ["Segments"]

_IPC_PRIVATE, _IPC_RMID, _IPC_STAT = 0, 0, 2
_SHM_LOCK, _SHM_UNLOCK = 11, 12
_ACTIONS = {"lock": _SHM_LOCK, "unlock": _SHM_UNLOCK, "remove": _IPC_RMID}
_SHM_RDONLY = 0o10000
_NATTCH_AT = 88
"""`struct shmid64_ds.shm_nattch` (include/uapi/asm-generic/shmbuf.h), behind ipc64_perm (48),
size, three times and two pids."""
_BYTES = 256


class Segments:
    """The segments of one scenario: they would outlive everybody, so `end` removes them."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}
        self._removed: set[str] = set()

    def make(self, name: str, pages: int) -> None:
        """A new one."""
        self.numbers[name] = calls.call("shmget", _IPC_PRIVATE, pages * PAGE, 0o600)

    def control(self, name: str, action: str) -> None:
        """Lock, unlock or remove one."""
        calls.call("shmctl", self.numbers[name], _ACTIONS[action], None)
        if action == "remove":
            self._removed.add(name)

    def attached(self, name: str) -> int:
        """How many areas there are of one."""
        state = ctypes.create_string_buffer(_BYTES)
        calls.call("shmctl", self.numbers[name], _IPC_STAT, state)
        (count,) = struct.unpack_from("<Q", state, _NATTCH_AT)
        return int(count)

    def end(self) -> None:
        """Remove what is left."""
        for name, number in self.numbers.items():
            if name not in self._removed:
                calls.call("shmctl", number, _IPC_RMID, None)
        self.numbers.clear()


@verb("attach")
def attach(process: Process, args: dict[str, Any]) -> None:
    number, address = process.segments[args["segment"]], args["range"]["address"]
    calls.call("shmat", number, address, _SHM_RDONLY if args["readonly"] else 0)


@verb("detach")
def detach(process: Process, args: dict[str, Any]) -> None:
    calls.call("shmdt", args["range"]["address"])
