"""mseal(2): areas whose place, size and permissions are final.

`mm/mseal.c:do_mseal, check_mm_seal, apply_mm_seal, can_modify_vma, can_modify_vma_madv @6.12`.
Since 6.10.  Who can make a process call what it should not can no longer make its code writable,
or put something else in the place of memory that is only read: system calls on a sealed area are
refused with EPERM.  What the process may write anyway, it may also throw away.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from memdesc.mm.areas.vma import VM, Vma
from memdesc.mm.areas.vma_modify import vma_modify_flags
from memdesc.mm.process import Errno, Mm

if TYPE_CHECKING:
    from memdesc.mm.kernel import Kernel

__all__ = ["check_advice", "check_modify", "mseal"]

_DISCARDS: Final = frozenset(
    ("free", "dontneed", "dontneed_locked", "remove", "dontfork", "wipeonfork", "guard_install")
)
"""Advice after which memory reads otherwise than before: `is_madv_discard()`."""


def mseal(kernel: Kernel, mm: Mm, vpn_start: int, vpn_end: int) -> None:
    """Seal a range, of which all must be mapped. Raises Errno."""
    if not kernel.rules.mseal:
        raise Errno("ENOSYS")
    vpn = vpn_start
    for vma in mm.vmas.overlapping(vpn_start, vpn_end):
        if vma.vpn_start > vpn:
            break
        vpn = vma.vpn_end
    if vpn < vpn_end:
        kernel.say("check_mm_seal: not all of it is mapped, nothing is sealed")
        raise Errno("ENOMEM")
    vpn = vpn_start
    while vpn < vpn_end:
        found = mm.vmas.find(vpn)
        assert found is not None
        end = min(found.vpn_end, vpn_end)
        vma_modify_flags(kernel, mm, found, vpn, end, found.flags | VM.SEALED)
        vpn = end


def check_modify(kernel: Kernel, vma: Vma) -> None:
    """can_modify_vma(). Raises Errno where it is sealed."""
    if vma.flags & VM.SEALED:
        kernel.say("can_modify_vma: sealed")
        raise Errno("EPERM")


def check_advice(kernel: Kernel, vma: Vma, advice: str) -> None:
    """can_modify_vma_madv(): sealed memory that is read only is not thrown away. Raises Errno."""
    if not vma.flags & VM.SEALED or advice not in _DISCARDS:
        return
    if vma.is_anonymous and not vma.flags & VM.WRITE:
        kernel.say("can_modify_vma_madv: sealed, and its owner may not write there either")
        raise Errno("EPERM")
