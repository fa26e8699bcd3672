"""A text that says on which kernels something holds: "6.1", "6.1 6.12", ">= 6.12", "< 7.2", "all".

Only the two numbers of a series count: 6.12.117 is 6.12.

>>> holds = Condition.parse(">= 6.12").holds
>>> holds(KernelRelease.parse("6.12.117")), holds(KernelRelease.parse("6.1.192"))
(True, False)
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Self

from memdesc.errors import FormatError
from memdesc.kernels.release import KernelRelease

__all__ = ["EVERYWHERE", "Condition"]

_RELEASES: Final = (*((6, minor) for minor in range(1, 20)), (7, 0), (7, 1), (7, 2))
"""From the oldest to the newest release whose rules are known (`processes.ProcessRules`)."""

_SERIES = re.compile(r"[0-9]{1,3}\.[0-9]{1,3}")
_COMPARED = re.compile(r"(>=|<=|<|>)\s*([0-9]{1,3}\.[0-9]{1,3})")
_HINT: Final = "write it as `6.1`, `6.1 6.12`, `>= 6.12`, `< 7.2` or `all`"


@dataclass(frozen=True, slots=True)
class Condition:
    """Which series. `sign` is a comparison with the only one of `series`, or "" for a list."""

    sign: str = ""
    series: tuple[tuple[int, int], ...] = ()
    """Empty: every kernel."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the text. Raises FormatError."""
        words = text.strip()
        if words == "all":
            return cls()
        compared = _COMPARED.fullmatch(words)
        if compared is not None:
            return cls(compared[1], (_numbers(compared[2]),))
        listed = words.replace(",", " ").split()
        if not listed or not all(_SERIES.fullmatch(word) for word in listed):
            raise FormatError(f"not a condition on kernels: {words[:40]!r}", hint=_HINT)
        return cls("", tuple(_numbers(word) for word in listed))

    def holds(self, release: KernelRelease) -> bool:
        """Whether `release` is meant."""
        mine = (release.major, release.minor)
        if not self.series:
            return True
        other = self.series[0]
        match self.sign:
            case ">=":
                return mine >= other
            case "<=":
                return mine <= other
            case ">":
                return mine > other
            case "<":
                return mine < other
            case _:
                return mine in self.series

    def example(self) -> KernelRelease:
        """A release that is meant. Raises FormatError where there is none of known rules."""
        unknown = [one for one in self.series if not self.sign and one not in _RELEASES]
        meant = next(
            (one for one in (KernelRelease(*numbers) for numbers in _RELEASES) if self.holds(one)),
            None,
        )
        if meant is None or unknown:
            raise FormatError(
                f"no kernel that scenarios know is meant: {str(self)[:40]!r}",
                hint="there is 6.1 to 6.19, and 7.0 to 7.2",
            )
        return meant

    def __str__(self) -> str:
        if not self.series:
            return "all"
        listed = " ".join(f"{major}.{minor}" for major, minor in self.series)
        return f"{self.sign} {listed}".strip()


EVERYWHERE: Final = Condition()
"""Holds on every kernel."""


def _numbers(text: str) -> tuple[int, int]:
    major, minor = text.split(".")
    return int(major), int(minor)
