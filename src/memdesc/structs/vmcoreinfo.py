"""VMCOREINFO: what a kernel says about itself for whoever reads its dump.

Text lines `KEY=value` that the kernel keeps ready for a crash (`kernel/vmcore_info.c`,
`arch/x86/kernel/vmcore_info_64.c`; `kernel/crash_core.c` before 6.9) and that every dump
carries as an ELF note or in the kdump header.  It is the only thing in a dump that needs no
type information: where the page tables are, how far the kernel was moved, which build it is.

>>> info = VmcoreInfo.parse(b"OSRELEASE=6.12.1\\nPAGESIZE=4096\\nKERNELOFFSET=1a000000\\n"
...                         b"SYMBOL(swapper_pg_dir)=ffffffff9c82c000\\nNUMBER(phys_base)=-4096\\n")
>>> info.release.numbers, hex(info.kernel_offset), info.numbers["phys_base"]
('6.12.1', '0x1a000000', -4096)
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from memdesc.errors import FormatError, LayoutError
from memdesc.kernels.release import KernelRelease

__all__ = ["PAGE_SIZE", "VmcoreInfo"]

PAGE_SIZE = 4096
"""The only page size of x86-64, which is the only architecture read."""

_LONGEST = 1 << 20
"""The kernel keeps one page of it; a hypervisor passes at most a few."""

_KEY = re.compile(r"(?:([A-Z]+)\(([^()=]+)\)|([A-Za-z_][A-Za-z0-9_.-]*))\Z")
_HEX = re.compile(r"(?:0x)?[0-9a-fA-F]{1,16}\Z")
_DECIMAL = re.compile(r"-?[0-9]{1,20}\Z")
_HINT = "the dump is damaged, or was not made by Linux; make it again if you can"


@dataclass(frozen=True)
class VmcoreInfo:
    """VMCOREINFO, parsed. Addresses are as the kernel ran, KASLR included."""

    release: KernelRelease
    symbols: Mapping[str, int]
    """SYMBOL(name): addresses; of a pointer or a macro (mem_section, vmemmap) its value."""
    numbers: Mapping[str, int]
    """NUMBER(name): constants of the build and of this boot, signed."""
    offsets: Mapping[str, int]
    """OFFSET(struct.member), in bytes."""
    sizes: Mapping[str, int]
    """SIZE(struct), in bytes."""
    lengths: Mapping[str, int]
    """LENGTH(array), in elements."""
    build_id: str = ""
    """Hexadecimal; "" before 5.9, where the kernel does not say."""
    kernel_offset: int = 0
    """How far KASLR moved the kernel's image, in bytes."""
    crash_time: int | None = None
    """Seconds since 1970; None where the kernel did not crash (a dump of a running guest)."""

    @classmethod
    def parse(cls, raw: bytes) -> VmcoreInfo:
        """Read the note's content.

        Raises FormatError for anything that the kernel does not write (a line without "=", a
        value that is no number, two values for one key) and LayoutError for pages that are
        not 4096 bytes.
        """
        if len(raw) > _LONGEST:
            raise FormatError(f"VMCOREINFO of {len(raw)} bytes is too long", hint=_HINT)
        try:
            text = raw.rstrip(b"\0").decode("ascii")
        except UnicodeDecodeError as error:
            raise FormatError(
                f"VMCOREINFO holds the byte {raw[error.start]:#04x}, which is no text", hint=_HINT
            ) from None
        groups: dict[str, dict[str, str]] = {}
        for line in text.splitlines():
            if not line:
                continue
            key, equals, value = line.partition("=")
            found = _KEY.match(key)
            if not equals or found is None:
                raise FormatError(
                    f"the line {line[:60]!r} of VMCOREINFO is not KEY=value", hint=_HINT
                )
            group, name = (found[1], found[2]) if found[1] else ("", found[3])
            if groups.setdefault(group, {}).setdefault(name, value) != value:
                raise FormatError(f"VMCOREINFO gives two values for {key}", hint=_HINT)
        return cls._of(groups)

    @classmethod
    def _of(cls, groups: Mapping[str, Mapping[str, str]]) -> VmcoreInfo:
        plain = groups.get("", {})
        for key in ("OSRELEASE", "PAGESIZE"):
            if key not in plain:
                raise FormatError(f"VMCOREINFO does not give {key}", hint=_HINT)
        page_size = _number("PAGESIZE", plain["PAGESIZE"])
        if page_size != PAGE_SIZE:
            raise LayoutError(
                f"this kernel's pages are {page_size} bytes; memdesc reads x86-64 kernels, "
                f"whose pages are {PAGE_SIZE}"
            )
        crash_time = plain.get("CRASHTIME")
        return cls(
            release=KernelRelease.parse(plain["OSRELEASE"]),
            symbols={name: _hex(name, value) for name, value in groups.get("SYMBOL", {}).items()},
            numbers=_numbers(groups, "NUMBER"),
            offsets=_numbers(groups, "OFFSET"),
            sizes=_numbers(groups, "SIZE"),
            lengths=_numbers(groups, "LENGTH"),
            build_id=_build_id(plain.get("BUILD-ID", "")),
            kernel_offset=_hex("KERNELOFFSET", plain.get("KERNELOFFSET", "0")),
            crash_time=None if crash_time is None else _number("CRASHTIME", crash_time),
        )

    def symbol(self, name: str) -> int:
        """The address of a symbol. Raises FormatError where VMCOREINFO does not give it."""
        if name not in self.symbols:
            raise FormatError(f"VMCOREINFO does not give SYMBOL({name})", hint=_HINT)
        return self.symbols[name]


def _numbers(groups: Mapping[str, Mapping[str, str]], group: str) -> dict[str, int]:
    return {name: _number(name, value) for name, value in groups.get(group, {}).items()}


def _number(name: str, value: str) -> int:
    """Most are decimal; some addresses among the NUMBERs are written with 0x."""
    if value.startswith("0x"):
        return _hex(name, value)
    if not _DECIMAL.match(value):
        raise FormatError(f"VMCOREINFO gives {value[:40]!r} for {name}: no number", hint=_HINT)
    return int(value)


def _hex(name: str, value: str) -> int:
    if not _HEX.match(value):
        raise FormatError(f"VMCOREINFO gives {value[:40]!r} for {name}: no address", hint=_HINT)
    return int(value, 16)


def _build_id(value: str) -> str:
    if value and not re.fullmatch(r"[0-9a-f]{2,128}", value):
        raise FormatError(f"VMCOREINFO gives {value[:40]!r} as build id", hint=_HINT)
    return value
