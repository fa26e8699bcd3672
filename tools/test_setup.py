"""Install what the tests need from Debian, where that is possible; say what is missing.

Run by `make test`. As root on Debian it installs missing packages with apt-get; elsewhere
it prints one line per package and the tests that need it are skipped.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

NEEDED: dict[str, tuple[str, str]] = {
    "chromium": ("chromium", "the report in a real browser"),
    "gcc": ("gcc", "building page-types, the peer we compare with"),
    "xz": ("xz-utils", "unpacking the kernel sources for page-types"),
}


def main() -> int:
    missing = {name: value for name, value in NEEDED.items() if shutil.which(name) is None}
    if not missing:
        return 0
    packages = [package for package, _why in missing.values()]
    if os.geteuid() == 0 and shutil.which("apt-get"):
        print(f"installing {' '.join(packages)}", file=sys.stderr)
        _apt("update", "-qq")
        _apt("install", "-y", "-qq", "--no-install-recommends", *packages)
        missing = {name: value for name, value in missing.items() if shutil.which(name) is None}
    for package, why in missing.values():
        print(f"not installed: {package} ({why}); to get it: apt-get install {package}")
    return 0


def _apt(*words: str) -> None:
    subprocess.run(
        ["apt-get", *words],
        check=False,
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


if __name__ == "__main__":
    sys.exit(main())
