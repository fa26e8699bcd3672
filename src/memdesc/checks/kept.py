"""A map kept small: frames, flag words and types, without counts, owners or a machine.

    save_map(truth.map, path)           # 20 to 60 kB for 640 MiB
    load_map(path, machine)

Neighbours that differ only in what is left out become one extent.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memdesc.errors import FormatError
from memdesc.map.extents import MemoryMap
from memdesc.map.facts import FactTable
from memdesc.map.machine import Machine
from memdesc.rules.procedure import RULES

__all__ = ["load_map", "pack_map", "save_map", "unpack_map"]

_ARRAYS = ("steps", "facts", "flags", "types", "rules", "ends")


def save_map(result: MemoryMap, path: Path) -> None:
    """Write the map to `path`."""
    path.write_bytes(pack_map(result))


def load_map(path: Path, machine: Machine) -> MemoryMap:
    """Read what `save_map` wrote; the map is said to be of `machine`. Raises FormatError."""
    return unpack_map(path.read_bytes(), machine, name=str(path))


def pack_map(result: MemoryMap) -> bytes:
    """The map in bytes; the same map always gives the same bytes."""
    facts, table = _joined_facts(result)
    starts = result.pfn_starts.astype(np.int64)
    begins = np.ones(starts.size, np.bool_)
    begins[1:] = facts[1:] != facts[:-1]
    starts, facts = starts[begins], facts[begins]
    arrays: dict[str, NDArray[Any]] = {
        "steps": np.diff(starts, prepend=result.pfn_start).astype(np.uint32),
        "facts": facts.astype(np.uint16),
        "flags": table.flags,
        "types": table.types,
        "rules": np.array(table.rules, np.str_),
        "ends": np.array([result.pfn_start, result.pfn_end], np.int64),
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, array in arrays.items():
            content = io.BytesIO()
            np.lib.format.write_array(content, array, allow_pickle=False)
            # A fixed time: a file that says the same is the same.
            member = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
            member.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(member, content.getvalue(), compresslevel=9)
    return buffer.getvalue()


def unpack_map(data: bytes, machine: Machine, *, name: str = "this map") -> MemoryMap:
    """Inverse of `pack_map`. Raises FormatError for anything else."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            arrays = {key: file[key] for key in _ARRAYS}
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise FormatError(f"{name} is no kept map: {error}") from None
    rules = tuple(str(rule) for rule in arrays["rules"])
    unknown = [rule for rule in rules if rule not in RULES]
    if unknown:
        raise FormatError(
            f"{name} names a rule that there is no more: {unknown[0]}",
            hint="`memdesc matrix --run` makes it again",
        )
    start, end = (int(value) for value in arrays["ends"])
    return MemoryMap(
        machine=machine,
        table=FactTable(arrays["flags"], arrays["types"], rules),
        pfn_starts=(start + np.cumsum(arrays["steps"], dtype=np.int64)).astype(np.uint32),
        facts=arrays["facts"],
        pfn_end=end,
        pfn_start=start,
    )


# --- helpers -----------------------------------------------------------------------------


def _joined_facts(
    result: MemoryMap,
) -> tuple[NDArray[np.int64], FactTable]:
    """Codes of the distinct facts that the map uses, and their table."""
    table = result.table
    codes: dict[tuple[int, int, str], int] = {}
    new = np.zeros(len(table), np.int64)
    used = np.unique(result.facts).tolist()
    for code in used:
        key = int(table.flags[code]), int(table.types[code]), table.rules[code]
        new[code] = codes.setdefault(key, len(codes))
    joined = FactTable(
        flags=np.array([key[0] for key in codes], np.uint64),
        types=np.array([key[1] for key in codes], np.uint64),
        rules=tuple(key[2] for key in codes),
    )
    return new[result.facts], joined
