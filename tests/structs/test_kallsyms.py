"""Symbols: the text file, and the kernel's compressed tables in every form that it has had."""

from __future__ import annotations

import random
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structs.real_dumps import RealDump, real_dump

from memdesc.errors import FaultError, FormatError, LayoutError, MemdescError, NotReadableError
from memdesc.structs.dump_file import DumpFile
from memdesc.structs.dump_memory import DumpMemory
from memdesc.structs.kallsyms import (
    LiveSymbols,
    SymbolTable,
    kallsyms_from_memory,
    read_kallsyms,
)
from memdesc.structs.live import live_vmcoreinfo, why_not

NOT_HERE = why_not()

START = 0xFFFFFFFF81000000
FORMS = ("whole", "unsigned", "per-cpu", "place-relative")
"""How addresses are kept: CONFIG_KALLSYMS_BASE_RELATIVE off; on, and CONFIG_KALLSYMS_
ABSOLUTE_PERCPU off; on; and without a common base, as in 7.2."""


@dataclass
class Tables:
    """A kernel's memory that holds nothing but symbol tables, at their real distances."""

    addresses: dict[str, int] = field(default_factory=dict)
    image: bytearray = field(default_factory=bytearray)
    base = 0xFFFFFFFF82000000

    @classmethod
    def of(cls, symbols: list[tuple[int, str]], form: str) -> Tables:
        """`symbols` are (address, kind and name), rising."""
        tables = cls()
        texts = [chr(code) if 32 < code < 127 else "" for code in range(256)]
        texts[0], texts[1], texts[128], texts[255] = "_init", "_", "sys_", "Tkmem_cache"
        code_of = {text: code for code, text in enumerate(texts) if text}
        tables.add("kallsyms_num_syms", struct.pack("<I", len(symbols)))
        tables.add("kallsyms_names", b"".join(compressed(name, code_of) for _, name in symbols))
        joined = b"".join(text.encode() + b"\0" for text in texts)
        index = np.cumsum([0] + [len(text) + 1 for text in texts[:-1]]).astype("<u2")
        tables.add("kallsyms_token_table", joined)
        tables.add("kallsyms_token_index", index.tobytes())
        values = [address for address, _ in symbols]
        base = START - 4096
        if form == "whole":
            tables.add("kallsyms_addresses", struct.pack(f"<{len(values)}Q", *values))
            return tables
        if form == "place-relative":
            own = tables.base + -(-len(tables.image) // 8) * 8
            offsets = [value - (own + 4 * number) for number, value in enumerate(values)]
        else:
            tables.add("kallsyms_relative_base", struct.pack("<Q", base))
            if form == "unsigned":
                offsets = [value - base for value in values]
            else:
                offsets = [v if v < START else base - 1 - v for v in values]
        tables.add(
            "kallsyms_offsets", b"".join(struct.pack("<I", one & 0xFFFFFFFF) for one in offsets)
        )
        return tables

    def add(self, name: str, content: bytes) -> None:
        self.image += bytes(-len(self.image) % 8)
        self.addresses[name] = self.base + len(self.image)
        self.image += content

    def read(self, address: int, size_bytes: int) -> bytes:
        """Memory ends with the page in which the last table ends."""
        at = address - self.base
        whole = bytes(self.image).ljust(-(-len(self.image) // 4096) * 4096, b"\0")
        if not 0 <= at <= at + size_bytes <= len(whole):
            raise FaultError("not there", address)
        return whole[at : at + size_bytes]

    def read_into(self, address: int, into: np.ndarray) -> None:
        into[:] = np.frombuffer(self.read(address, into.size), np.uint8)


def compressed(text: str, code_of: Mapping[str, int]) -> bytes:
    """A record: as few tokens as greed finds; the longest one has 11 letters."""
    codes = bytearray()
    while text:
        size = next(size for size in range(12, 0, -1) if text[:size] in code_of)
        codes.append(code_of[text[:size]])
        text = text[size:]
    if len(codes) > 127:
        return bytes((len(codes) & 127 | 128, len(codes) >> 7)) + bytes(codes)
    return bytes((len(codes),)) + bytes(codes)


def rows(table: SymbolTable) -> list[tuple[int, str]]:
    return [(int(table.addresses[i]), table.kind(i) + table.name(i)) for i in range(len(table))]


def some_symbols(chooser: random.Random, *, absolute: bool) -> list[tuple[int, str]]:
    """Up to 60, some at one address, some with the same name, some with very long ones."""
    texts = []
    for _ in range(chooser.randint(1, 60)):
        longest = chooser.choice((1, 12, 40, 511))
        letters = chooser.choices("_abcxyzST09.", k=chooser.randint(1, longest))
        texts.append(chooser.choice("TtDdA") + "".join(letters))
    steps = (chooser.choice((0, 1, 16, 4096)) for _ in texts)
    addresses = list(accumulate(steps, initial=START))[1:]
    if absolute:
        below = len(texts) // 4
        addresses[:below] = range(0, below * 64, 64)
    return list(zip(addresses, texts, strict=True))


class TestTheKernelsTables:
    @pytest.mark.parametrize("form", FORMS)
    @settings(max_examples=40, deadline=None)
    @given(seed=st.integers(0, 1 << 32))
    def test_every_form_decodes_to_what_was_encoded(self, form, seed):
        symbols = some_symbols(random.Random(seed), absolute=form in ("per-cpu", "whole"))
        tables = Tables.of(symbols, form)
        table = kallsyms_from_memory(tables, tables.addresses)
        assert rows(table) == symbols
        for address, text in symbols:
            assert table.address_of(text[1:]) in {a for a, t in symbols if t[1:] == text[1:]}
            if address >= START:
                first = next(t for a, t in symbols if a == address)
                assert table.name_at(address) == first[1:]

    def test_a_missing_table_is_named(self):
        tables = Tables.of([(START, "T_stext")], "unsigned")
        for name in ("kallsyms_names", "kallsyms_offsets", "kallsyms_num_syms"):
            rest = {key: value for key, value in tables.addresses.items() if key != name}
            with pytest.raises(LayoutError, match=name):
                kallsyms_from_memory(tables, rest)

    @settings(max_examples=60, deadline=None)
    @given(data=st.data())
    def test_damaged_tables_end_in_an_error_or_in_symbols_but_end(self, data):
        tables = Tables.of(
            [(START + 16 * i, f"Tkmem_cache_init_{i}") for i in range(50)], "per-cpu"
        )
        for _ in range(data.draw(st.integers(1, 8))):
            at = data.draw(st.integers(0, len(tables.image) - 1))
            tables.image[at] = data.draw(st.integers(0, 255))
        try:
            table = kallsyms_from_memory(tables, tables.addresses)
        except MemdescError:
            return
        assert all(table.name(index) for index in range(len(table)))

    def test_tables_that_are_not_there_are_a_fault(self):
        tables = Tables.of([(START, "T_stext")], "unsigned")
        wild = {name: address + (1 << 30) for name, address in tables.addresses.items()}
        with pytest.raises(FaultError):
            kallsyms_from_memory(tables, wild)


TEXT = b"""\
0000000000000000 A fixed_percpu_data
0000000000001000 A cpu_number
ffffffff81000000 T srso_alias_untrain_ret
ffffffff81000000 T _stext
ffffffff81000040 t init
ffffffff81000140 T kernel_clone
ffffffff81000540 T __x64_sys_init
ffffffff81000640 t init
ffffffffc0203000 t cleanup_module\t[virtio_blk]
ffffffffc0201000 t ftrace_trampoline\t[__builtin__ftrace]
"""


class TestTheTextFile:
    @pytest.fixture
    def table(self, tmp_path) -> SymbolTable:
        (tmp_path / "kallsyms").write_bytes(TEXT)
        return read_kallsyms(tmp_path / "kallsyms")

    def test_names_are_whole_names(self, table):
        assert table.address_of("init") == 0xFFFFFFFF81000040, "not the end of __x64_sys_init"
        assert table.address_of("kernel_clone") == 0xFFFFFFFF81000140
        assert table.address_of("cleanup_module") == 0xFFFFFFFFC0203000
        assert table.address_of("cpu_number") == 0x1000
        for name in ("kernel", "clone", "[virtio_blk]", "T", "", "init\n"):
            assert table.address_of(name) is None

    @pytest.mark.parametrize(
        ("address", "name"),
        [
            (0xFFFFFFFF81000000, "srso_alias_untrain_ret"),
            (0xFFFFFFFF81000045, "init"),
            (0xFFFFFFFF8100053F, "kernel_clone"),
            (0xFFFFFFFFC0201FFF, "ftrace_trampoline"),
            (0xFFFFFFFFC0203004, "cleanup_module"),
            (0xFFFFFFFF80FFFFFF, None),
            (0xFFFFFFFF90000000, None),
            (0x1000, None),
            (0xFFFF888000000000, None),
            (0xFFFFFFFFFFFFFFFF, None),
            (-1, None),
        ],
    )
    def test_an_address_has_the_last_symbol_before_it_in_the_kernel(self, table, address, name):
        assert table.name_at(address) == name

    def test_hidden_addresses_are_no_addresses(self, tmp_path):
        hidden = tmp_path / "kallsyms"
        hidden.write_bytes(b"".join(b"0" * 16 + line[16:] for line in TEXT.splitlines(True)))
        symbols = LiveSymbols(hidden)
        assert symbols.address_of("kernel_clone") is None
        assert symbols.name_at(0xFFFFFFFF81000140) is None
        assert "hidden" in symbols.unseen
        with pytest.raises(NotReadableError) as caught:
            read_kallsyms(hidden)
        assert "kptr_restrict" in caught.value.hint

    def test_where_the_file_hides_them_the_tables_in_memory_do_not(self, tmp_path):
        tables = Tables.of([(START, "T_stext"), (START + 64, "Tkernel_clone")], "unsigned")
        symbols = LiveSymbols(
            tmp_path / "missing",
            others={"init_uts_ns": 5},
            tables=lambda: kallsyms_from_memory(tables, tables.addresses),
        )
        assert symbols.address_of("init_uts_ns") == 5
        assert symbols.address_of("kernel_clone") == START + 64
        assert symbols.name_at(START + 65) == "kernel_clone"
        assert symbols.unseen == ""

    @pytest.mark.parametrize("text", [b"", b"\n", b"hello\n", b"ffffffff81000000 T \n"])
    def test_other_files_are_refused(self, tmp_path, text):
        (tmp_path / "other").write_bytes(text)
        with pytest.raises((FormatError, NotReadableError)):
            read_kallsyms(tmp_path / "other")


class TestRealKernels:
    @pytest.fixture(
        params=[pytest.param(series, marks=pytest.mark.vm) for series in ("6.1", "6.12", "7.2")]
    )
    def dump(self, request) -> RealDump:
        pytest.importorskip("drgn", reason="drgn is not installed: pip install 'memdesc[vmcore]'")
        return real_dump(request, request.param)

    def test_a_dumps_tables_are_its_proc_kallsyms_symbol_by_symbol(self, dump):
        memory = DumpMemory.open(DumpFile.open(dump.elf))
        decoded = kallsyms_from_memory(memory, memory.info.symbols)
        memory.close()
        assert_equal(decoded, read_kallsyms(dump.kallsyms))

    @pytest.mark.live
    @pytest.mark.skipif(bool(NOT_HERE), reason=f"{NOT_HERE}; run as root on a kernel with BTF")
    def test_this_kernels_tables_are_its_proc_kallsyms(self):
        from memdesc.structs.bpf import BpfMemory

        with BpfMemory() as memory:
            info = live_vmcoreinfo(memory)
            if info is None:
                pytest.skip("this kernel keeps no VMCOREINFO (CONFIG_VMCORE_INFO)")
            decoded = kallsyms_from_memory(memory, info.symbols)
        listed = LiveSymbols()
        if listed.table is None:
            pytest.skip(listed.unseen)
        assert_equal(decoded, listed.table)


def assert_equal(decoded: SymbolTable, listed: SymbolTable) -> None:
    """The file has the same symbols in the same order, and then those of modules."""
    count = len(decoded)
    assert count > 10_000
    assert np.array_equal(decoded.addresses, listed.addresses[:count])
    for index in range(count):
        assert decoded.name(index) == listed.name(index)
        assert decoded.kind(index) == listed.kind(index)
    for index in range(0, count, count // 100):
        address = int(decoded.addresses[index])
        assert decoded.name_at(address) == listed.name_at(address)
    if len(listed) > count:
        assert listed.addresses[count] >= 0xFFFFFFFF80000000
