"""Writing a file whole or not at all: beside its target, then renamed."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

from memdesc.errors import MemdescError
from memdesc.sources.signals import unwinding

__all__ = ["check_target", "save"]


def check_target(path: Path, *, force: bool) -> None:
    """Raise MemdescError where `save` would not write `path`. Asked before the long work.

    Only a regular file is ever replaced: a link, a pipe or a device would be gone.
    """
    try:
        mode = path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        mode = 0
    except OSError as error:
        raise _not_written(path, error) from error
    if stat.S_ISDIR(mode):
        raise MemdescError(f"{path} is a directory", hint="--output takes the name of a file")
    if mode and not stat.S_ISREG(mode):
        raise MemdescError(
            f"{path} is {_KINDS.get(stat.S_IFMT(mode), 'no regular file')}, which is not replaced",
            hint="--output FILE takes the name of a regular file; --output - writes to stdout",
        )
    if mode and not force:
        raise MemdescError(
            f"{path} exists already", hint="--force replaces it; --output FILE writes another"
        )
    if not path.parent.is_dir():
        raise MemdescError(
            f"cannot write {path}: there is no directory {path.parent}",
            hint=f"mkdir -p {path.parent}",
        )


_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def save(path: Path, data: bytes, *, force: bool) -> None:
    """Write `data` to `path`, readable by its owner only.

    Nobody ever sees a part of it. Raises MemdescError where `path` exists (without
    `force`) or cannot be written.
    """
    check_target(path, force=force)
    with unwinding():
        _save(path, data, force=force)


def _save(path: Path, data: bytes, *, force: bool) -> None:
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
            check_target(path, force=True)
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
