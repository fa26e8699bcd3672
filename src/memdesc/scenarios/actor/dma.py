"""A device that takes its time: it holds pages of memory, and touches them when it is told to.

An O_DIRECT read or write takes references to the pages of its buffer, and gives them back when the
device is done.  The device here is one of device mapper that is suspended, so everything asked of
it waits (`drivers/md/dm.c:queue_io`); the transfer is asked for with io_submit(2), which does not.
"""

from __future__ import annotations

import ctypes
import os
import struct
import time
from pathlib import Path

from . import calls
from .disk import Mapped
from .verbs import RefusedError, inside_guest

__all__ = ["Transfer"]

_ZRAM = "/sys/class/zram-control/hot_add"
_IOCB = struct.Struct("<QIIHhIQQqQII")
"""include/uapi/linux/aio_abi.h:struct iocb"""
_PREAD, _PWRITE = 0, 1
_EVENT = struct.Struct("<QQqq")
_SETTLE = 0.1


class Transfer:
    """A transfer to or from memory at an address, begun and not finished.

    `content`: what the device brings; None: it takes what it finds there. Raises OSError,
    RefusedError.
    """

    def __init__(self, address: int, length: int, content: bytes | None) -> None:
        if not inside_guest():
            raise RefusedError("`dma` makes devices: only in a guest")
        number = int(Path(_ZRAM).read_text())
        Path(f"/sys/block/zram{number}/disksize").write_text(str(length))
        self._below = below = f"/dev/zram{number}"
        self._length = length
        if content is not None:
            with Path(below).open("r+b", buffering=0) as disk:
                disk.write(content)
                os.fsync(disk.fileno())
        self._mapped = Mapped(f"dma{number}")
        self._mapped.load([(below, 0, length)])
        self._mapped.resume()
        self._mapped.suspend()
        mode, operation = (os.O_WRONLY, _PWRITE) if content is None else (os.O_RDONLY, _PREAD)
        self._fd = os.open(self._mapped.path, mode | os.O_DIRECT)
        context = ctypes.create_string_buffer(8)
        calls.call("io_setup", 1, context)
        self._context = int.from_bytes(context.raw, "little")
        self._request = ctypes.create_string_buffer(
            _IOCB.pack(0, 0, 0, operation, 0, self._fd, address, length, 0, 0, 0, 0), _IOCB.size
        )
        pointer = struct.pack("<Q", ctypes.addressof(self._request))
        try:
            calls.call("io_submit", self._context, 1, ctypes.create_string_buffer(pointer, 8))
        except OSError:
            self._close()
            raise

    def finish(self) -> None:
        """Let the device do it, and wait. Raises OSError."""
        self._mapped.resume()
        event = ctypes.create_string_buffer(_EVENT.size)
        calls.call("io_getevents", self._context, 1, 1, event, 0)
        result = _EVENT.unpack(event.raw)[2]
        # Pages that have become clean meanwhile are dirtied by a worker, after the completion
        # (block/bio.c:bio_dirty_fn).
        time.sleep(_SETTLE)
        self._close()
        if result < 0:
            raise OSError(-result, "dma")

    def on_disk(self) -> bytes:
        """What the device has, after `finish`."""
        with Path(self._below).open("rb", buffering=0) as disk:
            return disk.read(self._length)

    def _close(self) -> None:
        calls.call("io_destroy", self._context)
        os.close(self._fd)
