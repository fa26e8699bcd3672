"""What is this frame? From one word of /proc/kpageflags to a type, with the reason.

The question is answered once per *distinct* word, not once per frame: a machine of
millions of frames shows a few hundred words.  The order of the tests is the order of
`docs/reference/types.md` ("How a frame gets its type"); the first match wins.

What it cannot know: the kinds of kernel memory that set no flag (vmalloc, stacks,
per-CPU, drivers), which are one honest union, narrowed by counters that prove a kind
absent (`Context.absent`).

>>> from memdesc.kernels.release import KernelRelease, behaviour_of
>>> ctx = Context(behaviour_of(KernelRelease.parse("7.2")))
>>> classify(0x400005828, ctx).types.names
['anon']
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

from memdesc.kernels.kpageflags import KPF
from memdesc.kernels.release import Behaviour, every_behaviour
from memdesc.rules.procedure import RULES, Rule
from memdesc.types import (
    DEVICE,
    KERNEL_COMPOUND,
    KERNEL_MAPPED,
    KERNEL_UNKNOWN,
    NOT_BACKED,
    Certainty,
    MemoryType,
    TypeSet,
)

__all__ = ["RULES", "Backing", "Context", "Rule", "Verdict", "classify", "former_type"]

T = MemoryType


class Backing(enum.IntEnum):
    """What the firmware map and the zones say about the range that a frame lies in."""

    UNKNOWN = 0
    """No /proc/iomem was readable, or the source is a bare file."""
    RAM = 1
    HOLE = 2
    """Not System RAM: firmware, PCI, nothing."""
    DEVICE = 3
    """Persistent or device memory in /proc/iomem."""
    ZERO_SECTION = 4
    """A whole memory section that reads 0, in a range of unknown backing."""
    ZERO_SECTION_RAM = 5
    """A whole section of System RAM that reads 0, in a zone whose present pages exceed
    its managed ones by at least that much."""


@dataclass(frozen=True, slots=True)
class Context:
    """What is known about the machine beside the word itself."""

    behaviour: Behaviour
    absent: int = 0
    """Mask of types that a counter proves absent (`memdesc.rules.absent`)."""
    ksm_in_use: bool | None = None
    """Whether /sys/kernel/mm/ksm/pages_shared is above zero; None where not readable."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer for one word: the types it can be, and the rule that said so."""

    types: TypeSet
    rule: Rule

    @property
    def certainty(self) -> Certainty:
        return self.rule.certainty


def classify(
    flags: int,
    context: Context,
    *,
    backing: Backing = Backing.UNKNOWN,
    head_flags: int | None = None,
) -> Verdict:
    """Return the type of a frame whose kpageflags word is `flags`.

    `head_flags` is the word of the compound page's head, needed for tails on kernels
    where a tail shows its own flags (`Behaviour.tails_show_own_flags`) or no page type
    (`Behaviour.typed_tails_bare`); None when the frame is no tail, or its head is torn.

    Every 64-bit word has an answer: unknown bits are ignored.
    """
    behaviour = context.behaviour
    if not behaviour.knows_release:
        return _on_any_kernel(flags, context, backing, head_flags)
    if flags & KPF.COMPOUND_TAIL and head_flags is not None and not flags & KPF.HWPOISON:
        inherited = _inherited(flags, head_flags, behaviour)
        if inherited is not None:
            flags = inherited
    word = KPF(flags & _MEANINGFUL)

    if KPF.NOPAGE in word:
        return _no_page(backing)
    if KPF.HWPOISON in word:
        if KPF.HUGE in word:
            return _verdict("huge-hwpoison", T.HUGETLB, T.POISONED)
        return _verdict("hwpoison", T.POISONED)
    if KPF.BUDDY in word:
        return _verdict("buddy", T.FREE)
    if KPF.SLAB in word:
        return _verdict("slab", T.SLAB)
    if KPF.PGTABLE in word:
        return _verdict("pgtable", T.PAGE_TABLE)
    if KPF.OFFLINE in word:
        if behaviour.balloon_movable_shows_uptodate and KPF.UPTODATE in word:
            return _verdict("offline-movable", T.BALLOON)
        return _verdict("offline", T.BALLOON, T.OFFLINE)
    if KPF.HUGE in word:
        return _verdict("huge", T.HUGETLB)
    if KPF.ZERO_PAGE in word:
        large = word & (KPF.THP | _COMPOUND)
        return _verdict("huge-zero", T.HUGE_ZERO) if large else _verdict("zero-page", T.ZERO)
    if KPF.ANON in word:
        return _anonymous(word, context)
    if KPF.SWAPBACKED in word:
        if KPF.SWAPCACHE in word:
            return _verdict("swap-cache", T.SWAP_CACHE)
        if not word & (_CONTENT | KPF.LRU | KPF.MMAP | KPF.DIRTY | KPF.THP):
            return _verdict("swapbacked-new", T.SHMEM, T.ANON, T.SWAP_CACHE)
        return _verdict("shmem", T.SHMEM)
    if KPF.RESERVED in word:
        return _verdict("reserved-mapped" if KPF.MMAP in word else "reserved", T.RESERVED)
    return _unmarked(word, context, backing)


def former_type(flags: int, context: Context, *, backing: Backing = Backing.UNKNOWN) -> TypeSet:
    """What a poisoned frame was before, as far as its remaining flags tell."""
    return classify(flags & ~KPF.HWPOISON.value, context, backing=backing).types


# --- helpers -----------------------------------------------------------------------------

_COMPOUND = KPF.COMPOUND_HEAD | KPF.COMPOUND_TAIL
_NOISE = KPF.IDLE | KPF.ARCH | KPF.ARCH_2 | KPF.ARCH_3 | KPF.SOFTDIRTY | KPF.UNCACHED | KPF.ERROR
_KNOWN_BITS = 0
for _flag in KPF:
    _KNOWN_BITS |= _flag.value
_MEANINGFUL = _KNOWN_BITS & ~_NOISE.value

_CONTENT = KPF.UPTODATE | KPF.WRITEBACK | KPF.OWNER_2
"""Flags that only the owner of content sets."""
_WEAK = KPF.DIRTY | KPF.LOCKED | KPF.PRIVATE | KPF.PRIVATE_2
"""Flags that a driver's page can carry too."""
_IN_USE = KPF.MMAP | KPF.THP | KPF.REFERENCED | KPF.ACTIVE | KPF.UNEVICTABLE | KPF.MLOCKED


def _on_any_kernel(
    flags: int, context: Context, backing: Backing, head_flags: int | None
) -> Verdict:
    """The union of what every kernel that was read would mean by this word."""
    verdicts = [
        classify(flags, replace(context, behaviour=known), backing=backing, head_flags=head_flags)
        for known in every_behaviour()
    ]
    mask = 0
    for verdict in verdicts:
        mask |= verdict.types.mask
    agreed = all(verdict == verdicts[0] for verdict in verdicts)
    return verdicts[0] if agreed else Verdict(TypeSet(mask), RULES["release-unknown"])


def _inherited(flags: int, head_flags: int, behaviour: Behaviour) -> int | None:
    """The word to judge a tail by, or None where its own word is the better one."""
    if not head_flags & KPF.COMPOUND_HEAD:
        return None
    # Poison is the frame's own: a good tail of a folio with a bad head stays good.
    head_flags &= ~KPF.HWPOISON.value
    if behaviour.tails_show_own_flags:
        return head_flags & ~KPF.COMPOUND_HEAD.value | KPF.COMPOUND_TAIL.value
    bare = flags & _MEANINGFUL & ~_COMPOUND.value == 0
    if behaviour.typed_tails_bare and bare and head_flags & (KPF.PGTABLE | KPF.OFFLINE):
        return head_flags & ~KPF.COMPOUND_HEAD.value | KPF.COMPOUND_TAIL.value
    return None


def _no_page(backing: Backing) -> Verdict:
    if backing is Backing.DEVICE:
        return Verdict(DEVICE | TypeSet.of(T.HOLE), RULES["nopage-device"])
    if backing in (Backing.RAM, Backing.HOLE):
        return _verdict("nopage", T.HOLE)
    return Verdict(DEVICE | TypeSet.of(T.HOLE), RULES["nopage-unknown"])


def _anonymous(word: KPF, context: Context) -> Verdict:
    if KPF.SWAPCACHE in word:
        return _verdict("anon-swap-cache", T.SWAP_CACHE)
    if KPF.KSM not in word:
        return _verdict("anon", T.ANON)
    if not context.behaviour.ksm_bit_on_all_anon:
        return _verdict("ksm", T.KSM)
    if context.ksm_in_use is False:
        return _verdict("anon-ksm-bug-idle", T.ANON)
    # KSM folios are order 0 and shared read-only: never marked exclusive.
    if word & (_COMPOUND | KPF.THP | KPF.OWNER_2):
        return _verdict("anon-ksm-bug-exclusive", T.ANON)
    # A merged page is marked dirty when it is made, lest reclaim discards it. Only MADV_FREE of
    # one that is mapped once takes the mark off, and then SWAPBACKED, by way of a batch that is
    # off the LRU.
    is_settled = KPF.LRU in word and KPF.SWAPBACKED in word
    if is_settled and not word & (KPF.DIRTY | KPF.LOCKED | KPF.WRITEBACK):
        return _verdict("anon-ksm-bug-clean", T.ANON)
    return _verdict("anon-ksm-bug", T.ANON, T.KSM)


def _unmarked(word: KPF, context: Context, backing: Backing) -> Verdict:
    """The frames that no type bit marks: file pages, drivers, kernel memory, holes."""
    absent = context.absent
    marked = word & (KPF.PRIVATE | KPF.OWNER_2 | KPF.PRIVATE_2)
    guest = T.GUEST_MEMFD.bit if context.behaviour.has_guest_memfd else 0
    if KPF.LRU in word or (word & _CONTENT and word & _IN_USE):
        # A file system leaves PRIVATE (buffers) or OWNER_2 (mapped to disk) on its pages.
        if marked:
            return _verdict("file", T.FILE)
        if KPF.UNEVICTABLE in word:
            kinds = TypeSet.of(T.FILE, T.SECRETMEM)
            if KPF.MLOCKED not in word:
                kinds = TypeSet(kinds.mask | guest)
            return _narrowed("file-unevictable", kinds, absent)
        if KPF.LRU in word:
            return _verdict("file", T.FILE)
        if KPF.MLOCKED in word:
            return _narrowed("file-mlocked-batch", TypeSet.of(T.FILE, T.SECRETMEM), absent)
        return _narrowed("file-batch", TypeSet(T.FILE.bit | guest), absent)
    if word & _COMPOUND and KPF.MMAP not in word:
        return _compound(word, context)
    if word & _CONTENT:
        if not word & ~KPF.OWNER_2:
            return _narrowed("leftover", KERNEL_UNKNOWN | TypeSet.of(T.FILE), absent)
        kinds = TypeSet(T.FILE.bit | T.ZSMALLOC.bit | guest)
        return _narrowed("content-alone", kinds, absent)
    if KPF.MMAP in word:
        return _mapped(word, context)
    if word & _WEAK:
        kinds = KERNEL_UNKNOWN | TypeSet.of(T.FILE)
        if KPF.LOCKED in word:
            kinds |= TypeSet.of(T.ANON, T.SHMEM, T.SWAP_CACHE)
        return _narrowed("weak-marks", kinds, absent)
    return _no_type_flag(word, context, backing)


def _mapped(word: KPF, context: Context) -> Verdict:
    """Mapped, and nothing says that it has content: a driver's page, or zsmalloc on 6.1.

    DIRTY and REFERENCED prove nothing here: unmapping leaves them on any page that is not
    anonymous (mm/memory.c:zap_pte_range), and io_uring and BPF rings were seen with them.
    """
    kinds = KERNEL_MAPPED
    if context.behaviour.zsmalloc_shows_mmap and not word & (_COMPOUND | KPF.DIRTY):
        if KPF.PRIVATE in word:
            # perf's AUX buffer sets PRIVATE as well (kernel/events/ring_buffer.c).
            kinds = TypeSet.of(T.ZSMALLOC, T.DRIVER_MAPPED)
            return _narrowed("zsmalloc-mmap-private", kinds, context.absent)
        return _narrowed("mmap-or-zsmalloc", kinds | TypeSet.of(T.ZSMALLOC), context.absent)
    if word & (_WEAK | KPF.THP):
        return _narrowed("mmap-weak", kinds | TypeSet.of(T.FILE), context.absent)
    return _narrowed("mmap-alone", kinds, context.absent)


def _compound(word: KPF, context: Context) -> Verdict:
    """A compound page that is neither mapped nor on the LRU."""
    kinds = KERNEL_COMPOUND
    if context.behaviour.pgtable_shows_leaf_user_only:
        kinds |= TypeSet.of(T.PAGE_TABLE)
    if KPF.THP in word:
        kinds |= TypeSet.of(T.ANON, T.FILE, T.SHMEM)
    if word & (_CONTENT | _WEAK):
        kinds |= TypeSet.of(T.FILE)
    rule = "compound-content" if word & (_CONTENT | _WEAK | KPF.THP) else "compound-alone"
    return _narrowed(rule, kinds, context.absent)


def _no_type_flag(word: KPF, context: Context, backing: Backing) -> Verdict:
    """No bit that says anything about the type; most often the whole word is 0."""
    behaviour = context.behaviour
    if backing is Backing.DEVICE:
        return Verdict(DEVICE | TypeSet.of(T.HOLE), RULES["zero-device"])
    if backing is Backing.HOLE and behaviour.holes_read_zero:
        return _verdict("zero-hole", T.HOLE)
    if not word and backing is Backing.ZERO_SECTION_RAM:
        return _verdict("zero-deferred", T.DEFERRED)
    if not word and backing is Backing.ZERO_SECTION and behaviour.holes_read_zero:
        return Verdict(NOT_BACKED, RULES["zero-section"])
    kinds = KERNEL_UNKNOWN
    if not behaviour.zsmalloc_shows_uptodate:
        kinds |= TypeSet.of(T.MOVABLE_OPS)
    if behaviour.holes_read_zero and backing is not Backing.RAM:
        return _narrowed("zero-unknown-backing", kinds | NOT_BACKED, context.absent)
    return _narrowed("zero", kinds, context.absent)


def _verdict(rule: str, *kinds: MemoryType) -> Verdict:
    return Verdict(TypeSet.of(*kinds), RULES[rule])


def _narrowed(rule: str, kinds: TypeSet, absent: int) -> Verdict:
    """`kinds` without what the counters prove absent (unless that leaves nothing)."""
    return Verdict(TypeSet(kinds.mask & ~absent or kinds.mask), RULES[rule])
