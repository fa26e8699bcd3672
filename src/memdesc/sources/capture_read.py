"""Opening the files of a capture that anybody may have made.

Only regular files with fixed names inside the directory are opened, never through a
link; each must have the size and the hash that the manifest declares before anything
decodes it.  Whatever is wrong becomes one CaptureError that names the file.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from memdesc.errors import CaptureError
from memdesc.sources.capture_format import MANIFEST, CaptureInfo, FileInfo
from memdesc.sources.decoder import decoded
from memdesc.sources.tables import Column

__all__ = ["CaptureFiles"]

_MAX_MANIFEST_BYTES = 1 << 20
_MAX_JSON_BYTES = 64 << 20
_MAX_JSON_VALUES = 4 << 20
_MAX_TEXT_BYTES = 256 << 20
_MAX_ROWS_ALWAYS = 1 << 24
_MAX_ROWS_PER_BYTE = 16
"""Real maps take a byte and more per row. A table that takes far less and is large
was made to fill somebody's memory."""
_DAMAGED = "it is damaged, or was changed after it was written: capture again"


class CaptureFiles:
    """The directory of one capture."""

    def __init__(self, path: Path) -> None:
        """Read the manifest and look at every file that it lists.

        Raises CaptureError where there is no manifest, or a bad one, and where a file is
        missing or has another size.
        """
        self.path = path
        with self.about_file(MANIFEST), self._open(MANIFEST) as file:
            if os.fstat(file.fileno()).st_size > _MAX_MANIFEST_BYTES:
                raise CaptureError("it is too large for a manifest")
            self.info = CaptureInfo.from_json(_parse(file.read(_MAX_MANIFEST_BYTES)))
        for name, declared in self.info.files.items():
            with self.about_file(name):
                _check_rows(declared)
                found = (self.path / name).lstat()
                _check_file(found, declared)

    def json(self, name: str) -> Any:
        """The JSON value in the file `name`."""
        with self.about_file(name), self._checked(name) as file:
            if self.info.files[name].size_bytes > _MAX_JSON_BYTES:
                raise CaptureError("it is too large")
            return _parse(file.read(_MAX_JSON_BYTES))

    def batches(self, table: str) -> Iterator[dict[str, Column]]:
        """Stream a table in batches of bounded size; together exactly its declared rows.

        The hash is checked first; then another process decodes. A batch's arrays are valid
        until the next batch is asked for.
        """
        name = f"{table}.parquet"
        declared = self.info.files[name]
        with self.about_file(name), self._checked(name) as file:
            rows = 0
            for batch in decoded(file, declared.columns, max_text_bytes=_MAX_TEXT_BYTES):
                rows += len(next(iter(batch.values())))
                if rows > declared.rows:
                    break
                yield batch
            if rows != declared.rows:
                raise CaptureError(f"it holds other than the declared {declared.rows} rows")

    def verify(self, name: str) -> None:
        """Check the size and the hash of the file `name`."""
        with self.about_file(name), self._checked(name):
            pass

    # --- helpers -------------------------------------------------------------------------

    @contextmanager
    def _checked(self, name: str) -> Iterator[io.FileIO]:
        declared = self.info.files[name]
        with self._open(name) as file:
            _check_file(os.fstat(file.fileno()), declared)
            if hashlib.file_digest(file, "sha256").hexdigest() != declared.sha256:
                raise CaptureError("its contents do not match their hash", hint=_DAMAGED)
            file.seek(0)
            yield file

    @contextmanager
    def _open(self, name: str) -> Iterator[io.FileIO]:
        """Open a regular file of this directory, never through a link or a pipe."""
        folder = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            fd = os.open(name, flags, dir_fd=folder)
        finally:
            os.close(folder)
        with io.FileIO(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise CaptureError("it is no regular file")
            yield file

    @contextmanager
    def about_file(self, name: str) -> Iterator[None]:
        """Name the capture and the file in every error, once."""
        try:
            yield
        except CaptureError as error:
            if error.path:
                raise
            raise CaptureError(
                f"cannot read the capture {self.path}: {name}: {error}",
                path=self.path / name,
                hint=error.hint or _DAMAGED,
            ) from error
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EPERM):
                hint = "its owner may read it: run as that user or as root, or copy it with sudo"
            elif name == MANIFEST:
                hint = f"a capture is a directory with a {MANIFEST}"
            else:
                hint = "a file of the capture is missing, or may not be read: copy it again"
            raise CaptureError(
                f"cannot read the capture {self.path}: {name}: {error.strerror or error}",
                path=self.path / name,
                hint=hint,
            ) from error

    @contextmanager
    def about(self, table: str) -> Iterator[None]:
        """For checks of a table's values by others: the same words around their errors."""
        with self.about_file(f"{table}.parquet"):
            yield


def _check_file(found: os.stat_result, declared: FileInfo) -> None:
    """Raise CaptureError where a file cannot be the declared one."""
    if not stat.S_ISREG(found.st_mode):
        raise CaptureError("it is no regular file")
    if found.st_size != declared.size_bytes:
        raise CaptureError(
            f"it has {found.st_size} bytes where {declared.size_bytes} are declared", hint=_DAMAGED
        )


def _check_rows(declared: FileInfo) -> None:
    """Raise CaptureError where so many rows would only fill somebody's memory."""
    if declared.rows > max(_MAX_ROWS_ALWAYS, declared.size_bytes * _MAX_ROWS_PER_BYTE):
        raise CaptureError(f"{declared.rows} rows in {declared.size_bytes} bytes cannot be a map")


def _parse(data: bytes) -> Any:
    """Parse JSON from anywhere: bounded in size and depth, valid Unicode."""
    if data.count(b",") + data.count(b"[") + data.count(b"{") > _MAX_JSON_VALUES:
        raise CaptureError("it holds too many values")
    try:
        value = json.loads(data)
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise CaptureError(f"it is no valid JSON: {error}"[:200]) from error
    return value
