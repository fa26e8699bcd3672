"""What a place cannot or must not do."""

from __future__ import annotations

from memdesc.errors import MemdescError

__all__ = ["SkippedError"]


class SkippedError(MemdescError):
    """This place cannot or must not do a step; `line` says which."""

    def __init__(self, message: str, *, line: int | None, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.line = line
