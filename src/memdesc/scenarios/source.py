"""The text of a scenario file: read with a bound, and written back where it came from.

Reading keeps every character, line ends and a mark of byte order too, so that `record` can write
what it did not change as it was.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Final

from memdesc.errors import NotReadableError
from memdesc.scenarios.scenario import ScenarioError

__all__ = ["MOST_BYTES", "file_to_write", "read_source", "text_of", "write_source"]

MOST_BYTES: Final = 1 << 22
"""4 MiB: the longest of memdesc's own has 10 KiB."""


def read_source(path: Path) -> str:
    """The text of a file, or of a pipe. Raises ScenarioError, NotReadableError."""
    try:
        with path.open("rb") as file:
            # Not by its size: a pipe or a device has none.
            found = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise NotReadableError(
            f"cannot read {path}: {error.strerror}",
            path=path,
            hint="give a Markdown file with ```scenario blocks that you may read",
        ) from error
    return text_of(found, path)


def text_of(found: bytes, path: Path) -> str:
    """What was read of a file, up to one byte more than it may have. Raises ScenarioError."""
    if len(found) > MOST_BYTES:
        raise ScenarioError(
            "too long for a scenario file",
            path=str(path),
            line=1,
            hint=f"it may have {MOST_BYTES >> 20} MiB; make several files of it",
        )
    try:
        return found.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ScenarioError(
            f"not UTF-8 text: byte 0x{found[error.start]:02x}",
            path=str(path),
            line=1 + found.count(b"\n", 0, error.start),
            hint=f"if it is Latin-1: iconv -f latin1 -t utf8 {path.name}",
        ) from error


def file_to_write(path: Path) -> Path:
    """The regular file behind a name: what a symbolic link names, and never the link itself.

    Raises NotReadableError for devices, pipes and folders: replacing them destroys them.
    """
    try:
        if path.is_file():
            return path.resolve(strict=True)
        path.stat()
    except OSError as error:
        raise NotReadableError(
            f"cannot write {path}: {error.strerror}", path=path, hint="give a file that is there"
        ) from error
    raise NotReadableError(
        f"cannot write {path}: it is no regular file",
        path=path,
        hint="save the scenarios to a file first, and record that one",
    )


def write_source(path: Path, text: str) -> None:
    """Replace the file in one go; its mode stays. Raises NotReadableError."""
    real = file_to_write(path)
    try:
        descriptor, partial = tempfile.mkstemp(prefix=f".{real.name}.", dir=real.parent)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
                os.fchmod(descriptor, real.stat().st_mode & 0o7777)
                file.write(text)
            Path(partial).replace(real)
        except BaseException:
            Path(partial).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise NotReadableError(
            f"cannot write {real}: {error.strerror}",
            path=real,
            hint="recording replaces the file: its folder must be writable, too",
        ) from error
