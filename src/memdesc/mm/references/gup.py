"""get_user_pages() and pin_user_pages(): from addresses to pages that stay.

`mm/gup.c:__get_user_pages, check_vma_flags, follow_page_pte, faultin_page, gup_must_unshare,
try_grab_folio @6.12`.  FOLL_GET takes an ordinary reference, as a transient look at a page does.
FOLL_PIN says that the page's content will be used, perhaps by a device: it is told apart from
references (1024 of them for a small folio, `_pincount` for a large one), so that fork copies the
page at once and the owner never loses it to copy-on-write.

>>> from memdesc.mm.kernel import Kernel
>>> from memdesc.mm.areas.mmap import mmap
>>> kernel = Kernel("6.12")
>>> mm = kernel.process("p").mm
>>> area = mmap(kernel, mm, 0x10000, 2)
>>> pages = pin_user_pages(kernel, mm, 0x10000, 1, FOLL.WRITE)
>>> kernel.refs(pages[0]), mm.has_pinned
(1026, True)
>>> unpin_user_pages(kernel, pages)
>>> kernel.drain(); kernel.refs(pages[0])
1
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntFlag
from typing import TYPE_CHECKING

from memdesc.kernels.kpageflags import KPF
from memdesc.kernels.masks import mask
from memdesc.mm import entries as e
from memdesc.mm.areas.pkeys import pkey_allows
from memdesc.mm.areas.vma import VM, Vma
from memdesc.mm.faults.fault import handle_mm_fault
from memdesc.mm.files.writeback import dirty_folio
from memdesc.mm.frames import PIN_BIAS
from memdesc.mm.process import Errno, Mm, OutOfMemory, Signal
from memdesc.mm.reclaim.mark_accessed import mark_accessed

if TYPE_CHECKING:
    from memdesc.mm.kernel import Kernel

__all__ = [
    "FOLL",
    "get_user_pages",
    "get_user_pages_fast",
    "grab",
    "must_unshare",
    "pin_user_pages",
    "pin_user_pages_fast",
    "put_pages",
    "unpin_user_pages",
]


@mask
class FOLL(IntFlag):
    """What is wanted of get_user_pages (`include/linux/mm_types.h @6.12`; others @6.1)."""

    NONE = 0
    WRITE = 1 << 0
    GET = 1 << 1
    DUMP = 1 << 2
    """Holes are errors: a core dump leaves them out."""
    FORCE = 1 << 3
    """A debugger's right: write what is read-only to its owner, read what is not readable."""
    NOFAULT = 1 << 5
    HWPOISON = 1 << 6
    """Lost pages are -EHWPOISON and not -EFAULT."""
    ANON = 1 << 7
    LONGTERM = 1 << 8
    """User space decides how long: not in places from which the kernel wants to move pages."""
    SPLIT_PMD = 1 << 9
    TOUCH = 1 << 16
    REMOTE = 1 << 18
    PIN = 1 << 19
    FAST_ONLY = 1 << 20


def get_user_pages(
    kernel: Kernel, mm: Mm, vpn: int, count: int, flags: FOLL = FOLL.NONE
) -> list[int]:
    """References to pages of any address space, as get_user_pages_remote() takes them.

    Returns their frames, fewer than asked for where something was in the way; raises Errno where
    not even the first could be had.
    """
    return _slow(kernel, mm, vpn, count, flags | FOLL.GET | FOLL.TOUCH)


def get_user_pages_fast(
    kernel: Kernel, mm: Mm, vpn: int, count: int, flags: FOLL = FOLL.NONE
) -> list[int]:
    """References to pages of the process that runs: without locks where that is possible."""
    from memdesc.mm.references.gup_fast import fast

    return fast(kernel, mm, vpn, count, flags | FOLL.GET)


def pin_user_pages(
    kernel: Kernel, mm: Mm, vpn: int, count: int, flags: FOLL = FOLL.NONE
) -> list[int]:
    """Pins on pages of any address space; as `get_user_pages`. The pages' mm is marked."""
    return _slow(kernel, mm, vpn, count, flags | FOLL.PIN)


def pin_user_pages_fast(
    kernel: Kernel, mm: Mm, vpn: int, count: int, flags: FOLL = FOLL.NONE
) -> list[int]:
    """Pins on pages of the process that runs: without locks where that is possible."""
    from memdesc.mm.references.gup_fast import fast

    return fast(kernel, mm, vpn, count, flags | FOLL.PIN)


def put_pages(kernel: Kernel, pages: Iterable[int], *, dirty: bool = False) -> None:
    """put_page() of each, after set_page_dirty_lock() if something was written to it."""
    for pfn in pages:
        if dirty:
            set_page_dirty(kernel, pfn)
        kernel.put(pfn)


def unpin_user_pages(kernel: Kernel, pages: Iterable[int], *, dirty: bool = False) -> None:
    """unpin_user_pages_dirty_lock(): the zero page was never pinned, so nothing is given back."""
    for pfn in pages:
        if dirty:
            set_page_dirty(kernel, pfn)
        if _is_zero_page(kernel, pfn):
            continue
        kernel.events["nr_foll_pin_released"] += 1
        head = kernel.head(pfn)
        if kernel.order_of(pfn):
            kernel.f.pins[head] -= 1
            kernel.put(head)
        else:
            kernel.put(head, PIN_BIAS)


def grab(kernel: Kernel, pfn: int, flags: FOLL) -> None:
    """try_grab_folio(): one reference or one pin on the folio of a page."""
    if flags & FOLL.GET:
        kernel.get(pfn)
    elif flags & FOLL.PIN:
        if _is_zero_page(kernel, pfn):
            kernel.say("try_grab_folio: the zero page is never pinned")
            return
        kernel.events["nr_foll_pin_acquired"] += 1
        if kernel.order_of(pfn):
            kernel.get(pfn)
            kernel.f.pins[kernel.head(pfn)] += 1
        else:
            kernel.get(pfn, PIN_BIAS)


def must_unshare(kernel: Kernel, vma: Vma | None, flags: FOLL, pfn: int, entry: int) -> bool:
    """gup_must_unshare(): whether a read pin would see other data than its owner after a write.

    `vma` None: nobody has looked it up (the fast path).
    """
    if flags & (FOLL.WRITE | FOLL.PIN) != FOLL.PIN:
        return False
    if not kernel.flags(pfn) & KPF.ANON:
        if not flags & FOLL.LONGTERM or not kernel.rules.unshares_cache_pages:
            return False
        return vma is None or vma.is_cow
    return not kernel.exclusive(kernel.head(pfn) if entry & e.HUGE else pfn)


def set_page_dirty(kernel: Kernel, pfn: int) -> None:
    """set_page_dirty_lock(): of the folio, by the file system that it belongs to."""
    if not kernel.flags(pfn) & KPF.DIRTY:
        dirty_folio(kernel, pfn)


def start(mm: Mm, flags: FOLL) -> None:
    """is_valid_gup_args(), and the mark on an address space that was ever pinned."""
    if bool(flags & FOLL.GET) and bool(flags & FOLL.PIN):
        raise Errno("EINVAL")
    if flags & FOLL.LONGTERM and not flags & FOLL.PIN:
        raise Errno("EINVAL")
    if flags & FOLL.PIN:
        mm.has_pinned = True


def get_pages_slow(kernel: Kernel, mm: Mm, vpn: int, count: int, flags: FOLL) -> list[int]:
    """__get_user_pages(): pages one after the other, with faults where they are needed."""
    pages: list[int] = []
    vma: Vma | None = None
    try:
        while len(pages) < count:
            at = vpn + len(pages)
            if vma is None or at >= vma.vpn_end:
                vma = _find_vma(kernel, mm, at)
                _check_vma_flags(kernel, mm, vma, flags)
            pages.append(_page(kernel, mm, vma, at, flags))
    except Errno as error:
        if not pages:
            raise
        kernel.say(f"__get_user_pages: {error.name} after {len(pages)} pages, which are returned")
    return pages


# --- helpers -----------------------------------------------------------------------------


def _slow(kernel: Kernel, mm: Mm, vpn: int, count: int, flags: FOLL) -> list[int]:
    start(mm, flags)
    if flags & FOLL.LONGTERM:
        from memdesc.mm.references.gup_longterm import longterm

        return longterm(kernel, mm, vpn, count, flags)
    return get_pages_slow(kernel, mm, vpn, count, flags)


def _find_vma(kernel: Kernel, mm: Mm, vpn: int) -> Vma:
    """gup_vma_lookup(): no stack grows, since 6.5 and in what is maintained of older series."""
    vma = mm.vmas.find(vpn)
    if vma is None:
        kernel.say("check_vma_flags: nothing is mapped there, EFAULT")
        raise Errno("EFAULT")
    return vma


def _check_vma_flags(kernel: Kernel, mm: Mm, vma: Vma, flags: FOLL) -> None:
    """check_vma_flags(), in its order."""
    why, error = _refusal(kernel, vma, flags)
    if (
        not why
        and not flags & FOLL.REMOTE
        and not pkey_allows(mm, vma, write=bool(flags & FOLL.WRITE))
    ):
        why, error = "the caller's protection key", "EFAULT"
    if why:
        kernel.say(f"check_vma_flags: {why}, {error}")
        raise Errno(error)


def _refusal(kernel: Kernel, vma: Vma, flags: FOLL) -> tuple[str, str]:
    has, fault = vma.flags, "EFAULT"
    if has & (VM.IO | VM.PFNMAP):
        return "VM_IO or VM_PFNMAP", fault
    if flags & FOLL.ANON and not vma.is_anonymous:
        return "not anonymous", fault
    if flags & FOLL.SPLIT_PMD and has & VM.HUGETLB:
        return "hugetlb is never split", "EOPNOTSUPP"
    if vma.file is not None and vma.file.mapping.fs.name == "secretmem":
        return "secret memory", fault
    if flags & FOLL.WRITE:
        if not _may_pin_file(kernel, vma, flags):
            return "a file system that tracks writes, and nobody knows for how long", fault
        if has & VM.WRITE:
            return "", ""
        if not flags & FOLL.FORCE:
            return "not writable", fault
        if has & VM.HUGETLB and not kernel.rules.forced_hugetlb_writes:
            return "hugetlb is not written by force", fault
        return ("", "") if vma.is_cow else ("shared and not writable", fault)
    if not has & VM.READ:
        if not flags & FOLL.FORCE:
            return "not readable", fault
        if not has & VM.MAYREAD:
            return "never readable", fault
    return "", ""


def _may_pin_file(kernel: Kernel, vma: Vma, flags: FOLL) -> bool:
    """writable_file_mapping_allowed(): a shared mapping whose file system must know of writes."""
    long_pin = FOLL.PIN | FOLL.LONGTERM
    if flags & long_pin != long_pin or not kernel.rules.refuses_longterm_file_writes:
        return True
    if vma.file is None or vma.flags & (VM.SHARED | VM.MAYWRITE) != VM.SHARED | VM.MAYWRITE:
        return True
    fs = vma.file.mapping.fs
    return not (fs.tracks_writes or fs.has_device)


def _page(kernel: Kernel, mm: Mm, vma: Vma, vpn: int, flags: FOLL) -> int:
    """One page, faulted in as often as it takes. Raises Errno."""
    while True:
        entry = mm.tables.entry(vpn)
        pfn = _follow(kernel, vma, entry, flags)
        unshare = False
        if pfn is not None:
            if not _writable(entry) and must_unshare(kernel, vma, flags, pfn, entry):
                unshare = True
            else:
                grab(kernel, pfn, flags)
                _touch(kernel, pfn, entry, flags)
                return pfn
        if flags & FOLL.NOFAULT:
            raise Errno("EFAULT")
        if unshare:
            kernel.say("gup_must_unshare: not exclusive, so the pin would not see later writes")
        _faultin(kernel, mm, vma, vpn, flags, unshare=unshare)


def _follow(kernel: Kernel, vma: Vma, entry: int, flags: FOLL) -> int | None:
    """follow_page_pte(): the page that is mapped; None where a fault is wanted. Raises Errno."""
    if not e.is_present(entry):
        if flags & FOLL.DUMP and entry == e.NONE_ENTRY and vma.is_anonymous:
            raise Errno("EFAULT")
        return None
    pfn = e.pfn_of(entry)
    if flags & FOLL.WRITE and not _may_write(kernel, vma, entry, flags):
        return None
    if _is_zero_page(kernel, pfn) or kernel.flags(pfn) & KPF.ZERO_PAGE:
        if flags & FOLL.DUMP:
            raise Errno("EFAULT")
        return pfn
    if entry & e.SPECIAL:
        raise Errno("EFAULT" if flags & FOLL.DUMP else "EEXIST")
    return pfn


def _may_write(kernel: Kernel, vma: Vma, entry: int, flags: FOLL) -> bool:
    """can_follow_write_pte(): writable, or forced on a page that is the process's alone."""
    if _writable(entry):
        return True
    if not flags & FOLL.FORCE or vma.flags & (VM.MAYSHARE | VM.SHARED | VM.WRITE):
        return False
    pfn = e.pfn_of(entry)
    if not vma.flags & VM.MAYWRITE or not kernel.flags(pfn) & KPF.ANON:
        return False
    if not kernel.exclusive(kernel.head(pfn) if entry & e.HUGE else pfn):
        return False
    # Soft-dirty tracking and userfaultfd want to see a fault first.
    tracked = not vma.flags & VM.SOFTDIRTY and not entry & e.SOFT_DIRTY
    if tracked or (vma.flags & VM.UFFD_WP and entry & e.UFFD_WP):
        return False
    kernel.say("can_follow_write_pte: forced, the page is exclusive")
    return True


def _writable(entry: int) -> bool:
    return bool(entry & e.RW) and not entry & e.PROTNONE


def _touch(kernel: Kernel, pfn: int, entry: int, flags: FOLL) -> None:
    """FOLL_TOUCH: the page counts as used, and as dirty if the processor's bit does not say so."""
    if not flags & FOLL.TOUCH:
        return
    if flags & FOLL.WRITE and not entry & e.DIRTY:
        set_page_dirty(kernel, pfn)
    if not _is_zero_page(kernel, pfn):
        mark_accessed(kernel, pfn)


def _faultin(kernel: Kernel, mm: Mm, vma: Vma, vpn: int, flags: FOLL, *, unshare: bool) -> None:
    """faultin_page(): as an access would, but what would be a signal is an error number."""
    try:
        handle_mm_fault(
            kernel, mm, vma, vpn, write=bool(flags & FOLL.WRITE) and not unshare, unshare=unshare
        )
    except OutOfMemory:
        raise Errno("ENOMEM") from None
    except Signal as signal:
        poisoned = signal.code == "MCEERR_AR" and flags & FOLL.HWPOISON
        raise Errno("EHWPOISON" if poisoned else "EFAULT") from None


def _is_zero_page(kernel: Kernel, pfn: int) -> bool:
    """is_zero_page(): the small one."""
    return pfn == kernel.zero_pfn
