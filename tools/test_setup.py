"""Install what the tests need from Debian, where that is possible; say what is missing.

Run by `make test`. As root on Debian it installs missing packages with apt-get; elsewhere
it prints one line per package and the tests that need it are skipped.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

from memdesc.vm.host import TOOLS, missing_tools

NEEDED: dict[str, tuple[str, str]] = {
    "chromium": ("chromium", "the report in a real browser"),
    "gcc": ("gcc", "building page-types, the peer we compare with"),
    "xz": ("xz-utils", "unpacking the kernel sources for page-types"),
    **{tool.name: (tool.package, f"real kernels: it {tool.why}") for tool in TOOLS},
}


def main() -> int:
    missing = _missing()
    if not missing:
        return 0
    packages = sorted({package for package, _why in missing.values()})
    if os.geteuid() == 0 and shutil.which("apt-get"):
        print(f"installing {' '.join(packages)}", file=sys.stderr)
        _apt("update", "-qq")
        _apt("install", "-y", "-qq", "--no-install-recommends", *packages)
        missing = _missing()
    for package, why in missing.values():
        print(f"not installed: {package} ({why}); to get it: apt-get install {package}")
    return 0


def _missing() -> dict[str, tuple[str, str]]:
    rig = {tool.name for tool in TOOLS}
    lacking = {tool.name for tool in missing_tools()}  # it looks in /sbin, and into busybox
    return {
        name: value
        for name, value in NEEDED.items()
        if (name in lacking if name in rig else shutil.which(name) is None)
    }


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
