"""Memory with something special about it: protection keys, the firmware's, and a driver's pages."""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import calls
from .access import PAGE
from .memory import PROTECTIONS
from .verbs import RefusedError, inside_guest, span, verb

if TYPE_CHECKING:
    from .process import Process

__all__: list[str] = []

_FIRMWARE = 0xF0000
_RIGHTS = {"open": 0, "no_access": 1, "no_write": 2}
_SOL_PACKET, _PACKET_RX_RING = 263, 5
_REQUEST = struct.Struct("<IIII")
"""include/uapi/linux/if_packet.h:struct tpacket_req"""


@verb("key")
def key(process: Process, args: dict[str, Any]) -> None:
    if "ospke" not in Path("/proc/cpuinfo").read_text().split():
        raise RefusedError("this processor has no protection keys")
    rights = _RIGHTS[args["rights"]]
    number = calls.call("pkey_alloc", 0, rights) if rights else 0
    calls.call("pkey_mprotect", *span(args["range"]), PROTECTIONS["rw"], number)


@verb("map_device")
def map_device(process: Process, args: dict[str, Any]) -> None:
    if not inside_guest():
        raise RefusedError("`map_device` maps physical memory: only in a guest")
    address, length = span(args["range"])
    prot = PROTECTIONS[args["prot"]]
    if args["device"] == "firmware":
        fd = os.open("/dev/mem", os.O_RDWR)
        try:
            flags = calls.MAP_PRIVATE | calls.MAP_FIXED_NOREPLACE
            calls.mmap(length, prot, flags, fd, _FIRMWARE, address)
        finally:
            os.close(fd)
        return
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as ring:  # of no protocol: none comes
        frame = PAGE // 2
        request = _REQUEST.pack(PAGE, length // PAGE, frame, length // frame)
        ring.setsockopt(_SOL_PACKET, _PACKET_RX_RING, request)
        flags = calls.MAP_SHARED | calls.MAP_FIXED_NOREPLACE
        calls.mmap(length, prot, flags, ring.fileno(), 0, address)
