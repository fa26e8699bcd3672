"""process_madvise(2): advice about the memory of another process.

`mm/madvise.c:process_madvise, process_madvise_remote_valid @7.2`.  Only what cannot lose data is
possible there; it takes CAP_SYS_NICE and the right to look at the process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from memdesc.mm.areas.madvise import madvise
from memdesc.mm.process import Errno, Process, ptrace_may_access

if TYPE_CHECKING:
    from memdesc.mm.kernel import Kernel

__all__ = ["process_madvise"]

_REMOTE: Final = frozenset(("cold", "pageout", "willneed", "collapse"))


def process_madvise(
    kernel: Kernel, caller: Process, target: Process, vpn_start: int, vpn_end: int, advice: str
) -> None:
    """Give advice about a range of a process. Raises Errno."""
    own, rules = target is caller, kernel.rules
    if advice not in _REMOTE and not (own and rules.process_madvise_of_own):
        raise Errno("EINVAL")
    if not own and not ptrace_may_access(caller, target):
        raise Errno("EACCES")
    free = own and rules.process_madvise_of_own_unprivileged
    if not caller.mm.limits.capable and not free:
        kernel.say("process_madvise: no CAP_SYS_NICE")
        raise Errno("EPERM")
    madvise(kernel, target, vpn_start, vpn_end, advice)
