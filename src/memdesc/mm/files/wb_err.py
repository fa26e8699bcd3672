"""Where errors of write-back are noted, and how they are told.

`include/linux/pagemap.h:mapping_set_error; mm/filemap.c:filemap_check_errors,
file_check_and_advance_wb_err; fs/sync.c:syncfs @6.12`.  An error is noted three times: with a
counter in the inode, of which every open file description is told once; with a counter in the
superblock, for syncfs; and as a flag of the mapping, which whoever asks first takes away (what
waits without a file, as O_DIRECT and fallocate do).  Nobody keeps an inode in memory for its error.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from memdesc.mm.files import errseq
from memdesc.mm.files.folio_writeback import Answers
from memdesc.mm.process import Errno

if TYPE_CHECKING:
    from memdesc.mm.files.inode import AddressSpace, OpenFile
    from memdesc.mm.kernel import Kernel

__all__ = [
    "Disk",
    "file_check_and_advance_wb_err",
    "filemap_check_errors",
    "forget_errors",
    "mapping_set_error",
    "sample_errors",
    "syncfs_check",
]


@dataclass(slots=True, eq=False)
class Disk:
    """The device below file systems that have one."""

    answers: Answers = Answers.OK
    """Whether data can be read and written; what describes the files always can."""
    waiting: list[tuple[AddressSpace, int, list[int]]] = field(default_factory=list)
    """What is under write-back: (file, folio, its pages before the end of the file then)."""
    s_wb_err: dict[str, int] = field(default_factory=dict)
    """Superblocks' errseq, by file system."""
    readonly: set[str] = field(default_factory=set)
    """File systems that are mounted read-only (`mm.super`)."""
    frozen: set[str] = field(default_factory=set)
    left: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Of file systems that were filled: blocks that were left, and blocks in use then."""

    @property
    def fails(self) -> bool:
        """Data can be neither read nor written."""
        return self.answers is Answers.FAIL


def mapping_set_error(kernel: Kernel, mapping: AddressSpace, error: str) -> None:
    """A page of the file could not be written, and is clean all the same."""
    mapping.wb_err = errseq.set_error(mapping.wb_err, error)
    of_fs = kernel.disk.s_wb_err
    of_fs[mapping.fs.name] = errseq.set_error(of_fs.get(mapping.fs.name, 0), error)
    mapping.as_errors.add("ENOSPC" if error == "ENOSPC" else "EIO")
    kernel.say(f"mapping_set_error: {error}, for the inode and its file system")


def sample_errors(kernel: Kernel, file: OpenFile) -> None:
    """do_dentry_open(): an error that nobody was told of yet is news to a file opened now."""
    file.wb_err = errseq.sample(file.mapping.wb_err)
    file.sb_err = errseq.sample(kernel.disk.s_wb_err.get(file.mapping.fs.name, 0))


def file_check_and_advance_wb_err(kernel: Kernel, file: OpenFile) -> None:
    """Tell an open file of what happened since it was told last. Raises Errno."""
    mapping = file.mapping
    mapping.as_errors.clear()
    mapping.wb_err, file.wb_err, error = errseq.check_and_advance(mapping.wb_err, file.wb_err)
    if error:
        kernel.say("file_check_and_advance_wb_err: this open file had not been told yet")
        raise Errno(error)


def filemap_check_errors(kernel: Kernel, mapping: AddressSpace) -> None:
    """The older way: the mapping's flags, for the first who asks. Raises Errno."""
    for error in ("EIO", "ENOSPC"):  # an I/O error goes first
        if error in mapping.as_errors:
            mapping.as_errors.clear()
            kernel.say("filemap_check_errors: the flag of the mapping, which is gone now")
            raise Errno(error)


def syncfs_check(kernel: Kernel, file: OpenFile) -> None:
    """syncfs(2): errors of any file since this one was opened or asked. Raises Errno."""
    name = file.mapping.fs.name
    value = kernel.disk.s_wb_err.get(name, 0)
    value, file.sb_err, error = errseq.check_and_advance(value, file.sb_err)
    kernel.disk.s_wb_err[name] = value
    if error:
        kernel.say("syncfs: the superblock remembers an error of some file")
        raise Errno(error)


def forget_errors(kernel: Kernel, mapping: AddressSpace) -> None:
    """evict_inode(): read from the disk again, an inode knows of no error."""
    if mapping.wb_err and not mapping.wb_err & errseq.SEEN:
        kernel.say("evict: an error that nobody was told of is lost")
    mapping.wb_err = 0
    mapping.as_errors.clear()
