"""Protection keys: a thread's own word about areas, beside what the areas allow.

`arch/x86/mm/pkeys.c, arch/x86/include/asm/mmu_context.h:arch_vma_access_permitted,
mm/mprotect.c:do_mprotect_pkey @6.12`.  An area has one of sixteen keys, and a register (PKRU) says
per key whether the thread may access and write.  The processor asks it at every access to user
memory, also by the kernel's copies; get_user_pages asks it for the caller's own memory only: a
debugger's register says nothing about somebody else's areas.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from memdesc.mm.areas.mprotect import mprotect
from memdesc.mm.areas.vma import VM, VM_PKEY, Vma
from memdesc.mm.process import Errno, Mm

if TYPE_CHECKING:
    from memdesc.mm.kernel import Kernel

__all__ = ["RIGHTS", "pkey_allows", "pkey_protect"]

_SHIFT: Final = 32
_KEYS: Final = 16
_NO_ACCESS, _NO_WRITE = 1, 2
RIGHTS: Final = {"open": 0, "no_access": _NO_ACCESS, "no_write": _NO_WRITE}
"""PKEY_DISABLE_ACCESS, PKEY_DISABLE_WRITE; "open" is key 0, which every area begins with."""


def pkey_allows(mm: Mm, vma: Vma, *, write: bool) -> bool:
    """__pkru_allows_pkey() for the process that runs."""
    denied = mm.pkru >> 2 * (int(vma.flags & VM_PKEY) >> _SHIFT) & 3
    return not denied & _NO_ACCESS and not (write and denied & _NO_WRITE)


def pkey_protect(
    kernel: Kernel, mm: Mm, vpn_start: int, vpn_end: int, prot: VM, rights: int
) -> None:
    """pkey_alloc(2) with `rights`, and pkey_mprotect(2) of a range with that key. Raises Errno."""
    key = 0
    if rights:
        key = next((each for each in range(1, _KEYS) if each not in mm.pkeys), 0)
        if not key:
            raise Errno("ENOSPC")
        mm.pkeys.add(key)
        mm.pkru |= rights << 2 * key
        kernel.say(f"pkey_alloc: key {key}")
    mprotect(kernel, mm, vpn_start, vpn_end, prot, pkey=VM(key << _SHIFT))
