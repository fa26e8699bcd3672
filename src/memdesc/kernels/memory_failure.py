"""How memory_failure() and soft offlining differ between kernel releases.

Sources: `mm/memory-failure.c` of 6.1.192, 6.12.117 and 7.2.13, and injections into running
kernels of these three. Where the first release is named with "believed", releases between
those that were read were not.
"""

from __future__ import annotations

from dataclasses import dataclass

from memdesc.kernels.release import KernelRelease

__all__ = ["FailureBehaviour", "failure_behaviour"]


@dataclass(frozen=True, slots=True)
class FailureBehaviour:
    """One kernel's way of handling a bad frame."""

    unhandlable_message: str
    """What the log calls a frame that cannot be grabbed: "unknown page" in 6.1, "get hwpoison
    page" in 6.12 and 7.2 (6.11, believed)."""

    ksm_is_handled: bool
    """Mappers of a merged page are found and unmapped. In 6.1 they are not: "unmapping failed
    page: Ignored", still mapped. Read in 6.12, 7.2; 6.4, believed."""

    unsplit_is_failed: bool
    """A large folio that cannot be split is "Failed" with EHWPOISON (6.12, 7.2), or "Ignored"
    with EBUSY (6.1). 6.11, believed."""

    repeats_verdict: bool
    """Poisoning a frame again logs "already poisoned page: Failed" (6.12, 7.2); 6.1 prints a
    plain line. EHWPOISON on all three. 6.11, believed."""

    soft_offline_switch: bool
    """vm.enable_soft_offline exists. 6.11, believed; read in 6.12."""

    missing_page_is_ignored: bool
    """A frame without struct page: "non struct page pfn: Ignored" and EBUSY (7.2), or only
    ENXIO (6.1, 6.12)."""


def failure_behaviour(release: KernelRelease) -> FailureBehaviour:
    """What `release` does; an unknown one counts as the newest that was read."""
    version: tuple[int, int] = (release.major, release.minor) if release.is_known else (7, 2)
    new = version >= (6, 11)
    return FailureBehaviour(
        unhandlable_message="get hwpoison page" if new else "unknown page",
        ksm_is_handled=version >= (6, 4),
        unsplit_is_failed=new,
        repeats_verdict=new,
        soft_offline_switch=version >= (6, 11),
        missing_page_is_ignored=version >= (7, 0),
    )
