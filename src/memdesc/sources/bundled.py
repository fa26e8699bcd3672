"""The captures that ship with memdesc: recorded machines that need no privilege.

They lie in the package's directory `captures`, one directory each, made from our own
virtual machines by tools/bundle.py with all names kept.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from memdesc.errors import QuestionError

if TYPE_CHECKING:
    from memdesc.sources.capture import Capture

__all__ = ["bundled_names", "open_bundled"]

FOLDER = Path(__file__).resolve().parent.parent / "captures"
"""memdesc is always installed as files: it reads its captures in place."""


def bundled_names() -> list[str]:
    """Names of the captures that ship, sorted."""
    if not FOLDER.is_dir():
        return []
    return sorted(entry.name for entry in FOLDER.iterdir() if (entry / "manifest.json").is_file())


def open_bundled(name: str) -> Capture:
    """Open the capture that ships as `name`, for example "debian-6.12".

    Raises QuestionError when there is none of that name.
    """
    names = bundled_names()
    if name not in names:
        raise QuestionError(
            f"no bundled capture is named {name!r:.60}",
            hint="there are: " + (", ".join(names) or "none in this installation"),
        )
    from memdesc.sources.capture import Capture

    return Capture(FOLDER / name, name=f"bundled:{name}")
