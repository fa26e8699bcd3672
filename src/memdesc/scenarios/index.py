"""The table of contents of the scenarios, and the table of where they hold: scenarios/README.md.

    python -m memdesc.scenarios.index scenarios/README.md

replaces what lies between the two marks of the page; its prose stays.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from memdesc.scenarios.reader import read_file
from memdesc.scenarios.results import Results
from memdesc.scenarios.scenario import Scenario
from memdesc.scenarios.table import markdown_table, topic_name
from memdesc.written import renew_page

__all__ = ["PROGRAM", "contents", "main"]

PROGRAM = "memdesc.scenarios.index"


def contents(folder: Path) -> str:
    """All scenarios below a folder by topic, in reading order, and where they hold."""
    parts = ["## Where they hold", markdown_table(Results.read(folder / "results.json")).rstrip()]
    for topic in sorted(path for path in folder.iterdir() if path.is_dir()):
        found = [s for path in sorted(topic.glob("*.md")) for s in read_file(path)]
        parts.append(f"## {topic_name(topic.name).capitalize()}")
        parts.append("\n".join(_line(scenario, folder) for scenario in found))
    return "\n\n".join(parts)


def main(words: Sequence[str] | None = None) -> int:
    """The command; see --help."""
    return renew_page(words, PROGRAM, lambda: contents(Path("scenarios")))


# --- helpers -----------------------------------------------------------------------------


def _line(scenario: Scenario, folder: Path) -> str:
    return f"- [{scenario.title}]({scenario.path.relative_to(folder)})"


if __name__ == "__main__":
    sys.exit(main())
