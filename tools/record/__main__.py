"""Command line: ``python3 -m tools.record --kernel 6.12 --out DIR``."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from .kernels import SERIES, RecordError
from .run import BOOT_SECONDS, record


def main() -> int:
    """Record the kernels asked for."""
    parser = argparse.ArgumentParser(
        prog="python3 -m tools.record",
        description="Record the memory of real kernels in a virtual machine.",
    )
    parser.add_argument(
        "--kernel",
        action="append",
        choices=sorted(SERIES),
        help="kernel series; may be repeated (default: all)",
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="directory that receives one tree per kernel series"
    )
    parser.add_argument(
        "--cache",
        type=Path,
        help="where packages and kernels are kept (default: ~/.cache/memdesc-record)",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=BOOT_SECONDS,
        help="time limit per guest (default: %(default).0f)",
    )
    options = parser.parse_args()
    cache = (
        options.cache
        or Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "memdesc-record"
    )
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.kernel or SERIES:
        began = time.monotonic()
        try:
            kernel = record(name, options.out.absolute() / name, cache.absolute(), options.seconds)
        except RecordError as error:
            print(f"{name}: {error}", file=sys.stderr)
            return 1
        took = time.monotonic() - began
        print(f"{name}: {kernel.release} recorded in {took:.0f} s: {options.out / name}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
