"""A crash dump as a `Kernel`: memory through drgn, types and symbols from the dump itself.

    kernel = open_dump("/var/crash/202611220301/vmcore")
    kernel.load("task_struct", kernel.symbol("init_task")).text("comm")

drgn brings what it is good at, reading dumps: the ELF formats, the page tables (KASLR, five
levels), /proc/kcore.  A kernel of the last years brings the rest along in its own memory:
its symbols (kallsyms) and its types (BTF).  So no debug package is needed; one that is
given is used, after proof that it is of this kernel.

Only `memdesc.structs.dump_memory`, `memdesc.structs.dwarf` and what is made for drgn's own
users (`memdesc.drgn_plugin`) import drgn, and only when they are used.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from memdesc.errors import (
    FaultError,
    FormatError,
    LayoutError,
    MemdescError,
    NotReadableError,
)
from memdesc.kernels.type_info import TypeInfo, place_of
from memdesc.structs.btf import BtfTypes
from memdesc.structs.dump_file import DumpFile, Form
from memdesc.structs.dump_memory import DumpMemory
from memdesc.structs.dump_symbols import symbols_of
from memdesc.structs.elf import ElfImage, btf_of_file, build_id_of
from memdesc.structs.kernel import Kernel, Symbols
from memdesc.structs.vmcoreinfo import VmcoreInfo

__all__ = ["open_dump"]

Progress = Callable[[str], None]
"""Called with what begins: "reading symbols"."""

_LARGEST_BTF = 64 << 20
_UTSNAME_FIELD = 65
_DEBUG_PLACES = (
    "/usr/lib/debug/boot/vmlinux-{}",
    "/usr/lib/debug/lib/modules/{}/vmlinux",
    "/lib/modules/{}/build/vmlinux",
    "/boot/vmlinux-{}",
    "/boot/vmlinuz-{}",
    "/lib/modules/{}/vmlinuz",
)
"""Where distributions put a kernel's debug information, and its image, which has BTF."""


def open_dump(
    path: Path | str, vmlinux: Path | str | None = None, progress: Progress | None = None
) -> Kernel:
    """Open a dump of a kernel (ELF or kdump), or /proc/kcore.

    `vmlinux` gives the type information: DWARF where it has any, else BTF. Without it, the
    BTF inside the dump is used, or a debug package that is installed here. What could not be
    checked or seen is in `Kernel.notes`.

    Raises NotReadableError, TruncatedError and FormatError for a file that is no dump or a
    damaged one, LayoutError for another architecture, a `vmlinux` of another kernel, or a
    kernel without any type information, and SourceError where drgn is missing.
    """
    tell = progress if progress is not None else lambda what: None
    tell(f"opening {path}")
    file = DumpFile.open(path)
    memory: DumpMemory | None = None
    try:
        memory = DumpMemory.open(file)
        notes = list(memory.notes)
        info = memory.info
        _check_translation(memory)
        tell("reading symbols")
        symbols = symbols_of(memory, vmlinux, notes)
        tell("reading types")
        types = _types(memory, symbols, vmlinux, notes)
        _check_types(types, info)
    except BaseException as error:
        (memory or file).close()
        if isinstance(error, MemdescError) and file.missing_bytes:
            error.hint = f"the file was cut: {file.missing_bytes:,} bytes are missing"
        raise
    kernel = Kernel(
        memory=memory,
        types=types,
        symbols=symbols,
        release=info.release,
        name=str(path),
        is_live=file.form is Form.LIVE,
        notes=tuple(notes),
    )
    if not kernel.is_live:
        symbols.kernel = kernel
    return kernel


# --- the right kernel -----------------------------------------------------------------


def _check_translation(memory: DumpMemory) -> None:
    """The kernel's own name must be where VMCOREINFO says: then page tables and KASLR are right.

    Raises LayoutError where it is not, and for another architecture.
    """
    info, path = memory.info, memory.file.path
    at = info.symbol("init_uts_ns")
    try:
        raw = memory.read(at, 8 * _UTSNAME_FIELD)
    except FaultError:
        raise LayoutError(
            f"the kernel in {path} cannot be found: the page tables lead nowhere",
            path=path,
            hint="the dump is damaged, or holds only part of the memory",
        ) from None
    # Kernels before 5.11 do not give the offset; it is the size of a reference count.
    first = info.offsets.get("uts_namespace.name", max(raw.find(b"Linux\0"), 0))
    name, _, release, _, machine = (
        raw[start : start + _UTSNAME_FIELD].partition(b"\0")[0].decode("ascii", "replace")
        for start in range(first, first + 5 * _UTSNAME_FIELD, _UTSNAME_FIELD)
    )
    if name != "Linux" or release != info.release.text:
        raise LayoutError(
            f"the kernel in {path} is not where VMCOREINFO says: its name reads "
            f"{name[:20]!r} {release[:40]!r}, not {info.release.text!r}",
            path=path,
            hint="the dump is damaged, or its VMCOREINFO is of an earlier boot",
        )
    if machine != "x86_64":
        raise LayoutError(f"{path} is for {machine}; memdesc reads dumps of x86-64", path=path)


# --- types -------------------------------------------------------------------------------


def _types(
    memory: DumpMemory, symbols: Symbols, vmlinux: Path | str | None, notes: list[str]
) -> TypeInfo:
    if vmlinux is not None:
        return _types_of_image(memory, symbols, Path(vmlinux), notes)
    if memory.file.form is Form.LIVE:
        return BtfTypes.open()
    try:
        return _types_in_dump(memory, symbols)
    except MemdescError as error:
        for place in _DEBUG_PLACES:
            image = Path(place.format(memory.info.release.text))
            if "/" not in memory.info.release.text and image.is_file():
                return _types_of_image(memory, symbols, image, notes)
        raise LayoutError(
            f"{memory.file.path} does not describe its kernel's types: {error}",
            path=memory.file.path,
            hint=f"give the image of {memory.info.release} with --vmlinux: its vmlinuz has BTF, "
            "the vmlinux of its debug package DWARF",
        ) from None


def _types_in_dump(memory: DumpMemory, symbols: Symbols) -> BtfTypes:
    """BTF as the kernel itself carries it, between two symbols of its linker script."""
    start, stop = symbols.address_of("__start_BTF"), symbols.address_of("__stop_BTF")
    if start is None or stop is None:
        raise LayoutError("it has no BTF, or no symbols to find it with")
    if not 0 < stop - start <= _LARGEST_BTF:
        raise LayoutError(f"its BTF cannot be {stop - start:,} bytes long")
    data = np.empty(stop - start, np.uint8)
    memory.read_into(start, data)
    return BtfTypes(data.tobytes(), f"BTF in {memory.file.path}")


def _types_of_image(
    memory: DumpMemory, symbols: Symbols, vmlinux: Path, notes: list[str]
) -> TypeInfo:
    dwarf = False
    build_id, banner = "", b""
    with _mapped(vmlinux) as data:
        if data[:4] == b"\x7fELF":
            image = ElfImage(data, str(vmlinux))
            build_id = image.build_id() or ""
            dwarf = ".debug_info" in image.sections
            banner = b"" if build_id else (image.content(".rodata") or b"")
        elif data[:2] != b"\x9f\xeb":
            build_id = build_id_of(vmlinux) or ""
    _check_build(memory, symbols, vmlinux, build_id, banner, notes)
    if not dwarf:
        return btf_of_file(vmlinux)
    from memdesc.structs.dwarf import DwarfTypes

    try:
        with memory.lock:
            memory.prog.load_debug_info([vmlinux])
    except Exception as error:
        raise FormatError(
            f"drgn cannot read the debug information of {vmlinux}: {' '.join(str(error).split())}"
        ) from None
    return DwarfTypes(memory.prog, f"DWARF of {vmlinux}")


def _check_build(
    memory: DumpMemory,
    symbols: Symbols,
    vmlinux: Path,
    build_id: str,
    rodata: bytes,
    notes: list[str],
) -> None:
    """Refuse an image that is provably of another kernel; say where it cannot be told."""
    info = memory.info
    if build_id and info.build_id:
        if build_id != info.build_id:
            raise _other_kernel(vmlinux, memory, f"its build id is {build_id}", info.build_id)
        return
    at = symbols.address_of("linux_banner")
    if rodata and at is not None:
        try:
            banner = memory.read(at, 512).partition(b"\0")[0]
        except FaultError:
            banner = b""
        if banner.startswith(b"Linux version "):
            if banner not in rodata:
                raise _other_kernel(
                    vmlinux, memory, "its banner differs", banner.decode("utf-8", "replace")[:80]
                )
            return
    notes.append(
        f"whether {vmlinux} is the kernel of {memory.file.path} could not be checked: one of them "
        "has no build id; the layouts that VMCOREINFO knows agree"
    )


def _check_types(types: TypeInfo, info: VmcoreInfo) -> None:
    """Compare with the layouts that the kernel itself gives. Raises LayoutError."""
    for name, size in info.sizes.items():
        struct_type = types.find_struct(name)
        if struct_type is not None and struct_type.size_bytes != size:
            raise LayoutError(
                f"the {types.origin} is not of the kernel in this dump: struct {name} has "
                f"{struct_type.size_bytes} bytes there and {size} here",
                hint=f"this is {info.release}",
            )
    for name, offset in info.offsets.items():
        struct_name, _, path = name.partition(".")
        member = place_of(types, struct_name, path) if path else None
        if member is not None and member.offset_bits != offset * 8:
            raise LayoutError(
                f"the {types.origin} is not of the kernel in this dump: {name} is at "
                f"{member.offset_bits // 8} there and at {offset} here",
                hint=f"this is {info.release}",
            )


def _other_kernel(vmlinux: Path, memory: DumpMemory, what: str, wanted: str) -> LayoutError:
    return LayoutError(
        f"{vmlinux} is not the kernel of {memory.file.path}: {what}, not {wanted}",
        path=vmlinux,
        hint=f"give the image of exactly {memory.info.release}, or none: most dumps carry "
        "their types",
    )


@contextlib.contextmanager
def _mapped(path: Path) -> Iterator[bytes | mmap.mmap]:
    """The bytes of an image. Raises NotReadableError."""
    try:
        with path.open("rb") as file:
            if not path.is_file() or not os.fstat(file.fileno()).st_size:
                yield file.read(1 << 28) if path.is_file() else b""
                return
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                yield data
    except OSError as error:
        raise NotReadableError(f"{path} cannot be read: {error.strerror}", path=path) from None
