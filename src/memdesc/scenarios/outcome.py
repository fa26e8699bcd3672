"""How a step ended: it succeeded (with a value), the kernel refused it, or a signal came.

>>> Outcome(errno="EFAULT").text
'EFAULT'
>>> Outcome.of_json({"signal": "SIGSEGV", "code": "ACCERR"}).text
'SIGSEGV ACCERR'
"""

from __future__ import annotations

import errno as errno_numbers
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self, TypeAlias

from memdesc.errors import FormatError

__all__ = ["ANYTHING", "CODES", "Outcome", "Value", "is_errno"]

Value: TypeAlias = int | str | tuple[int | str | None, ...] | None
"""A verb's result: a number, a word, or one of them per page (None: not to be had)."""

CODES: Final[dict[str, tuple[str, ...]]] = {
    "SIGSEGV": ("MAPERR", "ACCERR", "BNDERR", "PKUERR"),
    "SIGBUS": ("ADRALN", "ADRERR", "OBJERR", "MCEERR_AR", "MCEERR_AO"),
    "SIGKILL": (),
    "SIGTRAP": (),
    "SIGILL": (),
}
"""Signals that a memory access can bring, and their si_code by name without SEGV_ or BUS_
(`include/uapi/asm-generic/siginfo.h`)."""
ANYTHING: Final = "any"
"""Behind `->`: however the step ends, the scenario goes on."""

# Python calls EOPNOTSUPP by its other name; system calls return it as the kernel writes it.
_ERRNO_NAMES = frozenset(errno_numbers.errorcode.values()) - {"ENOTSUP"} | {
    "EHWPOISON", "EOPNOTSUPP",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one step gave. At most one of `errno` and `signal` is set."""

    value: Value = None
    """What a successful step returned: words of pages, a count, one number per page."""
    errno: str = ""
    """Name of the error number, as "EFAULT"."""
    signal: str = ""
    """Name of the signal that the step brought, as "SIGSEGV"."""
    code: str = ""
    """Its si_code by name, as "ACCERR"."""

    @property
    def succeeded(self) -> bool:
        return not self.errno and not self.signal

    @property
    def text(self) -> str:
        """As it is written behind `->`; contents as their words, which only a scenario names."""
        if self.errno:
            return self.errno
        if self.signal:
            return f"{self.signal} {self.code}".rstrip()
        if self.value is None:
            return "ok"
        if isinstance(self.value, tuple):
            return " ".join("?" if item is None else str(item) for item in self.value)
        return str(self.value)

    def as_json(self) -> dict[str, Any]:
        """What `of_json` reads."""
        if self.errno:
            return {"errno": self.errno}
        if self.signal:
            return {"signal": self.signal, "code": self.code}
        return {"ok": list(self.value) if isinstance(self.value, tuple) else self.value}

    @classmethod
    def of_json(cls, found: Mapping[str, Any]) -> Self:
        """Read {"ok": value}, {"errno": name} or {"signal": name, "code": name}."""
        if "errno" in found:
            return cls(errno=str(found["errno"]))
        if "signal" in found:
            return cls(signal=str(found["signal"]), code=str(found.get("code", "")))
        if "ok" not in found:
            raise FormatError(f"not an outcome of a step: {str(found)[:80]}")
        value = found["ok"]
        return cls(value=tuple(value) if isinstance(value, list) else value)


def is_errno(text: str) -> bool:
    """Whether `text` is the name of an error number."""
    return text in _ERRNO_NAMES
