"""References to pages, by everybody who takes some."""

from __future__ import annotations

from typing import Final

from memdesc.scenarios.language import Kind, Parameter, Result, flag, value
from memdesc.scenarios.verbs.parts import RANGE, TAGS, row

__all__ = ["ENDS_REFERENCES", "REFERENCES"]

_PIN: Final = Parameter("pin", Kind.PIN)
_NEW_PIN: Final = Parameter("pin", Kind.NEW_PIN)


def _held(makers: str) -> Parameter:
    """References that some verb has taken."""
    return Parameter("pin", Kind.PIN, of=makers)


ENDS_REFERENCES: Final = ("release", "pipe_read", "dma_taken", "receive")
"""Verbs after which what they name holds nothing."""

REFERENCES: Final = (
    row(
        "splice",
        (_NEW_PIN, RANGE),
        "a new pipe takes a reference to each page",
        "vmsplice(2)",
        flag("gift", "SPLICE_F_GIFT: promise not to write to the pages any more"),
        value(
            "times",
            "so many times over",
            Parameter("times", Kind.COUNT, least=1, most=1 << 12),
        ),
    ),
    row(
        "splice_more",
        (_held("splice"), RANGE),
        "add pages to that pipe, as many as fit: it was made for a power of two; bytes",
        "vmsplice(2) with SPLICE_F_NONBLOCK",
        result=Result.NUMBER,
    ),
    row(
        "pipe_read",
        (_held("splice"),),
        "read what the pipe holds; the references end",
        "read(2)",
        result=Result.CONTENTS,
    ),
    row(
        "pin",
        (_NEW_PIN, RANGE),
        "pin each page for long, for writing",
        "io_uring_register(2) with IORING_REGISTER_BUFFERS",
    ),
    row(
        "pin_write",
        (_held("pin"), TAGS),
        "write to the pinned pages as a device does, past every page table",
        "io_uring IORING_OP_READ_FIXED",
        result=Result.NUMBER,
    ),
    row(
        "pin_read",
        (_held("pin"),),
        "read the pinned pages, past every page table",
        "io_uring IORING_OP_WRITE_FIXED",
        result=Result.CONTENTS,
    ),
    row(
        "umem",
        (_NEW_PIN, RANGE),
        "pin each page for long, for writing, as room for packets; dirtied in the end",
        "setsockopt(2) with XDP_UMEM_REG of an AF_XDP socket",
        changes_system=True,
    ),
    row(
        "dma",
        (_NEW_PIN, RANGE, TAGS),
        "let a slow device begin to write to pages; it does so at `release`, which must come",
        "io_submit(2) of an O_DIRECT read of a suspended device",
        changes_system=True,
    ),
    row(
        "dma_from",
        (_NEW_PIN, RANGE),
        "let a slow device begin to read pages; it does so at `dma_taken`, which must come",
        "io_submit(2) of an O_DIRECT write to a suspended device",
        changes_system=True,
    ),
    row(
        "dma_taken",
        (_held("dma_from"),),
        "let the device of `dma_from` go on: what it read",
        "io_getevents(2)",
        result=Result.CONTENTS,
    ),
    row(
        "send",
        (_NEW_PIN, RANGE),
        "send pages to a receiver that does not read",
        "sendmsg(2) with MSG_ZEROCOPY on a TCP socket, behind a full window",
        changes_system=True,
    ),
    row(
        "receive",
        (_held("send"),),
        "receive what was sent; the references end",
        "recv(2)",
        result=Result.CONTENTS,
    ),
    row(
        "futex",
        (RANGE,),
        "wake whoever waits at a page: how many",
        "futex(2) with FUTEX_WAKE",
        flag("private", "FUTEX_PRIVATE_FLAG: only this process can wait there"),
        result=Result.NUMBER,
    ),
    row("release", (_PIN,), "give the references back", "close(2)"),
    row(
        "hand",
        (_held("splice pin"), Parameter("other", Kind.PROCESS, "who holds them from now on")),
        "hand a pipe or a ring to another process, with the references that it holds",
        "pidfd_getfd(2) by the other, close(2)",
    ),
    row(
        "remember",
        (Parameter("frames", Kind.NEW_FRAMES), RANGE),
        "remember by name which frames these pages are, for rows about them when nobody maps them "
        "any more. It takes no reference, so it is not called keep: a freed frame may be anybody's "
        "after the next step. EFAULT where a page is not present",
        "/proc/PID/pagemap",
    ),
)
"""References to pages."""
