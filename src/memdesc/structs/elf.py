"""What memdesc takes from a kernel image: BTF, build id, symbols.

    types = btf_of_file("/boot/vmlinuz-6.12.94+deb13-amd64")

An image is a vmlinux (ELF), the compressed bzImage that a boot loader gets, or a bare BTF
section.  Only x86-64 is read.

The 60 lines of ELF below stand instead of a dependency: sections are looked up by name,
nothing is relocated, and a symbol table of 200,000 entries is one numpy array.
"""

from __future__ import annotations

import bz2
import lzma
import mmap
import shutil
import struct
import subprocess
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from memdesc.errors import FormatError, NotReadableError
from memdesc.structs.btf import BtfTypes
from memdesc.structs.btf_records import MAGIC as BTF_MAGIC

__all__ = ["ElfImage", "btf_of_elf", "btf_of_file", "build_id_of", "vmlinux_symbols"]

_Bytes = bytes | mmap.mmap

_ELF = b"\x7fELF"
_FILE_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION_HEADER = struct.Struct("<IIQQQQIIQQ")
_NOTE_HEADER = struct.Struct("<III")
_EM_X86_64 = 62
_SHT_NOBITS, _SHF_COMPRESSED = 8, 0x800
_NT_GNU_BUILD_ID = 3
_SYMBOL = np.dtype(
    [
        ("name", "<u4"),
        ("info", "u1"),
        ("other", "u1"),
        ("section", "<u2"),
        ("value", "<u8"),
        ("size", "<u8"),
    ]
)
_LARGEST_PAYLOAD = 1 << 30
"""Bytes. A distribution's kernel unpacks to 50 to 70 MB."""
_DECOMPRESS_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Section:
    """Where a section lies in the image."""

    type: int
    flags: int
    address: int
    offset: int
    size_bytes: int
    link: int


class ElfImage:
    """The sections of an x86-64 ELF image, by name."""

    def __init__(self, data: _Bytes, name: str) -> None:
        """Raises FormatError for what is no little-endian x86-64 ELF, or is damaged."""
        self._data = data
        self.name = name
        if len(data) < _FILE_HEADER.size or data[:4] != _ELF:
            raise FormatError(f"{name} is no ELF file")
        ident, _, machine, _, _, _, table, _, _, _, _, entry, count, names_at = (
            _FILE_HEADER.unpack_from(data)
        )
        if ident[4] != 2 or ident[5] != 1 or machine != _EM_X86_64:
            raise FormatError(
                f"{name} is for another processor (ELF machine {machine})",
                hint="memdesc reads kernels of x86-64",
            )
        if count and (entry != _SECTION_HEADER.size or table + count * entry > len(data)):
            raise FormatError(f"{name} is cut off: its table of sections lies outside")
        rows = [_SECTION_HEADER.unpack_from(data, table + i * entry) for i in range(count)]
        sections = [Section(*row[1:7]) for row in rows]
        if count and names_at >= count:
            raise FormatError(f"{name} is damaged: its sections have no names")
        names = self._content(sections[names_at]) if count else b""
        self._order = sections
        self.sections: dict[str, Section] = {
            _string(names, row[0]): section for row, section in zip(rows, sections, strict=True)
        }

    def content(self, section: str) -> bytes | None:
        """The bytes of a section; None where there is none. Raises FormatError where the file
        ends inside it."""
        found = self.sections.get(section)
        return None if found is None else self._content(found)

    def build_id(self) -> str | None:
        """The GNU build id in hexadecimal, as in VMCOREINFO's BUILD-ID; None where missing."""
        for name in (".note.gnu.build-id", ".notes"):
            notes = self.content(name) or b""
            at = 0
            while at + _NOTE_HEADER.size <= len(notes):
                name_size, size, kind = _NOTE_HEADER.unpack_from(notes, at)
                at += _NOTE_HEADER.size
                owner = notes[at : at + name_size]
                at += -(-name_size // 4) * 4
                if kind == _NT_GNU_BUILD_ID and owner == b"GNU\0":
                    return notes[at : at + size].hex()
                at += -(-size // 4) * 4
        return None

    def symbols(self) -> dict[str, int]:
        """Name -> address, as linked (without KASLR); of several of one name the first.
        Empty where the image is stripped. Raises FormatError."""
        table = self.sections.get(".symtab")
        if table is None:
            return {}
        if table.link >= len(self._order):
            raise FormatError(f"{self.name} is damaged: its symbols have no names")
        names = self._content(self._order[table.link])
        raw = self._content(table)
        rows = np.frombuffer(raw, _SYMBOL, len(raw) // _SYMBOL.itemsize)
        rows = rows[(rows["section"] != 0) & (rows["name"] != 0) & (rows["info"] & 15 <= 2)]
        found: dict[str, int] = {}
        for name, value in zip(rows["name"].tolist(), rows["value"].tolist(), strict=True):
            found.setdefault(_string(names, name), value)
        return found

    def _content(self, section: Section) -> bytes:
        if section.type == _SHT_NOBITS:
            return b""
        if section.flags & _SHF_COMPRESSED:
            raise FormatError(f"{self.name} has compressed sections, which memdesc does not read")
        if section.offset + section.size_bytes > len(self._data):
            raise FormatError(f"{self.name} is cut off inside a section")
        return bytes(self._data[section.offset : section.offset + section.size_bytes])


def btf_of_file(path: Path | str, *, base: BtfTypes | None = None) -> BtfTypes:
    """Type information of a vmlinux, a bzImage or a bare BTF file; with `base`, of a module.

    Raises NotReadableError, and FormatError for a file without BTF, of another architecture,
    or damaged.
    """
    with _image(path) as data:
        if data[:2] == BTF_MAGIC:
            return BtfTypes(bytes(data), f"BTF of {path}", base=base)
        section = btf_of_elf(ElfImage(data, str(path)))
    return BtfTypes(section, f"BTF of {path}", base=base)


def btf_of_elf(image: ElfImage) -> bytes:
    """The .BTF section of an ELF image. Raises FormatError where it has none."""
    section = image.content(".BTF")
    if not section:
        raise FormatError(
            f"{image.name} has no .BTF section",
            hint="the kernel was built without CONFIG_DEBUG_INFO_BTF; use its debug package",
        )
    return section


def build_id_of(path: Path | str) -> str | None:
    """The build id of a vmlinux or bzImage in hexadecimal; None where it has none.

    Raises NotReadableError and FormatError.
    """
    with _image(path) as data:
        return ElfImage(data, str(path)).build_id()


def vmlinux_symbols(path: Path | str) -> dict[str, int]:
    """The symbols of a vmlinux, as linked (without KASLR); empty for a stripped one.

    Raises NotReadableError and FormatError.
    """
    with _image(path) as data:
        return ElfImage(data, str(path)).symbols()


# --- helpers -----------------------------------------------------------------------------


@contextmanager
def _image(path: Path | str) -> Iterator[_Bytes]:
    """The ELF or BTF bytes of a file, a bzImage unpacked."""
    try:
        with Path(path).open("rb") as file:
            try:
                mapped: _Bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except (ValueError, OSError):  # Empty, or a file of sysfs.
                mapped = file.read()
    except OSError as error:
        raise NotReadableError(f"{path} cannot be read: {error.strerror}", path=path) from None
    try:
        if mapped[:4] == _ELF or mapped[:2] == BTF_MAGIC:
            yield mapped
        elif mapped[0x202:0x206] == b"HdrS":
            yield _unpacked(mapped, str(path))
        else:
            raise FormatError(
                f"{path} is no kernel image",
                hint="give a vmlinux, a vmlinuz (bzImage) or a bare BTF file",
            )
    finally:
        if isinstance(mapped, mmap.mmap):
            mapped.close()


def _unpacked(data: _Bytes, name: str) -> bytes:
    """The ELF inside a bzImage (Documentation/arch/x86/boot.rst: payload_offset)."""
    if len(data) < 0x250:
        raise FormatError(f"{name} is cut off")
    offset, size = struct.unpack_from("<II", data, 0x248)
    start = ((data[0x1F1] or 4) + 1) * 512 + offset
    payload = bytes(data[start : start + size])
    if size < 8 or len(payload) != size:
        raise FormatError(f"{name} is cut off: its payload lies outside")
    # After the stream stands its size; gzip has that at its own end (arch/x86/boot/compressed).
    image = _decompressed(payload, payload[:-4], name)
    if image[:4] != _ELF:
        raise FormatError(f"the payload of {name} is no ELF image")
    return image


def _decompressed(payload: bytes, stream: bytes, name: str) -> bytes:
    try:
        if payload[:4] == _ELF:
            return payload
        if payload[:2] == b"\x1f\x8b":
            return zlib.decompressobj(31).decompress(payload, _LARGEST_PAYLOAD)
        if payload[:6] == b"\xfd7zXZ\0" or payload[:3] == b"\x5d\0\0":
            return lzma.LZMADecompressor().decompress(stream, _LARGEST_PAYLOAD)
        if payload[:3] == b"BZh":
            return bz2.BZ2Decompressor().decompress(stream, _LARGEST_PAYLOAD)
    except (zlib.error, lzma.LZMAError, OSError, EOFError) as error:
        raise FormatError(f"the payload of {name} is damaged: {error}") from None
    if payload[:4] == b"\x28\xb5\x2f\xfd":
        return _by_command(("zstd", "-dcq"), stream, name)
    if payload[:4] == b"\x02\x21\x4c\x18":
        return _by_command(("lz4", "-dcq"), stream, name)
    raise FormatError(
        f"the payload of {name} is compressed in a way memdesc does not know",
        hint="unpack it with the kernel's scripts/extract-vmlinux and give the vmlinux",
    )


def _by_command(command: tuple[str, ...], stream: bytes, name: str) -> bytes:
    """Python has neither zstd (before 3.14) nor lz4; the programs are on most machines."""
    program = shutil.which(command[0])
    if program is None:
        raise FormatError(
            f"{name} is compressed with {command[0]}, which is not installed",
            hint=f"install the package {command[0]}, or give an unpacked vmlinux",
        )
    with tempfile.TemporaryFile() as packed, tempfile.TemporaryFile() as plain:
        packed.write(stream)
        packed.seek(0)
        try:
            done = subprocess.run(  # noqa: S603 - the program was looked up, the options are ours
                (program, *command[1:]),
                stdin=packed,
                stdout=plain,
                stderr=subprocess.PIPE,
                check=False,
                timeout=_DECOMPRESS_SECONDS,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise FormatError(f"{command[0]} cannot unpack {name}: {error}") from None
        plain.seek(0)
        image = plain.read(_LARGEST_PAYLOAD)
    if done.returncode:
        raise FormatError(
            f"the payload of {name} is damaged: {done.stderr.decode(errors='replace').strip()}"
        )
    return image


def _string(names: bytes, offset: int) -> str:
    end = names.find(b"\0", offset)
    return names[offset : end if end >= 0 else len(names)].decode("utf-8", "backslashreplace")
