"""From what people write after --source to a source that answers."""

from __future__ import annotations

import dataclasses
import errno
import os
import stat
from pathlib import Path

from memdesc.errors import FormatError, NotReadableError, QuestionError, SourceError
from memdesc.sources.source import ProcSource, RawSource, Source
from memdesc.sources.spec import SOURCE_HELP

__all__ = ["open_source"]


def open_source(
    spec: str = "live",
    *,
    kpagecount: Path | str | None = None,
    kernel: str | None = None,
    vmlinux: Path | str | None = None,
    threads: int = 0,
) -> Source:
    """Open the source that `spec` names (see `SOURCE_HELP`).

    `kpagecount` and `kernel` go with a raw file, `vmlinux` with a crash dump. `live` reads
    struct pages where that is permitted (`memdesc doctor` says), else /proc.
    Raises NotReadableError where it cannot be opened, CaptureError for a damaged capture,
    QuestionError for a `spec` that names nothing, FormatError for options that do not fit.
    """
    if not spec:
        raise QuestionError("--source names nothing", hint=f"it takes:\n{SOURCE_HELP}")
    is_raw = ":" not in spec and spec != "live" and not os.path.isdir(spec)  # noqa: PTH112 - never raises
    if not is_raw and (kpagecount is not None or kernel is not None):
        raise FormatError(
            "--kpagecount and --kernel go with a raw kpageflags file only",
            hint="a live machine and a capture know both themselves",
        )
    is_file = is_raw or spec == "/proc/kcore"
    if not is_file and vmlinux is not None:
        raise FormatError("--vmlinux goes with a crash dump only")
    if spec == "live":
        return _open_live(threads)
    if spec == "live:proc":
        return ProcSource(name=spec, threads=threads)
    if spec == "live:struct":
        from memdesc.sources.structs import LiveStructSource

        return LiveStructSource(threads=threads)
    if spec.startswith("tree:"):
        root = Path(spec.removeprefix("tree:"))
        _check_tree(spec, root)
        return ProcSource(root, name=spec, threads=threads)
    if spec.startswith("bundled:"):
        from memdesc.sources.bundled import open_bundled

        return open_bundled(spec.removeprefix("bundled:"))
    return _open_path(Path(spec), kpagecount, kernel, vmlinux, threads)


def _open_live(threads: int) -> Source:
    """Struct pages where they may be read, else /proc."""
    from memdesc.structs.live import why_not

    if not why_not():
        from memdesc.sources.structs import LiveStructSource

        try:
            return LiveStructSource(name="live", threads=threads)
        except SourceError as error:
            source = ProcSource(threads=threads)
            source.machine = dataclasses.replace(
                source.machine, unseen={**source.machine.unseen, "struct pages": str(error)}
            )
            return source
    return ProcSource(threads=threads)


def _open_path(
    path: Path,
    kpagecount: Path | str | None,
    kernel: str | None,
    vmlinux: Path | str | None,
    threads: int,
) -> Source:
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise _not_opened(path, error) from error
    if stat.S_ISDIR(mode):
        from memdesc.sources.capture import Capture

        return Capture(path)
    if path == Path("/proc/kcore"):
        return _dump(path, vmlinux, threads)
    if not stat.S_ISREG(mode) and path != Path("/proc/kpageflags"):
        raise FormatError(f"{path} is neither a file nor a directory", hint=SOURCE_HELP)
    try:
        with path.open("rb") as file:
            magic = file.read(8)
    except OSError as error:
        raise _not_opened(path, error) from error
    if not magic:
        raise FormatError(
            f"{path} is empty",
            hint="a raw file holds one 64-bit word for each frame; files of /proc are copied "
            "with `cat`: cp and tar see a size of 0",
        )
    if magic[:4] == b"\x7fELF" or magic in (b"KDUMP   ", b"makedump"):
        return _dump(path, vmlinux, threads)
    if vmlinux is not None:
        raise FormatError("--vmlinux goes with a crash dump only")
    if magic[:4] == b"PAR1":
        raise FormatError(
            f"{path} is one table of a capture",
            hint=f"name the capture's directory: --source {path.parent}",
        )
    return RawSource(
        path,
        mapcounts=Path(kpagecount) if kpagecount is not None else None,
        release=kernel,
        threads=threads,
    )


def _dump(path: Path, vmlinux: Path | str | None, threads: int) -> Source:
    from memdesc.sources.structs import DumpSource

    image = Path(vmlinux) if vmlinux is not None else None
    return DumpSource(path, vmlinux=image, threads=threads)


def _check_tree(spec: str, root: Path) -> None:
    """Say what a tree needs before its first file is missed."""
    flags = root / "proc/kpageflags"
    if spec == "tree:":
        raise QuestionError("tree: names no directory", hint=_TREE)
    try:
        mode = flags.stat().st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        is_there = os.path.isdir(root)  # noqa: PTH112 - never raises
        what = f"it has no {flags}" if is_there else "there is no such directory"
        raise NotReadableError(f"{root} is no tree: {what}", path=flags, hint=_TREE) from error
    except OSError as error:
        raise _not_opened(flags, error) from error
    if stat.S_ISDIR(mode):
        raise NotReadableError(f"{root} is no tree: {flags} is a directory", path=flags, hint=_TREE)


_TREE = (
    "tree:DIR needs DIR/proc/kpageflags; beside it, as far as they are there, it uses "
    "kpagecount, kpagecgroup, meminfo, vmstat, zoneinfo, iomem, buddyinfo, pagetypeinfo, "
    "slabinfo, sys/kernel/osrelease and [PID]/maps, pagemap"
)


def _not_opened(path: Path, error: OSError) -> NotReadableError:
    if error.errno in (errno.EACCES, errno.EPERM):
        hint = "run as a user who may read it, or as root"
    else:
        hint = f"--source takes:\n{SOURCE_HELP}"
    return NotReadableError(f"cannot open {path}: {error.strerror}", path=path, hint=hint)
