"""What can go wrong, as a tree.

    MemdescError                 anything memdesc says about your input or machine
    +-- SourceError              the source could not be read
    |   +-- NotReadableError     a file is missing or may not be opened
    |   +-- TruncatedError       a file ends in the middle of something
    |   +-- VanishedError        it was there and went away while we read
    |   +-- FaultError           an address of the kernel cannot be read
    |   +-- LayoutError          the kernel's structs are not as any that memdesc knows
    +-- CaptureError             a capture is damaged, foreign, or hostile
    +-- FormatError              a text or word does not have the expected form
    +-- QuestionError            the question cannot be asked of this source
    +-- VmError                  a virtual machine cannot be had, or did not do what it was asked

Each error carries what it is about, and `hint`: what to do next.
"""

from __future__ import annotations

from pathlib import Path

__all__ = [
    "CaptureError",
    "FaultError",
    "FormatError",
    "LayoutError",
    "MemdescError",
    "NotReadableError",
    "QuestionError",
    "SourceError",
    "TruncatedError",
    "VanishedError",
    "VmError",
]


class MemdescError(Exception):
    """Base of every error that memdesc raises on purpose.

    `str(error)` is one sentence without a full stop; `hint` is the next step, or "".
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class SourceError(MemdescError):
    """A source could not be read. `path` says which file."""

    def __init__(self, message: str, *, path: Path | str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.path = str(path)


class NotReadableError(SourceError):
    """A file is missing, or the caller may not open it."""


class TruncatedError(SourceError):
    """A file ends in the middle of a word or a record."""


class VanishedError(SourceError):
    """A process or file went away while it was read."""


class FaultError(SourceError):
    """An address of the kernel cannot be read: no memory, not in the dump, or a wild pointer."""

    def __init__(self, message: str, address: int, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.address = address


class LayoutError(SourceError):
    """The kernel's structs are laid out as in no kernel that memdesc knows."""


class CaptureError(SourceError):
    """A capture is damaged, was written by a foreign program, or is hostile."""


class FormatError(MemdescError):
    """A text, a word or a number does not have the form it must have."""


class QuestionError(MemdescError):
    """The question cannot be asked of this source, or names nothing that exists."""


class VmError(MemdescError):
    """A virtual machine cannot be had here, ended, or did not do what it was asked."""
