"""What a process does with whole areas: policies, seals, the heap, the stack."""

from __future__ import annotations

from typing import Final

from memdesc.scenarios.language import Kind, Parameter, Result, flag, value
from memdesc.scenarios.verbs.mappings import ADVICE
from memdesc.scenarios.verbs.parts import RANGE, row

__all__ = ["AREAS"]

POLICIES: Final = (
    "default", "preferred", "bind", "interleave", "local", "preferred_many", "weighted_interleave",
)  # fmt: skip
"""MPOL_* (`include/uapi/linux/mempolicy.h`), by their numbers."""

AREAS: Final = (
    row(
        "mseal",
        (RANGE,),
        "make place, size and permissions of areas final (6.10)",
        "mseal(2)",
    ),
    row(
        "nodes",
        (RANGE,),
        "on which node each page is: -ENOENT where none is, -EFAULT where nobody can say",
        "move_pages(2) without nodes",
        result=Result.WORD,
    ),
    row(
        "scan_pages",
        (RANGE,),
        "what each page is, of wpallowed, written, file, present, swapped, pfnzero, huge, guard "
        "(7.2), joined by +; `none` for none of them (6.7)",
        "ioctl(2) with PAGEMAP_SCAN of /proc/self/pagemap",
        flag(
            "protect",
            "PM_SCAN_WP_MATCHING: only those that were written, and protect them against the "
            "next write, by `uffd ... wp_async`",
        ),
        result=Result.WORD,
    ),
    row(
        "mbind",
        (
            RANGE,
            Parameter(
                "mode",
                Kind.WORD,
                "MPOL_* in lower case; `weighted_interleave` (6.9)",
                choices=POLICIES,
            ),
        ),
        "from which nodes memory is to come; areas of different policies do not merge",
        "mbind(2)",
        value(
            "nodes",
            "of these nodes, as a mask: 1 is node 0",
            Parameter("mask", Kind.COUNT, most=1 << 48),
        ),
        flag("static", "MPOL_F_STATIC_NODES"),
    ),
    row(
        "home_node",
        (RANGE, Parameter("node", Kind.COUNT)),
        "the node that a policy begins from",
        "set_mempolicy_home_node(2)",
    ),
    row(
        "policy",
        (RANGE,),
        "the policy of the first page, and the mask of its nodes",
        "get_mempolicy(2) with MPOL_F_ADDR",
        result=Result.WORD,
    ),
    row(
        "heap",
        (Parameter("range", Kind.NEW), Parameter("pages", Kind.COUNT)),
        "an empty heap for `brk`, with room for so many pages",
        "prctl(2) with PR_SET_MM_BRK, around each `brk`",
        value("at", "exactly there, and not in a slot", Parameter("at", Kind.PLACE)),
    ),
    row(
        "brk",
        (Parameter("pages", Kind.COUNT),),
        "let the heap have so many pages; ENOMEM where its end stays",
        "brk(2)",
    ),
    row(
        "remap_file_pages",
        (RANGE, Parameter("page", Kind.COUNT)),
        "let a shared mapping show other pages of its file there, from PAGE on",
        "remap_file_pages(2)",
    ),
    row(
        "process_advise",
        (
            Parameter("other", Kind.PROCESS, "whose memory"),
            Parameter("range", Kind.RANGE, of="other"),
            Parameter("advice", Kind.WORD, "as for `advise`", choices=ADVICE),
        ),
        "give advice about another process's memory; bytes",
        "process_madvise(2)",
        result=Result.NUMBER,
    ),
)
"""Areas as a whole."""
