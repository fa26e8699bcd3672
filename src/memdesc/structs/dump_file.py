"""What kind of file is this dump? Looked at before anything else reads it.

Everything a dump can be that memdesc does not read gets its own sentence here: no regular
file, empty, a program, the core of a process, another architecture, no VMCOREINFO.  What is
let through has headers that fit the file.

ELF: `fs/proc/vmcore.c`, `fs/proc/kcore.c`; QEMU's `dump/dump.c` writes the same.  A kdump
(compressed) file is left to `memdesc.structs.kdump`.
"""

from __future__ import annotations

import enum
import errno
import os
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from memdesc.errors import FormatError, LayoutError, NotReadableError, SourceError, TruncatedError

__all__ = ["MAKE_ONE", "DumpFile", "Form", "Note", "notes_in"]

MAKE_ONE = (
    "give a kernel's dump: /proc/vmcore or makedumpfile's output after a crash, or "
    "`virsh dump --memory-only`; docs/vmcore.md says how"
)
NEEDS_VMCOREINFO = (
    "QEMU writes it only with `-device vmcoreinfo` and the module qemu_fw_cfg loaded in the "
    "guest before the dump (libvirt: <features><vmcoreinfo state='on'/></features>)"
)

_ELF = b"\x7fELF"
_ELF_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")
_SECTION_HEADER = struct.Struct("<IIQQQQIIQQ")
_NOTE_HEADER = struct.Struct("<III")
_ET_CORE, _EM_X86_64, _PT_LOAD, _PT_NOTE, _PN_XNUM = 4, 62, 1, 4, 0xFFFF
_ET_NAMES = {1: "an object file", 2: "a program", 3: "a program or library"}
_MACHINES = {3: "i386", 21: "ppc64", 22: "s390", 40: "arm", 183: "aarch64", 243: "riscv"}
_LONGEST_NOTES = 64 << 20
_MOST_SEGMENTS = 1 << 20
_KDUMP_MAGICS = (b"KDUMP   ", b"DISKDUMP")
_FLATTENED_MAGIC = b"makedumpfile\0\0\0\0"
_KCORE = "/proc/kcore"


class Form(enum.Enum):
    """How memory is stored in the file."""

    ELF = "ELF"
    KDUMP = "kdump"
    FLATTENED = "kdump, flattened"
    LIVE = "live kernel"


@dataclass(frozen=True, slots=True)
class Note:
    """An ELF note."""

    name: str
    kind: int
    content: bytes


@dataclass
class DumpFile:
    """An open dump whose headers were checked. Close it with `close`."""

    path: Path
    fd: int
    size_bytes: int
    """0 for /proc/kcore, whose size means nothing."""
    form: Form
    vmcoreinfo: bytes = b""
    """Content of the note; b"" for a kdump, which has its own place for it."""
    missing_bytes: int = 0
    """Memory that the headers promise and a file that was cut does not hold."""
    notes: list[str] = field(default_factory=list)

    @classmethod
    def open(cls, path: Path | str) -> DumpFile:
        """Open `path` and say what it is.

        Raises NotReadableError where it cannot be opened or is no regular file,
        TruncatedError where even its headers are cut, LayoutError for another architecture,
        FormatError for a file that is no dump of a kernel.
        """
        path = Path(path)
        # O_NONBLOCK: opening a pipe must not wait for a writer.
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise _cannot_open(path, error) from None
        file = cls(path, fd, 0, Form.LIVE)
        try:
            file._look()
        except OSError as error:
            file.close()
            raise SourceError(
                f"cannot read {path}: {os.strerror(error.errno or errno.EIO)}", path=path
            ) from None
        except BaseException:
            file.close()
            raise
        return file

    def _look(self) -> None:
        status, path = os.fstat(self.fd), self.path
        if not stat.S_ISREG(status.st_mode):
            what = "a directory" if stat.S_ISDIR(status.st_mode) else "no regular file"
            raise NotReadableError(f"{path} is {what}", path=path, hint=MAKE_ONE)
        is_live = os.fspath(path.resolve()) == _KCORE
        if not is_live:
            self.size_bytes = status.st_size
            if not status.st_size:
                raise TruncatedError(f"{path} is empty", path=path, hint=MAKE_ONE)
        magic = os.pread(self.fd, 16, 0)
        if magic.startswith(_ELF):
            self.form = Form.LIVE if is_live else Form.ELF
            self._read_elf()
        elif magic.startswith(_KDUMP_MAGICS):
            self.form = Form.KDUMP
        elif magic == _FLATTENED_MAGIC:
            self.form = Form.FLATTENED
        else:
            raise FormatError(
                f"{path} is no dump of a kernel: it begins with {magic[:8].hex(' ')}",
                hint=MAKE_ONE,
            )

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __del__(self) -> None:
        self.close()

    def _read_elf(self) -> None:
        kind, machine, table, count = self._elf_header()
        if machine != _EM_X86_64:
            name = _MACHINES.get(machine, f"ELF machine {machine}")
            raise LayoutError(
                f"{self.path} is for {name}; memdesc reads dumps of x86-64",
                path=self.path,
                hint="drgn and crash read dumps of other architectures",
            )
        if kind != _ET_CORE:
            raise FormatError(
                f"{self.path} is {_ET_NAMES.get(kind, f'ELF type {kind}')}, no dump",
                hint=MAKE_ONE
                if kind not in (2, 3)
                else f"{MAKE_ONE}; a vmlinux is given with --vmlinux beside a dump",
            )
        self._read_segments(table, count)

    def _elf_header(self) -> tuple[int, int, int, int]:
        """(e_type, e_machine, e_phoff, number of program headers)."""
        raw = os.pread(self.fd, _ELF_HEADER.size, 0)
        if len(raw) < _ELF_HEADER.size:
            raise self._cut("its ELF header")
        ident, kind, machine, _, _, table, sections, _, _, entry, count, _, _, _ = (
            _ELF_HEADER.unpack(raw)
        )
        if ident[4] != 2 or ident[5] != 1:
            width = "32-bit" if ident[4] == 1 else "64-bit"
            order = "big-endian" if ident[5] == 2 else "little-endian"
            raise LayoutError(
                f"{self.path} is a {width} {order} ELF file; memdesc reads dumps of x86-64",
                path=self.path,
                hint="QEMU: dump-guest-memory with paging off writes a 64-bit file"
                if ident[4] == 1
                else "open it on a machine of its own kind; is it a kernel's dump at all?",
            )
        if count == _PN_XNUM:
            raw = os.pread(self.fd, _SECTION_HEADER.size, sections)
            if len(raw) < _SECTION_HEADER.size:
                raise self._cut("the count of its segments")
            count = _SECTION_HEADER.unpack(raw)[7]
        if kind == _ET_CORE and (entry != _PROGRAM_HEADER.size or count > _MOST_SEGMENTS):
            raise FormatError(
                f"{self.path} has a damaged ELF header: {count} segments of {entry} bytes",
                hint=MAKE_ONE,
            )
        return kind, machine, table, count

    def _read_segments(self, table: int, count: int) -> None:
        raw = os.pread(self.fd, count * _PROGRAM_HEADER.size, table)
        if len(raw) < count * _PROGRAM_HEADER.size:
            raise self._cut("its list of segments")
        segments = list(_PROGRAM_HEADER.iter_unpack(raw))
        names: set[str] = set()
        for kind, _, offset, _, _, size, _, _ in segments:
            if kind == _PT_LOAD and self.size_bytes:
                self.missing_bytes += max(0, min(size, offset + size - self.size_bytes))
            if kind != _PT_NOTE:
                continue
            if size > _LONGEST_NOTES:
                raise FormatError(
                    f"{self.path} has a damaged header: {size} bytes of notes", hint=MAKE_ONE
                )
            content = os.pread(self.fd, size, offset)
            if len(content) < size:
                raise self._cut("its notes")
            for note in notes_in(content):
                names.add(note.name)
                if note.name == "VMCOREINFO":
                    self.vmcoreinfo = note.content
        if not self.vmcoreinfo:
            raise self._without_vmcoreinfo(names)
        if self.missing_bytes:
            self.notes.append(
                f"{self.path} was cut: {self.missing_bytes:,} bytes of memory that it should "
                "hold are not there"
            )

    def _without_vmcoreinfo(self, names: set[str]) -> FormatError:
        if "QEMU" in names:
            return FormatError(
                f"{self.path} is QEMU's dump of a guest, without VMCOREINFO: nothing in it says "
                "where the kernel is",
                hint=NEEDS_VMCOREINFO,
            )
        if "CORE" in names or "LINUX" in names:
            return FormatError(
                f"{self.path} is the core of a process, no dump of a kernel", hint=MAKE_ONE
            )
        return FormatError(f"{self.path} holds no VMCOREINFO", hint=NEEDS_VMCOREINFO)

    def _cut(self, what: str) -> TruncatedError:
        return TruncatedError(
            f"{self.path} ends in {what}", path=self.path, hint="the copy is not complete"
        )


def notes_in(raw: bytes) -> Iterator[Note]:
    """The ELF notes in `raw` (a PT_NOTE segment, a .notes section), 4-byte aligned.

    Ends at the first header that does not fit: kernels pad the segment with zeros.
    """
    at = 0
    while at + _NOTE_HEADER.size <= len(raw):
        name_size, content_size, kind = _NOTE_HEADER.unpack_from(raw, at)
        name_at = at + _NOTE_HEADER.size
        content_at = name_at + (name_size + 3 & ~3)
        end = content_at + content_size
        if not name_size or end > len(raw):
            return
        name = raw[name_at : name_at + name_size].rstrip(b"\0").decode("ascii", "replace")
        yield Note(name, kind, raw[content_at:end])
        at = end + 3 & ~3


def _cannot_open(path: Path, error: OSError) -> NotReadableError:
    hint = ""
    if error.errno == errno.ENOENT and os.fspath(path) == _KCORE:
        hint = "this kernel has no /proc/kcore (CONFIG_PROC_KCORE); use `--source live:struct`"
    elif error.errno in (errno.EACCES, errno.EPERM):
        hint = "dumps belong to root; try with sudo"
    return NotReadableError(
        f"cannot open {path}: {os.strerror(error.errno or errno.EIO)}", path=path, hint=hint
    )
