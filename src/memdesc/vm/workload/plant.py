"""Plant one kind of memory per function and note what it is.

Every function leaves its memory resident and takes care that nothing changes it afterwards.  A
region is a dictionary as it appears in planted.json: either ``pid``, ``comm``, ``address`` and
``nr_pages``, or, for memory that is mapped nowhere, ``pfn_start`` and ``nr_pages``.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable
from fcntl import fcntl
from pathlib import Path
from typing import Any

from memdesc.vm.workload import calls
from memdesc.vm.workload.calls import HUGE, PAGE

Region = dict[str, Any]

_TEXT = b"memdesc " * (PAGE // 8)


class Planter:
    """Plants memory in this process and collects the notes."""

    def __init__(self, comm: str) -> None:
        self.comm = comm
        self.regions: list[Region] = []
        self.counted: list[Region] = []  # memory of the kernel's own whose place is not known
        self.kept: list[Any] = []  # objects that must stay open

    def note(
        self, kind: str, address: int, pages: int, note: str = "", pid: int = 0, comm: str = ""
    ) -> int:
        """Note a mapped region; returns its address."""
        place = {
            "pid": pid or os.getpid(),
            "comm": comm or self.comm,
            "address": address,
            "nr_pages": pages,
        }
        self.regions.append({"kind": kind, **place, "note": note})
        return address

    def note_frames(self, kind: str, frames: list[int], note: str) -> None:
        """Note page frames that are mapped nowhere, one entry per run of consecutive frames."""
        runs: list[list[int]] = []
        for frame in sorted(frames):
            if runs and runs[-1][0] + runs[-1][1] == frame:
                runs[-1][1] += 1
            else:
                runs.append([frame, 1])
        for start, count in runs:
            self.regions.append({"kind": kind, "pfn_start": start, "nr_pages": count, "note": note})

    def count(self, kind: str, size: int, note: str) -> None:
        """Note bytes that the kernel allocated for this process, at a place that is not known."""
        self.counted.append(
            {"kind": kind, "pid": os.getpid(), "comm": self.comm, "bytes": size, "note": note}
        )

    def missing(self, kind: str, reason: str) -> None:
        """Note that this kernel cannot have a kind."""
        self.regions.append({"kind": kind, "missing": reason})

    def attempt(self, kind: str, plant: Callable[[], Any]) -> None:
        """Plant something that this kernel may not know."""
        try:
            plant()
        except OSError as error:
            self.missing(kind, str(error))

    # -- anonymous memory ----------------------------------------------------------------------

    def anon(self, kind: str, pages: int, seed: int = 1, note: str = "") -> int:
        """Private anonymous memory in base pages, written."""
        address = self.plain(pages)
        calls.write_pages(address, pages, seed)
        return self.note(kind, address, pages, note)

    @staticmethod
    def plain(pages: int) -> int:
        """Map private anonymous memory that never becomes huge pages."""
        address = calls.mmap(pages * PAGE)
        calls.madvise(address, pages * PAGE, calls.MADV_NOHUGEPAGE)
        return address

    def zero_pages(self, pages: int) -> None:
        """Memory that was only read: the shared zero page."""
        address = self.plain(pages)
        calls.read_pages(address, pages)
        self.note("zero_page", address, pages, "read, never written")

    def huge(self, kind: str, count: int = 1, note: str = "") -> int:
        """Transparent huge pages of 2 MiB, written."""
        address = calls.aligned(count * HUGE, HUGE)
        calls.madvise(address, count * HUGE, calls.MADV_HUGEPAGE)
        calls.write_pages(address, count * HUGE // PAGE, 2)
        return self.note(kind, address, count * HUGE // PAGE, note)

    def huge_zero(self) -> None:
        """A huge page that was only read: the shared huge zero page."""
        address = calls.aligned(HUGE, HUGE)
        calls.madvise(address, HUGE, calls.MADV_HUGEPAGE)
        calls.read_pages(address, 1)
        self.note("huge_zero_page", address, HUGE // PAGE, "read, never written")

    def medium(self, pages: int) -> None:
        """64 KiB folios: a range that no 2 MiB page fits into."""
        size = "/sys/kernel/mm/transparent_hugepage/hugepages-64kB/enabled"
        if not Path(size).exists():
            self.missing("anon_mthp", "this kernel has only 2 MiB huge pages")
            return
        address = calls.aligned(pages * PAGE, HUGE, offset=64 << 10)
        calls.madvise(address, pages * PAGE, calls.MADV_HUGEPAGE)
        calls.write_pages(address, pages, 3)
        self.note("anon_mthp", address, pages, "64 KiB folios")

    def huge_split_mapping(self) -> None:
        """A huge page whose second half is read-only: still one folio, mapped by base pages."""
        address = self.huge(
            "thp_pte_mapped", note="mapped by 512 page-table entries after mprotect of one half"
        )
        calls.mprotect(address + HUGE // 2, HUGE // 2, calls.PROT_READ)

    def huge_partial(self) -> None:
        """A huge page of which half is unmapped; the memory of that half is not given back."""
        address = calls.aligned(HUGE, HUGE)
        calls.madvise(address, HUGE, calls.MADV_HUGEPAGE)
        calls.write_pages(address, HUGE // PAGE, 4)
        frames = calls.page_frames(address, HUGE // PAGE)
        calls.munmap(address + HUGE // 2, HUGE // 2)
        self.note(
            "thp_partial_mapped", address, 256, "the mapped half of a partially unmapped huge page"
        )
        self.note_frames(
            "thp_partial_unmapped", frames[256:], "the unmapped half: on the deferred split list"
        )

    def lazy_free(self, pages: int) -> None:
        """MADV_FREE: anonymous memory that the kernel may drop instead of swapping."""
        address = self.anon("madv_free", pages, 5)
        calls.madvise(address, pages * PAGE, calls.MADV_FREE)
        drain()

    def locked(self, pages: int) -> None:
        """Anonymous memory locked in place."""
        address = self.anon("anon_mlocked", pages, 6)
        calls.mlock(address, pages * PAGE)

    def inaccessible(self, pages: int) -> None:
        """Written memory that nobody may access now: it is resident all the same."""
        calls.mprotect(self.anon("anon_prot_none", pages, 16), pages * PAGE, calls.PROT_NONE)

    def write_protected(self, pages: int) -> None:
        """Memory whose writes userfaultfd reports."""
        address = self.anon("anon_uffd_wp", pages, 17)
        self.kept.append(calls.write_protect(address, pages * PAGE))

    def mergeable(self, pages: int, same: int) -> None:
        """Memory for KSM: pages that equal their twin in another process, and pages all alike."""
        address = self.plain(pages + same)
        calls.write_pages(address, pages, 7)
        for index in range(pages, pages + same):
            calls.fill(address + index * PAGE, b"Z" * PAGE)
        calls.madvise(address, (pages + same) * PAGE, calls.MADV_MERGEABLE)
        self.note(
            "ksm", address, pages, "each page equals one page of each other mergeable process"
        )
        self.note("ksm", address + pages * PAGE, same, "all pages equal")

    def swapped(self, kind: str, pages: int, note: str, read_back: bool = False) -> None:
        """Memory written to swap, and read from there again if wanted."""
        address = self.anon(kind, pages, 9, note)
        for index in range(pages):  # content that does not compress to nothing
            calls.fill(address + index * PAGE + 64, os.urandom(2048))
        calls.madvise(address, pages * PAGE, calls.MADV_PAGEOUT)
        if read_back:
            calls.read_pages(address, pages)

    def sparse(self, tables: int) -> None:
        """One page per page table: many page tables for little memory."""
        span = tables * 512
        address = calls.aligned(span * PAGE, HUGE)
        calls.madvise(address, span * PAGE, calls.MADV_NOHUGEPAGE)
        calls.write_pages(address, span, 10, step=512)
        self.note(
            "anon_sparse", address, span, "only every 512th page is present: one page table each"
        )
        self.count("page_tables", tables * PAGE, "one page table for each page of anon_sparse")

    def guards(self, pages: int) -> None:
        """Guard regions inside written memory (6.13 and later)."""
        address = self.plain(3 * pages)
        calls.write_pages(address, 3 * pages, 11)
        calls.madvise(address + pages * PAGE, pages * PAGE, calls.MADV_GUARD_INSTALL)
        self.note(
            "guard", address + pages * PAGE, pages, "MADV_GUARD_INSTALL between two written ranges"
        )

    # -- shared and file memory ----------------------------------------------------------------

    def shared(self, kind: str, pages: int, fd: int, note: str = "", offset: int = 0) -> int:
        """A shared mapping of a descriptor, written."""
        address = calls.mmap(
            pages * PAGE,
            flags=calls.MAP_SHARED | (calls.MAP_ANONYMOUS if fd < 0 else 0),
            fd=fd,
            offset=offset,
        )
        calls.write_pages(address, pages, 12)
        return self.note(kind, address, pages, note)

    def memory_file(self, kind: str, pages: int, flags: int = 0) -> int:
        """A memfd, mapped and written."""
        fd = os.memfd_create(f"memdesc-{kind}", flags)
        os.ftruncate(fd, pages * PAGE)
        return self.shared(kind, pages, fd)

    def file(self, path: str, pages: int, *, sync: bool, at_once: int = 1) -> int:
        """A new file, written with write(2), some pages at once; returns its descriptor.

        Large writes let a file system that has large folios use them.
        """
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        for _ in range(pages // at_once):
            os.write(fd, _TEXT * at_once)
        if sync:
            os.fsync(fd)
        return fd

    def read_mapped(self, kind: str, path: str, pages: int, note: str, fd: int = -1) -> int:
        """A private, read-only mapping of a file, read."""
        fd = os.open(path, os.O_RDONLY) if fd < 0 else fd
        address = calls.mmap(pages * PAGE, calls.PROT_READ, calls.MAP_PRIVATE, fd)
        calls.read_pages(address, pages)
        return self.note(kind, address, pages, f"{path}: {note}")

    def unmapped(self, kind: str, pages: int, fd: int, note: str) -> list[int]:
        """The cached pages of a file, found by mapping it and unmapping it again."""
        address = calls.mmap(pages * PAGE, calls.PROT_READ, calls.MAP_SHARED, fd)
        calls.read_pages(address, pages)
        frames = calls.page_frames(address, pages)
        calls.munmap(address, pages * PAGE)
        self.note_frames(kind, frames, note)
        return frames

    def shared_swapped(self, pages: int) -> None:
        """Shared memory that was swapped out: pagemap shows nothing at all."""
        address = self.memory_file("memfd_swapped", pages)
        calls.madvise(address, pages * PAGE, calls.MADV_PAGEOUT)

    def in_pipe(self, pages: int, fd: int, note: str) -> None:
        """Cached pages of a file that a pipe holds by reference."""
        ends = os.pipe()
        self.kept.append(ends)
        for _ in range(pages):
            os.splice(fd, ends[1], PAGE)
        self.unmapped("ext4_in_pipe", pages, fd, note)

    # -- memory shared with the kernel -----------------------------------------------------------

    def spliced(self, pages: int) -> None:
        """Pages that a pipe holds by reference, still mapped; and some that only the pipe holds."""
        for kind, flags in (("vmspliced", 0), ("vmspliced_unmapped", calls.SPLICE_F_GIFT)):
            ends = os.pipe()
            self.kept.append(ends)
            address = self.plain(pages)
            calls.write_pages(address, pages, 13)
            calls.vmsplice(ends[1], address, pages * PAGE, flags)
            if flags:
                frames = calls.page_frames(address, pages)
                calls.munmap(address, pages * PAGE)
                self.note_frames(kind, frames, "gifted to a pipe, then unmapped")
            else:
                self.note(kind, address, pages, "held by a pipe too")

    def rings(self) -> None:
        """An io_uring with a fixed buffer, a packet socket ring and a perf ring."""

        def uring() -> None:
            fd, rings = calls.io_uring(128)
            for address, pages in rings:
                self.note("io_uring_ring", address, pages)
            calls.io_uring_fix(
                fd, self.anon("io_uring_fixed", 16, 14, "registered buffer: pinned"), 16 * PAGE
            )

        def packet() -> None:
            link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            link.setsockopt(
                263, 5, struct.pack("IIII", 65536, 4, 2048, 128)
            )  # SOL_PACKET, PACKET_RX_RING
            address = calls.mmap(4 * 65536, flags=calls.MAP_SHARED, fd=link.fileno())
            calls.read_pages(address, 64)
            self.kept.append(link)
            self.note("packet_ring", address, 64)

        def perf() -> None:
            address = calls.perf_ring(8)
            calls.read_pages(address, 9)
            self.note("perf_ring", address, 9)

        self.attempt("io_uring_ring", uring)
        self.attempt("packet_ring", packet)
        self.attempt("perf_ring", perf)

    def kernel_memory(self) -> None:
        """What the kernel takes for itself on our behalf: vmalloc, large kmalloc, a trace ring."""

        def array() -> None:
            fd = calls.bpf_array(64)
            self.kept.append(fd)
            self.count("vmalloc", 64 * PAGE, "a BPF array map")
            address = calls.mmap(16 * PAGE, flags=calls.MAP_SHARED, fd=fd)
            calls.read_pages(address, 16)
            self.note("bpf_array_mapped", address, 16, "the first pages of a BPF array map")

        self.attempt("bpf_array_mapped", array)
        ends = os.pipe()
        fcntl(ends[1], calls.F_SETPIPE_SZ, 256 * PAGE)
        self.kept.append(ends)
        # fs/pipe.c:pipe_resize_ring @6.1: an array of struct pipe_buffer, 40 bytes each.
        self.count("large_kmalloc", 256 * 40, "the ring of a pipe of 1 MiB, more than 8 KiB")
        calls.mount("tracefs", "/sys/kernel/tracing", "tracefs")
        Path("/sys/kernel/tracing/buffer_size_kb").write_text("256")
        self.count("trace_ring", 256 << 10, "the ring of ftrace")

    def secret(self, pages: int) -> None:
        """Secret memory: outside the kernel's own mapping."""
        address = calls.secret_memory(pages * PAGE)
        calls.write_pages(address, pages, 15)
        self.note("secretmem", address, pages)


def drain() -> None:
    """Empty this CPU's LRU batches, so that flags do not lag behind."""
    address = calls.mmap(PAGE)
    calls.write_pages(address, 1)
    calls.madvise(address, PAGE, calls.MADV_COLD)
    calls.munmap(address, PAGE)
