"""Build the kernel's own ``page-types`` and read its summary, as an independent judge of our
counts.

``page-types`` (tools/mm/page-types.c, tools/vm before 6.3) walks a kpageflags file and counts
frames by flag word. It does not count the kernel's word as it is; it counts a *transformed* word,
one of two kinds (page-types.c of 6.12):

``--raw`` (``expand_overloaded_flags``): three flags that the kernel uses twice move to bits of
page-types' own:

* ANON (12) and OWNER_2 (34) both set: OWNER_2 becomes ANON_EXCLUSIVE (47);
* SLAB (7) set: ACTIVE (6) becomes SLUB_FROZEN (50), and ERROR (1) becomes SLUB_DEBUG (51);
* RECLAIM (9) set, WRITEBACK (8) clear: RECLAIM becomes READAHEAD (48).

Everything else stays, the "hacker" bits 32..47 included. "Becomes" is an exclusive or of both bits,
so a file in which the target bit is set already (no kernel writes that) gets it cleared. The
remaining synthetic bits (SOFTDIRTY 40, FILE 61, SWAP 62, MMAP_EXCLUSIVE 63) come from a pagemap
entry, so they never appear in a walk by frame number (-F).

Without ``--raw`` (``well_known_flags``): bits 32..47 are cleared, and COMPOUND_HEAD (15) and
COMPOUND_TAIL (16) too, unless HUGE (17, hugetlb) is set. Nothing is expanded: RECLAIM stays
RECLAIM, a frozen slab shows ACTIVE.

The source of 6.1 has one rule more (SLOB's): with ``--raw``, SLAB and PRIVATE (35) turn PRIVATE
into SLOB_FREE (49).

What it prints: a heading, a line ``0x<16 digits>\\t<frames> <MB>  <letters>\\t<names>`` per word
that occurs, in the order of its hash table, and a line ``total\\t<frames> <MB>``; MB is rounded
down. Three ways to fail: a word with a bit that has no name (after the transformation: 27..31, 39,
42..46, 49, 52..60) ends it in the middle of the table with ``unknown flag bit N``; more than 8191
different words (0 apart) with ``hash table full``; a length that is no multiple of 8 with ``partial
read``. An empty file is fine (total 0).
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PREFERRED = "6.12"
_ERROR, _ACTIVE, _SLAB, _WRITEBACK, _RECLAIM = (1 << bit for bit in (1, 6, 7, 8, 9))
_ANON, _COMPOUND, _HUGE, _OWNER_2 = 1 << 12, 1 << 15 | 1 << 16, 1 << 17, 1 << 34
_HACKERS = 0xFFFF << 32
_ANON_EXCLUSIVE, _READAHEAD, _SLUB_FROZEN, _SLUB_DEBUG = (1 << bit for bit in (47, 48, 50, 51))
_ROW = re.compile(r"0x([0-9a-f]{16})\t *(\d+) ")
_TOTAL = re.compile(r" *total\t *(\d+) ")


class PageTypesUnavailable(RuntimeError):
    """page-types cannot be had here; the message says why and what to do (fit for a test's skip
    reason)."""


class PageTypesFailed(RuntimeError):
    """page-types ran and failed, or printed something that is not its summary."""


def page_types_word(flags: int, raw: bool) -> int:
    """Return the word under which page-types (6.3 or newer) counts a frame whose kpageflags word is
    `flags`."""
    if not raw:
        flags &= ~_HACKERS
        return flags if flags & _HUGE else flags & ~_COMPOUND
    if flags & _ANON and flags & _OWNER_2:
        flags ^= _OWNER_2 | _ANON_EXCLUSIVE
    if flags & _SLAB:
        if flags & _ACTIVE:
            flags ^= _ACTIVE | _SLUB_FROZEN
        if flags & _ERROR:
            flags ^= _ERROR | _SLUB_DEBUG
    if flags & (_RECLAIM | _WRITEBACK) == _RECLAIM:
        flags ^= _RECLAIM | _READAHEAD
    return flags


def counts_by_flags(binary: Path, file: Path, raw: bool = True) -> dict[int, int]:
    """Run page-types over a recorded kpageflags file and return frames by (transformed) flag word.

    The counts are checked against page-types' own total. Raises PageTypesFailed if it fails or does
    not add up.
    """
    # -F, never --kpageflags: the long option is declared without an argument, so it silently
    # reads the live file.
    command = [str(binary), *(["-r"] if raw else []), "-F", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PageTypesFailed(
            f"{' '.join(command)}: {done.stderr.strip() or f'exit status {done.returncode}'}"
        )
    return parse_summary(done.stdout)


def parse_summary(text: str) -> dict[int, int]:
    """Return frames by flag word from the summary table that page-types prints."""
    counts: dict[int, int] = {}
    total: int | None = None
    for line in text.splitlines():
        if row := _ROW.match(line):
            counts[int(row[1], 16)] = int(row[2])
        elif last := _TOTAL.match(line):
            total = int(last[1])
    if total is None or total != sum(counts.values()):
        raise PageTypesFailed(
            f"summary does not add up: total {total}, rows {sum(counts.values())}"
        )
    return counts


def default_cache() -> Path:
    """Return the directory in which the binary is kept unless the caller says otherwise."""
    return (
        Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "memdesc" / "page-types"
    )


def build(cache_dir: Path) -> Path:
    """Return a page-types binary, built from Debian's linux-source package on the first call.

    The package is fetched (not installed), 6.12 if apt offers it, else the newest; the binary is
    cached by its version. If apt knows no kernel source (no Debian, no lists) a binary cached
    earlier will do. Raises PageTypesUnavailable with a hint if a tool, the package or the network
    is missing.
    """
    try:
        package, version = _candidate()
    except PageTypesUnavailable:
        cached = sorted(cache_dir.glob("page-types-*"), key=lambda path: path.stat().st_mtime)
        if cached:
            return cached[-1]
        raise
    binary = cache_dir / f"page-types-{version.replace(':', '_')}"
    if binary.exists():
        return binary
    _need("gcc", "dpkg", "tar", "xz")
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache_dir) as work:
            _run(
                ["apt-get", "download", f"{package}={version}"],
                work,
                "is there a network? try `apt-get update`",
            )
            deb = next(Path(work).glob("*.deb"))
            _unpack(deb, package)
            _compile(Path(work) / package).replace(
                binary
            )  # one step: two builders cannot spoil each other
    except OSError as error:
        raise PageTypesUnavailable(f"cannot build page-types in {cache_dir}: {error}") from error
    return binary


def _candidate() -> tuple[str, str]:
    """Return name and version of the best linux-source package that apt knows."""
    _need("apt-cache", "apt-get")
    package = f"linux-source-{PREFERRED}"
    shown = subprocess.run(
        ["apt-cache", "show", "--no-all-versions", package],
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    if not shown:
        listed = _run(
            ["apt-cache", "search", "--names-only", r"^linux-source-[0-9.]+$"],
            None,
            "apt is broken",
        )
        releases = re.findall(r"^linux-source-([0-9.]+) ", listed, re.MULTILINE)
        if not releases:
            raise PageTypesUnavailable(
                "apt offers no linux-source package (`apt-get update`? only Debian has it)"
            )
        package = "linux-source-" + max(
            releases, key=lambda release: [int(part) for part in release.split(".")]
        )
        shown = _run(
            ["apt-cache", "show", "--no-all-versions", package], None, "try `apt-get update`"
        )
    return package, re.findall(r"^Version: (\S+)$", shown, re.MULTILINE)[0]


def _unpack(deb: Path, package: str) -> None:
    """Extract beside `deb` the few directories that page-types needs, streaming; nothing else
    touches the disk."""
    parts = (
        "tools/[mv]m/page-types.c",
        "tools/lib/api/*",
        "tools/lib/str_error_r.c",
        "tools/include/*",
    )
    wanted = [f"{package}/{part}" for part in (*parts, "include/uapi/linux/*")]
    source = 'dpkg --fsys-tarfile "$1" | tar -xO "./usr/src/$2.tar.xz" | xz -dc | '
    script = source + '{ out=$3; shift 3; tar -x -C "$out" --wildcards "$@"; }'
    _run(
        ["sh", "-c", script, "sh", str(deb), package, str(deb.parent), *wanted],
        None,
        "is the disk full?",
    )


def _compile(tree: Path) -> Path:
    """Compile page-types without the kernel's build system, as its Makefile would."""
    tools = tree / "tools"
    source = next(tools.glob("[mv]m/page-types.c"))
    library = [
        str(tools / "lib" / name) for name in ("api/fs/fs.c", "api/debug.c", "str_error_r.c")
    ]
    include = [f"-I{tools / name}" for name in ("lib", "lib/api", "include")]
    command = ["gcc", "-O2", *include, source.name, *library, "-o", "page-types"]
    _run(command, str(source.parent), "are the C library's headers (libc6-dev) installed?")
    return source.with_name("page-types")


def _need(*programs: str) -> None:
    missing = [name for name in programs if shutil.which(name) is None]
    if missing:
        hint = (
            "page-types is built only on Debian"
            if "apt-get" in missing
            else "install gcc, dpkg and xz-utils"
        )
        raise PageTypesUnavailable(f"page-types needs {', '.join(missing)}: {hint}")


def _run(command: list[str], where: str | None, hint: str) -> str:
    """Return what a command prints; a failure becomes PageTypesUnavailable with its last words and
    the hint."""
    done = subprocess.run(command, cwd=where, capture_output=True, text=True, check=False)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line and not line.startswith("W:")]
        raise PageTypesUnavailable(
            f"{command[0]} failed: {said[-1] if said else done.returncode} ({hint})"
        )
    return done.stdout


def main() -> int:
    """Build page-types and print its path."""
    parser = argparse.ArgumentParser(
        description="Build the kernel's page-types and print where it is."
    )
    parser.add_argument(
        "--cache", type=Path, default=default_cache(), metavar="DIR", help="default: %(default)s"
    )
    try:
        print(build(parser.parse_args().cache.resolve()))
    except PageTypesUnavailable as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
