"""memdesc: a type for every page of a Linux machine's memory, and answers from a page.

    from memdesc import open_source, ledger
    for row in ledger(open_source("live").totals()).rows:
        print(row.types.label, row.size_bytes)

The names below are the public surface; each is loaded when it is first used, so that
`import memdesc` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memdesc.answers.ledger import Ledger, ledger
    from memdesc.answers.overview import Overview, overview
    from memdesc.answers.places import parse_place
    from memdesc.answers.reconcile import Reconciliation, reconcile
    from memdesc.answers.what import PageAnswer, what
    from memdesc.errors import MemdescError
    from memdesc.map.extents import MemoryMap, Totals
    from memdesc.sources.open import open_source
    from memdesc.types import MemoryType, Pfn, PfnRange, PhysAddr, TypeSet

__version__ = "0.1.0"

_HOME = {
    "Ledger": "memdesc.answers.ledger",
    "MemdescError": "memdesc.errors",
    "MemoryMap": "memdesc.map.extents",
    "MemoryType": "memdesc.types",
    "Overview": "memdesc.answers.overview",
    "PageAnswer": "memdesc.answers.what",
    "Pfn": "memdesc.types",
    "PfnRange": "memdesc.types",
    "PhysAddr": "memdesc.types",
    "Reconciliation": "memdesc.answers.reconcile",
    "Totals": "memdesc.map.extents",
    "TypeSet": "memdesc.types",
    "ledger": "memdesc.answers.ledger",
    "open_source": "memdesc.sources.open",
    "overview": "memdesc.answers.overview",
    "parse_place": "memdesc.answers.places",
    "reconcile": "memdesc.answers.reconcile",
    "what": "memdesc.answers.what",
}

__all__ = [
    "Ledger",
    "MemdescError",
    "MemoryMap",
    "MemoryType",
    "Overview",
    "PageAnswer",
    "Pfn",
    "PfnRange",
    "PhysAddr",
    "Reconciliation",
    "Totals",
    "TypeSet",
    "__version__",
    "ledger",
    "open_source",
    "overview",
    "parse_place",
    "reconcile",
    "what",
]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'memdesc' has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return __all__
