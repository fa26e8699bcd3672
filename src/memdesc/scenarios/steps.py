"""The verbs of scenarios, as a table.

Everything else goes by this table: the reader, the documentation of the language, the model
(`model_verbs`) and the program that does the steps on a real kernel (`actor`). A new verb is a
row here and a function on both sides.

The settings that `knob` takes are a table of their own (`knobs`); what a step holds is in `step`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Final

from memdesc.scenarios.area_steps import ADVICE, AREAS, RIGHTS, SEALS
from memdesc.scenarios.file_steps import FILE_SYSTEM_STATES, LIMITS, NAMES
from memdesc.scenarios.knobs import KNOBS, Knob
from memdesc.scenarios.language import (
    MOST_FILE_PAGES,
    Kind,
    Option,
    Parameter,
    Result,
    Verb,
    choice,
    flag,
    value,
)
from memdesc.scenarios.reference_steps import DEVICE_MAPPINGS, REFERENCES
from memdesc.scenarios.shm_steps import SHARED_MEMORY
from memdesc.scenarios.step import Step

__all__ = ["ADVICE", "KNOBS", "TOPICS", "VERBS", "Knob", "Step"]


def _range(text: str = "") -> Parameter:
    return Parameter("range", Kind.RANGE, text)


def _word(name: str, words: str, text: str = "") -> Parameter:
    return Parameter(name, Kind.WORD, text, choices=tuple(words.split()))


_THEIRS: Final = (
    Parameter("other", Kind.PROCESS, "whose memory"),
    Parameter("range", Kind.RANGE, of="other"),
)
_TAGS: Final = Parameter("content", Kind.TAGS)
_FILE: Final = Parameter("file", Kind.FILE)
_FILE_RANGE: Final = Parameter("file", Kind.FILE_RANGE)
_FILE_PAGES: Final = Parameter("pages", Kind.COUNT, most=MOST_FILE_PAGES)
_MOST_PASSES: Final = 100
_PROT: Final = "rw r none rx rwx w x"
_PROT_OF_MAP: Final = choice("prot", _PROT, "PROT_READ, PROT_WRITE, PROT_EXEC; rw if not given")
_AT: Final = value("at", "exactly there, and not in a slot", Parameter("at", Kind.PLACE))


def _row(
    name: str,
    parameters: tuple[Parameter, ...],
    text: str,
    call: str,
    *options: Option,
    **more: Any,
) -> Verb:
    return Verb(name, parameters, text, call, options, **more)


_PROCESSES: Final = (
    _row(
        "process",
        (Parameter("name", Kind.NEW_PROCESS),),
        "a fresh process without mappings of the scenario",
        "fork(2) of a process without any",
        by_process=False,
    ),
    _row("fork", (Parameter("child", Kind.NEW_PROCESS),), "make a child process", "fork(2)"),
    _row("exit", (), "end, in good order", "_exit(2)", ends=True),
    _row(
        "kill",
        (Parameter("process", Kind.PROCESS),),
        "end a process from outside",
        "kill(2) with SIGKILL",
        by_process=False,
        ends=True,
    ),
    _row(
        "prctl",
        (
            _word("option", "thp_disable memory_merge", "PR_SET_THP_DISABLE, PR_SET_MEMORY_MERGE"),
            Parameter("value", Kind.COUNT),
        ),
        "set something for the whole process",
        "prctl(2)",
    ),
    _row(
        "clear_refs",
        (Parameter("value", Kind.COUNT, "1 to 3: accessed bits; 4: soft-dirty"),),
        "clear the process's accessed or soft-dirty bits",
        "/proc/PID/clear_refs",
    ),
    _row(
        "ksm_stat",
        (_word("name", "rmap_items merging_pages zero_pages process_profit", "what is counted"),),
        "what KSM counts for the process; ENOENT where the kernel does not have it",
        "/proc/PID/ksm_stat, /proc/PID/ksm_merging_pages",
        result=Result.NUMBER,
    ),
)

_MAPPINGS: Final = (
    _row(
        "map",
        (Parameter("range", Kind.NEW), Parameter("pages", Kind.COUNT)),
        "map pages into a slot of their own, at the same address in every run",
        "mmap(2) with MAP_FIXED_NOREPLACE",
        choice("sharing", "private shared", "MAP_PRIVATE or MAP_SHARED; private if not given"),
        choice("backing", "anon hugetlb", "MAP_ANONYMOUS (with MAP_HUGETLB); anon if not given"),
        value(
            "file",
            "pages of an open file, from its page PAGE on",
            Parameter("file", Kind.FILE),
            Parameter("page", Kind.COUNT, default=0),
        ),
        _PROT_OF_MAP,
        flag("populate", "MAP_POPULATE"),
        flag("locked", "MAP_LOCKED"),
        flag("noreserve", "MAP_NORESERVE"),
        flag("growsdown", "MAP_GROWSDOWN, as a stack"),
        flag("droppable", "MAP_DROPPABLE (6.11)"),
        flag("fixed", "MAP_FIXED: replaces what lies there (with `at`)", needs="at"),
        _AT,
        value(
            "offset",
            "begin so many pages behind a multiple of 2 MiB",
            Parameter("offset", Kind.COUNT),
        ),
    ),
    _row("unmap", (_range(),), "remove the mapping of pages", "munmap(2)"),
    _row("protect", (_range(), _word("prot", _PROT)), "change what may be done", "mprotect(2)"),
    _row(
        "remap",
        (_range(),),
        "move pages to another address, or let a mapping grow or shrink where it is",
        "mremap(2)",
        value("to", "move to a place of that name", Parameter("to", Kind.NEW)),
        value("pages", "new size", Parameter("new_pages", Kind.COUNT)),
        flag("dontunmap", "MREMAP_DONTUNMAP: leave the old area, empty; with `to`", needs="to"),
        _AT,
    ),
    _row(
        "advise",
        (_range(), _word("advice", " ".join(ADVICE), "MADV_* in lower case")),
        "tell or ask the kernel about pages",
        "madvise(2)",
    ),
    _row(
        "reclaim",
        (_range(),),
        "`advise pageout`",
        "madvise(2) with MADV_PAGEOUT",
        alias=("advise", {"advice": "pageout"}),
    ),
    _row(
        "collapse",
        (_range(),),
        "`advise collapse`",
        "madvise(2) with MADV_COLLAPSE",
        alias=("advise", {"advice": "collapse"}),
    ),
    _row(
        "lock",
        (_range(),),
        "keep in memory",
        "mlock2(2)",
        flag("onfault", "MLOCK_ONFAULT: as pages are touched"),
    ),
    _row("unlock", (_range(),), "no longer keep in memory", "munlock(2)"),
    _row(
        "lockall",
        (),
        "keep everything in memory",
        "mlockall(2)",
        flag("current", "MCL_CURRENT"),
        flag("future", "MCL_FUTURE"),
        flag("onfault", "MCL_ONFAULT"),
    ),
    _row("unlockall", (), "end `lockall`", "munlockall(2)"),
    _row(
        "name_area",
        (_range(), Parameter("text", Kind.TEXT)),
        "name an anonymous area: areas of different names do not merge",
        "prctl(2) with PR_SET_VMA_ANON_NAME",
    ),
    _row(
        "mincore",
        (_range(),),
        "which pages are in memory or page cache: 1 or 0 per page",
        "mincore(2)",
        result=Result.NUMBERS,
    ),
    _row(
        "tables",
        (),
        "page-table pages that came since the process asked first",
        "VmPTE of /proc/PID/status",
        result=Result.NUMBER,
    ),
)

_ACCESSES: Final = (
    _row("read", (_range(),), "load from each page, ascending", "a load", result=Result.CONTENTS),
    _row("write", (_range(), _TAGS), "fill each page, ascending", "a store"),
    _row(
        "copy_to",
        (_range(), _TAGS),
        "let the kernel write to user memory (uaccess)",
        "read(2) from a pipe",
        result=Result.NUMBER,
    ),
    _row(
        "copy_from",
        (_range(),),
        "let the kernel read user memory (uaccess)",
        "write(2) to a pipe",
        result=Result.CONTENTS,
    ),
    _row(
        "peek",
        _THEIRS,
        "read another process's memory",
        "process_vm_readv(2)",
        result=Result.CONTENTS,
    ),
    _row(
        "poke",
        (*_THEIRS, _TAGS),
        "write another process's memory",
        "process_vm_writev(2)",
        result=Result.NUMBER,
    ),
    _row(
        "ptrace_read",
        _THEIRS,
        "read as a debugger does",
        "read(2) of /proc/PID/mem",
        flag("words", "PTRACE_PEEKDATA, word by word"),
        result=Result.CONTENTS,
    ),
    _row(
        "ptrace_write",
        (*_THEIRS, _TAGS),
        "write as a debugger does, also where only reading is allowed",
        "write(2) of /proc/PID/mem",
        flag("words", "PTRACE_POKEDATA, word by word"),
        result=Result.NUMBER,
    ),
)

_FILES: Final = (
    _row(
        "memfd",
        (Parameter("file", Kind.NEW_FILE), replace(_FILE_PAGES, default=0)),
        "a file in memory, of that size",
        "memfd_create(2), ftruncate(2)",
        flag("hugetlb", "MFD_HUGETLB"),
        flag("secret", "memfd_secret(2)"),
        flag("sealable", "MFD_ALLOW_SEALING: `seal` may be used"),
        flag("noexec", "MFD_NOEXEC_SEAL: not to be executed, and sealable (6.3)"),
    ),
    _row(
        "open",
        (Parameter("file", Kind.NEW_FILE), Parameter("path", Kind.PATH)),
        "open a file",
        "open(2)",
        flag("create", "O_CREAT"),
        flag("direct", "O_DIRECT"),
        flag("sync", "O_SYNC"),
        flag("append", "O_APPEND"),
        flag("truncate", "O_TRUNC"),
        flag("tmpfile", "O_TMPFILE: a file without a name, on the path's file system"),
        flag("readonly", "O_RDONLY; O_RDWR if not given"),
    ),
    _row("close", (_FILE,), "close", "close(2)"),
    _row(
        "dup",
        (Parameter("file", Kind.NEW_FILE), Parameter("old", Kind.FILE)),
        "another descriptor of the same open file",
        "dup(2)",
    ),
    _row("unlink", (Parameter("path", Kind.PATH),), "remove a file's name", "unlink(2)"),
    _row(
        "truncate",
        (_FILE, _FILE_PAGES),
        "set the size, in pages",
        "ftruncate(2)",
        value("bytes", "and so many bytes more", Parameter("bytes", Kind.COUNT)),
    ),
    _row(
        "fallocate",
        (_FILE_RANGE,),
        "reserve blocks",
        "fallocate(2)",
        choice("mode", "grow keep_size zero collapse insert", "FALLOC_FL_*; grow if not given"),
    ),
    _row("punch", (_FILE_RANGE,), "make a hole", "fallocate(2) with FALLOC_FL_PUNCH_HOLE"),
    _row("pwrite", (_FILE_RANGE, _TAGS), "write pages", "pwrite(2)", result=Result.NUMBER),
    _row("pread", (_FILE_RANGE,), "read pages", "pread(2)", result=Result.CONTENTS),
    _row(
        "dio_write",
        (_FILE_RANGE, _range("what is written")),
        "write from memory without the page cache",
        "pwrite(2) with O_DIRECT",
        result=Result.NUMBER,
    ),
    _row(
        "dio_read",
        (_FILE_RANGE, _range("what is read into")),
        "read to memory without the page cache",
        "pread(2) with O_DIRECT",
        result=Result.NUMBER,
    ),
    _row(
        "fsync",
        (_FILE,),
        "write back, and hear of errors",
        "fsync(2)",
        flag("data", "fdatasync(2)"),
    ),
    _row(
        "msync",
        (_range(),),
        "write back what was written through a mapping",
        "msync(2)",
        choice("mode", "sync async invalidate", "MS_*; sync if not given"),
    ),
    _row("syncfs", (_FILE,), "write back the file system", "syncfs(2)"),
    _row(
        "sync_range",
        (_FILE_RANGE,),
        "write back pages, but nothing that describes the file",
        "sync_file_range(2), waiting before and after",
        flag("start", "SYNC_FILE_RANGE_WRITE alone: let it begin, and do not wait"),
    ),
    _row("readahead", (_FILE_RANGE,), "bring into the page cache", "readahead(2)"),
    _row(
        "evict",
        (_FILE_RANGE,),
        "drop clean pages from the page cache",
        "posix_fadvise(2) with POSIX_FADV_DONTNEED",
    ),
    _row(
        "fadvise",
        (_FILE_RANGE, _word("advice", "normal random sequential willneed noreuse")),
        "announce how a file is used",
        "posix_fadvise(2)",
    ),
    _row(
        "cachestat",
        (_FILE_RANGE,),
        "pages cached, dirty, under writeback, evicted, recently evicted (6.5)",
        "cachestat(2)",
        result=Result.NUMBERS,
    ),
)

_STATES: Final = "whether accesses fail, wait for the next `fail` or `ok`, or go on"
"""Of a device that device mapper hides."""

_SYSTEM: Final = (
    _row(
        "knob",
        (Parameter("name", Kind.WORD, choices=tuple(KNOBS)), Parameter("value", Kind.TEXT)),
        "a setting of the system",
        "write(2) to a file of /proc/sys or /sys",
        by_process=False,
        changes_system=True,
    ),
    _row(
        "ksm",
        (_word("action", "scan run"), Parameter("value", Kind.COUNT, most=_MOST_PASSES)),
        "`scan N`: N full passes over all memory; `run N`: write N to `run`",
        "/sys/kernel/mm/ksm",
        by_process=False,
        changes_system=True,
    ),
    _row(
        "khugepaged",
        (Parameter("passes", Kind.COUNT, most=_MOST_PASSES),),
        "let khugepaged look at every process that may have huge pages, so many times",
        "/sys/kernel/mm/transparent_hugepage/khugepaged",
        by_process=False,
        changes_system=True,
    ),
    _row(
        "swap",
        (_word("state", "on off fail hold ok", f"on or off; of a mapped device, {_STATES}"),),
        "swap to compressed memory",
        "swapon(2) of zram; a table of device mapper with the target `error`, a suspended device",
        value("pages", "so many slots; 64 MiB if not given", Parameter("pages", Kind.COUNT)),
        flag("mapped", "by way of device mapper: the kernel does not know that it is fast"),
        by_process=False,
        changes_system=True,
    ),
    _row(
        "shrink",
        (),
        "take from all processes whatever can be taken",
        "memory.reclaim of their control group",
        by_process=False,
        changes_system=True,
    ),
    _row("sync", (), "write back everything", "sync(2)", by_process=False, changes_system=True),
    _row(
        "dropcaches",
        (Parameter("value", Kind.COUNT, "1: page cache, 2: slabs, 3: both"),),
        "drop what is clean",
        "/proc/sys/vm/drop_caches",
        by_process=False,
        changes_system=True,
    ),
    _row(
        "disk",
        (_word("state", "fail hold ok", f"of data on the devices, {_STATES}"),),
        "let the disks below file systems fail or stop; what describes files can still be accessed",
        "a table of device mapper with the target `error`, a suspended device",
        by_process=False,
        changes_system=True,
    ),
    _row(
        "drain",
        (),
        "put what waits in per-CPU batches on the LRU lists",
        "madvise(2) with MADV_COLD of another page",
        choice("state", "now off on", "off: no longer after every step; on: again"),
        by_process=False,
    ),
    _row(
        "split",
        (_range(),),
        "split the large folios there",
        "debugfs split_huge_pages",
        value("order", "into folios of that order (6.9)", Parameter("order", Kind.COUNT, most=63)),
        value(
            "around",
            "only around that page of each folio, which else stays as large as it may be (6.15)",
            Parameter("around", Kind.COUNT),
        ),
        changes_system=True,
    ),
)

_USERFAULTFD: Final = (
    _row(
        "uffd",
        (_range(), _word("mode", "missing wp wp_async minor")),
        "register with a userfaultfd of the process",
        "userfaultfd(2), UFFDIO_REGISTER",
    ),
    _row("uffd_protect", (_range(),), "write-protect", "UFFDIO_WRITEPROTECT"),
    _row("uffd_unprotect", (_range(),), "end write protection", "UFFDIO_WRITEPROTECT"),
    _row(
        "uffd_copy",
        (_range(), _TAGS),
        "give missing pages a content",
        "UFFDIO_COPY",
        flag("wp", "UFFDIO_COPY_MODE_WP: write-protected from the start"),
    ),
    _row("uffd_zero", (_range(),), "give missing pages zeroes", "UFFDIO_ZEROPAGE"),
    _row(
        "uffd_continue",
        (_range(),),
        "map what the page cache has there",
        "UFFDIO_CONTINUE",
        flag("wp", "UFFDIO_CONTINUE_MODE_WP: write-protected from the start (6.4)"),
    ),
    _row(
        "uffd_move",
        (_range("where to"), Parameter("source", Kind.RANGE, "from where, as many pages")),
        "move pages there, without copying (6.8)",
        "UFFDIO_MOVE",
        flag("holes", "UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES: pass over what is empty"),
    ),
    _row("uffd_poison", (_range(),), "mark missing pages as lost (6.6)", "UFFDIO_POISON"),
    _row("uffd_unregister", (_range(),), "end `uffd`", "UFFDIO_UNREGISTER"),
)

TOPICS: Final[Mapping[str, tuple[Verb, ...]]] = MappingProxyType(
    {
        "Processes": (*_PROCESSES, *LIMITS, *RIGHTS),
        "Mappings": (*_MAPPINGS, *DEVICE_MAPPINGS, *AREAS),
        "Accesses": _ACCESSES,
        "Files": (*_FILES, *NAMES, *SEALS),
        "System V shared memory": SHARED_MEMORY,
        "References to pages": REFERENCES,
        "The system": (*_SYSTEM, *FILE_SYSTEM_STATES),
        "userfaultfd": _USERFAULTFD,
    }
)
"""Heading -> its verbs, in the order of the documentation."""

VERBS: Final[Mapping[str, Verb]] = MappingProxyType(
    {verb.name: verb for verbs in TOPICS.values() for verb in verbs}
)
"""Every verb by name."""
