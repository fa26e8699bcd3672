"""The verbs of scenarios, as a table.

Everything else goes by this table: the reader, the documentation of the language, the model
(`model_verbs`) and the program that does the steps on a real kernel (`actor`). A new verb is a
row in one of these modules and a function on both sides.

The settings that `knob` takes are a table of their own (`knobs`).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from memdesc.scenarios.language import Verb
from memdesc.scenarios.verbs.accesses import ACCESSES
from memdesc.scenarios.verbs.areas import AREAS
from memdesc.scenarios.verbs.files import FILES
from memdesc.scenarios.verbs.mappings import ADVICE, MAPPINGS
from memdesc.scenarios.verbs.processes import PROCESSES
from memdesc.scenarios.verbs.references import ENDS_REFERENCES, REFERENCES
from memdesc.scenarios.verbs.shared_memory import SHARED_MEMORY
from memdesc.scenarios.verbs.system import SYSTEM
from memdesc.scenarios.verbs.userfault import USERFAULTFD

__all__ = ["ADVICE", "ENDS_REFERENCES", "TOPICS", "VERBS"]

TOPICS: Final[Mapping[str, tuple[Verb, ...]]] = MappingProxyType(
    {
        "Processes": PROCESSES,
        "Mappings": (*MAPPINGS, *AREAS),
        "Accesses": ACCESSES,
        "Files": FILES,
        "System V shared memory": SHARED_MEMORY,
        "References to pages": REFERENCES,
        "The system": SYSTEM,
        "userfaultfd": USERFAULTFD,
    }
)
"""Heading -> its verbs, in the order of the documentation."""

VERBS: Final[Mapping[str, Verb]] = MappingProxyType(
    {verb.name: verb for verbs in TOPICS.values() for verb in verbs}
)
"""Every verb by name."""
