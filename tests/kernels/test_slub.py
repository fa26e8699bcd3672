"""Sizes of slabs: by the kernel's rules, and as this machine's kernel chose them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from memdesc.errors import FormatError
from memdesc.kernels.release import KernelRelease
from memdesc.kernels.slub import (
    CacheTraits,
    cpu_partial_slabs,
    kmalloc_size_bytes,
    may_merge,
    min_partial,
    object_layout,
    order_of_one,
    sheaf_objects,
    slab_order,
    slub_rules,
)

RELEASES = [slub_rules(KernelRelease.parse(text)) for text in ("6.1.192", "6.12.117", "7.2.13")]
SYSFS = Path("/sys/kernel/slab")

ORDERS = {  # size: (order, objects) with 2, 4 and 8 CPUs
    8: ((0, 512),) * 3,
    16: ((0, 256),) * 3,
    32: ((0, 128),) * 3,
    64: ((0, 64),) * 3,
    80: ((0, 51),) * 3,
    96: ((0, 42),) * 3,
    104: ((0, 39),) * 3,
    128: ((0, 32),) * 3,
    160: ((0, 25),) * 3,
    192: ((0, 21),) * 3,
    256: ((0, 16), (0, 16), (1, 32)),
    320: ((0, 12), (1, 25), (1, 25)),
    384: ((1, 21),) * 3,
    512: ((1, 16), (1, 16), (2, 32)),
    576: ((1, 14), (2, 28), (2, 28)),
    640: ((1, 12), (2, 25), (2, 25)),
    768: ((2, 21),) * 3,
    1024: ((2, 16), (2, 16), (3, 32)),
    2048: ((3, 16),) * 3,
    4096: ((3, 8),) * 3,
    8192: ((3, 4),) * 3,
}


@pytest.mark.parametrize("rules", RELEASES, ids=lambda rules: str(rules.release))
@pytest.mark.parametrize("size", ORDERS)
def test_slab_sizes_that_kernels_print(size: int, rules: object) -> None:
    for cpus, expected in zip((2, 4, 8), ORDERS[size], strict=True):
        assert slab_order(size, cpus=cpus, rules=rules) == expected  # type: ignore[arg-type]


def test_one_cpu_counts_the_possible_ones() -> None:
    rules = RELEASES[1]
    sizes = (512, 1024, 2048, 4096)
    assert [slab_order(size, cpus=1, rules=rules) for size in sizes] == [
        (0, 8),
        (1, 8),
        (2, 8),
        (3, 8),
    ]
    assert slab_order(512, cpus=1, possible_cpus=8, rules=rules) == (2, 32)


def test_a_large_object_has_a_slab_of_its_own() -> None:
    assert slab_order(20000, cpus=2, rules=RELEASES[1]) == (3, 1)
    assert slab_order(40000, cpus=2, rules=RELEASES[1]) == (4, 1)
    assert order_of_one(4097) == 1
    with pytest.raises(FormatError, match="does not fit into any block"):
        order_of_one(1 << 23)


def test_where_the_free_pointer_lies_decides_the_size() -> None:
    assert object_layout(80, align=16) == (80, 16)
    assert object_layout(80, align=16, pointer_outside=True) == (96, 16)
    assert object_layout(184, hwcache_align=True) == (192, 64)
    assert object_layout(30, hwcache_align=True) == (32, 32)
    assert object_layout(1) == (8, 8)
    for wrong in (0, -1):
        with pytest.raises(FormatError):
            object_layout(wrong)
    with pytest.raises(FormatError, match="power of two"):
        object_layout(8, align=24)


def test_what_a_cache_keeps() -> None:
    assert [min_partial(size) for size in (8, 1024, 4096, 1 << 20, 1 << 23)] == [5, 5, 6, 10, 10]
    assert cpu_partial_slabs(64, 64) == 4
    assert cpu_partial_slabs(80, 51) == 5
    assert cpu_partial_slabs(4096, 8) == 2
    # 26 objects and the header take 240 bytes: a 256-byte sheaf has room for two more
    assert [sheaf_objects(size) for size in (80, 256, 1024, 4096)] == [60, 28, 12, 4]
    assert kmalloc_size_bytes(97) == 128
    with pytest.raises(FormatError):
        kmalloc_size_bytes(8193)


def test_caches_that_become_one() -> None:
    cache = CacheTraits(64, 8)
    assert may_merge(cache, CacheTraits(64, 64))
    assert may_merge(cache, CacheTraits(57, 8))
    assert not may_merge(cache, CacheTraits(56, 8))
    assert not may_merge(cache, CacheTraits(72, 8))
    assert not may_merge(CacheTraits(96, 8), CacheTraits(96, 64))
    for different in ("reclaim_account", "account", "dma", "dma32"):
        assert not may_merge(cache, cache._replace(**{different: True}))
    for alone in ("has_constructor", "has_usercopy_window", "never_merge"):
        assert not may_merge(cache, cache._replace(**{alone: True}))
        assert not may_merge(cache._replace(**{alone: True}), cache)


def read(cache: Path, name: str) -> str:
    return (cache / name).read_text(encoding="ascii").strip()


@pytest.mark.live
def test_this_kernel_chose_the_same_slabs() -> None:
    """Every cache of the running kernel: order, objects, and how many slabs are kept."""
    caches = [each for each in SYSFS.glob("*") if not each.is_symlink()] if SYSFS.exists() else []
    if not caches or not os.access(caches[0] / "order", os.R_OK):
        pytest.skip("needs /sys/kernel/slab readable: run as root on a kernel with SLUB in sysfs")
    if any(option.startswith(("slab_", "slub_")) for option in kernel_command_line()):
        pytest.skip("the kernel's command line changes slab sizes: boot without slab_* options")
    rules = slub_rules(KernelRelease.parse(os.uname().release))
    present = count_cpus("/sys/devices/system/cpu/present")
    possible = count_cpus("/sys/devices/system/cpu/possible")
    wrong = []
    for cache in caches:
        size = int(read(cache, "slab_size"))
        expected = slab_order(size, cpus=present, possible_cpus=possible, rules=rules)
        seen = (int(read(cache, "order")), int(read(cache, "objs_per_slab")))
        if seen != expected or int(read(cache, "min_partial")) != min_partial(size):
            wrong.append((cache.name, size, seen, tuple(expected)))
    assert not wrong
    assert len(caches) > 50


@pytest.mark.live
def test_this_kernel_merged_what_we_merge() -> None:
    """Caches that may be merged are named by flags and size: none is left beside its like."""
    if not SYSFS.exists():
        pytest.skip("needs /sys/kernel/slab: a kernel with SLUB in sysfs")
    traits = [
        (
            each.name,
            CacheTraits(
                int(read(each, "slab_size")),
                int(read(each, "align")),
                reclaim_account=read(each, "reclaim_account") == "1",
                dma=read(each, "cache_dma") == "1",
                account="A" in each.name,
            ),
        )
        for each in SYSFS.glob(":*")
    ]
    left = [(a, b) for a, one in traits for b, other in traits if a != b and may_merge(one, other)]
    assert left == []


def kernel_command_line() -> list[str]:
    return Path("/proc/cmdline").read_text(encoding="utf-8").split()


def count_cpus(path: str) -> int:
    total = 0
    for part in Path(path).read_text(encoding="ascii").strip().split(","):
        first, _, last = part.partition("-")
        total += int(last or first) - int(first) + 1
    return total
