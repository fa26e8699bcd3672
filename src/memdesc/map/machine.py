"""The machine that a map was taken from: kernel, zones, counters, names.

Everything here comes from text files beside /proc/kpageflags, or from the manifest of a
capture.  A file that could not be read is named in `Machine.unseen` with the reason; its
fields stay empty, and answers say "not visible", never 0.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self

from memdesc.errors import CaptureError
from memdesc.kernels.release import UNKNOWN_RELEASE, Behaviour, KernelRelease, behaviour_of
from memdesc.rules.absent import absent_types
from memdesc.rules.classify import Context
from memdesc.types import PAGE_SIZE_BYTES

__all__ = ["Counters", "IomemRange", "Machine", "SlabCache", "Zone"]


@dataclass(frozen=True, slots=True)
class Zone:
    """One zone of /proc/zoneinfo. Counts are in frames."""

    node: int
    name: str
    pfn_start: int
    spanned: int
    present: int
    managed: int
    free: int
    pcp: int
    """Frames on per-CPU lists (sum of the `count:` lines)."""
    wmark_min: int = 0
    """Frames that only an emergency takes; 0 where not visible."""
    wmark_low: int = 0
    """Frames below which kswapd reclaims; 0 where not visible."""
    reserve: int = 0
    """Frames beside, kept from memory that could also lie in a higher zone (`protection:`)."""

    @property
    def pfn_end(self) -> int:
        return self.pfn_start + self.spanned


@dataclass(frozen=True, slots=True)
class IomemRange:
    """A range of /proc/iomem that matters for memory, in bytes, half-open.

    Ranges come in the file's order, an outer one before those inside it, so of two that
    hold a frame the later one says more.
    """

    phys_start: int
    phys_end: int
    name: str


@dataclass(frozen=True, slots=True)
class SlabCache:
    """One line of /proc/slabinfo: counts of objects and slabs, sizes in bytes."""

    name: str
    objects_active: int
    objects: int
    object_size_bytes: int
    pages_per_slab: int
    slabs: int

    @property
    def size_bytes(self) -> int:
        return self.slabs * self.pages_per_slab * PAGE_SIZE_BYTES


@dataclass(frozen=True, slots=True)
class Counters:
    """Counters read at one moment: /proc/meminfo in bytes, /proc/vmstat in its own units."""

    meminfo: Mapping[str, int] = field(default_factory=dict)
    vmstat: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Machine:
    """What is known of a machine beside its page flags."""

    release: KernelRelease = UNKNOWN_RELEASE
    hostname: str = ""
    time_unix_s: float = 0.0
    cmdline: str | None = None
    zones: tuple[Zone, ...] = ()
    iomem: tuple[IomemRange, ...] = ()
    before: Counters = Counters()
    """Counters read just before the scan."""
    after: Counters = Counters()
    """Counters read just after the scan."""
    buddyinfo: tuple[tuple[int, str, tuple[int, ...]], ...] = ()
    """(node, zone, free blocks per order)."""
    pagetypeinfo: tuple[tuple[int, str, str, tuple[int, ...]], ...] = ()
    """(node, zone, migratetype, free blocks per order)."""
    slabinfo: tuple[SlabCache, ...] = ()
    cgroups: Mapping[int, str] = field(default_factory=dict)
    """Inode number of a memory cgroup -> its path."""
    section_pages: int = 32768
    """Frames per memory section: 128 MiB on x86-64 (SECTION_SIZE_BITS 27)."""
    offline: tuple[tuple[int, int], ...] = ()
    """Frames [start, end) of memory blocks that are offline (/sys/devices/system/memory)."""
    boot_time_unix_s: int | None = None
    """When the machine was booted (btime in /proc/stat)."""
    ksm_pages_shared: int | None = None
    sysctls: Mapping[str, int] = field(default_factory=dict)
    """Settings of /proc/sys that change answers, by dotted name; a missing one is not known."""
    nr_cpus: int = 1
    """Processors with per-CPU page lists in the first zone of /proc/zoneinfo."""
    unseen: Mapping[str, str] = field(default_factory=dict)
    """File -> why it could not be read."""

    @cached_property
    def behaviour(self) -> Behaviour:
        return behaviour_of(self.release)

    @cached_property
    def context(self) -> Context:
        """What the classifier needs to know of this machine."""
        return Context(
            behaviour=self.behaviour,
            absent=absent_types(
                meminfo=self.before.meminfo, vmstat=self.before.vmstat, cmdline=self.cmdline
            ),
            ksm_in_use=None if self.ksm_pages_shared is None else self.ksm_pages_shared > 0,
        )

    @property
    def frames_present(self) -> int | None:
        """Sum of the zones' present pages; None where /proc/zoneinfo was not visible."""
        return sum(zone.present for zone in self.zones) if self.zones else None

    def to_json(self) -> dict[str, Any]:
        """A JSON value that `from_json` reads back to an equal machine."""
        value = dataclasses.asdict(self)
        value["release"] = self.release.text
        value["cgroups"] = {str(inode): path for inode, path in self.cgroups.items()}
        return value

    @classmethod
    def from_json(cls, value: Any, *, path: str = "") -> Self:
        """Read what `to_json` wrote.

        Raises CaptureError for anything of another shape: the value comes from a file.
        """
        try:
            text = _text(value["release"])
            return cls(
                release=KernelRelease.parse(text) if text else UNKNOWN_RELEASE,
                hostname=_text(value["hostname"]),
                time_unix_s=float(value["time_unix_s"]),
                cmdline=None if value["cmdline"] is None else _text(value["cmdline"]),
                zones=tuple(
                    Zone(
                        node=_int(z["node"]),
                        name=_text(z["name"]),
                        pfn_start=_int(z["pfn_start"]),
                        spanned=_int(z["spanned"]),
                        present=_int(z["present"]),
                        managed=_int(z["managed"]),
                        free=_int(z["free"]),
                        pcp=_int(z["pcp"]),
                        wmark_min=_int(z.get("wmark_min", 0)),
                        wmark_low=_int(z.get("wmark_low", 0)),
                        reserve=_int(z.get("reserve", 0)),
                    )
                    for z in value["zones"]
                ),
                iomem=tuple(
                    IomemRange(_int(r["phys_start"]), _int(r["phys_end"]), _text(r["name"]))
                    for r in value["iomem"]
                ),
                before=_counters(value["before"]),
                after=_counters(value["after"]),
                buddyinfo=tuple(
                    (_int(n), _text(z), tuple(_int(c) for c in counts))
                    for n, z, counts in value["buddyinfo"]
                ),
                pagetypeinfo=tuple(
                    (_int(n), _text(z), _text(t), tuple(_int(c) for c in counts))
                    for n, z, t, counts in value["pagetypeinfo"]
                ),
                slabinfo=tuple(
                    SlabCache(
                        name=_text(s["name"]),
                        objects_active=_int(s["objects_active"]),
                        objects=_int(s["objects"]),
                        object_size_bytes=_int(s["object_size_bytes"]),
                        pages_per_slab=_int(s["pages_per_slab"]),
                        slabs=_int(s["slabs"]),
                    )
                    for s in value["slabinfo"]
                ),
                cgroups={_int(int(k)): _text(v) for k, v in value["cgroups"].items()},
                section_pages=_section(value["section_pages"]),
                offline=tuple((_int(a), _int(b)) for a, b in value.get("offline", ())),
                boot_time_unix_s=None
                if value.get("boot_time_unix_s") is None
                else _int(value["boot_time_unix_s"]),
                ksm_pages_shared=None
                if value["ksm_pages_shared"] is None
                else _int(value["ksm_pages_shared"]),
                sysctls={_text(k): _int(v) for k, v in value.get("sysctls", {}).items()},
                nr_cpus=_int(value["nr_cpus"]),
                unseen={_text(k): _text(v) for k, v in value["unseen"].items()},
            )
        except CaptureError:
            raise
        except Exception as error:
            raise CaptureError(
                f"the manifest's machine section has an unexpected shape: {error!r}"[:300],
                path=path,
            ) from error


def _counters(value: Any) -> Counters:
    return Counters(
        {_text(k): _int(v) for k, v in value["meminfo"].items()},
        {_text(k): _int(v) for k, v in value["vmstat"].items()},
    )


def _int(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 64:
        raise CaptureError(f"not a count: {value!r:.60}")
    return value


def _text(value: Any) -> str:
    if type(value) is not str or len(value) > 1 << 16:
        raise CaptureError(f"not a text: {value!r:.60}")
    return value


def _section(value: Any) -> int:
    size = _int(value)
    if not 512 <= size <= 1 << 24 or size & (size - 1):
        raise CaptureError(f"not a section size: {size}")
    return size
