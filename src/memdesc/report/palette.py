"""One colour for each type of memory, the same on every machine and in every report.

Hues name families: what is free recedes (pale green), memory of processes is warm, files
and shared memory are blue, the kernel's own is purple, what cannot be told apart
is hatched, holes are dark.  Each colour has a light and a dark form.  The types that fill
most machines stay apart for the three kinds of colour blindness (a test measures it).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from memdesc.types import (
    DEVICE,
    KERNEL_COMPOUND,
    KERNEL_MAPPED,
    KERNEL_UNKNOWN,
    MemoryType,
    TypeSet,
)

__all__ = ["MAIN_TYPES", "Colour", "Scheme", "colour_css", "colour_of", "rgb"]

T = MemoryType
Scheme = str
"""A colour as #rrggbb."""


@dataclass(frozen=True, slots=True)
class Colour:
    """How a type looks on a light and on a dark page. Hatched colours have a second ink."""

    light: Scheme
    dark: Scheme
    light_ink: Scheme = ""
    dark_ink: Scheme = ""

    @property
    def is_hatched(self) -> bool:
        return bool(self.light_ink)


def colour_of(types: TypeSet) -> Colour:
    """The colour of one type, or the hatch of an honest union."""
    kind = types.only
    if kind is not None:
        return _COLOURS[kind]
    for members, colour in _UNIONS:
        if not types.mask & ~members:
            return colour
    if len(types) <= _FEW:
        first, second, *_ = (_COLOURS[kind] for kind in types)
        return Colour(first.light, first.dark, second.light, second.dark)
    return _UNKNOWN


def rgb(colour: Scheme) -> tuple[int, int, int]:
    """#rrggbb as three numbers."""
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def colour_css(types: Sequence[TypeSet]) -> str:
    """Rules that give class `t0`, `t1` ... the colours of `types` as --c and --ink."""
    colours = [colour_of(kind) for kind in types]
    light = "".join(_rules(colours, dark=False))
    dark = "".join(_rules(colours, dark=True))
    return f"{light}@media (prefers-color-scheme: dark){{{dark}}}"


def _rules(colours: Sequence[Colour], *, dark: bool) -> Iterator[str]:
    for index, colour in enumerate(colours):
        paint, ink = (colour.dark, colour.dark_ink) if dark else (colour.light, colour.light_ink)
        yield f".t{index}{{--c:{paint};--ink:{ink or paint}}}"


_COLOURS: Final[Mapping[MemoryType, Colour]] = MappingProxyType(
    {
        # Free: close to the page, so that what is used stands out.
        T.FREE: Colour("#d3e2cf", "#2b3b30"),
        T.FREE_PCP: Colour("#b5d0ae", "#3c5543"),
        T.DEFERRED: Colour("#e3ebdf", "#222d26"),
        T.UNACCEPTED: Colour("#e6e9d3", "#2d3024"),
        # Processes.
        T.ANON: Colour("#d9541e", "#e8622a"),
        T.KSM: Colour("#f0a26a", "#f2b083"),
        T.SWAP_CACHE: Colour("#9c3a12", "#b4502a"),
        T.HUGETLB: Colour("#eda71a", "#f2b632"),
        T.HUGE_ZERO: Colour("#f3d896", "#8a7434"),
        T.ZERO: Colour("#f0cf7c", "#a1883f"),
        # Files and memory shared like files.
        T.FILE: Colour("#2f76bd", "#4a97e0"),
        T.FS_DAX: Colour("#174a80", "#2c639c"),
        T.SHMEM: Colour("#5fb8e8", "#7accf2"),
        T.SECRETMEM: Colour("#86cfd8", "#93dbe4"),
        T.GUEST_MEMFD: Colour("#2fa4ae", "#45b9c3"),
        # The kernel's own.
        T.SLAB: Colour("#66308f", "#8a4bb8"),
        T.LARGE_KMALLOC: Colour("#b78fd0", "#bf9ad6"),
        T.PAGE_TABLE: Colour("#de68ab", "#f08fc4"),
        T.VMALLOC: Colour("#4f4596", "#7468bd"),
        T.KERNEL_STACK: Colour("#41357a", "#5f529b"),
        T.PERCPU: Colour("#9588cb", "#a59ad6"),
        T.NET_POOL: Colour("#74345f", "#954f7e"),
        T.PAGE_FRAG: Colour("#a4608d", "#b9779f"),
        T.ZSMALLOC: Colour("#a06a4a", "#b67f5f"),
        T.DRIVER: Colour("#6a5b73", "#85768e"),
        T.DRIVER_MAPPED: Colour("#8d7c97", "#a594ae"),
        T.EXACT_ALLOC: Colour("#7d6a9a", "#9584b0"),
        T.RAM_DISK: Colour("#5b6f9c", "#7387b3"),
        T.ACCOUNTED: Colour("#ad9dbd", "#b9abc7"),
        T.MOVABLE_OPS: Colour("#8f6a86", "#a6829d"),
        # Out of the allocator's hands.
        T.RESERVED: Colour("#7a6c58", "#6e5d47"),
        T.BALLOON: Colour("#b5a48c", "#9a8b75"),
        T.OFFLINE: Colour("#8f8a86", "#5c554c"),
        T.GUARD: Colour("#5d1f2b", "#7a3340"),
        T.POISONED: Colour("#c1121f", "#ff4d5a"),
        # Devices.
        T.DEVICE_PRIVATE: Colour("#0b7a6d", "#1f9c8d"),
        T.DEVICE_COHERENT: Colour("#12978a", "#34b3a4"),
        T.DEVICE_DAX: Colour("#065f55", "#187d71"),
        T.PCI_P2PDMA: Colour("#4aa89b", "#62bfb2"),
        T.HOLE: Colour("#33373d", "#050608"),
    }
)

_UNKNOWN: Final = Colour("#c3c7cc", "#6a7077", "#9a9fa6", "#8b929a")
_FEW: Final = 3
"""A union of so few is hatched in the colours of its first two members."""
_KERNEL_LIKE: Final = (KERNEL_UNKNOWN | TypeSet.of(T.PAGE_TABLE, T.ZSMALLOC, T.MOVABLE_OPS)).mask
_UNIONS: Final[tuple[tuple[int, Colour], ...]] = (
    (KERNEL_COMPOUND.mask, Colour("#c6b7d2", "#584a63", "#9d87ad", "#7f6e8c")),
    (KERNEL_MAPPED.mask | T.ZSMALLOC.bit, Colour("#d3b7c6", "#5f4654", "#ad8499", "#8a6678")),
    (_KERNEL_LIKE, _UNKNOWN),
    (DEVICE.mask, Colour("#9ccbc4", "#235b53", "#5a9e95", "#3d8378")),
)
"""Members a union may have, and its hatch; the first that fits wins."""

MAIN_TYPES: Final[tuple[TypeSet, ...]] = (
    *(
        TypeSet.of(kind)
        for kind in (
            T.FREE,
            T.ANON,
            T.FILE,
            T.SHMEM,
            T.SLAB,
            T.PAGE_TABLE,
            T.RESERVED,
            T.HUGETLB,
            T.HOLE,
        )
    ),
    KERNEL_UNKNOWN,
)
"""The types that fill most machines: what must never be mistaken for each other."""
