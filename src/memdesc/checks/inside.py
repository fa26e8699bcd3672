"""Inside a guest: the map that the struct page source makes there, between two stops.

The guest stands still twice, before and after the reading, so that its memory can be dumped:
a frame that is the same in both dumps did not change while it was read, and is judged.
"""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

from memdesc.checks.kept import save_map
from memdesc.vm.guard import only_in_guest
from memdesc.vm.port import hold

__all__ = ["read_structs"]


@only_in_guest("stop for a dump")
def read_structs(path: str) -> dict[str, Any]:
    """Read this kernel's struct pages through BPF, and write the map to `path`.

    Holds at "before" and at "after". Returns the number of frames, or `missing` with the reason
    why this kernel does not permit it.
    """
    from memdesc.errors import MemdescError
    from memdesc.sources.structs import LiveStructSource

    try:
        source = LiveStructSource()
        source.map()  # what it needs is in memory from here on
    except MemdescError as error:
        return {"missing": str(error)}
    gc.collect()
    gc.disable()
    hold("before")
    result = source.map()
    hold("after")
    save_map(result, Path(path))
    return {"frames": result.pfn_end - result.pfn_start}
