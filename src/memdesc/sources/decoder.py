"""Decoding a table in a process of its own, so that a hostile one cannot take us along.

A capture comes from anywhere, and a Parquet decoder is a large program: a few hundred
bytes can ask it for gigabytes, and what it does not expect ends its process, not only the
call.  So a forked child decodes, with a limit on its memory and nothing to say on the
terminal, and sends plain columns through a pipe.  Whatever happens to it, the reader
sees one CaptureError.  The child runs while the reader checks, so nothing is lost.
"""

from __future__ import annotations

import faulthandler
import fcntl
import itertools
import os
import resource
import select
import signal
import struct
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from memdesc.errors import CaptureError
from memdesc.sources.capture_format import STRING
from memdesc.sources.tables import BATCH_ROWS, Column, read_batches

__all__ = ["decoded"]

_MEMORY_BYTES = 256 << 20
"""What decoding may take beyond what this process has: a hundred times what it needs."""
_PATIENCE_MS = 60_000
"""A batch takes milliseconds. A child that is silent for so long is stuck."""
_PIPE_BYTES = 1 << 20
_F_SETPIPE_SZ = 1031

# What the child sends: the number of rows of a batch, and its columns; or one of these.
_END = -1
_ERROR = -2
_COUNT = struct.Struct("<q")


def decoded(
    file: IO[bytes], columns: Mapping[str, str], *, max_text_bytes: int
) -> Iterator[dict[str, Column]]:
    """Yield the Parquet table open at `file` in batches of at most `BATCH_ROWS` rows.

    Numbers come as numpy arrays of the types in `columns` (name -> type), texts as lists
    of str. Raises CaptureError for anything that is no such table, for one that takes
    absurd amounts of memory, and for texts of more than `max_text_bytes` in all.
    """
    ours, theirs = os.pipe()
    try:
        child = _fork(lambda: _serve(theirs, file, columns))
    finally:
        os.close(theirs)
    with open(ours, "rb", buffering=0) as pipe:  # noqa: PTH123 - a descriptor, not a path
        try:
            with suppress(OSError):
                fcntl.fcntl(pipe, _F_SETPIPE_SZ, _PIPE_BYTES)
            yield from _received(pipe, columns, max_text_bytes)
        finally:
            os.kill(child, signal.SIGKILL)
            with suppress(ChildProcessError):  # somebody ignores SIGCHLD: it is gone already
                os.waitpid(child, 0)


# --- the reader's side -------------------------------------------------------------------


def _received(
    pipe: Any, columns: Mapping[str, str], text_bytes: int
) -> Iterator[dict[str, Column]]:
    waiting = select.poll()
    waiting.register(pipe, select.POLLIN)
    while True:
        if not waiting.poll(_PATIENCE_MS):
            raise CaptureError("decoding it does not come to an end")
        rows = _count(pipe)
        if rows == _END:
            return
        if rows == _ERROR:
            raise CaptureError(bytes(_bytes(pipe, _count(pipe))).decode("utf-8", "replace"))
        batch: dict[str, Column] = {}
        for name, kind in columns.items():
            if kind != STRING:
                batch[name] = _array(pipe, rows, kind)
                continue
            lengths = _array(pipe, rows, "int64").tolist()
            text_bytes -= sum(lengths)
            if text_bytes < 0:
                raise CaptureError("its texts are larger than those of any machine")
            blob = bytes(_bytes(pipe, sum(lengths)))
            ends = np.cumsum([0, *lengths]).tolist()
            batch[name] = [blob[low:high].decode() for low, high in itertools.pairwise(ends)]
        yield batch


def _count(pipe: Any) -> int:
    return int(_COUNT.unpack(_bytes(pipe, _COUNT.size))[0])


def _array(pipe: Any, size: int, kind: str) -> NDArray[Any]:
    array = np.empty(size, kind)
    _fill(pipe, array.data.cast("B") if size else memoryview(b""))
    return array


def _bytes(pipe: Any, size: int) -> bytearray:
    data = bytearray(size)
    _fill(pipe, memoryview(data))
    return data


def _fill(pipe: Any, rest: memoryview) -> None:
    while rest:
        done = pipe.readinto(rest)
        if not done:
            raise CaptureError("its data is damaged: decoding it fails or takes absurd memory")
        rest = rest[done:]


# --- the child's side --------------------------------------------------------------------


def _fork(serve: Callable[[], None]) -> int:
    """Run `serve` in a child; return its process id. The child never returns."""
    with warnings.catch_warnings():
        # Python 3.12 warns where there are threads; the child takes no lock of theirs.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child:
        return child
    try:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the decoder prints when it panics
        faulthandler.disable()
        pages = int(_statm().split()[0])
        limit = pages * resource.getpagesize() + _MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        serve()
    finally:
        os._exit(0)


def _statm() -> str:
    with open("/proc/self/statm") as file:  # noqa: PTH123 - as little as possible after a fork
        return file.read()


def _serve(pipe: int, file: IO[bytes], columns: Mapping[str, str]) -> None:
    try:
        for batch in read_batches(file, columns):
            rows = len(next(iter(batch.values())))
            assert rows <= BATCH_ROWS
            _send(pipe, _COUNT.pack(rows))
            for name, kind in columns.items():
                if kind != STRING:
                    _send(pipe, np.ascontiguousarray(batch[name], kind))
                    continue
                texts = [text.encode() for text in batch[name]]
                _send(pipe, np.array([len(text) for text in texts], np.int64))
                _send(pipe, b"".join(texts))
        _send(pipe, _COUNT.pack(_END))
    except (CaptureError, MemoryError) as error:
        text = (str(error) or "its data takes absurd memory").encode("utf-8", "replace")[:1000]
        _send(pipe, _COUNT.pack(_ERROR) + _COUNT.pack(len(text)) + text)


def _send(pipe: int, data: Any) -> None:
    rest = memoryview(data).cast("B") if len(data) else memoryview(b"")
    while rest:
        rest = rest[os.write(pipe, rest) :]
