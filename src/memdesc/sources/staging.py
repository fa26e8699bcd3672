"""Writing a directory so that it is there whole or not at all.

Files go into a hidden directory beside the target, readable by nobody else, and one
rename at the end puts it in place.  Whatever goes wrong before, a full disk, a signal, an
error of the source, removes it again; what stood in the target's place stays until then.
What a killed process left, the next one for the same target removes: the directory's name
holds its process id, and its writer holds a lock on it.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import os
import re
import secrets
import shutil
import stat
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from memdesc.errors import CaptureError
from memdesc.sources.capture_format import FILE_NAMES, MANIFEST
from memdesc.sources.signals import unwinding

__all__ = ["OutFile", "Staging"]

_OLD_S = 24 * 3600
"""A directory of this age is nobody's, whatever its process id says by now."""


class Staging:
    """A directory in the making: `with Staging(target) as staging: ...; staging.commit()`.

    Leaving the block without `commit` removes every trace.
    """

    def __init__(self, target: Path, *, force: bool = False) -> None:
        """Check that `target` may be written.

        Raises CaptureError when it exists and `force` is not set, or when it is not a
        capture: nothing but a capture (or an empty directory) is ever replaced.
        """
        # Not resolve(): a link in the target's own place must be seen as one.
        self.target = target.parent.resolve() / target.name
        self._folder = Path()
        self._open: list[OutFile] = []
        self._lock = -1
        self._signals = ExitStack()
        if os.path.lexists(self.target):
            try:
                self._check_replaceable(force=force)
            except OSError as error:
                raise self._failed(error) from error

    def __enter__(self) -> Self:
        self._remove_stale()
        self._signals.enter_context(unwinding())
        try:
            self._make()
            self._lock = _locked(self._folder)
        except BaseException as error:
            self._clean()
            if isinstance(error, OSError):
                raise self._failed(error) from error
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._clean()
        if isinstance(value, OSError):
            raise self._failed(value) from value

    def create(self, name: str) -> OutFile:
        """Open a new file `name` in the directory, for its owner only (0600)."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        file = OutFile(os.open(self._folder / name, flags, 0o600))
        self._open.append(file)
        return file

    def write(self, name: str, data: bytes) -> OutFile:
        """Write the whole file `name` and close it."""
        file = self.create(name)
        file.write(data)
        file.finish()
        return file

    def commit(self) -> None:
        """Put the directory in the target's place, and remove what was there."""
        _sync(self._folder)
        if not os.path.lexists(self.target):
            self._folder.rename(self.target)
        else:
            self._check_replaceable(force=True)
            aside = self._folder.with_suffix(".replaced")
            try:
                self.target.rename(aside)
                self._folder.rename(self.target)
                shutil.rmtree(aside, ignore_errors=True)
            except BaseException:
                if not os.path.lexists(self.target):
                    aside.rename(self.target)
                else:
                    shutil.rmtree(aside, ignore_errors=True)
                raise
        self._folder = Path()
        _sync(self.target.parent)

    def _make(self) -> None:
        """The directory. Its name is known first: a signal may come as soon as it is there."""
        name = f".{self.target.name}.{os.getpid()}-{secrets.token_hex(8)}.partial"
        self._folder = self.target.parent / name
        try:
            self._folder.mkdir(0o700)
        except FileExistsError:
            self._folder = Path()  # somebody else's
            raise

    def _clean(self) -> None:
        """Remove every trace, and let a signal that came meanwhile do what it does."""
        with self._signals:
            for file in self._open:
                file.abandon()
            if self._folder != Path():
                shutil.rmtree(self._folder, ignore_errors=True)
            if self._lock >= 0:
                os.close(self._lock)
                self._lock = -1

    def _remove_stale(self) -> None:
        """Remove what dead processes left beside the target; best effort."""
        name = re.compile(rf"\.{re.escape(self.target.name)}\.([0-9]{{1,10}})-\w+\.partial")
        with suppress(OSError):
            for entry in list(self.target.parent.iterdir()):
                if found := name.fullmatch(entry.name):
                    _remove_if_stale(entry, int(found[1]))

    def _check_replaceable(self, *, force: bool) -> None:
        if not force:
            raise CaptureError(
                f"{self.target} already exists",
                path=self.target,
                hint="choose another name, or replace it with --force",
            )
        if self.target.is_symlink() or not self.target.is_dir():
            problem = "it is no directory"
        else:
            inside = {entry.name for entry in self.target.iterdir()}
            foreign = sorted(inside - FILE_NAMES)
            if not inside or (not foreign and MANIFEST in inside):
                return
            problem = f"it holds {foreign[0]!r}" if foreign else f"it has no {MANIFEST}"
        raise CaptureError(
            f"{self.target} is no capture, so it is not replaced: {problem}",
            path=self.target,
            hint="choose another name; only a capture is ever replaced",
        )

    def _failed(self, error: OSError) -> CaptureError:
        return CaptureError(
            f"cannot write {self.target}: {error.strerror or error}",
            path=self.target,
            hint=_HINTS.get(error.errno or 0, "nothing was left behind; choose another place"),
        )


_HINTS = {
    errno.ENOSPC: "nothing was left behind; free some space, or choose another place",
    errno.EDQUOT: "nothing was left behind; free some space, or choose another place",
    errno.ENOENT: "create the folder that it should lie in first",
    errno.EACCES: "choose a folder that you may write to",
    errno.EROFS: "choose a folder that you may write to",
}


def _remove_if_stale(folder: Path, process: int) -> None:
    """Remove `folder` if it is a directory of ours that `process` cannot be writing."""
    with suppress(OSError):
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            return
        if _is_alive(process) and time.time() - found.st_mtime < _OLD_S:
            return
        # A process id means nothing across containers and hosts; the lock does.
        lock = _locked(folder)
        if lock < 0:
            return
        try:
            if {entry.name for entry in folder.iterdir()} <= FILE_NAMES:
                shutil.rmtree(folder, ignore_errors=True)  # it follows no links
        finally:
            os.close(lock)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def _locked(folder: Path) -> int:
    """A descriptor that holds the lock on `folder`; -1 where somebody else has it."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(folder, flags)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        return -1
    return fd


class OutFile(io.RawIOBase):
    """A file that counts and hashes what is written to it.

    `write` never raises: the first failure is kept in `error` and later writes do nothing,
    because the Parquet writer cannot bear an exception. `finish` raises it.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._hash = hashlib.sha256()
        self.size_bytes = 0
        self.error: BaseException | None = None

    def writable(self) -> bool:
        return True

    def write(self, data: bytes, /) -> int:  # type: ignore[override]
        try:
            rest = memoryview(data)
            while rest and self.error is None:
                done = _write(self._fd, rest)
                self._hash.update(rest[:done])
                self.size_bytes += done
                rest = rest[done:]
        except BaseException as error:  # also KeyboardInterrupt: raised by `finish`
            self.error = self.error or error
        return len(data)

    def finish(self) -> None:
        """Flush to the disk and close. Raises what `write` met."""
        if self.error is not None:
            raise self.error
        os.fsync(self._fd)
        self.abandon()

    def abandon(self) -> None:
        """Close without a promise about the contents."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    @property
    def sha256(self) -> str:
        """Hash of all that was written, as hexadecimal text."""
        return self._hash.hexdigest()


def _write(fd: int, data: memoryview) -> int:
    """Every byte of a capture passes here."""
    return os.write(fd, data)


def _sync(folder: Path) -> None:
    """Make a directory's entries durable; best effort, as not every file system can."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError:
        pass
    finally:
        os.close(fd)
