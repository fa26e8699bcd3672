"""Writing a file whole or not at all: beside its target, then renamed."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from memdesc.errors import MemdescError

__all__ = ["check_target", "save"]


def check_target(path: Path, *, force: bool) -> None:
    """Raise MemdescError where `save` would not write `path`. Asked before the long work."""
    if path.is_dir():
        raise MemdescError(f"{path} is a directory", hint="--output takes the name of a file")
    if not force and os.path.lexists(path):
        raise MemdescError(
            f"{path} exists already", hint="--force replaces it; --output FILE writes another"
        )
    if not path.parent.is_dir():
        raise MemdescError(
            f"cannot write {path}: there is no directory {path.parent}",
            hint=f"mkdir -p {path.parent}",
        )


def save(path: Path, data: bytes, *, force: bool) -> None:
    """Write `data` to `path`, readable by its owner only.

    Nobody ever sees a part of it. Raises MemdescError where `path` exists (without
    `force`) or cannot be written.
    """
    check_target(path, force=force)
    try:
        # mkstemp creates the file with mode 0600.
        handle, beside = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise _not_written(path, error) from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if force:
            Path(beside).replace(path)
        else:
            _link(Path(beside), path)
    except OSError as error:
        raise _not_written(path, error) from error
    finally:
        Path(beside).unlink(missing_ok=True)


def _link(beside: Path, path: Path) -> None:
    """Give `beside` its name unless somebody else took it meanwhile."""
    try:
        path.hardlink_to(beside)
    except FileExistsError:
        check_target(path, force=False)
        raise
    except OSError:
        # A file system without hard links.
        check_target(path, force=False)
        beside.replace(path)


def _not_written(path: Path, error: OSError) -> MemdescError:
    return MemdescError(
        f"cannot write {path}: {error.strerror or error}",
        hint="--output FILE writes it elsewhere",
    )
