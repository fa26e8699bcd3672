"""/proc/iomem from a kernel's memory: the tree of `struct resource`.

Source: `kernel/resource.c:iomem_resource`, `include/linux/ioport.h` @6.1, @6.12, @7.2.
"""

from __future__ import annotations

from memdesc.errors import FaultError
from memdesc.map.machine import IomemRange
from memdesc.structs.kernel import Kernel

__all__ = ["iomem_of"]

_MOST = 1 << 14
"""More resources than any machine has: a loop ends here."""


def iomem_of(kernel: Kernel) -> tuple[IomemRange, ...]:
    """Top-level ranges, and System RAM at any depth, in the order of /proc/iomem.

    Raises FaultError and LayoutError where the tree cannot be read or does not end.
    """
    ranges: list[IomemRange] = []
    root = kernel.load("resource", kernel.symbol("iomem_resource"))
    todo = [(root["child"], 0)]
    seen = 0
    while todo:
        address, depth = todo.pop()
        if not address:
            continue
        seen += 1
        if seen > _MOST:
            raise FaultError("the tree of resources does not end", address)
        resource = kernel.load("resource", address)
        name = resource.string("name")
        if depth == 0 or name.startswith("System RAM"):
            ranges.append(IomemRange(resource["start"], resource["end"] + 1, name))
        # Children come after their parent and before its next sibling.
        todo += [(resource["sibling"], depth), (resource["child"], depth + 1)]
    return tuple(ranges)
