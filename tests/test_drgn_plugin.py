"""memdesc inside drgn: types from BTF, objects without DWARF, the classifier as a plugin."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from small_btf import BtfWriter, small_kernel
from structs.synthetic_dump import RELEASE, TinyKernel

from memdesc.errors import FormatError, LayoutError, QuestionError
from memdesc.structs.btf import LIVE_BTF, BtfTypes
from memdesc.structs.btf_records import BtfKind
from memdesc.vm.record import Recording

drgn = pytest.importorskip("drgn", reason="drgn is not installed: pip install 'memdesc[vmcore]'")

from drgn import Architecture, Platform, Program, Symbol, SymbolBinding, SymbolKind, TypeKind  # noqa: E402

from memdesc.drgn_objects import VARIABLES, DrgnObjects  # noqa: E402
from memdesc.drgn_plugin import (  # noqa: E402
    drgn_prog_set,
    for_each_typed_range,
    memory_map,
    open_program,
    page_type,
    register_btf,
)
from memdesc.drgn_types import DrgnTypes  # noqa: E402


def program(data: bytes, symbols: dict[str, tuple[int, int]] | None = None) -> Program:
    """A program without memory whose types are this BTF; symbols are (address, size)."""
    prog = Program(Platform(Architecture.X86_64))
    types = DrgnTypes(prog, BtfTypes(data).records)
    prog.register_type_finder("btf", types, enable_index=-1)
    prog.register_object_finder("btf", DrgnObjects(types), enable_index=-1)
    index = drgn.SymbolIndex(
        Symbol(name.rstrip("'"), address, size, SymbolBinding.GLOBAL, SymbolKind.OBJECT)
        for name, (address, size) in (symbols or {}).items()
    )
    prog.register_symbol_finder("given", index, enable_index=-1)
    return prog


@pytest.fixture
def small() -> Program:
    return program(small_kernel().data())


# --- types -------------------------------------------------------------------------------


def test_a_struct_reads_as_it_was_declared(small: Program) -> None:
    assert (
        str(small.type("struct page"))
        == """\
struct page {
	volatile page_flags_t flags;
	union {
		struct {
			union {
				struct list_head lru;
				struct list_head buddy_list;
			};
			const struct address_space *mapping;
			unsigned long index;
		};
		struct {
			unsigned long compound_head;
		};
	};
	atomic_t _mapcount;
	atomic_t _refcount;
}"""
    )


def test_places_and_sizes(small: Program) -> None:
    page = small.type("struct page")
    assert (drgn.sizeof(page), drgn.offsetof(page, "mapping")) == (64, 24)
    assert drgn.offsetof(small.type("struct zone"), "free[1][2].prev") == (1 * 3 + 2) * 16 + 8
    frozen = small.type("struct slab").member("frozen")
    assert (frozen.bit_offset, frozen.bit_field_size, frozen.type.kind) == (31, 1, TypeKind.BOOL)


def test_a_pointer_to_a_declaration_leads_to_the_complete_struct(small: Program) -> None:
    mapping = small.type("struct page").member("mapping").type
    assert drgn.sizeof(mapping.type) == 16
    root = small.type("struct tree").member("root").type.type
    assert not root.is_complete(), "struct node has no body anywhere"


def test_an_array_at_the_end_of_a_struct_is_open(small: Program) -> None:
    assert small.type("struct name_of_open").member("text").type.length is None


def test_enums_and_functions(small: Program) -> None:
    assert small.type("enum zone_type").type.type_name() == "unsigned int"
    assert small["E_AGAIN"].value_() == -11
    assert small["W_TOP"].value_() == 1 << 63
    assert small["PG_lru"].type_.tag is None
    with_function = program(small_kernel().data(), {"free_page": (0x1000, 16)})
    function = with_function["free_page"]
    assert (function.address_, function.type_.is_variadic) == (0x1000, True)
    assert [parameter.name for parameter in function.type_.parameters] == ["page"]


def test_no_file_declares_anything(small: Program) -> None:
    with pytest.raises(LookupError):
        small.type("struct page", "include/linux/mm_types.h")


def test_a_type_that_contains_itself_is_an_error() -> None:
    btf = BtfWriter()
    btf.typedef("loop", 1)
    with pytest.raises(FormatError, match="contains itself"):
        program(btf.data()).type("loop")


def test_drgn_and_memdesc_agree_on_every_struct_of_this_machine() -> None:
    if not LIVE_BTF.exists():
        pytest.skip(f"{LIVE_BTF} is missing: this kernel was built without CONFIG_DEBUG_INFO_BTF")
    types = BtfTypes.open()
    prog = program(LIVE_BTF.read_bytes())
    names = {types.records.name(i) for i in types.records.all_of(BtfKind.STRUCT)} - {""}
    compared = 0
    for name in sorted(names):
        found = types.find_struct(name)
        theirs = prog.type(f"struct {name}")
        assert found is not None
        if found.size_bytes != theirs.size:
            continue  # A union has the tag as well: memdesc looks among both.
        for member in found.members.values():
            try:
                their = theirs.member(member.name)
            except LookupError:
                # drgn looks into anonymous structs only; BTF cannot tell those of a typedef.
                continue
            assert their.bit_offset == member.offset_bits, (name, member)
            compared += 1
    assert compared > 10_000


# --- objects -----------------------------------------------------------------------------


def test_variables_have_the_types_of_the_table() -> None:
    btf = small_kernel()
    prog = program(
        btf.data(), {"slab_caches": (0x2000, 16), "max_pfn": (0x3000, 8), "runqueues": (0x40, 16)}
    )
    assert prog["slab_caches"].type_.type_name() == "struct list_head"
    assert prog["max_pfn"].address_ == 0x3000
    # BTF itself knows the type of a per-CPU variable.
    assert prog["runqueues"].type_.type_name() == "struct list_head"
    for missing in ("init_task", "no_such_variable", "vmap_area_list"):
        with pytest.raises(LookupError):
            prog[missing]


def test_a_variable_has_the_first_type_that_fits_its_place() -> None:
    data = small_kernel().data()
    assert VARIABLES["stack_pools"] == ("void *[8192]", "void **")
    wide, narrow = (
        program(data, {"stack_pools": (0x8000, size)})["stack_pools"].type_.type_name()
        for size in (8192 * 8, 8)
    )
    assert (wide, narrow) == VARIABLES["stack_pools"]


def test_a_name_that_files_share_means_none_of_them() -> None:
    prog = program(small_kernel().data(), {"max_pfn": (0x3000, 8), "max_pfn'": (0x9000, 8)})
    with pytest.raises(LookupError):
        prog["max_pfn"]


def test_lengths_come_from_enumerators() -> None:
    btf = small_kernel()
    btf.typedef("nodemask_t", 1)
    btf.enum("node_states", ("N_POSSIBLE", 0), ("NR_NODE_STATES", 6))
    states = program(btf.data(), {"node_states": (0x5000, 48)})["node_states"]
    assert states.type_.type_name() == "nodemask_t [6]"


# --- a dump ------------------------------------------------------------------------------


def opened(path: Path, *, hook: bool = False) -> Program:
    prog = Program()
    prog.set_core_dump(path)
    if hook:
        drgn_prog_set(prog)
    return prog


def dump(folder: Path, kernel: TinyKernel) -> Path:
    # drgn wants to know _stext to read kallsyms; VMCOREINFO of every kernel has it.
    kernel.vmcoreinfo["SYMBOL(_stext)"] = f"{kernel.address(0):x}"
    path = folder / "vmcore"
    path.write_bytes(kernel.elf())
    return path


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return dump(tmp_path, TinyKernel(kernel_offset=0x1A000000))


@pytest.mark.parametrize("hook", [True, False], ids=["by the plugin's hook", "by register_btf"])
def test_a_dump_describes_itself(tiny: Path, hook: bool) -> None:
    prog = opened(tiny, hook=hook)
    if not hook:
        register_btf(prog)
    assert drgn.sizeof(prog.type("struct task_struct")) > 0
    task = prog["init_task"]
    assert task.address_ == prog.symbol("init_task").address
    assert task.comm.string_() == b"swapper/0"


def test_without_btf_drgn_says_what_it_always_says(tmp_path: Path) -> None:
    prog = opened(dump(tmp_path, TinyKernel(with_btf=False)), hook=True)
    with pytest.raises(LookupError, match="could not find"):
        prog.type("struct task_struct")
    with pytest.raises(LayoutError, match="no BTF") as caught:
        register_btf(prog)
    assert "vmlinux" in caught.value.hint


def test_a_dump_without_symbols_needs_the_image(tmp_path: Path) -> None:
    kernel = TinyKernel(with_kallsyms=False)
    prog = opened(dump(tmp_path, kernel))
    with pytest.raises(LayoutError, match="no symbols"):
        register_btf(prog)
    register_btf(prog, kernel.btf)
    assert prog.type("struct task_struct").kind is TypeKind.STRUCT


def test_a_program_that_is_no_kernel_is_left_alone() -> None:
    prog = Program(Platform(Architecture.X86_64))
    before = prog.enabled_type_finders()
    drgn_prog_set(prog)
    assert prog.enabled_type_finders() == before


def test_types_can_be_had_without_any_target() -> None:
    prog = Program(Platform(Architecture.X86_64))
    register_btf(prog, small_kernel().data())
    assert drgn.sizeof(prog.type("struct page")) == 64
    with pytest.raises(LookupError):
        prog["init_task"]


def test_dumps_that_drgn_refuses_are_opened(tmp_path: Path) -> None:
    kernel = TinyKernel()
    kernel.vmcoreinfo["SYMBOL(_stext)"] = f"{kernel.address(0):x}"
    path = tmp_path / "vmcore"
    path.write_bytes(kernel.kdump(flattened=True))
    with pytest.raises(Exception, match="kdump"):
        opened(path)
    assert open_program(path)["init_task"].comm.string_() == b"swapper/0"


def test_drgn_loads_the_plugin(tiny: Path) -> None:
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())[
        "project"
    ]
    assert project["entry-points"]["drgn.plugins"] == {"memdesc": "memdesc.drgn_plugin"}
    script = (
        "import sys, drgn; p = drgn.Program(); p.set_core_dump(sys.argv[1]);"
        "assert not {'numpy', 'memdesc.structs'} & sys.modules.keys(), 'loaded too early';"
        "print(p['init_task'].comm.string_().decode(), p['UTS_RELEASE'].string_().decode())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, tiny],
        env=os.environ | {"DRGN_PLUGINS": "memdesc=memdesc.drgn_plugin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == (f"swapper/0 {RELEASE}\n", "")


# --- real kernels ------------------------------------------------------------------------


@pytest.mark.vm
def test_drgns_helpers_work_with_nothing_but_the_dump(recording: Recording) -> None:
    from drgn.helpers.linux import mm, module, pid, printk, sched, slab

    prog = opened(recording.vmcore, hook=True)
    tasks = {task.pid.value_(): task.comm.string_() for task in pid.for_each_task(prog)}
    assert tasks[2] == b"kthreadd"
    assert sched.task_cpu(pid.find_task(prog, 1)) >= 0
    caches = {cache.name.string_() for cache in slab.for_each_slab_cache(prog)}
    assert {b"task_struct", b"vm_area_struct"} <= caches
    task_cache = slab.slab_object_info(prog, pid.find_task(prog, 1).value_())
    assert task_cache is not None
    assert task_cache.slab_cache.name.string_() == b"task_struct"
    assert sum(1 for _ in mm.for_each_vmap_area(prog)) > 50
    assert sum(1 for _ in module.for_each_module(prog)) > 0
    assert b"Linux version" in printk.get_dmesg(prog)
    assert [frame.name for frame in prog.stack_trace(2)][:3] == [
        "__schedule",
        "schedule",
        "kthreadd",
    ], "unwound with the ORC tables in the dump"
    page = mm.virt_to_page(prog, task_cache.address)
    assert mm.compound_head(page).value_() <= page.value_()
    assert mm.PageSlab(mm.compound_head(page))
    assert mm.decode_page_flags(mm.pfn_to_page(prog, 0)) is not None


@pytest.mark.vm
def test_the_classifier_inside_drgn_agrees_with_drgn(recording: Recording) -> None:
    from drgn.helpers.linux import mm, pid, slab

    prog = opened(recording.vmcore, hook=True)
    cache = slab.find_slab_cache(prog, "task_struct")
    for task in list(slab.slab_cache_for_each_allocated_object(cache, "struct task_struct"))[:20]:
        page = mm.virt_to_page(prog, task.value_())
        assert page_type(page).types.names == ["slab"]
    with pytest.raises(QuestionError, match="is no struct page"):
        page_type(pid.find_task(prog, 1))
    for pfn in range(0, memory_map(prog).pfn_end, 97):
        page = mm.pfn_to_page(prog, pfn)
        is_slab = bool(mm.PageSlab(mm.compound_head(page)))
        assert (page_type(page).types.names == ["slab"]) == is_slab, hex(pfn)
    ranges = list(for_each_typed_range(prog))
    assert sum(nr_pages for _, nr_pages, _ in ranges) == memory_map(prog).pfn_end
    assert [start for start, _, _ in ranges] == sorted(start for start, _, _ in ranges)


@pytest.mark.vm
def test_the_command_says_what_an_address_is(
    recording: Recording, capsys: pytest.CaptureFixture[str]
) -> None:
    from drgn.commands import run_command
    from drgn.helpers.linux import pid

    prog = opened(recording.vmcore, hook=True)
    task = pid.find_task(prog, 1)
    for address, says in {
        task.value_(): "slab",
        task.stack.value_(): "kernel stack",
        prog.symbol("_stext").address: "reserved",
        0x1234: "leads to no frame",
    }.items():
        run_command(prog, f"memdesc {address:#x}")
        assert says in capsys.readouterr().out.splitlines()[0]
    run_command(prog, "memdesc")
    counted = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert sum(int(pages.replace(",", "")) for pages, _ in counted) == memory_map(prog).pfn_end
