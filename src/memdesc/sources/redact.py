"""Replacing names by salted hashes before a capture is written.

A capture is made to be handed on: to a vendor, a colleague, an issue tracker.  Names of
hosts, processes, files and cgroups say more than the question needs, so by default each
becomes a short hash.  The salt is random and is not kept: the same name has the same
hash within one capture, which keeps its structure, and another one in the next.

What the kernel itself names stays: types, zones, slab caches, /proc/iomem, [heap],
/memfd:, /dev/zero, anon_inode:[...].  So do the first, standardised parts of a path
(/usr/lib/...), the endings that tell a kind (.so, .service), and all numbers.

>>> redact = Redactor(b"salt")
>>> redact.mapping("[heap]"), redact.mapping("/usr/lib/libexample.so.3")
('[heap]', '/usr/lib/~81ac504a44.so')
>>> redact.cmdline("root=/dev/sda1 ro quiet hugepages=16")
'root=~ ro quiet hugepages=~'
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import secrets
from collections.abc import Callable, Mapping
from typing import Any

from memdesc.map.machine import Machine
from memdesc.sources.capture_format import Redaction

__all__ = ["RULES", "Redactor"]

MARK = "~"
"""Begins every hash, so that nobody takes one for a name."""
_HASH_BYTES = 5
"""40 bits: two of ten thousand names collide with a probability of 1 in 20 000."""


def _words(text: str) -> list[str]:
    return text.split()


_STANDARD_FOLDERS = frozenset(
    _words(
        """
    bin boot dev etc home lib lib32 lib64 libexec media mnt opt proc root run sbin share srv sys
    tmp usr var cache locale log modules kernel systemd x86_64-linux-gnu shm mqueue hugepages
    """
    )
)
"""Folders of the file system standard: kept while every folder before them was kept."""
_ENDINGS = tuple(
    _words(
        """
    .so .ko .py .pyc .jar .mo .ttf .otf .db .sqlite .log .cache .conf .json .bin .dat .tmp .img
    .qcow2 .service .slice .scope .socket .mount .device
    """
    )
)
_DEVICES = re.compile(
    r"/dev/(?:zero|null|mem|kvm|fuse|ptmx|tty|snd|dri/\w+|nvidia[\w-]*|vfio/vfio|infiniband/\w+|"
    r"vhost-[\w]+|net/tun|dma_heap/\w+|kfd|udmabuf|hpet|gpu[\w-]*)"
)
_KERNEL_NAMES = re.compile(
    r"\[(?:heap|stack|vdso|vvar|vvar_vclock|vsyscall|uprobes|shstk)\]"
    r"|anon_inode:\[?[A-Za-z0-9_.:-]+\]?|\[aio\]|/\[aio\]|/anon_hugepage|/secretmem|\[anon\]"
)
_NAMED = re.compile(
    r"(/memfd:|/SYSV|\[anon:|\[anon_shmem:|/dev/shm/|socket:|pipe:|/dmabuf:|/drm )(.*)"
)
_CGROUP_NAMES = frozenset(
    _words(
        """
    system.slice user.slice machine.slice init.scope session.slice app.slice background.slice
    kubepods kubepods.slice kubepods-burstable.slice kubepods-besteffort.slice burstable
    besteffort docker lxc
    """
    )
)
_DELETED = " (deleted)"
_PARAMETER = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_PATH_IN_TEXT = re.compile(r"(?<![\w/])/[^\s:'\"]+")

RULES: Mapping[str, str] = {
    "how": "salted hash (BLAKE2b, 40 bits, written ~ and ten digits); the salt is not kept",
    "hostname": "hashed",
    "process names": "hashed",
    "paths": "hashed component by component; standard folders and common endings are kept",
    "cgroup paths": "hashed component by component; systemd's own names and endings are kept",
    "kernel command line": "parameter names only",
    "kept": "kernel release, zones, iomem, slab caches, counters, addresses, ids, inode numbers",
}
"""What is done to what, for the manifest."""


class Redactor:
    """Replaces names. One per capture."""

    def __init__(self, salt: bytes | None = None) -> None:
        """`salt` is for tests; by default it is random and known to nobody."""
        self._salt = secrets.token_bytes(32) if salt is None else salt
        self._known: dict[str, str] = {}

    @property
    def redaction(self) -> Redaction:
        """What the manifest says."""
        return Redaction("hashed", RULES)

    def name(self, text: str) -> str:
        """A hash of the whole `text`; "" stays ""."""
        if not text:
            return text
        known = self._known.get(text)
        if known is None:
            data = text.encode("utf-8", "surrogatepass")
            digest = hashlib.blake2b(data, key=self._salt, digest_size=_HASH_BYTES)
            known = self._known[text] = MARK + digest.hexdigest()
        return known

    def path(self, text: str) -> str:
        """Each component hashed, but for leading standard folders and known endings."""
        parts = text.split("/")
        standard = True
        for index, part in enumerate(parts):
            is_last = index == len(parts) - 1
            standard = standard and not is_last and (not part or part in _STANDARD_FOLDERS)
            if not standard:
                parts[index] = self._with_ending(part)
        return "/".join(parts)

    def mapping(self, text: str) -> str:
        """The name of a memory area, as /proc/PID/maps shows it."""
        bare = text.removesuffix(_DELETED)
        deleted = text[len(bare) :]
        if _KERNEL_NAMES.fullmatch(bare) or _DEVICES.fullmatch(bare):
            return text
        named = _NAMED.fullmatch(bare)
        if named:
            closing = "]" if named[1].startswith("[") and named[2].endswith("]") else ""
            return named[1] + self.name(named[2].removesuffix(closing)) + closing + deleted
        if bare.startswith("/"):
            return self.path(bare) + deleted
        return self.name(bare) + deleted

    def cgroup(self, text: str) -> str:
        """A cgroup's path: each component hashed, but for systemd's and Kubernetes' own."""
        return "/".join(
            part if not part or part in _CGROUP_NAMES else self._with_ending(part)
            for part in text.split("/")
        )

    def cmdline(self, text: str) -> str:
        """The kernel's command line: names of parameters, `=~` for each value."""
        words: list[str] = []
        for word in re.findall(r'(?:[^\s"]|"[^"]*(?:"|$))+', text):
            if word in ("--", "---"):
                break  # the rest goes to init
            name, equals, _value = word.partition("=")
            kept = name if _PARAMETER.fullmatch(name) else self.name(name)
            words.append(kept + (equals and f"={MARK}"))
        return " ".join(words)

    def reason(self, text: str) -> str:
        """A message: paths in it are hashed unless they lie in /proc or /sys."""
        return _PATH_IN_TEXT.sub(
            lambda found: (
                found[0] if found[0].startswith(("/proc/", "/sys/")) else self.path(found[0])
            ),
            text,
        )

    def machine(self, machine: Machine) -> Machine:
        """`machine` without names that somebody chose."""
        return dataclasses.replace(
            machine,
            hostname=self.name(machine.hostname),
            cmdline=None if machine.cmdline is None else self.cmdline(machine.cmdline),
            cgroups={inode: self.cgroup(path) for inode, path in machine.cgroups.items()},
            unseen=self.reasons(machine.unseen),
        )

    def reasons(self, unseen: Mapping[str, str]) -> dict[str, str]:
        """Every message of `unseen` through `reason`."""
        return {self.reason(what): self.reason(why) for what, why in unseen.items()}

    def report(self, report: Mapping[str, Any]) -> dict[str, Any]:
        """The report of an attribution, its problems through `reason`."""
        problems = [[pid, self.reason(why)] for pid, why in report.get("problems", ())]
        return {**report, "problems": problems}

    def column(self, table: str, column: str) -> Callable[[str], str]:
        """How the texts of one column of an attribution's tables are replaced."""
        if column == "cgroup":
            return self.cgroup
        return self.mapping if (table, column) == ("vmas", "name") else self.name

    def _with_ending(self, part: str) -> str:
        """`part` hashed, with the ending that tells its kind: libz.so.1 -> ~0123456789.so."""
        if not part:
            return part
        stem = re.sub(r"\.so(?:\.\d+)*$", ".so", part)
        for ending in _ENDINGS:
            if stem.endswith(ending) and len(stem) > len(ending):
                return self.name(part) + ending
        return self.name(part)
