"""Rows of the table of verbs: names of files, limits, and file systems as a whole.

Part of `memdesc.scenarios.steps`.
"""

from __future__ import annotations

from typing import Final

from memdesc.scenarios.language import FILE_SYSTEMS, Kind, Parameter, Verb

__all__ = ["FILE_SYSTEM_STATES", "LIMITS", "NAMES"]

_WHERE: Final = Parameter("where", Kind.WORD, "which file system", choices=FILE_SYSTEMS)

NAMES: Final = (
    Verb(
        "rename",
        (Parameter("path", Kind.PATH), Parameter("to", Kind.PATH, "on the same file system")),
        "give a file another name; a file that has it loses it",
        "rename(2)",
    ),
    Verb(
        "journal_data",
        (Parameter("file", Kind.FILE),),
        "let ext4 journal the file's data as well",
        "ioctl(2) with FS_IOC_SETFLAGS, as chattr +j",
    ),
)
"""Names and attributes of files."""

LIMITS: Final = (
    Verb(
        "limit",
        (
            Parameter(
                "resource",
                Kind.WORD,
                "RLIMIT_*; of `as` and `data` what may come yet, and `memlock` holds after `drop`",
                choices=("fsize", "as", "data", "memlock"),
            ),
            Parameter("pages", Kind.COUNT),
        ),
        "a limit of the process, in pages",
        "setrlimit(2)",
    ),
)
"""Limits of a process."""

FILE_SYSTEM_STATES: Final = (
    Verb(
        "filesystem",
        (
            _WHERE,
            Parameter(
                "state", Kind.WORD, "what it becomes", ("readonly", "writable", "frozen", "thawed")
            ),
        ),
        "remount a file system, or freeze it",
        "mount(2) with MS_REMOUNT, ioctl(2) with FIFREEZE and FITHAW",
        by_process=False,
        changes_system=True,
    ),
    Verb(
        "fill",
        (_WHERE, Parameter("pages", Kind.COUNT)),
        "fill a disk until so many pages are left",
        "fallocate(2) of another file",
        by_process=False,
        changes_system=True,
    ),
)
"""What is done to a whole file system."""
