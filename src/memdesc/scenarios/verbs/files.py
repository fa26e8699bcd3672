"""Files: their descriptors, contents, names and seals."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from memdesc.scenarios.language import MOST_FILE_PAGES, Kind, Parameter, Result, choice, flag, value
from memdesc.scenarios.verbs.parts import FILE, FILE_RANGE, RANGE, TAGS, range_of, row, word

__all__ = ["FILES"]

_FILE_PAGES: Final = Parameter("pages", Kind.COUNT, most=MOST_FILE_PAGES)

FILES: Final = (
    row(
        "memfd",
        (Parameter("file", Kind.NEW_FILE), replace(_FILE_PAGES, default=0)),
        "a file in memory, of that size",
        "memfd_create(2), ftruncate(2)",
        flag("hugetlb", "MFD_HUGETLB"),
        flag("secret", "memfd_secret(2)"),
        flag("sealable", "MFD_ALLOW_SEALING: `seal` may be used"),
        flag("noexec", "MFD_NOEXEC_SEAL: not to be executed, and sealable (6.3)"),
    ),
    row(
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
    row("close", (FILE,), "close", "close(2)"),
    row(
        "dup",
        (Parameter("file", Kind.NEW_FILE), Parameter("old", Kind.FILE)),
        "another descriptor of the same open file",
        "dup(2)",
    ),
    row("unlink", (Parameter("path", Kind.PATH),), "remove a file's name", "unlink(2)"),
    row(
        "truncate",
        (FILE, _FILE_PAGES),
        "set the size, in pages",
        "ftruncate(2)",
        value("bytes", "and so many bytes more", Parameter("bytes", Kind.COUNT)),
    ),
    row(
        "fallocate",
        (FILE_RANGE,),
        "reserve blocks",
        "fallocate(2)",
        choice("mode", "grow keep_size zero collapse insert", "FALLOC_FL_*; grow if not given"),
    ),
    row("punch", (FILE_RANGE,), "make a hole", "fallocate(2) with FALLOC_FL_PUNCH_HOLE"),
    row("pwrite", (FILE_RANGE, TAGS), "write pages", "pwrite(2)", result=Result.NUMBER),
    row("pread", (FILE_RANGE,), "read pages", "pread(2)", result=Result.CONTENTS),
    row(
        "dio_write",
        (FILE_RANGE, range_of("what is written")),
        "write from memory without the page cache",
        "pwrite(2) with O_DIRECT",
        result=Result.NUMBER,
    ),
    row(
        "dio_read",
        (FILE_RANGE, range_of("what is read into")),
        "read to memory without the page cache",
        "pread(2) with O_DIRECT",
        result=Result.NUMBER,
    ),
    row(
        "fsync",
        (FILE,),
        "write back, and hear of errors",
        "fsync(2)",
        flag("data", "fdatasync(2)"),
    ),
    row(
        "msync",
        (RANGE,),
        "write back what was written through a mapping",
        "msync(2)",
        choice("mode", "sync async invalidate", "MS_*; sync if not given"),
    ),
    row("syncfs", (FILE,), "write back the file system", "syncfs(2)"),
    row(
        "sync_range",
        (FILE_RANGE,),
        "write back pages, but nothing that describes the file",
        "sync_file_range(2), waiting before and after",
        flag("start", "SYNC_FILE_RANGE_WRITE alone: let it begin, and do not wait"),
    ),
    row("readahead", (FILE_RANGE,), "bring into the page cache", "readahead(2)"),
    row(
        "evict",
        (FILE_RANGE,),
        "drop clean pages from the page cache",
        "posix_fadvise(2) with POSIX_FADV_DONTNEED",
    ),
    row(
        "fadvise",
        (FILE_RANGE, word("advice", "normal random sequential willneed noreuse")),
        "announce how a file is used",
        "posix_fadvise(2)",
    ),
    row(
        "cachestat",
        (FILE_RANGE,),
        "pages cached, dirty, under writeback, evicted, recently evicted (6.5)",
        "cachestat(2)",
        result=Result.NUMBERS,
    ),
    row(
        "rename",
        (Parameter("path", Kind.PATH), Parameter("to", Kind.PATH, "on the same file system")),
        "give a file another name; a file that has it loses it",
        "rename(2)",
    ),
    row(
        "journal_data",
        (Parameter("file", Kind.FILE),),
        "let ext4 journal the file's data as well",
        "ioctl(2) with FS_IOC_SETFLAGS, as chattr +j",
    ),
    row(
        "seal",
        (FILE,),
        "promise never to do something to a memory file again",
        "fcntl(2) with F_ADD_SEALS",
        flag("seal", "F_SEAL_SEAL: to add seals"),
        flag("shrink", "F_SEAL_SHRINK: to make it smaller"),
        flag("grow", "F_SEAL_GROW: to make it larger"),
        flag("write", "F_SEAL_WRITE: to write to it"),
        flag("future_write", "F_SEAL_FUTURE_WRITE: to write to it but by mappings there are"),
        flag("exec", "F_SEAL_EXEC: to change whether it can be executed (6.3)"),
    ),
    row(
        "seals",
        (FILE,),
        "the seals of a file, or `none`",
        "fcntl(2) with F_GET_SEALS",
        result=Result.WORD,
    ),
)
"""Files, their names, and what memory files promise."""
