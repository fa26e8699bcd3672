"""The processes of the workload: what each plants, and how they share."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path

from memdesc.vm.inject import hard_offline
from memdesc.vm.workload import calls
from memdesc.vm.workload.calls import HUGE, PAGE
from memdesc.vm.workload.plant import Planter, drain

WEB_WORKERS = 3
KSM_DISTINCT, KSM_SAME = 64, 64


def database(plant: Planter) -> None:
    """/db: locked buffers, huge pages from the pool, SysV memory, and a data file."""
    shared = os.open("/data/shared.db", os.O_RDONLY)
    while os.read(shared, 1 << 18):  # charges the page cache of this file to /db
        pass
    plant.kept.append(shared)
    plant.anon("anon", 300, note="buffer pool")
    plant.locked(64)
    address = calls.shared_segment(64 * PAGE)
    calls.write_pages(address, 64, 20)
    plant.note("sysv_shm", address, 64)
    address = calls.mmap(
        2 * HUGE, flags=calls.MAP_PRIVATE | calls.MAP_ANONYMOUS | calls.MAP_HUGETLB
    )
    calls.write_pages(address, 2 * HUGE // PAGE, 21)
    plant.note("hugetlb_anon", address, 2 * HUGE // PAGE)
    clean = plant.file("/data/table.dat", 256, sync=True, at_once=64)
    plant.read_mapped(
        "ext4_mapped_written", "/data/table.dat", 256, "written with write(2), then synced", clean
    )
    dirty = plant.file("/data/journal.dat", 128, sync=True, at_once=32)
    plant.shared(
        "ext4_mapped_dirty",
        128,
        dirty,
        "/data/journal.dat: written through the mapping, not synced",
    )
    unmapped = plant.file("/data/wal.dat", 128, sync=False)
    plant.unmapped(
        "ext4_unmapped_dirty", 128, unmapped, "/data/wal.dat: written page by page, not synced"
    )
    unmapped = plant.file("/data/bulk.dat", 128, sync=False, at_once=128)
    plant.unmapped(
        "ext4_unmapped_dirty", 128, unmapped, "/data/bulk.dat: written at once, not synced"
    )
    index = plant.file("/data/index.dat", 64, sync=True)
    address = plant.read_mapped("ext4_mlocked", "/data/index.dat", 64, "locked", index)
    calls.mlock(address, 64 * PAGE)
    plant.inaccessible(16)
    plant.sparse(256)


def cache(plant: Planter) -> None:
    """/web/cache: a heap of huge pages of several sizes, lazily freed memory, memfds."""
    plant.anon("anon", 400, note="heap")
    plant.huge("anon_thp", 3, note="heap")
    plant.medium(256)
    plant.huge_zero()
    plant.huge_split_mapping()
    plant.huge_partial()
    plant.lazy_free(256)
    plant.zero_pages(64)
    plant.mergeable(KSM_DISTINCT, KSM_SAME)
    plant.memory_file("memfd", 64)
    plant.attempt(
        "hugetlb_memfd",
        lambda: plant.memory_file("hugetlb_memfd", HUGE // PAGE, calls.MFD_HUGETLB) and None,
    )


def webserver(plant: Planter) -> None:
    """/web/frontend: a master and its workers, sharing by fork, shared memory and files."""
    regions: list[tuple[str, int, int, str]] = []

    def keep(kind: str, address: int, pages: int, note: str) -> None:
        regions.append((kind, address, pages, note))

    keep("shared_anon", plant.shared("shared_anon", 32, -1, "scoreboard"), 32, "scoreboard")
    keep("memfd", plant.memory_file("memfd", 48), 48, "")
    keep(
        "anon_forked",
        plant.anon("anon_forked", 200, 22, "configuration, written before fork"),
        200,
        "",
    )
    rewritten = plant.anon(
        "anon", 40, 24, "written before fork and again after it: a copy of its own"
    )
    keep("anon_forked", rewritten, 40, "the parent wrote its own copy after fork")
    keep("thp_forked", plant.huge("thp_forked", 1, "written before fork"), HUGE // PAGE, "")
    pages = (4 << 20) // PAGE
    keep(
        "ext4_mapped_read",
        plant.read_mapped("ext4_mapped_read", "/data/static.bin", pages, "read from disk"),
        pages,
        "",
    )
    private = calls.mmap(
        16 * PAGE, flags=calls.MAP_PRIVATE, fd=os.open("/data/archive.bin", os.O_RDONLY)
    )
    calls.write_pages(private, 16, 23)
    plant.note(
        "file_private_written",
        private,
        16,
        "private file mapping, written before fork: anonymous, shared",
    )
    keep("file_private_written", private, 16, "")

    started, ready = os.pipe()
    for number in range(WEB_WORKERS):
        name = f"webworker{number}"
        pid = os.fork()
        if pid == 0:
            calls.set_name(name)
            for kind, address, count, _ in regions:
                if kind not in ("anon_forked", "thp_forked", "file_private_written"):
                    calls.read_pages(address, count)
            address = plant.plain(100)
            calls.write_pages(address, 100, 30 + number)
            os.write(ready, json.dumps([pid, address]).encode() + b"\n")
            wait()
        _, own = json.loads(os.read(started, 200))
        for kind, address, count, note in regions:
            plant.note(kind, address, count, note, pid=pid, comm=name)
        plant.note("anon", own, 100, "request buffers", pid=pid, comm=name)

    calls.write_pages(rewritten, 40, 25)
    archive = os.open("/data/archive.bin", os.O_RDONLY)
    plant.in_pipe(8, archive, "/data/archive.bin: spliced into a pipe")
    for _ in range(4):  # full pipes and socket queues: kernel memory that no flag names
        ends = os.pipe()
        os.set_blocking(ends[1], False)
        plant.kept.append(ends)
        plant.count("pipe_data", os.write(ends[1], bytes(65536)), "written, not read")
    left, right = socket.socketpair()
    left.setblocking(False)
    plant.kept.append((left, right))
    plant.count("socket_data", left.send(bytes(120_000)), "unix socket: sent, not received")
    listener = socket.create_server(("127.0.0.1", 8080))
    client = socket.create_connection(("127.0.0.1", 8080))
    server, _ = listener.accept()
    client.setblocking(False)
    plant.kept.append((listener, client, server))
    plant.count(
        "socket_data", client.send(bytes(200_000)), "TCP on the loopback link: sent, not received"
    )


def batch(plant: Planter) -> None:
    """/batch: swap of both sorts, tmpfs, many small files, and a file that /db paid for."""
    calls.make_swap("/dev/vdb", (64 << 20) // PAGE)
    calls.swapon("/dev/vdb", 10)
    plant.swapped(
        "anon_swapped", 200, "written to a disk swap area; the pages may still be in the swap cache"
    )
    plant.swapped("swap_cache", 64, "written to a disk swap area and read again", read_back=True)
    Path("/sys/block/zram0/disksize").write_text("32M")
    calls.make_swap("/dev/zram0", (32 << 20) // PAGE)
    calls.swapon("/dev/zram0", 20)
    plant.swapped("anon_swapped_zram", 256, "compressed in memory by zram: no page left")

    plant.shared_swapped(64)

    pages = (2 << 20) // PAGE
    plant.read_mapped(
        "ext4_mapped_read", "/data/shared.db", pages, "charged to /db, mapped from /batch"
    )
    plant.anon("anon", 256, note="working set")
    plant.mergeable(KSM_DISTINCT, KSM_SAME)
    fd = os.open("/tmp/result of run 7", os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, 64 * PAGE)
    plant.shared("tmpfs_mapped", 64, fd, "/tmp/result of run 7")
    fd = plant.file("/tmp/report", 64, sync=False)
    plant.unmapped("tmpfs_unmapped", 64, fd, "/tmp/report")
    fd = os.open("/huge/blob", os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, 2 * HUGE)
    address = calls.aligned(2 * HUGE, HUGE)
    calls.mmap(2 * HUGE, flags=calls.MAP_SHARED | calls.MAP_FIXED, fd=fd, address=address)
    calls.write_pages(address, 2 * HUGE // PAGE, 40)
    plant.note("tmpfs_huge", address, 2 * HUGE // PAGE, "/huge/blob, mounted huge=always")
    plant.kept.append(fd)
    cold = os.open("/data/cold.bin", os.O_RDONLY)
    plant.unmapped(
        "ext4_unmapped_read", pages, cold, "/data/cold.bin: read from disk, mapped no longer"
    )
    for folder in ("/data/spool", "/tmp/spool"):
        Path(folder).mkdir()
        for number in range(1200):
            os.close(os.open(f"{folder}/message-{number:05}", os.O_CREAT | os.O_WRONLY))
    for number in range(150):
        Path(f"/data/spool/body-{number:04}").write_bytes(bytes(6000))


def monitor(plant: Planter) -> None:
    """The root cgroup: threads, rings, pinned and secret memory, and pages that went bad."""
    threading.stack_size(128 << 10)
    for _ in range(40):
        threading.Thread(target=signal.pause, daemon=True).start()
    plant.count("kernel_stack", 40 * 4 * PAGE, "of 40 threads")
    plant.anon("anon", 64, note="samples")
    plant.rings()
    plant.kernel_memory()
    plant.spliced(16)
    plant.attempt("secretmem", lambda: plant.secret(16))
    plant.attempt("anon_uffd_wp", lambda: plant.write_protected(16))
    plant.attempt("guard", lambda: plant.guards(8))
    # Poison: a dirty anonymous page, a clean page-cache page that nobody maps, and a free page.
    victims = plant.plain(4)
    calls.write_pages(victims, 4, 41)
    drain()
    frame = calls.page_frames(victims, 4)[1]
    plant.note_frames(
        "hwpoison_anon",
        [frame],
        f"owned by pid {os.getpid()} at {victims + PAGE:#x}: {hard_offline(frame).verdict}",
    )
    archive = os.open("/data/archive.bin", os.O_RDONLY)
    address = calls.mmap(32 * PAGE, calls.PROT_READ, calls.MAP_SHARED, archive, offset=64 * PAGE)
    calls.read_pages(address, 32)
    frame = calls.page_frames(address, 32)[5]
    calls.munmap(address, 32 * PAGE)
    drain()
    plant.note_frames(
        "hwpoison_file", [frame], f"page 69 of /data/archive.bin: {hard_offline(frame).verdict}"
    )
    frame = free_frame()
    plant.note_frames("hwpoison_free", [frame], f"a free page: {hard_offline(frame).verdict}")


def free_frame() -> int:
    """A page frame in the middle of a large free block."""
    fd = os.open("/proc/kpageflags", os.O_RDONLY)
    flags = memoryview(os.read(fd, 64 << 20)).cast("Q")
    os.close(fd)
    buddy = 1 << 10
    for frame in range(len(flags) // 2 // 512 * 512, len(flags) - 512, 512):
        if all(flags[frame + index] & buddy for index in range(0, 512, 64)):
            return frame + 100
    raise RuntimeError("no large free block")


def wait() -> None:
    """Do nothing for the rest of the recording."""
    while True:
        signal.pause()


ROLES: dict[str, tuple[str, Callable[[Planter], None]]] = {
    "database": ("/db", database),
    "cache": ("/web/cache", cache),
    "webserver": ("/web/frontend", webserver),
    "batch": ("/batch", batch),
    "monitor": ("", monitor),
}
