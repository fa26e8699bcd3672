"""Huge pages on the model: splitting, and khugepaged's passes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memdesc.errors import QuestionError
from memdesc.kernels.kpageflags import KPF
from memdesc.mm import entries as e
from memdesc.mm.huge.khugepaged import khugepaged_pass
from memdesc.mm.huge.large_folio import can_split_folio, split_folio
from memdesc.mm.huge.thp_orders import khugepaged_runs
from memdesc.mm.process import Process
from memdesc.scenarios.model_run import ModelRunner, verb
from memdesc.scenarios.model_verbs.memory import pages_of
from memdesc.scenarios.outcome import Value

__all__: list[str] = []


@verb("split")
def _split(run: ModelRunner, process: Process, args: Mapping[str, Any]) -> Value:
    """debugfs split_huge_pages, `mm/huge_memory.c:split_huge_pages_pid @6.12`: page by page; what
    cannot be split is passed over.  What a release does not know stands behind the numbers that it
    reads, and is not looked at."""
    kernel, tables = run.kernel, process.mm.tables
    vpns = pages_of(args["range"])
    order = (args["order"] or 0) if kernel.rules.large_anon_folios else 0
    at: int | None = args["around"] if kernel.rules.splits_at_a_page else None
    for vpn in vpns:
        vma = process.mm.vmas.find(vpn)
        if vma is None:
            continue
        entry = tables.entry(vpn)
        if e.is_present(entry) and not entry & e.SPECIAL:
            pfn = e.pfn_of(entry)
            head, size = kernel.head(pfn), kernel.order_of(pfn)
            if kernel.flags(head) & KPF.ANON and not can_split_folio(kernel, head):
                continue
            if at is None or at >= 1 << size:
                split_folio(kernel, pfn, order)
            else:
                split_folio(kernel, head + at, order, evenly=False)
    return None


@verb("khugepaged")
def _khugepaged(run: ModelRunner, process: None, args: Mapping[str, Any]) -> Value:
    if not khugepaged_runs(run.kernel):
        raise QuestionError("khugepaged does not run", hint="knob thp always, or madvise")
    for _ in range(args["passes"]):
        khugepaged_pass(run.kernel)
    return None
