"""userfaultfd: memory whose faults a process resolves."""

from __future__ import annotations

from typing import Final

from memdesc.scenarios.language import Kind, Parameter, flag
from memdesc.scenarios.verbs.parts import RANGE, TAGS, range_of, row, word

__all__ = ["USERFAULTFD"]

USERFAULTFD: Final = (
    row(
        "uffd",
        (RANGE, word("mode", "missing wp wp_async minor")),
        "register with a userfaultfd of the process",
        "userfaultfd(2), UFFDIO_REGISTER",
    ),
    row("uffd_protect", (RANGE,), "write-protect", "UFFDIO_WRITEPROTECT"),
    row("uffd_unprotect", (RANGE,), "end write protection", "UFFDIO_WRITEPROTECT"),
    row(
        "uffd_copy",
        (RANGE, TAGS),
        "give missing pages a content",
        "UFFDIO_COPY",
        flag("wp", "UFFDIO_COPY_MODE_WP: write-protected from the start"),
    ),
    row("uffd_zero", (RANGE,), "give missing pages zeroes", "UFFDIO_ZEROPAGE"),
    row(
        "uffd_continue",
        (RANGE,),
        "map what the page cache has there",
        "UFFDIO_CONTINUE",
        flag("wp", "UFFDIO_CONTINUE_MODE_WP: write-protected from the start (6.4)"),
    ),
    row(
        "uffd_move",
        (range_of("where to"), Parameter("source", Kind.RANGE, "from where, as many pages")),
        "move pages there, without copying (6.8)",
        "UFFDIO_MOVE",
        flag("holes", "UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES: pass over what is empty"),
    ),
    row("uffd_poison", (RANGE,), "mark missing pages as lost (6.6)", "UFFDIO_POISON"),
    row("uffd_unregister", (RANGE,), "end `uffd`", "UFFDIO_UNREGISTER"),
)
"""userfaultfd."""
