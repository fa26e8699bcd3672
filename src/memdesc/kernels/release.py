"""What a kernel release does differently in the files that memdesc reads.

The only module that compares releases.  Everybody else asks a `Behaviour`.

Sources: `fs/proc/page.c:stable_page_flags` and `include/linux/page-flags.h` of
6.1.192, 6.12.117, 7.2.13, and a running 6.18.44.  Releases between those that
were read are marked "believed" in the field's docstring.

>>> behaviour_of(KernelRelease.parse("6.12.117-cloud-amd64")).ksm_bit_on_all_anon
True
>>> behaviour_of(KernelRelease.parse("7.2.13")).ksm_bit_on_all_anon
False
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import Self

from memdesc.errors import FormatError

__all__ = ["UNKNOWN_RELEASE", "Behaviour", "KernelRelease", "behaviour_of", "every_behaviour"]

_RELEASE = re.compile(r"([0-9]{1,4})\.([0-9]{1,6})(?:\.([0-9]{1,6}))?")
_OLDEST_READ, _NEWEST_READ = (5, 10), (7, 3)


@dataclass(frozen=True, slots=True, order=True)
class KernelRelease:
    """A kernel release, compared by its numbers; `text` is what `uname -r` said."""

    major: int
    minor: int
    patch: int = 0
    text: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `uname -r` text such as "6.12.117-cloud-amd64".

        Raises FormatError when it does not start with two numbers.
        """
        found = _RELEASE.match(text.strip())
        if found is None:
            raise FormatError(
                f"not a kernel release: {text.strip()[:80]!r}",
                hint="give it as `uname -r` prints it, for example 6.12.117",
            )
        return cls(int(found[1]), int(found[2]), int(found[3] or 0), text.strip())

    @property
    def is_known(self) -> bool:
        return self.major > 0

    @property
    def numbers(self) -> str:
        """The numbers alone, without what a vendor adds: "6.12.117"."""
        return f"{self.major}.{self.minor}.{self.patch}"

    @property
    def beyond_what_was_read(self) -> str:
        """What a kernel outside the releases that were read is judged as; "" inside them."""
        if (self.major, self.minor) > _NEWEST_READ:
            which, limit, judged = "newer", _NEWEST_READ, "newest"
        elif (self.major, self.minor) < _OLDEST_READ:
            which, limit, judged = "older", _OLDEST_READ, "oldest"
        else:
            return ""
        read = ".".join(map(str, limit))
        return f"{self} is {which} than any kernel that was read ({read}): judged as the {judged}"

    def __str__(self) -> str:
        return self.text or (f"{self.major}.{self.minor}" if self.is_known else "unknown")


UNKNOWN_RELEASE = KernelRelease(0, 0)
"""Stands for a raw file whose kernel nobody named."""


@dataclass(frozen=True, slots=True)
class Behaviour:
    """How one kernel fills /proc/kpageflags, kpagecount and kpagecgroup."""

    release: KernelRelease

    ksm_bit_on_all_anon: bool
    """KPF_KSM is set on every anonymous page: `mapping & 3` tested only for non-zero.
    From the rewrite in 6.10 (believed) until the fix of June 2026, which went to stable
    kernels as well: read wrong in 6.12.117, right in 6.18.44 and 7.2.13. Which patch level
    of the kernels between brought it was not read, so they count as wrong."""

    slab_may_show_anon: bool
    """Slab frames can show ANON (and KSM): the `slabs` counter of SLUB's per-CPU partial
    list lies where `mapping` is. 6.2 (believed) to 6.18; not in 6.1 nor 7.2."""

    holes_read_zero: bool
    """A frame with no online struct page reads 0 instead of NOPAGE
    (`fs/proc/page.c:kpage_read`). Believed 6.15; seen in 6.18, 7.2."""

    tails_show_own_flags: bool
    """Tails of a compound page show their own flag word (mostly empty), not their head's.
    Until 6.9 (believed); read in 6.1."""

    typed_tails_bare: bool
    """OFFLINE and PGTABLE appear on heads only. Until 6.16 (believed); read in 6.12."""

    kernel_page_tables_typed: bool
    """Kernel page tables carry PGTABLE, with REFERENCED as PT_kernel, so that a table
    without REFERENCED is a user's. Seen in 6.18.44 and 7.2; the mark came by a stable
    update, so earlier 6.18 kernels do not count."""

    balloon_movable_shows_uptodate: bool
    """OFFLINE with UPTODATE is a movable balloon page (PG_movable_ops). Believed 6.17."""

    zsmalloc_shows_mmap: bool
    """zsmalloc frames show MMAP and a false kpagecount: the first-object offset lies where
    `_mapcount` is. Read in 6.1; until 6.10, as the page type came in 6.11 (believed)."""

    zsmalloc_shows_uptodate: bool
    """zsmalloc frames show UPTODATE (PG_movable_ops). Believed 6.17; seen in 7.2."""

    cgroup_on_head_only: bool
    """kpagecgroup reads the frame's own `memcg_data`: tails read 0. Read in 6.1."""

    has_guest_memfd: bool
    """guest_memfd exists. Believed 6.8."""

    pgtable_shows_leaf_user_only: bool
    """PGTABLE misses kernel PTE tables and every P4D and PGD (no constructor ran there).
    Until 6.15 (believed); read in 6.1 and 6.12."""

    hugetlb_index_in_huge_pages: bool
    """The index of a hugetlb folio counts huge pages and not frames. Until 6.6 (believed);
    seen in dumps of 6.1, and no more in 6.12."""

    @property
    def knows_release(self) -> bool:
        return self.release.is_known


@functools.cache
def behaviour_of(release: KernelRelease) -> Behaviour:
    """Return what `release` does.

    For `UNKNOWN_RELEASE` every trap is assumed to be possible; whoever decides by it asks
    `every_behaviour` instead, so that the answer is a wider union and never a wrong type.
    """
    version = (release.major, release.minor)
    unknown = not release.is_known
    return Behaviour(
        release=release,
        ksm_bit_on_all_anon=unknown
        or ((6, 10) <= version < (7, 2) and not (version == (6, 18) and release.patch >= 44)),
        slab_may_show_anon=unknown or (6, 2) <= version <= (6, 18),
        holes_read_zero=unknown or version >= (6, 15),
        tails_show_own_flags=unknown or version < (6, 10),
        typed_tails_bare=unknown or version < (6, 17),
        kernel_page_tables_typed=unknown
        or version >= (7, 0)
        or (version == (6, 18) and release.patch >= 44),
        balloon_movable_shows_uptodate=unknown or version >= (6, 17),
        zsmalloc_shows_mmap=unknown or version < (6, 11),
        zsmalloc_shows_uptodate=unknown or version >= (6, 17),
        cgroup_on_head_only=unknown or version < (6, 10),
        has_guest_memfd=unknown or version >= (6, 8),
        pgtable_shows_leaf_user_only=unknown or version < (6, 16),
        hugetlb_index_in_huge_pages=unknown or version < (6, 7),
    )


@functools.cache
def every_behaviour() -> tuple[Behaviour, ...]:
    """One behaviour for each way in which the kernels from 6.1 to 7.2 differ."""
    texts = "6.1.192 6.6 6.10 6.12.117 6.14 6.15 6.16 6.17 6.18.44 7.2.13"
    return tuple(behaviour_of(KernelRelease.parse(text)) for text in texts.split())
