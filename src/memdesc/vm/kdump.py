"""Make what QEMU writes as kdump a file that other tools open.

QEMU writes the *flattened* form (for pipes): a header "makedumpfile", then pieces of data each
with its offset and size, big-endian, ended by offset -1 (makedumpfile: `struct
makedumpfile_data_header`, `write_start_flat_header`).  It also leaves the utsname of the
header empty, without which drgn and makedumpfile do not know the architecture.
"""

from __future__ import annotations

import struct
from pathlib import Path

from memdesc.errors import VmError

__all__ = ["unflatten"]

_HEADER_BYTES = 4096
_PIECE = struct.Struct(">qq")
_UTSNAME_OFFSET, _FIELD_BYTES = 12, 65
"""`struct disk_dump_header`: signature[8], header_version, then `struct new_utsname`."""


def unflatten(
    flat: Path, path: Path, *, release: str, version: str, machine: str = "x86_64"
) -> None:
    """Write the flattened kdump file `flat` to `path` as an ordinary one, with its utsname.

    Raises VmError when `flat` is not such a file or ends early.
    """
    with flat.open("rb") as source, path.open("w+b") as target:
        header = source.read(_HEADER_BYTES)
        if not header.startswith(b"makedumpfile"):
            raise VmError(f"{flat} is no flattened kdump file")
        while True:
            piece = source.read(_PIECE.size)
            if len(piece) < _PIECE.size:
                raise VmError(f"{flat} ends early")
            offset, size = _PIECE.unpack(piece)
            if offset < 0:
                break
            target.seek(offset)
            left = size
            while left:
                data = source.read(min(left, 1 << 20))
                if not data:
                    raise VmError(f"{flat} ends early")
                target.write(data)
                left -= len(data)
        for index, text in enumerate(("Linux", "memdesc-guest", release, version, machine)):
            target.seek(_UTSNAME_OFFSET + index * _FIELD_BYTES)
            target.write(text.encode()[: _FIELD_BYTES - 1].ljust(_FIELD_BYTES, b"\0"))
