"""Rows of the table of verbs: references to pages, by everybody who takes some.

Part of `memdesc.scenarios.steps`.
"""

from __future__ import annotations

from typing import Final

from memdesc.scenarios.language import Kind, Parameter, Result, Verb, choice, flag, value

__all__ = ["DEVICE_MAPPINGS", "ENDS_REFERENCES", "REFERENCES"]

_RANGE: Final = Parameter("range", Kind.RANGE)
_TAGS: Final = Parameter("content", Kind.TAGS)
_PIN: Final = Parameter("pin", Kind.PIN)
_NEW_PIN: Final = Parameter("pin", Kind.NEW_PIN)


def _held(maker: str) -> Parameter:
    """References that a verb has taken."""
    return Parameter("pin", Kind.PIN, of=maker)


DEVICE_MAPPINGS: Final = (
    Verb(
        "key",
        (
            _RANGE,
            Parameter(
                "rights",
                Kind.WORD,
                "what the process denies itself; `open`: the key that all memory begins with",
                choices=("no_access", "no_write", "open"),
            ),
        ),
        "give readable and writable pages a protection key, a new one each time",
        "pkey_alloc(2), pkey_mprotect(2)",
    ),
    Verb(
        "map_device",
        (
            Parameter("range", Kind.NEW),
            Parameter("pages", Kind.COUNT, most=1 << 12),
            Parameter(
                "device",
                Kind.WORD,
                "the firmware's memory below 1 MiB, private; pages of a packet socket, shared",
                choices=("firmware", "packets"),
            ),
        ),
        "map memory of a device (VM_PFNMAP) or of a driver (VM_MIXEDMAP)",
        "mmap(2) of /dev/mem; of an AF_PACKET socket with PACKET_RX_RING",
        (choice("prot", "rw r none", "PROT_READ, PROT_WRITE; rw if not given"),),
        changes_system=True,
    ),
)

ENDS_REFERENCES: Final = ("release", "pipe_read", "dma_taken", "receive")
"""Verbs after which what they name holds nothing."""

REFERENCES: Final = (
    Verb(
        "splice",
        (_NEW_PIN, _RANGE),
        "a new pipe takes a reference to each page",
        "vmsplice(2)",
        (
            flag("gift", "SPLICE_F_GIFT: promise not to write to the pages any more"),
            value("times", "so many times over", Parameter("times", Kind.COUNT, most=1 << 12)),
        ),
    ),
    Verb(
        "splice_more",
        (_held("splice"), _RANGE),
        "add pages to that pipe, as many as fit: it was made for a power of two; bytes",
        "vmsplice(2) with SPLICE_F_NONBLOCK",
        result=Result.NUMBER,
    ),
    Verb(
        "pipe_read",
        (_held("splice"),),
        "read what the pipe holds; the references end",
        "read(2)",
        result=Result.CONTENTS,
    ),
    Verb(
        "pin",
        (_NEW_PIN, _RANGE),
        "pin each page for long, for writing",
        "io_uring_register(2) with IORING_REGISTER_BUFFERS",
    ),
    Verb(
        "pin_write",
        (_held("pin"), _TAGS),
        "write to the pinned pages as a device does, past every page table",
        "io_uring IORING_OP_READ_FIXED",
        result=Result.NUMBER,
    ),
    Verb(
        "pin_read",
        (_held("pin"),),
        "read the pinned pages, past every page table",
        "io_uring IORING_OP_WRITE_FIXED",
        result=Result.CONTENTS,
    ),
    Verb(
        "umem",
        (_NEW_PIN, _RANGE),
        "pin each page for long, for writing, as room for packets; dirtied in the end",
        "setsockopt(2) with XDP_UMEM_REG of an AF_XDP socket",
        changes_system=True,
    ),
    Verb(
        "dma",
        (_NEW_PIN, _RANGE, _TAGS),
        "let a slow device begin to write to pages; it does so at `release`, which must come",
        "io_submit(2) of an O_DIRECT read of a suspended device",
        changes_system=True,
    ),
    Verb(
        "dma_from",
        (_NEW_PIN, _RANGE),
        "let a slow device begin to read pages; it does so at `dma_taken`, which must come",
        "io_submit(2) of an O_DIRECT write to a suspended device",
        changes_system=True,
    ),
    Verb(
        "dma_taken",
        (_held("dma_from"),),
        "let the device of `dma_from` go on: what it read",
        "io_getevents(2)",
        result=Result.CONTENTS,
    ),
    Verb(
        "send",
        (_NEW_PIN, _RANGE),
        "send pages to a receiver that does not read",
        "sendmsg(2) with MSG_ZEROCOPY on a TCP socket, behind a full window",
        changes_system=True,
    ),
    Verb(
        "receive",
        (_held("send"),),
        "receive what was sent; the references end",
        "recv(2)",
        result=Result.CONTENTS,
    ),
    Verb(
        "futex",
        (_RANGE,),
        "wake whoever waits at a page: how many",
        "futex(2) with FUTEX_WAKE",
        (flag("private", "FUTEX_PRIVATE_FLAG: only this process can wait there"),),
        result=Result.NUMBER,
    ),
    Verb("release", (_PIN,), "give the references back", "close(2)"),
    Verb(
        "hand",
        (_PIN, Parameter("other", Kind.PROCESS, "who holds them from now on")),
        "hand a pipe or a ring to another process, with the references that it holds",
        "pidfd_getfd(2) by the other, close(2)",
    ),
    Verb(
        "remember",
        (Parameter("frames", Kind.NEW_FRAMES), _RANGE),
        "remember by name which frames these pages are, for rows about them when nobody maps them "
        "any more. It takes no reference, so it is not called keep: a freed frame may be anybody's "
        "after the next step. EFAULT where a page is not present",
        "/proc/PID/pagemap",
    ),
)
