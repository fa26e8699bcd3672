"""Huge pages on the model: splitting, and khugepaged's passes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memdesc.errors import QuestionError
from memdesc.mm import entries as e
from memdesc.mm.khugepaged import khugepaged_pass
from memdesc.mm.large_folio import split_folio
from memdesc.mm.process import Errno, Process
from memdesc.scenarios.model_run import ModelRunner, verb
from memdesc.scenarios.model_verbs.memory import pages_of
from memdesc.scenarios.outcome import Value

__all__: list[str] = []


@verb("split")
def _split(run: ModelRunner, process: Process, args: Mapping[str, Any]) -> Value:
    """debugfs split_huge_pages, `mm/huge_memory.c:split_huge_pages_pid @6.12`: page by page; what
    cannot be split is passed over."""
    kernel, tables = run.kernel, process.mm.tables
    vpns = pages_of(args["range"])
    order = args["order"] or 0
    if order and not kernel.rules.large_anon_folios:
        raise Errno("EINVAL")
    for vpn in vpns:
        vma = process.mm.vmas.find(vpn)
        if vma is None:
            continue
        entry = tables.entry(vpn)
        if e.is_present(entry) and not entry & e.SPECIAL:
            split_folio(kernel, e.pfn_of(entry), order)
    return None


@verb("khugepaged")
def _khugepaged(run: ModelRunner, process: None, args: Mapping[str, Any]) -> Value:
    if run.kernel.knobs["thp"] == "never":
        raise QuestionError("khugepaged does not run", hint="knob thp always, or madvise")
    for _ in range(args["passes"]):
        khugepaged_pass(run.kernel)
    return None
