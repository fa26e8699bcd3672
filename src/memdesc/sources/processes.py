"""Reading who maps what: every process of a live machine, or of a copied /proc tree.

For each process: `status`, `cgroup`, `maps`, and `pagemap` where maps says that something
can be.  Processes end, change and refuse while this runs; that is normal, is counted in
the `ReadReport`, and never an exception.  Only hidden frame numbers are: without
CAP_SYS_ADMIN every frame reads 0, and there is nothing to say (`fs/proc/task_mmu.c`).

What is not kept: the command line, because it may hold secrets and the name (`comm`) and
the pid are enough to find it.  Two processes that share one address space (between vfork
and exec) are both kept, so their pages count twice.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from memdesc.errors import NotReadableError
from memdesc.map.attribution import Attribution, Mappings, Processes, ReadReport, Vmas
from memdesc.sources.kpage import in_order, keep_heap, thread_count
from memdesc.sources.pagemap import BLOCK_ENTRIES, Batch, BatchResult, Piece, read_batch
from memdesc.sources.proc_files import ProcessFiles, Target
from memdesc.sources.runs import Job, Part
from memdesc.sources.special import (
    HIDDEN_HINT,
    looks_blank,
    own_zero_page,
    pages_by_kind,
)
from memdesc.sources.vmas import Areas, Status, memory_cgroup, parse_maps, parse_status
from memdesc.types import PAGE_SHIFT, PfnRange

__all__ = ["Attribution", "ReadReport", "read_processes"]

_JOIN_GAP = 256
"""Pages between two VMAs that are cheaper to read than to skip."""
_SPARSE_PAGES = 1 << 11
"""VMAs from this size on are read block by block: 8 MiB, a thread's stack."""
_SPAN_PAGES = 1 << 20
"""A larger VMA is cut into such pieces, so that several threads share it."""
_BATCH_PROCESSES = 32
_GROUP = 32
"""Processes whose maps are parsed together, at most."""
_GROUP_BYTES = 1 << 17
_USER_END = 1 << 63
_PROBLEMS = 1000
_T = TypeVar("_T", bound=np.generic)


def read_processes(
    root: Path = Path("/"),
    *,
    pids: Sequence[int] | None = None,
    zero: Sequence[PfnRange] | None = None,
    threads: int = 1,
    progress: Callable[[int, int], None] | None = None,
    files: ProcessFiles | None = None,
) -> Attribution:
    """Read the processes below `root` (all of `root/proc`, or those in `pids`).

    `zero` are frames of the zero page, which are counted but not kept as mappings; by
    default the live machine's own is found out.  `progress` is called with (processes
    done, processes in all).  `files` is for tests.

    Exact for a process that holds still; each process is read at another moment.
    Raises NotReadableError when there is no /proc, or when frame numbers are hidden.
    """
    started = time.perf_counter()
    keep_heap()
    files = files or ProcessFiles(root)
    try:
        wanted = files.pids() if pids is None else sorted(set(pids))
    except OSError as error:
        raise NotReadableError(
            f"cannot list {files.proc}: {error.strerror}",
            path=files.proc,
            hint="the root must hold a proc folder: / for this machine, or a copied tree",
        ) from error
    if zero is None:
        zero = own_zero_page() if files.proc == Path("/proc") else ()
    ranges = np.array([(r.pfn_start, r.pfn_end) for r in zero], np.int64).reshape(-1, 2)
    reading = _Reading(files, wanted, progress)
    with_threads = threads or thread_count()

    def read(batch: Batch) -> BatchResult:
        return read_batch(batch, ranges)

    try:
        for result in in_order(reading.batches(), read, threads=with_threads):
            reading.add(result)
    finally:
        for target in reading.targets:
            target.close()
    return reading.finish(time.perf_counter() - started)


class _Reading:
    """What was planned, and what has come back."""

    def __init__(
        self,
        files: ProcessFiles,
        pids: Sequence[int],
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self.files = files
        self.pids = pids
        self.progress = progress
        self.targets: list[Target] = []
        self.statuses: list[Status] = []
        self.cgroups: list[str] = []
        self.areas: list[Areas] = []
        self.vmas = 0
        self.opened: list[tuple[Target, bytes]] = []
        """Processes whose areas are not parsed yet, with the text of maps."""
        self.opened_bytes = 0
        self.parts: list[Part] = []
        self.counts = dict.fromkeys(
            (
                *("kernel_threads", "zombies", "vanished", "refused", "truncated", "changed"),
                *("bad_lines", "entries_read", "pages_skipped"),
            ),
            0,
        )
        self.problems: list[tuple[int, str]] = []

    # --- planning, in the caller's thread ------------------------------------------------

    def batches(self) -> Iterator[Batch]:
        """Open every process and deal out what is to be read, in order."""
        batch = Batch()
        for done, pid in enumerate(self.pids):
            if self.progress is not None:
                self.progress(done, len(self.pids))
            self._open(pid)
            if len(self.opened) >= _GROUP or self.opened_bytes >= _GROUP_BYTES:
                batch = yield from self._plan(batch)
        batch = yield from self._plan(batch)
        if batch.pieces:
            yield batch
        if self.progress is not None:
            self.progress(len(self.pids), len(self.pids))

    def _open(self, pid: int) -> None:
        """Read the text files of one process and open its pagemap, if it has memory."""
        files = self.files
        try:
            status = parse_status(files.read(pid, "status"))
        except OSError as error:
            self._fail(pid, "status", error)
            return
        try:
            maps = files.read(pid, "maps")
            if not maps:
                self.counts["zombies" if status.zombie else "kernel_threads"] += 1
                return
            fd = files.open(pid)
        except OSError as error:
            # A kernel thread may not be looked at either, and has nothing to show.
            if isinstance(error, PermissionError) and self._is_kernel_thread(pid):
                self.counts["kernel_threads"] += 1
            else:
                self._fail(pid, "maps", error)
            return
        try:
            cgroup = memory_cgroup(files.read(pid, "cgroup"))
        except OSError:
            cgroup = ""
        target = Target(files, pid, len(self.targets), fd)
        self.targets.append(target)
        self.statuses.append(status)
        self.cgroups.append(cgroup)
        self.opened.append((target, maps))
        self.opened_bytes += len(maps)

    def _plan(self, batch: Batch) -> Generator[Batch, None, Batch]:
        """Deal out the processes opened so far; returns the batch that is not full yet."""
        opened, self.opened, self.opened_bytes = self.opened, [], 0
        for (target, _), areas in zip(
            opened, parse_maps([maps for _, maps in opened]), strict=True
        ):
            self.areas.append(areas)
            self.counts["bad_lines"] += areas.bad_lines
            start = (areas.start >> np.uint64(PAGE_SHIFT)).astype(np.int64)
            end = (areas.end >> np.uint64(PAGE_SHIFT)).astype(np.int64)
            job = Job(target, self.vmas, start, end)
            self.vmas += len(areas)
            for piece in _pieces(job):
                piece.job = batch.job(job)
                batch.pieces.append(piece)
                batch.entries += _SPARSE_PAGES if piece.sparse else piece.pages
                if batch.entries >= BLOCK_ENTRIES or piece.pages >= _SPAN_PAGES:
                    yield batch
                    batch = Batch()
            target.release()
            if len(batch.jobs) >= _BATCH_PROCESSES:
                yield batch
                batch = Batch()
        return batch

    def _is_kernel_thread(self, pid: int) -> bool:
        """statm of a kernel thread is all zero, also where maps is refused."""
        return self.files.statm(pid).split() in ([b"0"] * 7, [])

    def _fail(self, pid: int, name: str, error: OSError) -> None:
        if isinstance(error, (FileNotFoundError, ProcessLookupError)):
            self.counts["vanished"] += 1
            return
        self.counts["refused"] += 1
        self._problem(pid, f"{name}: {error.strerror or type(error).__name__}")

    def _problem(self, pid: int, reason: str) -> None:
        if len(self.problems) < _PROBLEMS:
            self.problems.append((pid, reason))

    # --- collecting ----------------------------------------------------------------------

    def add(self, result: BatchResult) -> None:
        """Take the parts of one batch."""
        self.parts += result.parts
        self.counts["entries_read"] += result.entries
        self.counts["pages_skipped"] += result.skipped
        if any(part.hidden for part in result.parts) and all(
            part.hidden == part.present for part in self.parts
        ):
            raise NotReadableError(
                "pagemap shows no frame numbers", path=self.files.proc, hint=HIDDEN_HINT
            )

    def finish(self, seconds: float) -> Attribution:
        """Put the columns together and leave out the processes that ended."""
        parts = self.parts
        mappings = Mappings(
            pfn_start=np.concatenate([part.pfn_start for part in parts])
            if parts
            else np.zeros(0, np.uint32),
            nr_pages=_joined([part.nr_pages for part in parts], np.uint32),
            vma=_joined([part.vma for part in parts], np.uint32),
            page=_joined([part.page for part in parts], np.uint64),
            file=_joined([part.file for part in parts], np.uint8),
        )
        processes = Processes(
            pid=np.array([target.pid for target in self.targets], np.uint32),
            ppid=np.array([status.ppid for status in self.statuses], np.uint32),
            uid=np.array([status.uid for status in self.statuses], np.uint32),
            comm=[status.comm for status in self.statuses],
            cgroup=self.cgroups,
        )
        vmas = self._vmas(pages_by_kind(self.parts, self.files.swap_numbering))
        vanished = np.zeros(len(self.targets), np.bool_)
        for target in self.targets:
            if target.vanished:
                vanished[target.index] = True
            elif target.failure:
                self.counts["truncated"] += 1
                self._problem(target.pid, f"pagemap: {target.failure}")
            elif target.changed:
                self.counts["changed"] += 1
        self.counts["vanished"] += int(vanished.sum())
        if vanished.any():
            processes, vmas, mappings = _without(vanished, processes, vmas, mappings)
        report = ReadReport(
            seen=len(self.pids),
            read=len(processes),
            seconds=seconds,
            problems=tuple(self.problems),
            **self.counts,
        )
        return Attribution(processes, vmas, mappings, report)

    def _vmas(self, kinds: dict[str, NDArray[np.uint64]]) -> Vmas:
        areas = self.areas
        code_of: dict[bytes, int] = {}
        codes = [code_of.setdefault(name, len(code_of)) for area in areas for name in area.name]
        counts = {name: _padded(values, self.vmas) for name, values in kinds.items()}
        start = _joined([area.start for area in areas], np.uint64)
        end = _joined([area.end for area in areas], np.uint64)
        sizes = [len(area) for area in areas]
        vmas = Vmas(
            process=np.repeat(np.arange(len(sizes), dtype=np.uint32), sizes),
            start=start,
            end=end,
            perms=_joined([area.perms for area in areas], np.uint8),
            offset=_joined([area.offset for area in areas], np.uint64),
            device=_joined([area.device for area in areas], np.uint32),
            inode=_joined([area.inode for area in areas], np.uint64),
            name=np.array(codes, np.uint32),
            names=[name.decode("utf-8", "replace") for name in code_of],
            **counts,
            no_pfn=np.zeros(self.vmas, np.uint64),
        )
        blank = np.array([looks_blank(name) for name in vmas.names], np.bool_)[vmas.name]
        blank |= start >= np.uint64(_USER_END)
        seen = np.zeros(self.vmas, np.bool_)
        for part in self.parts:
            seen[part.vma] = True
        blank &= ~seen
        vmas.no_pfn[blank] = (end[blank] - start[blank]) >> np.uint64(PAGE_SHIFT)
        return vmas


def _pieces(job: Job) -> Iterator[Piece]:
    """Cut the VMAs of one process into stretches worth one read each."""
    start, end = job.start, job.end
    # The vsyscall page lies in the kernel's half: pagemap has nothing there.
    user = int(np.searchsorted(start, _USER_END >> PAGE_SHIFT))
    if not user:
        return
    start, end = start[:user], end[:user]
    large = end - start >= _SPARSE_PAGES
    apart = large[1:] | large[:-1] | (start[1:] - end[:-1] > _JOIN_GAP)
    lows = [0, *(np.flatnonzero(apart) + 1).tolist()]
    for low, high in zip(lows, [*lows[1:], user], strict=True):
        first, last = int(start[low]), int(end[high - 1])
        sparse = bool(large[low])
        step = max(_SPAN_PAGES, (last - first) >> 6) if sparse else BLOCK_ENTRIES
        for page in range(first, last, step):
            pages = min(step, last - page)
            yield Piece(0, page, pages, low, high, sparse)


# --- helpers -----------------------------------------------------------------------------


def _padded(values: NDArray[np.uint64], size: int) -> NDArray[np.uint64]:
    return np.concatenate([values, np.zeros(size - values.size, np.uint64)])


def _without(
    gone: NDArray[np.bool_], processes: Processes, vmas: Vmas, mappings: Mappings
) -> tuple[Processes, Vmas, Mappings]:
    """Take processes out, with all that points to them."""
    kept = ~gone
    kept_vma = kept[vmas.process]
    kept_mapping = kept_vma[mappings.vma]
    new_process = (np.cumsum(kept) - 1).astype(np.uint32)
    new_vma = (np.cumsum(kept_vma) - 1).astype(np.uint32)
    indices = np.flatnonzero(kept).tolist()
    left = Processes(
        pid=processes.pid[kept],
        ppid=processes.ppid[kept],
        uid=processes.uid[kept],
        comm=[processes.comm[index] for index in indices],
        cgroup=[processes.cgroup[index] for index in indices],
    )
    columns = {
        item.name: getattr(vmas, item.name)[kept_vma]
        for item in dataclasses.fields(vmas)
        if item.name not in ("names", "process")
    }
    areas = Vmas(process=new_process[vmas.process[kept_vma]], names=vmas.names, **columns)
    runs = Mappings(
        mappings.pfn_start[kept_mapping],
        mappings.nr_pages[kept_mapping],
        new_vma[mappings.vma[kept_mapping]],
        mappings.page[kept_mapping],
        mappings.file[kept_mapping],
    )
    return left, areas, runs


def _joined(parts: list[NDArray[_T]], dtype: type[_T]) -> NDArray[_T]:
    """One column."""
    return np.concatenate(parts) if parts else np.zeros(0, dtype)
