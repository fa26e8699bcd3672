"""memdesc inside drgn: dumps without a debug package, and a type for every page.

    >>> from memdesc.drgn_plugin import register_btf, page_type       # doctest: +SKIP
    >>> register_btf(prog)                                            # doctest: +SKIP
    >>> page_type(pfn_to_page(prog, 0x1234)).types.label              # doctest: +SKIP
    'slab'

drgn loads this module as the plugin `memdesc` (entry point of the group `drgn.plugins`); from
then on a kernel whose debug information is missing is described by the BTF in its own memory,
and the drgn command `memdesc` prints the type of an address.  docs/drgn.md says what works.

drgn starts with this import, so everything heavy is imported where it is used.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drgn import (
    BadDataError,
    FaultError,
    FindObjectFlags,
    MissingDebugInfoError,
    ModuleFileStatus,
    Object,
    Program,
    ProgramFlags,
    Symbol,
    SymbolIndex,
    Type,
    TypeKindSet,
)
from drgn.commands import argument, command

from memdesc.errors import LayoutError, MemdescError, QuestionError

if TYPE_CHECKING:
    from memdesc.drgn_objects import DrgnObjects
    from memdesc.drgn_types import DrgnTypes
    from memdesc.map.extents import Extent, MemoryMap
    from memdesc.rules.classify import Verdict
    from memdesc.structs.btf import BtfTypes
    from memdesc.structs.memmap import MemMap

__all__ = [
    "drgn_prog_set",
    "for_each_typed_range",
    "memory_map",
    "open_program",
    "page_type",
    "register_btf",
]

_NAME = "memdesc-btf"
"""Of the finders, in drgn's lists."""
_LARGEST_BTF = 64 << 20

_DRGN_ERRORS = (LookupError, FaultError, ValueError, BadDataError, MissingDebugInfoError)
"""What drgn raises for a kernel that lacks what it looks for, or is damaged."""

_log = logging.getLogger("memdesc.drgn")


def register_btf(prog: Program, btf: BtfTypes | bytes | Path | str | None = None) -> BtfTypes:
    """Let drgn find types, objects and symbols of the kernel in `prog` by its BTF.

    `btf` is a BTF section, or a file that holds one (vmlinux, vmlinuz, bare). Without it, a
    dump is asked for the BTF in its own memory, a live kernel for /sys/kernel/btf/vmlinux.
    What drgn finds in DWARF keeps precedence. Symbols come from kallsyms, which a dump
    brings since Linux 6.0 (`drgn.helpers.linux.kallsyms`).

    Raises LayoutError where the kernel has no BTF or it cannot be found, and what
    `btf_of_file` raises.
    """
    finders = _finders_of(prog)
    finders.automatic = False
    finders.use(_opened(prog, btf))
    assert finders.btf is not None
    return finders.btf


def open_program(path: Path | str) -> Program:
    """A drgn Program of a dump, described by its own BTF. Also of dumps that drgn refuses by
    itself: flattened ones, and the kdump files that QEMU writes without a host name.

    Raises what `memdesc.structs.dump.open_dump` raises.
    """
    from memdesc.structs.dump_file import DumpFile
    from memdesc.structs.dump_memory import DumpMemory

    file = DumpFile.open(path)
    try:
        memory = DumpMemory.open(file)
        register_btf(memory.prog)
    except BaseException:
        file.close()
        raise
    memory.prog.cache["memdesc-dump"] = memory  # Open for as long as the program lives.
    return memory.prog


def memory_map(prog: Program, *, again: bool = False) -> MemoryMap:
    """The typed map of the kernel in `prog`; made once, and anew with `again` (live kernels).

    Raises LayoutError for an unknown layout, FaultError for memory that is missing.
    """
    return _view_of(prog, again=again).map


def page_type(page: Object) -> Verdict:
    """What the frame of `page` (struct page *) is: the types it can be, and the rule.

    The first call classifies all of memory (about a second for 10 GB), later ones look up.
    Raises QuestionError for a pointer to no struct page of an online frame.
    """
    view = _view_of(page.prog_)
    pfn = view.memmap.pfn_of(page.value_())
    if not view.memmap.has_page(pfn) or view.memmap.page_address(pfn) != page.value_():
        raise QuestionError(f"{page.value_():#x} is no struct page")
    return _verdict(view.map.extent(view.map.index_of(pfn)))


def for_each_typed_range(prog: Program) -> Iterator[tuple[int, int, Verdict]]:
    """(first frame, number of frames, verdict) for all memory of `prog`, by rising frames.

    Neighbours of one verdict may come as several ranges: what else is known of them differs.
    """
    for extent in memory_map(prog).extents():
        yield int(extent.pages.pfn_start), extent.pages.nr_pages, _verdict(extent)


def drgn_prog_set(prog: Program) -> None:
    """drgn's hook: called when a program has a target.

    Kernels get the finders, behind drgn's own; they answer only as long as the debug
    information of vmlinux is not loaded. Nothing is read before drgn asks.
    """
    if ProgramFlags.IS_LINUX_KERNEL in prog.flags:
        _finders_of(prog)


@command(
    name="memdesc",
    description="say what kind of memory an address or a page frame is",
    arguments=(
        argument(
            "address",
            nargs="?",
            type="hexadecimal",
            help="kernel address, or address of a struct page; without it, a count by type",
        ),
        argument("--pfn", action="store_true", help="ADDRESS is a page frame number"),
    ),
    enabled=lambda prog: ProgramFlags.IS_LINUX_KERNEL in prog.flags,
)
def _cmd_memdesc(prog: Program, name: str, args: argparse.Namespace, **_: Any) -> None:
    try:
        view = _view_of(prog)
        if args.address is None:
            for label, pages in _count(view.map).items():
                print(f"{pages:>12,}  {label}")
            return
        pfn = args.address if args.pfn else view.pfn_at(prog, args.address)
        extent = view.map.extent(view.map.index_of(pfn))
    except MemdescError as error:
        print(f"memdesc: {error}" + (f"\nhint: {error.hint}" if error.hint else ""))
        return
    verdict = _verdict(extent)
    print(f"frame {pfn:#x}: {verdict.types.label}")
    print(f"  range   {extent.pages} ({extent.pages.nr_pages} frames alike)")
    print(f"  because {verdict.rule.text}")


# --- helpers -----------------------------------------------------------------------------


class _Finders:
    """drgn's three finders of one program, and the BTF behind them once it is wanted."""

    def __init__(self, prog: Program) -> None:
        self.automatic = True
        """Not asked for by the user: silent where there is DWARF, or no BTF."""
        self.btf: BtfTypes | None = None
        self._prog = prog
        self._types: DrgnTypes | None = None
        self._objects: DrgnObjects | None = None
        self._kallsyms: SymbolIndex | None = None
        self._modules: SymbolIndex | None = None
        self._gave_up = False
        self._busy = False
        prog.register_type_finder(_NAME, self._find_type, enable_index=-1)
        prog.register_object_finder(_NAME, self._find_object, enable_index=-1)
        prog.register_symbol_finder(_NAME, self._find_symbols, enable_index=-1)

    def use(self, btf: BtfTypes) -> None:
        """Answer from `btf` from now on."""
        from memdesc.drgn_objects import DrgnObjects
        from memdesc.drgn_types import DrgnTypes

        self.btf = btf
        self._types = DrgnTypes(self._prog, btf.records)
        self._objects = DrgnObjects(self._types)
        self._place_image()

    def _find_type(
        self, prog: Program, kinds: TypeKindSet, name: str, filename: str | None
    ) -> Type | None:
        self._want()
        return None if self._types is None else self._types(prog, kinds, name, filename)

    def _find_object(
        self, prog: Program, name: str, flags: FindObjectFlags, filename: str | None
    ) -> Object | None:
        self._want()
        return None if self._objects is None else self._objects(prog, name, flags, filename)

    def _find_symbols(
        self, prog: Program, name: str | None, address: int | None, one: bool
    ) -> list[Symbol]:
        if self._is_silent():
            return []
        if self._kallsyms is None:
            self._kallsyms = SymbolIndex([])  # For whatever is asked while they are read.
            self._kallsyms = self._read_kallsyms()
        found = list(self._kallsyms(prog, name, address, one))
        if not found and name != "__start_BTF" and self._types is not None and not self._busy:
            found = list(self._module_symbols()(prog, name, address, one))
        return found

    def _want(self) -> None:
        """Load the BTF if this is the moment to; otherwise leave all as it is."""
        if self._types is not None or self._gave_up or self._busy or self._is_silent():
            return
        self._busy = True
        try:
            self.use(_opened(self._prog, None))
        except MemdescError as error:
            self._gave_up = True
            _log.info("no types from BTF: %s", error)
        finally:
            self._busy = False

    def _place_image(self) -> None:
        """Tell drgn where the kernel's code lies: it then unwinds stacks with the tables that
        the kernel itself carries (ORC)."""
        try:
            start, end = self._prog.symbol("_stext").address, self._prog.symbol("_end").address
        except LookupError:
            return
        main = self._prog.main_module("kernel", create=True)
        if main.address_ranges is None and start < end:
            main.address_ranges = [(start, end)]

    def _is_silent(self) -> bool:
        """Whether drgn has the debug information of vmlinux itself."""
        if not self.automatic:
            return False
        try:
            status = self._prog.main_module().debug_file_status
        except LookupError:
            return False
        return status is ModuleFileStatus.HAVE

    def _read_kallsyms(self) -> SymbolIndex:
        from drgn.helpers.linux.kallsyms import load_vmlinux_kallsyms

        try:
            return load_vmlinux_kallsyms(self._prog)
        except (*_DRGN_ERRORS, OSError) as error:
            _log.info("no symbols from kallsyms: %s", error)
            return SymbolIndex([])

    def _module_symbols(self) -> SymbolIndex:
        """Read once, when a symbol is not the kernel's own."""
        if self._modules is None:
            from drgn.helpers.linux.kallsyms import load_module_kallsyms

            self._busy = True
            try:
                self._modules = load_module_kallsyms(self._prog)
            except (*_DRGN_ERRORS, TypeError, AttributeError) as error:
                _log.info("no symbols of modules: %s", error)
                self._modules = SymbolIndex([])
            finally:
                self._busy = False
        return self._modules


class _View:
    """What memdesc has made of a program."""

    def __init__(self, prog: Program) -> None:
        from memdesc.drgn_kernel import kernel_of
        from memdesc.structs.dwarf import DwarfTypes
        from memdesc.structs.machine import machine_of
        from memdesc.structs.memmap import MemMap
        from memdesc.structs.scan import StructScan
        from memdesc.structs.walk import walk_owned

        finders = _finders_of(prog)
        try:
            prog.type("struct page")
        except LookupError:
            register_btf(prog)
        types = finders.btf if finders.btf is not None else DwarfTypes(prog, "DWARF in drgn")
        kernel = kernel_of(prog, types)
        self.memmap: MemMap = MemMap.find(kernel)
        machine = machine_of(kernel, self.memmap)
        owned = walk_owned(kernel, self.memmap)
        self.map: MemoryMap = StructScan(kernel, self.memmap, machine, owned=owned).map()

    def pfn_at(self, prog: Program, address: int) -> int:
        """The frame of a kernel address, or that a struct page at the address describes.

        Raises QuestionError for an address that leads to no frame.
        """
        from drgn.helpers.linux.mm import follow_phys

        pfn = self.memmap.pfn_of(address)
        if address >= self.memmap.vmemmap and self.memmap.has_page(pfn):
            return pfn
        pfn = self.memmap.pfn_of_direct(address)
        if address >= self.memmap.page_offset and self.memmap.has_page(pfn):
            return pfn
        try:
            physical = follow_phys(prog["init_mm"].address_of_(), address).value_()
        except (LookupError, FaultError) as error:
            raise QuestionError(f"{address:#x} leads to no frame: {error}") from None
        return int(physical >> 12)


def _finders_of(prog: Program) -> _Finders:
    found = prog.cache.get(_NAME)
    if not isinstance(found, _Finders):
        found = prog.cache[_NAME] = _Finders(prog)
    return found


def _view_of(prog: Program, *, again: bool = False) -> _View:
    found = prog.cache.get("memdesc-view")
    if again or not isinstance(found, _View):
        found = prog.cache["memdesc-view"] = _View(prog)
    return found


def _opened(prog: Program, btf: BtfTypes | bytes | Path | str | None) -> BtfTypes:
    from memdesc.structs.btf import BtfTypes
    from memdesc.structs.elf import btf_of_file

    match btf:
        case BtfTypes():
            return btf
        case bytes():
            return BtfTypes(btf, "BTF given to drgn")
        case Path() | str():
            return btf_of_file(btf)
    if ProgramFlags.IS_LIVE in prog.flags and ProgramFlags.IS_LOCAL in prog.flags:
        return BtfTypes.open()
    return BtfTypes(_btf_in_memory(prog), "BTF in the dump")


def _btf_in_memory(prog: Program) -> bytes:
    """The BTF that the kernel carries between two symbols of its linker script."""
    hint = "give the vmlinux or vmlinuz of exactly this kernel"
    try:
        start, stop = prog.symbol("__start_BTF").address, prog.symbol("__stop_BTF").address
    except LookupError:
        raise LayoutError(
            "the kernel has no BTF, or no symbols to find it with (kallsyms, Linux 6.0)", hint=hint
        ) from None
    if not 0 < stop - start <= _LARGEST_BTF:
        raise LayoutError(f"the kernel's BTF cannot be {stop - start:,} bytes long", hint=hint)
    try:
        data: bytes = prog.read(start, stop - start)
    except FaultError as error:
        raise LayoutError(f"the kernel's BTF is not in the dump: {error}", hint=hint) from None
    return data


def _verdict(extent: Extent) -> Verdict:
    from memdesc.rules.classify import Verdict

    return Verdict(extent.fact.types, extent.fact.rule)


def _count(result: MemoryMap) -> dict[str, int]:
    """Frames by label, the most first."""
    pages: dict[str, int] = {}
    for extent in result.extents():
        label = extent.fact.types.label
        pages[label] = pages.get(label, 0) + extent.pages.nr_pages
    return dict(sorted(pages.items(), key=lambda row: -row[1]))
