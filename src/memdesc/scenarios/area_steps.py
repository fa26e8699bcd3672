"""Rows of the table of verbs: what a process does with whole areas and promises about them.

Part of `memdesc.scenarios.steps`.
"""

from __future__ import annotations

from typing import Final

from memdesc.scenarios.language import Kind, Parameter, Result, Verb, flag, value

__all__ = ["ADVICE", "AREAS", "POLICIES", "RIGHTS", "SEALS"]

_RANGE: Final = Parameter("range", Kind.RANGE)
_FILE: Final = Parameter("file", Kind.FILE)

ADVICE: Final = tuple(
    "normal random sequential willneed dontneed free remove dontfork dofork mergeable "  # noqa: SIM905
    "unmergeable hugepage nohugepage dontdump dodump wipeonfork keeponfork cold pageout "
    "populate_read populate_write dontneed_locked collapse guard_install guard_remove "
    "hwpoison soft_offline".split()
)
"""MADV_* in lower case (`include/uapi/asm-generic/mman-common.h`)."""
POLICIES: Final = (
    "default", "preferred", "bind", "interleave", "local", "preferred_many", "weighted_interleave",
)  # fmt: skip
"""MPOL_* (`include/uapi/linux/mempolicy.h`), by their numbers."""

AREAS: Final = (
    Verb(
        "mseal",
        (_RANGE,),
        "make place, size and permissions of areas final (6.10)",
        "mseal(2)",
    ),
    Verb(
        "nodes",
        (_RANGE,),
        "on which node each page is: -ENOENT where none is, -EFAULT where nobody can say",
        "move_pages(2) without nodes",
        result=Result.WORD,
    ),
    Verb(
        "scan_pages",
        (_RANGE,),
        "what each page is, of wpallowed, written, file, present, swapped, pfnzero, huge, guard "
        "(7.2), joined by +; `none` for none of them (6.7)",
        "ioctl(2) with PAGEMAP_SCAN of /proc/self/pagemap",
        (
            flag(
                "protect",
                "PM_SCAN_WP_MATCHING: only those that were written, and protect them against the "
                "next write, by `uffd ... wp_async`",
            ),
        ),
        result=Result.WORD,
    ),
    Verb(
        "mbind",
        (
            _RANGE,
            Parameter(
                "mode",
                Kind.WORD,
                "MPOL_* in lower case; `weighted_interleave` (6.9)",
                choices=POLICIES,
            ),
        ),
        "from which nodes memory is to come; areas of different policies do not merge",
        "mbind(2)",
        (
            value(
                "nodes",
                "of these nodes, as a mask: 1 is node 0",
                Parameter("mask", Kind.COUNT, most=1 << 48),
            ),
            flag("static", "MPOL_F_STATIC_NODES"),
        ),
    ),
    Verb(
        "home_node",
        (_RANGE, Parameter("node", Kind.COUNT)),
        "the node that a policy begins from",
        "set_mempolicy_home_node(2)",
    ),
    Verb(
        "policy",
        (_RANGE,),
        "the policy of the first page, and the mask of its nodes",
        "get_mempolicy(2) with MPOL_F_ADDR",
        result=Result.WORD,
    ),
    Verb(
        "heap",
        (Parameter("range", Kind.NEW), Parameter("pages", Kind.COUNT)),
        "an empty heap for `brk`, with room for so many pages",
        "prctl(2) with PR_SET_MM_BRK, around each `brk`",
        (value("at", "exactly there, and not in a slot", Parameter("at", Kind.PLACE)),),
    ),
    Verb(
        "brk",
        (Parameter("pages", Kind.COUNT),),
        "let the heap have so many pages; ENOMEM where its end stays",
        "brk(2)",
    ),
    Verb(
        "remap_file_pages",
        (_RANGE, Parameter("page", Kind.COUNT)),
        "let a shared mapping show other pages of its file there, from PAGE on",
        "remap_file_pages(2)",
    ),
    Verb(
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

RIGHTS: Final = (
    Verb(
        "drop",
        (
            Parameter(
                "what",
                Kind.WORD,
                "`capabilities`: all of them, and still user 0; `root`: become user 65534, too",
                choices=("capabilities", "root"),
            ),
        ),
        "give up the rights that a process begins with",
        "capset(2), setresuid(2)",
    ),
)
"""What a process may do."""

SEALS: Final = (
    Verb(
        "seal",
        (_FILE,),
        "promise never to do something to a memory file again",
        "fcntl(2) with F_ADD_SEALS",
        (
            flag("seal", "F_SEAL_SEAL: to add seals"),
            flag("shrink", "F_SEAL_SHRINK: to make it smaller"),
            flag("grow", "F_SEAL_GROW: to make it larger"),
            flag("write", "F_SEAL_WRITE: to write to it"),
            flag("future_write", "F_SEAL_FUTURE_WRITE: to write to it but by mappings there are"),
            flag("exec", "F_SEAL_EXEC: to change whether it can be executed (6.3)"),
        ),
    ),
    Verb(
        "seals",
        (_FILE,),
        "the seals of a file, or `none`",
        "fcntl(2) with F_GET_SEALS",
        result=Result.WORD,
    ),
)
"""Seals of memory files."""
