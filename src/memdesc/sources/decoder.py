"""Decoding a table in a process of its own, so that a hostile one cannot take us along.

A capture comes from anywhere, and a Parquet decoder is a large program: a few hundred
bytes can ask it for gigabytes, and what it does not expect ends its process, not only the
call.  So a forked child decodes, with a limit on its memory and nothing to say on the
terminal.  Whatever happens to it, the reader sees one CaptureError.

Numbers come through shared memory, two batches of it: the child fills one while the
reader checks the other.  Texts and the count of rows come through a pipe.
"""

from __future__ import annotations

import faulthandler
import itertools
import mmap
import os
import resource
import select
import signal
import struct
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
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
_COLUMN_BYTES = BATCH_ROWS * 8
"""Shared memory for one column of a batch, whatever its type."""

# What the child sends: the number of rows of a batch, and its columns; or one of these.
_END = -1
_ERROR = -2
_COUNT = struct.Struct("<q")


def decoded(
    file: IO[bytes], columns: Mapping[str, str], *, max_text_bytes: int
) -> Iterator[dict[str, Column]]:
    """Yield the Parquet table open at `file` in batches of at most `BATCH_ROWS` rows.

    Numbers come as numpy arrays of the types in `columns` (name -> type), texts as lists
    of str. A batch's arrays are valid until the next batch is asked for.
    Raises CaptureError for anything that is no such table, for one that takes absurd
    amounts of memory, and for texts of more than `max_text_bytes` in all.
    """
    slots = _Slots(columns)
    ours, theirs = os.pipe()
    try:
        child = _fork(lambda: _serve(theirs, slots, file, columns))
    finally:
        os.close(theirs)
    with open(ours, "rb", buffering=0) as pipe, closing(slots):  # noqa: PTH123 - a descriptor
        try:
            yield from _received(pipe, slots, columns, max_text_bytes)
        finally:
            os.kill(child, signal.SIGKILL)
            with suppress(ChildProcessError):  # somebody ignores SIGCHLD: it is gone already
                os.waitpid(child, 0)


class _Slots:
    """Memory that both processes see, for the numbers of two batches."""

    def __init__(self, columns: Mapping[str, str]) -> None:
        self._kinds = {name: kind for name, kind in columns.items() if kind != STRING}
        self._memory = mmap.mmap(-1, max(1, 2 * len(self._kinds) * _COLUMN_BYTES))
        self._free = os.eventfd(2, os.EFD_SEMAPHORE | os.EFD_CLOEXEC)
        self._parent = os.getpid()

    def close(self) -> None:
        os.close(self._free)

    def columns(self, number: int, rows: int) -> dict[str, NDArray[Any]]:
        """The columns of batch `number`, name -> array of `rows` numbers."""
        first = number % 2 * len(self._kinds)
        return {
            name: np.frombuffer(self._memory, kind, rows, (first + place) * _COLUMN_BYTES)
            for place, (name, kind) in enumerate(self._kinds.items())
        }

    def wait_for_free(self) -> None:
        """In the child: wait until the reader is done with the batch before the last."""
        waiting = select.poll()
        waiting.register(self._free, select.POLLIN)
        while not waiting.poll(1000):
            if os.getppid() != self._parent:
                os._exit(0)
        os.eventfd_read(self._free)

    def release(self) -> None:
        """In the reader: one batch is done with."""
        os.eventfd_write(self._free, 1)


# --- the reader's side -------------------------------------------------------------------


def _received(
    pipe: Any, slots: _Slots, columns: Mapping[str, str], text_bytes: int
) -> Iterator[dict[str, Column]]:
    waiting = select.poll()
    waiting.register(pipe, select.POLLIN)
    for number in itertools.count():
        if not waiting.poll(_PATIENCE_MS):
            raise CaptureError("decoding it does not come to an end")
        rows = _count(pipe)
        if rows == _END:
            return
        if rows == _ERROR:
            raise CaptureError(_bytes(pipe, _count(pipe)).decode("utf-8", "replace"))
        batch: dict[str, Column] = {}
        numbers = slots.columns(number, rows)
        for name, kind in columns.items():
            if kind != STRING:
                batch[name] = numbers[name]
                continue
            lengths = np.frombuffer(_bytes(pipe, 8 * rows), np.int64).tolist()
            text_bytes -= sum(lengths)
            if text_bytes < 0:
                raise CaptureError("its texts are larger than those of any machine")
            blob = bytes(_bytes(pipe, sum(lengths)))
            ends = itertools.accumulate(lengths, initial=0)
            batch[name] = [blob[low:high].decode() for low, high in itertools.pairwise(ends)]
        yield batch
        slots.release()


def _count(pipe: Any) -> int:
    return int(_COUNT.unpack(_bytes(pipe, _COUNT.size))[0])


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
    if not child:
        _run(serve)
    return child


def _run(serve: Callable[[], None]) -> None:
    """Do the child's work and end it; never returns."""
    try:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the decoder prints when it panics
        faulthandler.disable()
        pages = int(_statm().split()[0])
        limit = pages * resource.getpagesize() + _MEMORY_BYTES
        _soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        if hard == resource.RLIM_INFINITY or limit < hard:
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        serve()
    finally:
        os._exit(0)


def _statm() -> str:
    with open("/proc/self/statm") as file:  # noqa: PTH123 - as little as possible after a fork
        return file.read()


def _serve(pipe: int, slots: _Slots, file: IO[bytes], columns: Mapping[str, str]) -> None:
    try:
        for number, batch in enumerate(read_batches(file, columns)):
            rows = len(next(iter(batch.values())))
            assert rows <= BATCH_ROWS
            slots.wait_for_free()
            for name, values in slots.columns(number, rows).items():
                values[:] = batch[name]
            _send(pipe, _COUNT.pack(rows))
            for name, kind in columns.items():
                if kind == STRING:
                    texts = [text.encode() for text in batch[name]]
                    _send(pipe, np.array([len(text) for text in texts], np.int64).tobytes())
                    _send(pipe, b"".join(texts))
        _send(pipe, _COUNT.pack(_END))
    except (CaptureError, MemoryError) as error:
        text = (str(error) or "its data takes absurd memory").encode("utf-8", "replace")[:1000]
        _send(pipe, _COUNT.pack(_ERROR) + _COUNT.pack(len(text)) + text)


def _send(pipe: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(pipe, rest) :]
