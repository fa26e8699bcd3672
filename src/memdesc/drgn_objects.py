"""drgn objects of a kernel without DWARF: addresses from kallsyms, types from here.

BTF knows the type of every function and of per-CPU variables, but of no other variable
(pahole writes the others only on request).  `VARIABLES` says them for what drgn's helpers and
memdesc ask for, in C; the structs that it names are BTF's.  The table was compared with DWARF of
6.1, 6.12 and 7.2: addresses are the same, and types but for open lengths and qualifiers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from drgn import FindObjectFlags, Object, Program, Symbol, Type, TypeKind, sizeof

from memdesc.drgn_types import DrgnTypes

__all__ = ["VARIABLES", "DrgnObjects"]

VARIABLES: Mapping[str, tuple[str, ...]] = {
    # Tasks, CPUs (include/linux/sched/task.h, include/linux/cpumask.h, mm/percpu.c)
    "init_task": ("struct task_struct",),
    "init_mm": ("struct mm_struct",),
    "init_pid_ns": ("struct pid_namespace",),
    "init_fs": ("struct fs_struct",),
    "root_task_group": ("struct task_group",),
    "task_state_array": ("const char * const [9]",),
    "task_struct_cachep": ("struct kmem_cache *",),
    "jiffies": ("volatile unsigned long",),
    "avenrun": ("unsigned long [3]",),
    "nr_cpu_ids": ("unsigned int",),
    "__per_cpu_offset": ("unsigned long []",),
    "__cpu_online_mask": ("struct cpumask",),
    "__cpu_possible_mask": ("struct cpumask",),
    "__cpu_present_mask": ("struct cpumask",),
    "pcpu_chunk_lists": ("struct list_head *",),
    "pcpu_nr_slots": ("int",),
    "pcpu_sidelined_slot": ("int",),
    "pcpu_reserved_chunk": ("struct pcpu_chunk *",),
    "pcpu_first_chunk": ("struct pcpu_chunk *",),
    "pcpu_base_addr": ("void *",),
    "pcpu_unit_offsets": ("const unsigned long *",),
    "pcpu_unit_pages": ("int",),
    # Memory map and zones (mm/sparse.c, include/linux/mmzone.h, mm/mm_init.c)
    "mem_section": ("struct mem_section **",),
    "node_data": ("struct pglist_data *[]",),
    "contig_page_data": ("struct pglist_data",),
    "node_states": ("nodemask_t [NR_NODE_STATES]",),
    "nr_node_ids": ("unsigned int",),
    "vmemmap_base": ("unsigned long",),
    "page_offset_base": ("unsigned long",),
    "vmalloc_base": ("unsigned long",),
    "phys_base": ("unsigned long",),
    "max_pfn": ("unsigned long",),
    "min_low_pfn": ("unsigned long",),
    "max_low_pfn": ("unsigned long",),
    "__highest_present_section_nr": ("unsigned long",),
    "sections_per_block": ("int",),
    "memblock": ("struct memblock",),
    "_totalram_pages": ("atomic_long_t",),
    "vm_zone_stat": ("atomic_long_t [NR_VM_ZONE_STAT_ITEMS]",),
    "vm_node_stat": ("atomic_long_t [NR_VM_NODE_STAT_ITEMS]",),
    "vm_numa_event": ("atomic_long_t [NR_VM_NUMA_EVENT_ITEMS]",),
    "vm_committed_as": ("struct percpu_counter",),
    "sysctl_overcommit_ratio": ("int",),
    "sysctl_overcommit_kbytes": ("unsigned long",),
    # Slab, vmalloc, huge pages, swap, zsmalloc (mm/)
    "slab_caches": ("struct list_head",),
    "slab_kset": ("struct kset *",),
    "vmap_area_list": ("struct list_head",),
    "vmap_area_root": ("struct rb_root",),
    "vmap_nodes": ("struct vmap_node *",),
    "nr_vmap_nodes": ("unsigned int",),
    "vmap_zone_size": ("unsigned int",),
    "hstates": ("struct hstate []",),
    "hugetlb_max_hstate": ("int",),
    "huge_zero_folio": ("struct folio *",),
    "huge_zero_page": ("struct page *",),
    "swap_info": ("struct swap_info_struct *[]",),
    "nr_swapfiles": ("unsigned int",),
    "nr_swap_pages": ("atomic_long_t",),
    "total_swap_pages": ("long",),
    "swapper_spaces": ("struct address_space *[]",),
    "nr_swapper_spaces": ("unsigned int []",),
    "gfpflag_names": ("const struct trace_print_flags []",),
    "root_mem_cgroup": ("struct mem_cgroup *",),
    "stack_pools": ("void *[8192]", "void **"),
    "stack_slabs": ("void *[8192]",),
    # Namespaces, file systems, devices, modules
    "init_uts_ns": ("struct uts_namespace",),
    "init_ipc_ns": ("struct ipc_namespace",),
    "init_time_ns": ("struct time_namespace",),
    "init_net": ("struct net",),
    "net_namespace_list": ("struct list_head",),
    "init_user_ns": ("struct user_namespace",),
    "super_blocks": ("struct list_head",),
    "blockdev_superblock": ("struct super_block *",),
    "sysfs_root_kn": ("struct kernfs_node *",),
    "cgrp_dfl_root": ("struct cgroup_root",),
    "uidhash_table": ("struct hlist_head [128]",),
    "modules": ("struct list_head",),
    "mod_tree": ("struct mod_tree_root",),
    "module_kset": ("struct kset *",),
    "class_kset": ("struct kset *",),
    "bus_kset": ("struct kset *",),
    "block_class": ("const struct class",),
    "pci_bus_type": ("const struct bus_type",),
    "memory_subsys": ("const struct bus_type",),
    "bus_ktype": ("const struct kobj_type",),
    "class_ktype": ("const struct kobj_type",),
    "device_ktype": ("const struct kobj_type",),
    "driver_ktype": ("const struct kobj_type",),
    "module_ktype": ("const struct kobj_type",),
    "ns_file_operations": ("const struct file_operations",),
    "arp_tbl": ("struct neigh_table",),
    "ipc_mni_shift": ("int",),
    "pci_root_buses": ("struct list_head",),
    "chrdevs": ("struct char_device_struct *[255]",),
    "major_names": ("struct blk_major_name *[255]",),
    "cdev_map": ("struct kobj_map *",),
    "ioport_resource": ("struct resource",),
    "iomem_resource": ("struct resource",),
    "prog_idr": ("struct idr",),
    "map_idr": ("struct idr",),
    "link_idr": ("struct idr",),
    "btf_idr": ("struct idr",),
    # Log, interrupts, the rest of what `sys` and `log` print
    "timekeeper_data": ("struct tk_data [TIMEKEEPERS_MAX]",),
    "prb": ("struct printk_ringbuffer *",),
    "log_buf": ("char *",),
    "tainted_mask": ("unsigned long",),
    "saved_command_line": ("char *",),
    "linux_banner": ("const char []",),
    "sparse_irqs": ("struct maple_tree",),
    "irq_desc_tree": ("struct xarray", "struct radix_tree_root"),
    "nr_irqs": ("int",),
    "total_nr_irqs": ("unsigned int",),
    "idt_table": ("gate_desc [256]",),
    "softirq_vec": ("struct softirq_action [NR_SOFTIRQS]",),
    "poll_spurious_irq_timer": ("struct timer_list",),
}
"""Name of a variable -> its C type, or several: the first whose struct the kernel has, and
which fits between the symbol and the next one, counts. A length that is an enumerator is looked
up; an unknown length is left open."""

_LENGTH = re.compile(r"\[([A-Z_]+)\]")


class DrgnObjects:
    """Callable: a drgn object finder for enumerators, functions and variables."""

    def __init__(self, types: DrgnTypes) -> None:
        self._types = types

    def __call__(
        self, prog: Program, name: str, flags: FindObjectFlags, filename: str | None
    ) -> Object | None:
        """None where the name is not known, or where a file is asked for."""
        if filename:
            return None
        if FindObjectFlags.CONSTANT in flags:
            constant = self._types.enumerator(name)
            if constant is not None:
                return constant
        if name not in VARIABLES and not self._types.records.objects_named(name):
            return None
        symbol = _only_symbol(prog, name)
        if symbol is None:
            return None
        kind = None
        if FindObjectFlags.VARIABLE in flags:
            kind = self._variable(prog, name, symbol)
        if kind is None and FindObjectFlags.FUNCTION in flags:
            kind = self._types.function(name)
        return None if kind is None else Object(prog, kind, address=symbol.address)

    # --- helpers -------------------------------------------------------------------------

    def _variable(self, prog: Program, name: str, symbol: Symbol) -> Type | None:
        found = self._types.variable(name)
        if found is not None:
            return found
        for text in VARIABLES.get(name, ()):
            try:
                kind = prog.type(_LENGTH.sub(self._length, text))
            except LookupError:  # A struct of other kernels: vmap_node before 6.9.
                continue
            if not symbol.size or not _size_bytes(kind) > symbol.size:
                return kind
        return None

    def _length(self, match: re.Match[str]) -> str:
        constant = self._types.enumerator(match[1])
        return "[]" if constant is None else f"[{constant.value_()}]"


def _only_symbol(prog: Program, name: str) -> Symbol | None:
    """The symbol; None where files of the kernel share the name for their own static
    variables: which of them is meant cannot be told."""
    symbols: list[Symbol] = prog.symbols(name)
    return symbols[0] if len({symbol.address for symbol in symbols}) == 1 else None


def _size_bytes(kind: Type) -> int:
    """0 for an array of open length."""
    return 0 if kind.kind is TypeKind.ARRAY and kind.length is None else int(sizeof(kind))
