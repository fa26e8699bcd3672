"""What the lines of a scenario have made known so far: names, and what each stands for."""

from __future__ import annotations

from dataclasses import dataclass, field

from memdesc.scenarios.places import Placement

__all__ = ["Effects", "Names"]


@dataclass(slots=True)
class Names:
    """What one process knows by name."""

    mappings: dict[str, Placement] = field(default_factory=dict)
    files: set[str] = field(default_factory=set)
    closed: set[str] = field(default_factory=set)
    pins: dict[str, tuple[str, int]] = field(default_factory=dict)
    """References: the verb that took them, and to how many pages."""

    def copy(self) -> Names:
        """What a child knows: references are its parent's."""
        return Names(dict(self.mappings), set(self.files), set(self.closed))


@dataclass(slots=True)
class Effects:
    """What a line changes once it has succeeded."""

    mappings: dict[str, Placement] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    pins: list[str] = field(default_factory=list)
    processes: list[str] = field(default_factory=list)
    frames: list[str] = field(default_factory=list)
    segments: list[str] = field(default_factory=list)
