"""A rule that depends on the release: its value, its reason and its boundary in one place."""

from __future__ import annotations

from functools import cached_property

from memdesc.kernels.release import KernelRelease

__all__ = ["ReleaseRules", "rule"]

rule = cached_property
"""Asked for on every page, computed once."""


class ReleaseRules:
    """Rules of one release."""

    def __init__(self, release: KernelRelease) -> None:
        self.release = release
        self.version = (release.major, release.minor)
