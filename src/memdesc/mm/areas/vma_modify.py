"""Splitting and merging areas: what stays one `struct vm_area_struct`, and what becomes two.

`mm/vma.c:vma_merge_existing_range, vma_merge_new_range, __split_vma, vma_modify @6.12`;
`mm/mmap.c:vma_merge, __vma_adjust @6.1`.  Two areas that touch become one where nobody could
tell the difference: the same flags, file, name and userfaultfd, offsets that continue, and
anon_vmas that can be one.  What the releases disagree on is the last, and the soft-dirty flag.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from memdesc.mm.areas.vma import VM, VM_SPECIAL, Vma
from memdesc.mm.process import Errno, Mm, OutOfMemory
from memdesc.mm.rmap import anon_vma_clone, unlink_anon_vmas

if TYPE_CHECKING:
    from memdesc.mm.areas.mempolicy import Policy
    from memdesc.mm.files.filemap import OpenFile
    from memdesc.mm.kernel import Kernel
    from memdesc.mm.rmap import AnonVma
    from memdesc.mm.userfault.userfaultfd import UserfaultfdCtx

__all__ = [
    "Proposed", "detach", "may_merge", "most_areas", "split_at", "split_vma", "vma_merge_new_range",
    "vma_modify_flags", "vma_modify_name", "vma_modify_policy", "vma_modify_uffd",
]  # fmt: skip


@dataclass(slots=True)
class Proposed:
    """A range as it is about to be: `struct vma_merge_struct @6.12`."""

    vpn_start: int
    vpn_end: int
    flags: VM
    pgoff: int
    file: OpenFile | None = None
    name: str = ""
    anon_vma: AnonVma | None = None
    source: Vma | None = None
    """The area whose range it is, or (mremap) from which it is copied."""
    uffd: UserfaultfdCtx | None = None
    policy: Policy | None = None

    @classmethod
    def part_of(cls, vma: Vma, vpn_start: int, vpn_end: int) -> Proposed:
        """A range of an area (or of the space behind it) as that area is."""
        return cls(
            vpn_start, vpn_end, vma.flags, vma.index_of(vpn_start), vma.file, vma.name,
            vma.anon_vma, uffd=vma.uffd, policy=vma.policy,
        )  # fmt: skip

    @property
    def pages(self) -> int:
        """How many pages it covers."""
        return self.vpn_end - self.vpn_start


def vma_modify_flags(
    kernel: Kernel, mm: Mm, vma: Vma, vpn_start: int, vpn_end: int, flags: VM
) -> Vma:
    """Give part of an area other flags: merge it with its neighbours, or split it off.

    Returns the area that holds the range then. Raises OutOfMemory above max_map_count, when a
    split at the start may have happened.
    """
    return _modify(kernel, mm, vma, replace(Proposed.part_of(vma, vpn_start, vpn_end), flags=flags))


def vma_modify_name(
    kernel: Kernel, mm: Mm, vma: Vma, vpn_start: int, vpn_end: int, name: str
) -> Vma:
    """The same for the name of anonymous memory."""
    return _modify(kernel, mm, vma, replace(Proposed.part_of(vma, vpn_start, vpn_end), name=name))


def vma_modify_policy(
    kernel: Kernel, mm: Mm, vma: Vma, vpn_start: int, vpn_end: int, policy: Policy | None
) -> Vma:
    """The same for the memory policy."""
    new = replace(Proposed.part_of(vma, vpn_start, vpn_end), policy=policy)
    return _modify(kernel, mm, vma, new)


def vma_modify_uffd(
    kernel: Kernel, mm: Mm, vma: Vma, vpn_start: int, vpn_end: int, flags: VM,
    uffd: UserfaultfdCtx | None,
) -> Vma:  # fmt: skip
    """The same for the flags of an area and the userfaultfd that wants them."""
    new = replace(Proposed.part_of(vma, vpn_start, vpn_end), flags=flags, uffd=uffd)
    return _modify(kernel, mm, vma, new)


def vma_merge_new_range(
    kernel: Kernel, mm: Mm, new: Proposed, *, next_first: bool = False
) -> Vma | None:
    """Let neighbours grow over a range where nothing is mapped: the grown one, or None.

    `next_first`: as mmap_region() does it @6.1.
    """
    if new.flags & VM_SPECIAL:
        return None
    before, after = mm.vmas.before(new.vpn_start), mm.vmas.after(new.vpn_end)
    right = after is not None and may_merge(kernel, new, after)
    if next_first and right:
        assert after is not None
        joined = replace(new, anon_vma=after.anon_vma)
        left = before is not None and may_merge(kernel, joined, before)
    else:
        left = before is not None and may_merge(kernel, new, before)
        right = right and not (left and not _may_be_one(before, after))
    if left and right and _has_close(after):
        right = False
    if not left and not right:
        return None
    target = before if left else after
    assert target is not None
    _import_anon_vma(mm, target, after if left and right else None)
    _import_anon_vma(mm, target, new.source)
    sticky = _sticky(kernel, new.flags, target.flags)
    if left and right:
        assert before is not None
        assert after is not None
        sticky |= _sticky(kernel, after.flags)
        end = after.vpn_end
        detach(kernel, mm, after)
        mm.vmas.resize(before, before.vpn_start, end)
    elif left:
        mm.vmas.resize(target, target.vpn_start, new.vpn_end)
    else:
        mm.vmas.resize(target, new.vpn_start, target.vpn_end)
    target.flags |= sticky
    sides = "both neighbours" if left and right else "the one before" if left else "the one behind"
    kernel.say(f"vma_merge_new_range: becomes part of {sides}")
    return target


def split_vma(kernel: Kernel, mm: Mm, vma: Vma, vpn: int) -> tuple[Vma, Vma]:
    """split_vma(): as `split_at`, but not above max_map_count. Raises OutOfMemory, Errno."""
    if len(mm.vmas) >= most_areas(kernel):
        mm.may_have_mergeable = True
        raise OutOfMemory
    return split_at(kernel, mm, vma, vpn)


def split_at(kernel: Kernel, mm: Mm, vma: Vma, vpn: int) -> tuple[Vma, Vma]:
    """__split_vma(): two areas, the one before and the one from an address inside on.

    A huge PMD that crosses the address is split first. Raises Errno.
    """
    assert vma.vpn_start < vpn < vma.vpn_end
    from memdesc.mm.huge.huge_memory import split_pmd_at

    if vma.flags & VM.HUGETLB:
        if vpn % _HUGE_PAGES:
            raise Errno("EINVAL")
    else:
        split_pmd_at(kernel, mm, vma, vpn)
    end = vma.vpn_end
    rest = vma.copy(vpn, end, vma.pgoff + vpn - vma.vpn_start)
    mm.vmas.resize(vma, vma.vpn_start, vpn)
    mm.vmas.insert(rest)
    anon_vma_clone(mm, rest, vma)
    if vma.file is not None:
        vma.file.mapped(mm, rest)
    return vma, rest


def detach(kernel: Kernel, mm: Mm, vma: Vma) -> None:
    """Take an area out, whose pages belong to another or are gone."""
    mm.vmas.remove(vma)
    unlink_anon_vmas(kernel, mm, vma)
    if vma.file is not None:
        vma.file.unmapped(kernel, mm, vma)


def most_areas(kernel: Kernel) -> int:
    """vm.max_map_count."""
    return int(kernel.knobs["max_map_count"])


def may_merge(kernel: Kernel, new: Proposed, neighbour: Vma) -> bool:
    """can_vma_merge_before(), can_vma_merge_after(): whether a neighbour may grow over a range."""
    rules = kernel.rules
    if neighbour.vpn_end == new.vpn_start:
        continues = neighbour.pgoff + neighbour.pages == new.pgoff
    elif neighbour.vpn_start == new.vpn_end:
        continues = new.pgoff + new.pages == neighbour.pgoff
    else:
        return False
    ignored = VM.SOFTDIRTY | (VM.MAYBE_GUARD if rules.sticky_soft_dirty else VM(0))
    return (
        continues
        and not (neighbour.flags ^ new.flags) & ~ignored
        and neighbour.file is new.file
        and neighbour.name == new.name
        and neighbour.uffd is new.uffd
        and neighbour.policy == new.policy
        and not (rules.close_forbids_merge and _has_close(neighbour))
        and _anon_vmas_agree(kernel, new, neighbour)
    )


# --- helpers -----------------------------------------------------------------------------

_HUGE_PAGES = 512


def _modify(kernel: Kernel, mm: Mm, vma: Vma, new: Proposed) -> Vma:
    """vma_modify(): a part of an area becomes as `new` is."""
    if new == Proposed.part_of(vma, new.vpn_start, new.vpn_end):
        return vma
    new.source = vma
    merged = _merge_existing_range(kernel, mm, vma, new)
    if merged is not None:
        merged.flags = new.flags | _sticky(kernel, merged.flags)
        return merged
    if vma.vpn_start < new.vpn_start:
        _, vma = split_vma(kernel, mm, vma, new.vpn_start)
        kernel.say("split_vma: at the start of the range")
    if vma.vpn_end > new.vpn_end:
        split_vma(kernel, mm, vma, new.vpn_end)
        kernel.say("split_vma: at the end of the range")
    vma.flags, vma.name, vma.uffd, vma.policy = new.flags, new.name, new.uffd, new.policy
    return vma


def _merge_existing_range(kernel: Kernel, mm: Mm, vma: Vma, new: Proposed) -> Vma | None:
    """vma_merge_existing_range(): neighbours take over a part of `vma` that touches them."""
    at_start, at_end = new.vpn_start == vma.vpn_start, new.vpn_end == vma.vpn_end
    if new.flags & VM_SPECIAL or not (at_start or at_end):
        return None
    before = mm.vmas.before(vma.vpn_start) if at_start else None
    after = mm.vmas.after(vma.vpn_end) if at_end else None
    left = before is not None and may_merge(kernel, new, before)
    right = after is not None and may_merge(kernel, new, after)
    if left and right and not _may_be_one(before, after):
        right = False
    if not left and not right:
        return None
    whole = at_start and at_end
    if whole and _has_close(vma):
        return None
    if left and right and _has_close(after):
        right = False
    target = before if left else after
    assert target is not None
    if left and right:
        assert after is not None
        _import_anon_vma(mm, target, after if after.anon_vma is not None else vma)
    else:
        _import_anon_vma(mm, target, vma)
    sticky = _sticky(kernel, new.flags, target.flags)
    if left and right:
        assert after is not None
        sticky |= _sticky(kernel, after.flags)
        end = after.vpn_end
        detach(kernel, mm, vma)
        detach(kernel, mm, after)
        mm.vmas.resize(target, target.vpn_start, end)
    else:
        _move_boundary(kernel, mm, vma, target, new, whole=whole)
    target.flags |= sticky
    sides = "both neighbours" if left and right else "the one before" if left else "the one behind"
    kernel.say(f"vma_merge_existing_range: joins {sides}")
    return target


def _move_boundary(
    kernel: Kernel, mm: Mm, vma: Vma, target: Vma, new: Proposed, *, whole: bool
) -> None:
    """`target` takes `new`, all or one end of `vma`."""
    from memdesc.mm.huge.huge_memory import split_pmd_at

    before = target.vpn_end == new.vpn_start
    if whole:
        detach(kernel, mm, vma)
    elif before:
        split_pmd_at(kernel, mm, vma, new.vpn_end)
        mm.vmas.resize(vma, new.vpn_end, vma.vpn_end)
    else:
        split_pmd_at(kernel, mm, vma, new.vpn_start)
        mm.vmas.resize(vma, vma.vpn_start, new.vpn_start)
    if before:
        mm.vmas.resize(target, target.vpn_start, new.vpn_end)
    else:
        mm.vmas.resize(target, new.vpn_start, target.vpn_end)


def _anon_vmas_agree(kernel: Kernel, new: Proposed, neighbour: Vma) -> bool:
    """is_mergeable_anon_vma()."""
    theirs, mine = neighbour.anon_vma, new.anon_vma
    if theirs is mine:
        return True
    if theirs is not None and mine is not None:
        return False
    if not kernel.rules.merges_unfaulted_neighbours:
        return len(neighbour.chain) == 1
    if theirs is None:
        return new.source is None or not _is_fork_child(new.source)
    return not _is_fork_child(neighbour)


def _may_be_one(before: Vma | None, after: Vma | None) -> bool:
    """Whether the anon_vmas of two neighbours of a range agree with each other."""
    assert before is not None
    assert after is not None
    one, other = before.anon_vma, after.anon_vma
    return one is None or other is None or one is other


def _is_fork_child(vma: Vma) -> bool:
    """vma_is_fork_child() @7.2: pages of an ancestor may be in it."""
    return vma.anon_vma is not None and len(vma.chain) != 1


def _import_anon_vma(mm: Mm, target: Vma, source: Vma | None) -> None:
    """dup_anon_vma(): an area that grows over faulted pages gets their anon_vma."""
    if source is not None and source.anon_vma is not None and target.anon_vma is None:
        anon_vma_clone(mm, target, source)


def _has_close(vma: Vma | None) -> bool:
    """vm_ops->close: somebody counts the areas of the file."""
    return vma is not None and vma.file is not None and vma.file.has_close


def _sticky(kernel: Kernel, *flags: VM) -> VM:
    """VM_STICKY @7.2: flags that the result has if any part had them."""
    if not kernel.rules.sticky_soft_dirty:
        return VM(0)
    found = VM(0)
    for word in flags:
        found |= word & (VM.SOFTDIRTY | VM.MAYBE_GUARD)
    return found
