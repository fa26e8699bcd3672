"""Make memory fail, inside a guest: the entrances that the kernel has for it.

`/sys/devices/system/memory/hard_offline_page` and `soft_offline_page` take a physical
address (`drivers/base/memory.c`: hard_offline_page_store, soft_offline_page_store @6.1) and
answer by the errno of `write`.  What the verdicts mean: `mm/memory-failure.c`,
memory_failure and soft_offline_page @6.1.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path

from memdesc.types import PAGE_SIZE_BYTES
from memdesc.vm.guard import only_in_guest

__all__ = ["Injection", "hard_offline", "soft_offline"]

_FOLDER = Path("/sys/devices/system/memory")


@dataclass(frozen=True)
class Injection:
    """What the kernel answered."""

    pfn: int
    how: str  # "hard" or "soft"
    errno: int  # 0: done

    @property
    def verdict(self) -> str:
        """ "ok", or the name of the errno ("EBUSY", "EHWPOISON", "EIO", ...)."""
        return errno.errorcode.get(self.errno, str(self.errno)) if self.errno else "ok"


@only_in_guest("poison a page")
def hard_offline(pfn: int) -> Injection:
    """Report an uncorrectable error in a frame, as a machine check would."""
    return _write("hard", pfn)


@only_in_guest("take a page offline")
def soft_offline(pfn: int) -> Injection:
    """Ask the kernel to move a frame's content away and never use the frame again."""
    return _write("soft", pfn)


def _write(how: str, pfn: int) -> Injection:
    fd = os.open(_FOLDER / f"{how}_offline_page", os.O_WRONLY)
    try:
        os.write(fd, hex(pfn * PAGE_SIZE_BYTES).encode())
    except OSError as error:
        return Injection(pfn, how, error.errno or errno.EIO)
    finally:
        os.close(fd)
    return Injection(pfn, how, 0)
