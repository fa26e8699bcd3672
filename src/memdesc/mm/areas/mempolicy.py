"""Memory policies of areas: from which nodes their pages are to come.

`mm/mempolicy.c:do_mbind, mpol_new, mpol_set_nodemask, queue_pages_test_walk, mbind_range,
set_mempolicy_home_node, do_get_mempolicy, mpol_set_shared_policy @6.12`.  The machine of the model
has one node, 0, so every page comes from there; what a policy still does is to keep areas apart
that otherwise would be one.  Shared memory has its policies in the file: all who map it see them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from memdesc.mm.areas.vma_modify import vma_modify_policy
from memdesc.mm.process import Errno, Mm

if TYPE_CHECKING:
    from memdesc.mm.areas.vma import Vma
    from memdesc.mm.kernel import Kernel

__all__ = ["Policy", "get_mempolicy", "mbind", "set_home_node"]

_ONLINE: Final = frozenset({0})


@dataclass(frozen=True, slots=True)
class Policy:
    """A memory policy (`struct mempolicy`). Equal ones are one: `__mpol_equal()`."""

    mode: str
    nodes: frozenset[int]
    asked: frozenset[int] | None = None
    """The nodes as they were asked for, where the policy keeps to them (MPOL_F_STATIC_NODES)."""
    home_node: int | None = None


def mbind(
    kernel: Kernel, mm: Mm, vpn_start: int, vpn_end: int, mode: str, nodes: frozenset[int],
    *, static: bool = False,
) -> None:  # fmt: skip
    """mbind(2): give a range a policy; "default" takes it away. Raises Errno."""
    policy = _new(kernel, mode, nodes, static=static)
    _check_range(kernel, mm, vpn_start, vpn_end, may_have_holes=policy is None)
    for vma in mm.vmas.overlapping(vpn_start, vpn_end):
        _bind(kernel, mm, vma, vpn_start, vpn_end, policy)


def set_home_node(kernel: Kernel, mm: Mm, vpn_start: int, vpn_end: int, node: int) -> None:
    """set_mempolicy_home_node(2): the node from which "bind" and "preferred_many" begin.

    Raises Errno; areas before the one that cannot have it have it then.
    """
    if node not in _ONLINE:
        raise Errno("EINVAL")
    found = False
    for vma in mm.vmas.overlapping(vpn_start, vpn_end):
        if vma.policy is None:
            continue
        if vma.policy.mode not in ("bind", "preferred_many"):
            raise Errno("EOPNOTSUPP")
        found = True
        _bind(kernel, mm, vma, vpn_start, vpn_end, replace(vma.policy, home_node=node))
    if not found:
        kernel.say("set_mempolicy_home_node: no area of the range has a policy")
        raise Errno("ENOENT")


def get_mempolicy(mm: Mm, vpn: int) -> Policy | None:
    """get_mempolicy(2) with MPOL_F_ADDR: the policy at an address; None is "default".

    Raises Errno.
    """
    vma = mm.vmas.find(vpn)
    if vma is None:
        raise Errno("EFAULT")
    if vma.file is not None and vma.file.mapping.is_shmem:
        return vma.file.mapping.policies.get(vma.index_of(vpn))
    return vma.policy


# --- helpers -----------------------------------------------------------------------------


def _new(kernel: Kernel, mode: str, nodes: frozenset[int], *, static: bool) -> Policy | None:
    """mpol_new(), mpol_set_nodemask(). Raises Errno."""
    if mode == "weighted_interleave" and not kernel.rules.weighted_interleave:
        raise Errno("EINVAL")
    if mode == "default":
        if nodes:
            raise Errno("EINVAL")
        return None
    if mode == "local" or (mode == "preferred" and not nodes):
        if nodes or static:
            raise Errno("EINVAL")
        return Policy("local", frozenset())
    if not nodes & _ONLINE:
        kernel.say("mpol_set_nodemask: no node of these has memory")
        raise Errno("EINVAL")
    return Policy(mode, nodes & _ONLINE, nodes if static else None)


def _check_range(
    kernel: Kernel, mm: Mm, vpn_start: int, vpn_end: int, *, may_have_holes: bool
) -> None:
    """queue_pages_test_walk(): whether all of a range is mapped. Raises Errno."""
    vpn = vpn_start
    areas = mm.vmas.overlapping(vpn_start, vpn_end)
    for vma in areas:
        if vma.vpn_start > vpn:
            break
        vpn = vma.vpn_end
    if not areas or (vpn < vpn_end and not may_have_holes):
        kernel.say("queue_pages_test_walk: a hole in the range")
        raise Errno("EFAULT")


def _bind(
    kernel: Kernel, mm: Mm, vma: Vma, vpn_start: int, vpn_end: int, policy: Policy | None
) -> None:
    """mbind_range() of one area: it is split or merged, and a file that knows is told."""
    if vma.policy == policy:
        return
    start, end = max(vpn_start, vma.vpn_start), min(vpn_end, vma.vpn_end)
    vma = vma_modify_policy(kernel, mm, vma, start, end, policy)
    if vma.file is None or not vma.file.mapping.is_shmem:
        return
    shared = vma.file.mapping.policies
    for index in range(vma.pgoff, vma.pgoff + vma.pages):
        if policy is None:
            shared.pop(index, None)
        else:
            shared[index] = policy
    kernel.say("mpol_set_shared_policy: of the file, for all who map it")
