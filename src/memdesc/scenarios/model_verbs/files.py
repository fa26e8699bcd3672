"""Files on the model: opening, reading, writing, changing their size, dropping their pages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memdesc.errors import MemdescError
from memdesc.mm.areas.accounting import set_limit
from memdesc.mm.files import inode as files
from memdesc.mm.files import namei, page_cache, readahead, truncate
from memdesc.mm.files.ext4 import ext4_journal_data
from memdesc.mm.files.inode import OpenFile
from memdesc.mm.files.memfd import Seal, add_seals, get_seals, seals_of_new
from memdesc.mm.process import Errno, Process
from memdesc.scenarios.model_run import ModelRunner, verb
from memdesc.scenarios.outcome import Value
from memdesc.types import PAGE_SIZE_BYTES

__all__ = ["extent_of", "file_of"]

Args = Mapping[str, Any]


def file_of(process: Process, name: str) -> OpenFile:
    """An open file by the scenario's name."""
    found = process.files[name]
    assert isinstance(found, OpenFile)
    return found


def extent_of(process: Process, where: Args) -> tuple[OpenFile, int, int]:
    """File, first page and number of pages of a FILE_RANGE; all of it: as far as it goes."""
    file = file_of(process, where["file"])
    if where["pages"] is None:
        return file, 0, file.mapping.pages_in_size
    return file, where["first"], where["pages"]


@verb("memfd")
def _memfd(run: ModelRunner, process: Process, args: Args) -> Value:
    name = args["file"]
    if args["secret"]:
        file = files.memfd_secret(run.kernel, process, name)
    else:
        seals = seals_of_new(run.kernel, sealable=args["sealable"], noexec=args["noexec"])
        fs = files.HUGETLBFS if args["hugetlb"] else files.SHMEM
        file = files.memfd_create(run.kernel, process, name, fs=fs, seals=seals)
    if args["pages"]:
        truncate.ftruncate(run.kernel, file, args["pages"] * PAGE_SIZE_BYTES)
    return None


@verb("seal")
def _seal(run: ModelRunner, process: Process, args: Args) -> Value:
    seals = Seal(sum(int(one) for one in Seal if one.name and args[one.name.lower()]))
    add_seals(run.kernel, file_of(process, args["file"]), seals)
    return None


@verb("seals")
def _seals(run: ModelRunner, process: Process, args: Args) -> Value:
    found = get_seals(file_of(process, args["file"]))
    return tuple(one.name.lower() for one in Seal if one & found and one.name) or ("none",)


@verb("open")
def _open(run: ModelRunner, process: Process, args: Args) -> Value:
    path = args["path"]
    files.open_file(
        run.kernel, process, args["file"], path["where"], path["name"],
        create=args["create"], truncate=args["truncate"], tmpfile=args["tmpfile"],
        readonly=args["readonly"], direct=args["direct"], sync=args["sync"], append=args["append"],
    )  # fmt: skip
    return None


@verb("close")
def _close(run: ModelRunner, process: Process, args: Args) -> Value:
    files.close_file(run.kernel, process, args["file"])
    return None


@verb("dup")
def _dup(run: ModelRunner, process: Process, args: Args) -> Value:
    files.dup_file(process, args["file"], args["old"])
    return None


@verb("unlink")
def _unlink(run: ModelRunner, process: Process, args: Args) -> Value:
    namei.unlink(run.kernel, args["path"]["where"], args["path"]["name"])
    return None


@verb("rename")
def _rename(run: ModelRunner, process: Process, args: Args) -> Value:
    path, to = args["path"], args["to"]
    if path["where"] != to["where"]:
        raise Errno("EXDEV")
    namei.rename(run.kernel, path["where"], path["name"], to["name"])
    return None


@verb("journal_data")
def _journal_data(run: ModelRunner, process: Process, args: Args) -> Value:
    ext4_journal_data(file_of(process, args["file"]).mapping)
    return None


@verb("limit")
def _limit(run: ModelRunner, process: Process, args: Args) -> Value:
    if args["resource"] == "fsize":
        process.fsize_limit = args["pages"]
    else:
        set_limit(process.mm, args["resource"], args["pages"])
    return None


@verb("truncate")
def _truncate(run: ModelRunner, process: Process, args: Args) -> Value:
    rest = args["bytes"] or 0
    if rest % PAGE_SIZE_BYTES in range(1, 8):
        raise MemdescError(
            "the model knows no end of a file in the first word of a page",
            hint="a page's content is named by its first 8 bytes: give 8 bytes or more",
        )
    size = args["pages"] * PAGE_SIZE_BYTES + rest
    _newsize_ok(process, args, size)
    truncate.ftruncate(run.kernel, file_of(process, args["file"]), size)
    return None


@verb("fallocate")
def _fallocate(run: ModelRunner, process: Process, args: Args) -> Value:
    file, first, pages = extent_of(process, args["file"])
    if args["mode"] == "grow" or (args["mode"] == "keep_size" and file.mapping.is_shmem):
        _newsize_ok(process, args, (first + pages) * PAGE_SIZE_BYTES)
    truncate.fallocate(run.kernel, file, first, pages, args["mode"])
    return None


@verb("punch")
def _punch(run: ModelRunner, process: Process, args: Args) -> Value:
    file, first, pages = extent_of(process, args["file"])
    truncate.punch_hole(run.kernel, file, first, first + pages)
    return None


@verb("pwrite")
def _pwrite(run: ModelRunner, process: Process, args: Args) -> Value:
    file, first, pages = extent_of(process, args["file"])
    limit = process.fsize_limit
    return page_cache.pwrite(run.kernel, file, first, run.contents(args, pages), limit=limit)


@verb("pread")
def _pread(run: ModelRunner, process: Process, args: Args) -> Value:
    file, first, pages = extent_of(process, args["file"])
    return tuple(map(run.word, page_cache.pread(run.kernel, file, first, pages)))


@verb("readahead")
def _readahead(run: ModelRunner, process: Process, args: Args) -> Value:
    file, first, pages = extent_of(process, args["file"])
    if file.mapping.fs.has_device:
        readahead.force_readahead(run.kernel, file, first, pages)
    return None


@verb("evict")
def _evict(run: ModelRunner, process: Process, args: Args) -> Value:
    file, first, pages = extent_of(process, args["file"])
    truncate.fadvise_dontneed(run.kernel, file, first, pages)
    return None


@verb("fadvise")
def _fadvise(run: ModelRunner, process: Process, args: Args) -> Value:
    file, first, pages = extent_of(process, args["file"])
    readahead.fadvise(run.kernel, file, first, pages, args["advice"])
    return None


@verb("cachestat")
def _cachestat(run: ModelRunner, process: Process, args: Args) -> Value:
    file, first, pages = extent_of(process, args["file"])
    return page_cache.cachestat(run.kernel, file.mapping, first, pages)


@verb("dropcaches")
def _dropcaches(run: ModelRunner, process: None, args: Args) -> Value:
    truncate.drop_caches(run.kernel, args["value"])
    return None


# --- helpers -----------------------------------------------------------------------------


def _newsize_ok(process: Process, args: Args, size: int) -> None:
    """inode_newsize_ok(): a file may only grow up to RLIMIT_FSIZE. Raises Errno."""
    where = args["file"]
    file = file_of(process, where if isinstance(where, str) else where["file"])
    limit = process.fsize_limit
    if limit is not None and size > max(file.mapping.size, limit * PAGE_SIZE_BYTES):
        raise Errno("EFBIG")
