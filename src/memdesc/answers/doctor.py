"""What can be read here, what each missing file costs in answers, and how to get it.

Needs no privilege: it tries each file the way the sources do and says what happened.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from memdesc.errors import FormatError
from memdesc.kernels.release import UNKNOWN_RELEASE, Behaviour, KernelRelease, behaviour_of

__all__ = ["Check", "Doctor", "doctor"]

State = Literal["ok", "limited", "missing"]


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that answers depend on."""

    name: str
    state: State
    needed: bool
    """Without it the main answers do not work; the others lose a part."""
    found: str
    costs: str
    """What cannot be answered without it."""
    remedy: str
    """Exactly how to get it; "" when nothing is missing."""


@dataclass(frozen=True, slots=True)
class Doctor:
    """The whole examination."""

    release: str
    checks: tuple[Check, ...]
    traps: tuple[str, ...]
    """What this kernel shows wrongly or not at all, and memdesc allows for."""

    @property
    def is_well(self) -> bool:
        """Nothing that is needed is missing."""
        return not any(check.needed and check.state == "missing" for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """Schema memdesc-doctor/1."""
        return {
            "schema": "memdesc-doctor/1",
            "kernel": self.release,
            "well": self.is_well,
            "rows": [
                {
                    "name": c.name,
                    "state": c.state,
                    "needed": c.needed,
                    "found": c.found,
                    "costs": c.costs,
                    "remedy": c.remedy,
                }
                for c in self.checks
            ],
            "traps": list(self.traps),
        }


def doctor(root: Path = Path("/")) -> Doctor:
    """Examine the machine below `root`. Never raises for what is missing."""
    text = _read(root / "proc/sys/kernel/osrelease")
    try:
        release = KernelRelease.parse(text)
    except FormatError:
        release = UNKNOWN_RELEASE
    return Doctor(
        str(release),
        tuple(check(root) for check in _CHECKS),
        _traps(behaviour_of(release)),
    )


# --- helpers -----------------------------------------------------------------------------

_ROOT = "run as root, or give the interpreter CAP_SYS_ADMIN and CAP_DAC_READ_SEARCH"


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return ""


def _page_file(name: str, needed: bool, costs: str, config: str) -> Callable[[Path], Check]:
    def check(root: Path) -> Check:
        path = root / "proc" / name
        try:
            with path.open("rb", buffering=0) as file:
                os.pread(file.fileno(), 8, 0)
        except FileNotFoundError:
            return Check(
                f"/proc/{name}", "missing", needed, "not there", costs, f"a kernel with {config}"
            )
        except OSError as error:
            return Check(f"/proc/{name}", "missing", needed, str(error.strerror), costs, _ROOT)
        return Check(f"/proc/{name}", "ok", needed, "readable", costs, "")

    return check


def _text_file(
    name: str, costs: str, remedy: str, *, bad: Callable[[str], str] = lambda text: ""
) -> Callable[[Path], Check]:
    def check(root: Path) -> Check:
        try:
            text = (root / name).read_text("utf-8", "replace")
        except OSError as error:
            return Check(f"/{name}", "missing", False, str(error.strerror), costs, remedy)
        flaw = bad(text)
        if flaw:
            return Check(f"/{name}", "limited", False, flaw, costs, remedy)
        return Check(f"/{name}", "ok", False, "readable", costs, "")

    return check


def _pagemap(root: Path) -> Check:
    costs = "who maps a page, sizes per process, `what PID:ADDRESS`"
    name = "/proc/PID/pagemap"
    probe = bytearray(b"x" * 4096)
    address = id(probe)
    try:
        with (root / "proc/self/pagemap").open("rb", buffering=0) as file:
            word = int.from_bytes(os.pread(file.fileno(), 8, (address >> 12) * 8), "little")
    except OSError as error:
        return Check(name, "missing", False, str(error.strerror), costs, _ROOT)
    if word >> 63 and not word & (1 << 55) - 1:
        return Check(name, "limited", False, "frame numbers are hidden (0)", costs, _ROOT)
    hidden = _unreadable_processes(root)
    if hidden:
        return Check(
            name,
            "limited",
            False,
            f"{hidden} {'process' if hidden == 1 else 'processes'} cannot be read",
            costs,
            "CAP_SYS_PTRACE; a sandbox or security module may still refuse some",
        )
    return Check(name, "ok", False, "frame numbers are shown", costs, "")


def _unreadable_processes(root: Path) -> int:
    count = 0
    for entry in (root / "proc").iterdir():
        if entry.name.isdecimal():
            try:
                os.close(os.open(entry / "pagemap", os.O_RDONLY))
            except PermissionError:
                count += 1
            except OSError:
                pass
    return count


def _cgroups(root: Path) -> Check:
    base = root / "sys/fs/cgroup"
    costs = "names of memory cgroups (inode numbers are shown instead)"
    if (base / "memory").is_dir() or (base / "cgroup.controllers").is_file():
        return Check("memory cgroups", "ok", False, "mounted", costs, "")
    return Check(
        "memory cgroups",
        "missing",
        False,
        "no memory controller is mounted",
        costs,
        "mount -t cgroup2 none /sys/fs/cgroup (usually done by the init system)",
    )


def _packages(root: Path) -> Check:
    missing = [name for name in ("arro3.io", "jinja2", "duckdb", "drgn") if not _has(name)]
    costs = (
        "captures and bundled samples (arro3), the HTML report (jinja2), SQL (duckdb), crash "
        "dumps (drgn)"
    )
    if missing:
        return Check(
            "Python extras",
            "limited",
            False,
            "not installed: " + ", ".join(missing),
            costs,
            "pip install 'memdesc[all]'",
        )
    return Check("Python extras", "ok", False, "installed", costs, "")


def _has(name: str) -> bool:
    import importlib.util

    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def _hides_addresses(text: str) -> str:
    shown = any(not line.lstrip().startswith("00000000-00000000") for line in text.splitlines())
    return "" if shown else "addresses are shown as 0"


def _struct_pages(root: Path) -> Check:
    name = "struct pages through BPF"
    costs = (
        "slab caches, callers of vmalloc, stacks, per-CPU pages, pins, exact kinds; /proc takes "
        "ten times as long and cannot tell them"
    )
    if root != Path("/"):
        return Check(
            name, "missing", False, "not this machine", costs, "look at the machine itself"
        )
    from memdesc.structs.live import why_not

    reason = why_not()
    if reason:
        return Check(name, "missing", False, reason, costs, _BPF)
    return Check(name, "ok", False, "readable", costs, "")


_BPF = (
    "run as root (CAP_BPF and CAP_PERFMON), on a kernel with CONFIG_BPF_SYSCALL and BTF, not in "
    "lockdown=confidentiality; `--source live:struct` says exactly what is refused"
)


_CHECKS: tuple[Callable[[Path], Check], ...] = (
    _page_file("kpageflags", True, "every answer", "CONFIG_PROC_PAGE_MONITOR"),
    _page_file(
        "kpagecount", False, "how often a frame is mapped; Mapped", "CONFIG_PROC_PAGE_MONITOR"
    ),
    _page_file("kpagecgroup", False, "ledger by cgroup; who is charged", "CONFIG_MEMCG"),
    _pagemap,
    _struct_pages,
    _text_file(
        "proc/iomem",
        "telling holes and device memory from unmarked kernel memory (kernels from 6.15)",
        _ROOT,
        bad=_hides_addresses,
    ),
    _text_file("proc/zoneinfo", "zones, nodes, frames present, uninitialised memmap", _ROOT),
    _text_file("proc/slabinfo", "names and sizes of slab caches", _ROOT),
    _text_file("proc/pagetypeinfo", "free blocks by migratetype", _ROOT),
    _text_file(
        "sys/kernel/mm/ksm/pages_shared",
        "on 6.10 to 6.12: telling merged pages from other anonymous memory",
        "a kernel with CONFIG_KSM",
    ),
    _cgroups,
    _packages,
)


def _traps(behaviour: Behaviour) -> tuple[str, ...]:
    if not behaviour.knows_release:
        return ("the kernel release is not known: every trap below 7.3 is allowed for",)
    table = (
        (behaviour.ksm_bit_on_all_anon, "KSM is set on every anonymous page; it is not believed"),
        (behaviour.slab_may_show_anon, "slab frames can show ANON and KSM; SLAB wins"),
        (behaviour.holes_read_zero, "holes and device memory read 0; /proc/iomem tells them apart"),
        (behaviour.tails_show_own_flags, "tails show no flags of their folio; the head's are used"),
        (behaviour.typed_tails_bare, "tails of page tables and balloons show no type"),
        (
            behaviour.pgtable_shows_leaf_user_only,
            "kernel PTE tables and top-level tables carry no mark; they are unmarked kernel memory",
        ),
        (behaviour.zsmalloc_shows_mmap, "zsmalloc frames show a false MMAP and map count"),
        (behaviour.cgroup_on_head_only, "kpagecgroup shows a folio's cgroup on its head only"),
    )
    return tuple(text for applies, text in table if applies)
