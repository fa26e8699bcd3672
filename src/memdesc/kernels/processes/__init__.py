"""How the memory of processes differs between kernel releases: faults, fork, batches, calls.

Sources: `mm/` of 6.1.192, 6.12.117 (Debian's build, with what was ported back) and 7.2.13; these
three are what the rules were held against (`scenarios/`).  A rule that differs between two of them
changed somewhere between: the release that `process_rules` compares with is the one in which the
kernel's history is believed to have it, and nobody has tried that on the releases in between.

>>> process_rules(KernelRelease.parse("6.12.117")).lru_batch
31
>>> process_rules(KernelRelease.parse("6.1.192")).guard_regions
False
"""

from __future__ import annotations

from functools import cache

from memdesc.kernels.processes.areas import AreaRules
from memdesc.kernels.processes.files import FileRules
from memdesc.kernels.processes.huge import HugeRules
from memdesc.kernels.processes.huge_files import HugeFileRules
from memdesc.kernels.processes.hugetlb import HugetlbRules
from memdesc.kernels.processes.ksm import KsmRules
from memdesc.kernels.processes.lists import ListRules
from memdesc.kernels.processes.references import ReferenceRules
from memdesc.kernels.processes.shown import ShownRules
from memdesc.kernels.processes.swap import SwapRules
from memdesc.kernels.processes.userfault import UserfaultRules
from memdesc.kernels.release import KernelRelease

__all__ = ["ProcessRules", "is_modelled", "process_rules"]


class ProcessRules(
    AreaRules,
    ListRules,
    ShownRules,
    HugeRules,
    HugeFileRules,
    FileRules,
    ReferenceRules,
    HugetlbRules,
    UserfaultRules,
    SwapRules,
    KsmRules,
):
    """One kernel's handling of processes' memory."""


def is_modelled(release: KernelRelease) -> bool:
    """Whether a release is not older than the oldest whose sources were read."""
    return (release.major, release.minor) >= (6, 1)


@cache
def process_rules(release: KernelRelease) -> ProcessRules:
    """The rules of a release."""
    return ProcessRules(release)
