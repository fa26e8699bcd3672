"""What could not be read while a structure was walked: counted, and named as far as that helps."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

__all__ = ["Torn"]

_MOST_REASONS = 100


@dataclass
class Torn:
    """Reasons in the order in which they were met; the first hundred different ones."""

    count: int = 0
    """Of all that was met."""
    _reasons: dict[str, None] = field(default_factory=dict, repr=False)

    @property
    def reasons(self) -> tuple[str, ...]:
        return tuple(self._reasons)

    def add(self, reason: str) -> None:
        """One more."""
        self.count += 1
        if len(self._reasons) < _MOST_REASONS:
            self._reasons[reason] = None

    def add_all(self, reasons: Iterable[str]) -> None:
        """Several more."""
        for reason in reasons:
            self.add(reason)
