"""One process of the workload: `python3 -m memdesc.vm.workload ROLE`."""

from __future__ import annotations

import sys

from memdesc.vm.guard import require_guest
from memdesc.vm.workload.stage import play

if __name__ == "__main__":
    require_guest("plant memory")
    play(sys.argv[1])
