"""Variables of a kernel that keeps their names to itself.

Without CONFIG_KALLSYMS_ALL /proc/kallsyms names functions only.  A variable that a walk
begins at is then found through a function that uses it: the function's machine code holds
the variable's address, as an absolute operand or relative to the instruction pointer.  No
instruction is decoded: every four bytes that could be such an operand are a candidate, and
only a candidate that leads to what the variable must lead to is believed.  Where none does,
or two different ones do, the variable stays unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from memdesc.errors import FaultError, LayoutError

if TYPE_CHECKING:
    from memdesc.structs.walk.view import View

__all__ = ["VARIABLES", "find_global", "operands", "per_cpu_offsets"]

_TEXT_BYTES = 2048
_OPERAND_BYTES = 4
_IMAGE = (0xFFFFFFFF80000000, 0xFFFFFFFFC0000000)
"""The kernel image's window, `arch/x86/include/asm/page_64_types.h:KERNEL_IMAGE_SIZE`."""
_MASK = (1 << 64) - 1
_MOST_CPUS = 8192

Check = Callable[["View", int], bool]


def find_global(view: View, name: str) -> int | None:
    """The address of the variable `name`, found through code; None where it is not found."""
    rule = VARIABLES.get(name)
    if rule is None:
        return None
    functions, check = rule
    found: set[int] = set()
    for function in functions:
        for candidate in operands(view, function):
            if candidate not in found and _holds(check, view, candidate):
                found.add(candidate)
        if found:
            break
    return found.pop() if len(found) == 1 else None


def operands(view: View, function: str) -> Iterator[int]:
    """Every address that the machine code of `function` could refer to: a 32-bit operand,
    sign-extended, or added to the address behind the instruction.

    Yields nothing where the function is not known or cannot be read.
    """
    start = view.kernel.symbols.address_of(function)
    if start is None:
        return
    try:
        text = view.memory.read(start, _TEXT_BYTES)
    except FaultError:
        return
    raw = np.frombuffer(text, np.uint8)[: _size_bytes(view, start)]
    if raw.size < _OPERAND_BYTES:
        return
    # Every offset, aligned or not: operands stand anywhere.
    windows = np.lib.stride_tricks.sliding_window_view(raw, _OPERAND_BYTES)
    words = np.ascontiguousarray(windows).view(np.int32)[:, 0].tolist()
    before = raw.tolist()
    for at in range(1, len(words)):
        value = words[at]
        if value < 0:
            yield value & _MASK
        if before[at - 1] & 0xC7 == 0x05:
            # mod 00, rm 101: relative to the next instruction, which follows the operand or
            # an immediate of one or four bytes.
            for immediate in (0, 1, 4):
                yield (start + at + _OPERAND_BYTES + immediate + value) & _MASK


def _size_bytes(view: View, start: int) -> int:
    """Length of the function's code, at most `_TEXT_BYTES`: up to the next symbol."""
    low, high = 0, _TEXT_BYTES
    while high - low > 1:
        middle = (low + high) // 2
        if view.kernel.symbols.name_at(start + middle) == view.kernel.symbols.name_at(start):
            low = middle
        else:
            high = middle
    return high


# --- what a variable must lead to --------------------------------------------------------


def _holds(check: Check, view: View, candidate: int) -> bool:
    try:
        return check(view, candidate)
    except (FaultError, LayoutError):
        return False


def _in_image(address: int) -> bool:
    return _IMAGE[0] <= address < _IMAGE[1] and address % 8 == 0


def _is_list(view: View, head: int) -> bool:
    """A list_head whose neighbours know it."""
    following, before = view.u64(head), view.u64(head + 8)
    return view.u64(following + 8) == head and view.u64(before) == head


def _is_idle_threads(view: View, pointer: int) -> bool:
    for cpu, slot in view.per_cpu(pointer).items():
        task = view.kernel.load("task_struct", view.u64(slot))
        if task["pid"] or task.text("comm") != f"swapper/{cpu}":
            return False
    return True


def _is_per_cpu_offset(view: View, address: int) -> bool:
    """The table leads from a zone's page lists, a per-CPU object, to a copy for each CPU."""
    if not _in_image(address):
        return False
    offsets = per_cpu_offsets(view, address)
    pointer = _some_per_cpu_pointer(view)
    for offset in offsets:
        lists = view.kernel.load("per_cpu_pages", (pointer + offset) & _MASK)
        if lists["batch"] < 1 or not _is_list(view, lists.address_of("lists[0]")):
            return False
    return bool(offsets)


def per_cpu_offsets(view: View, table: int) -> list[int]:
    """The entries of `__per_cpu_offset` that belong to CPUs: those from CPU 0 on that are a
    distinct address of memory. The others still hold what they were compiled with, 0 or an
    address in the kernel image (`arch/x86/kernel/setup_percpu.c:BOOT_PERCPU_OFFSET`)."""
    offsets: list[int] = []
    for cpu in range(_MOST_CPUS):
        offset = view.u64(table + cpu * 8)
        if not offset or _IMAGE[0] <= offset < _IMAGE[1] or offset % 4096 or offset in offsets:
            break
        offsets.append(offset)
    return offsets


def _some_per_cpu_pointer(view: View) -> int:
    """The page lists of the first populated zone."""
    node = view.u64(view.symbol("node_data"))
    size = view.kernel.size_of("zone")
    zones = view.kernel.member("pglist_data", "node_zones")
    for index in range(zones.type.nr_elements):
        zone = view.kernel.load("zone", node + zones.offset + index * size)
        if zone["present_pages"]:
            return zone["per_cpu_pageset"]
    raise LayoutError("the first node has no memory")


def _is_node_data(view: View, address: int) -> bool:
    if not _in_image(address):
        return False
    node = view.kernel.load("pglist_data", view.u64(address))
    zones = node.address_of("node_zones")
    back = zones + view.kernel.member("zone", "zone_pgdat").offset
    return node["node_id"] == 0 and view.u64(back) == node.address


def _is_vmap_nodes(view: View, address: int) -> bool:
    if not _in_image(address):
        return False
    node = view.u64(address)
    is_list = _is_list(view, node + view.kernel.member("vmap_node", "busy.head").offset)
    return is_list and _is_area_root(
        view, node + view.kernel.member("vmap_node", "busy.root").offset
    )


def _is_area_root(view: View, address: int) -> bool:
    root = view.u64(address)
    if not root:
        return False
    area = view.kernel.load("vmap_area", root - view.kernel.member("vmap_area", "rb_node").offset)
    start, end = area["va_start"], area["va_end"]
    black_root = area["rb_node.__rb_parent_color"] == 1
    return black_root and 1 << 63 < start < end and not (start | end) % 4096


def _is_busy_root(view: View, address: int) -> bool:
    """`vmap_area_root`, not the tree of free areas: its areas have a vm_struct."""
    if not _in_image(address) or not _is_area_root(view, address):
        return False
    area = view.u64(address) - view.kernel.member("vmap_area", "rb_node").offset
    vm = view.u64(area + view.kernel.member("vmap_area", "vm").offset)
    start = view.u64(area + view.kernel.member("vmap_area", "va_start").offset)
    return view.kernel.load("vm_struct", vm)["addr"] == start


def _is_chunk_lists(view: View, address: int) -> bool:
    if not _in_image(address):
        return False
    lists = view.u64(address)
    if not all(_is_list(view, lists + index * 16) for index in range(4)):
        return False
    link = view.kernel.member("pcpu_chunk", "list").offset
    for index in range(64):
        head = lists + index * 16
        if not _is_list(view, head):
            return False
        if view.u64(head) != head:
            return _is_chunk(view, view.u64(head) - link)
    return False


def _is_chunk(view: View, address: int) -> bool:
    chunk = view.kernel.load("pcpu_chunk", address)
    return (
        0 < chunk["nr_pages"] < 1 << 18
        and 0 <= chunk["nr_populated"] <= chunk["nr_pages"]
        and chunk["base_addr"] > 1 << 63
        and chunk["base_addr"] % 4096 == 0
    )


def _is_fixed_chunk(view: View, address: int) -> bool:
    """A pointer to a chunk of memory from boot that is in none of the lists."""
    if not _in_image(address):
        return False
    chunk = view.u64(address)
    return (
        _is_chunk(view, chunk)
        and bool(view.kernel.load("pcpu_chunk", chunk)["immutable"])
        and view.u64(chunk + view.kernel.member("pcpu_chunk", "list").offset) in (0, chunk)
    )


def _is_percpu_base(view: View, address: int) -> bool:
    """`pcpu_base_addr` lies as far above `__per_cpu_start`, an address of the image or 0, as
    the lowest entry of `__per_cpu_offset` says."""
    if not _in_image(address):
        return False
    base = view.u64(address)
    if base % 4096 or base < 1 << 63 or _IMAGE[0] <= base:
        return False
    start = (base - min(view.per_cpu(0).values())) & _MASK
    return (start == 0 or _IMAGE[0] <= start < _IMAGE[1]) and view.u64(base) >= 0


def _is_cached_stacks(view: View, pointer: int) -> bool:
    """Each CPU's first two slots hold nothing or the vm_struct of a few pages; not all none."""
    found = 0
    for slots in view.per_cpu(pointer).values():
        for slot in (slots, slots + 8):
            address = view.u64(slot)
            if not address:
                continue
            vm = view.kernel.load("vm_struct", address)
            if vm["addr"] < 1 << 63 or vm["addr"] % 4096 or not 0 < vm["nr_pages"] <= 16:
                return False
            found += 1
    return found > 0


def _is_slab_caches(view: View, address: int) -> bool:
    if not _in_image(address) or not _is_list(view, address):
        return False
    first = view.u64(address)
    if first == address:
        return False
    cache = view.kernel.load("kmem_cache", first - view.kernel.member("kmem_cache", "list").offset)
    name = view.kernel.string(cache["name"], 64)
    return bool(name) and name.isprintable() and 0 < cache["object_size"] <= cache["size"]


def _is_init_pid_ns(view: View, address: int) -> bool:
    if not _in_image(address):
        return False
    namespace = view.kernel.load("pid_namespace", address)
    reaper = view.kernel.load("task_struct", namespace["child_reaper"])
    return reaper["pid"] == 1 and namespace["level"] == 0


def _is_mem_section(view: View, address: int) -> bool:
    """`struct mem_section **`: roots, of which the first is there, each a page of sections."""
    if not _in_image(address):
        return False
    section = view.kernel.load("mem_section", view.u64(view.u64(address)))
    usage = section["usage"]
    return section["section_mem_map"] & 7 == 7 and usage > 1 << 63 and view.u64(usage) >= 0


VARIABLES: Mapping[str, tuple[tuple[str, ...], Check]] = {
    # Variable: the functions that use it, and what it must lead to.
    "init_pid_ns": (
        ("reboot_pid_ns", "locks_translate_pid", "copy_pid_ns", "zap_pid_ns_processes"),
        _is_init_pid_ns,
    ),
    "node_data": (("first_online_pgdat", "next_online_pgdat", "next_zone"), _is_node_data),
    "__per_cpu_offset": (
        ("idle_thread_get", "free_vm_stack_cache", "kcpustat_cpu_fetch"),
        _is_per_cpu_offset,
    ),
    "idle_threads": (("idle_thread_get",), _is_idle_threads),
    "vmap_nodes": (("find_vmap_area", "find_vm_area"), _is_vmap_nodes),
    "vmap_area_root": (("find_vmap_area", "find_vm_area"), _is_busy_root),
    "pcpu_chunk_lists": (
        ("pcpu_chunk_relocate", "pcpu_alloc_noprof", "pcpu_alloc"),
        _is_chunk_lists,
    ),
    "pcpu_reserved_chunk": (("free_percpu", "pcpu_alloc_noprof", "pcpu_alloc"), _is_fixed_chunk),
    "pcpu_base_addr": (
        ("per_cpu_ptr_to_phys", "__is_kernel_percpu_address"),
        _is_percpu_base,
    ),
    "cached_stacks": (("free_vm_stack_cache", "thread_stack_free_rcu"), _is_cached_stacks),
    "slab_caches": (("slab_start", "kmem_cache_destroy", "find_mergeable"), _is_slab_caches),
    "mem_section": (("online_mem_sections", "offline_mem_sections"), _is_mem_section),
}
