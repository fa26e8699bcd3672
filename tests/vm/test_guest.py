"""A booted guest of each kernel: programs, files, snapshots, and every way to end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from guests import KERNELS, kernel_or_skip

from memdesc.errors import VmError
from memdesc.vm.guest import (
    DumpFormat,
    Guest,
    GuestEndedError,
    GuestProgramError,
    GuestTimeoutError,
)
from memdesc.vm.qemu import Machine

pytestmark = pytest.mark.vm

SMALL = Machine(memory_mb=256, preload=())

PLANT = """
import json, os, signal
from memdesc.vm.workload import calls
reading, writing = os.pipe()
if os.fork() == 0:
    address = calls.mmap(8 * 4096)
    calls.madvise(address, 8 * 4096, calls.MADV_NOHUGEPAGE)
    calls.write_pages(address, 8)
    os.write(writing, json.dumps(calls.page_frames(address, 8)).encode())
    while True:
        signal.pause()
result = json.loads(os.read(reading, 1000))
"""
"""Leaves a process behind that holds eight anonymous pages; their frames."""

FLAGS_OF = """
import os, struct, sys
fd = os.open("/proc/kpageflags", os.O_RDONLY)
result = struct.unpack("<Q", os.pread(fd, 8, int(sys.argv[1]) * 8))[0]
"""
ANON, HWPOISON = 1 << 12, 1 << 19


# --- programs and files ------------------------------------------------------------------


def test_a_program_runs_and_its_result_comes_back(guest: Guest) -> None:
    source = "import sys, os\nprint('out'); print('err', file=sys.stderr)\n"
    source += "result = {'release': os.uname().release, 'args': sys.argv[1:]}"
    outcome = guest.run(source, "a", "b c")
    assert (outcome.status, outcome.stdout, outcome.stderr) == (0, "out\n", "err\n")
    assert outcome.value == {"release": guest.kernel.release, "args": ["a", "b c"]}


def test_a_function_runs_and_its_value_comes_back(guest: Guest) -> None:
    assert guest.call("memdesc.vm.guard:inside_guest") is True
    assert guest.call("math:gcd", 12, 18) == 6


def test_memdesc_reads_the_guest_it_runs_in(guest: Guest) -> None:
    """Our own live source, on each kernel, as root: the ledger adds up to the machine."""
    source = "from memdesc.cli import main\nraise SystemExit(main(['ledger', '--json']))"
    ledger = json.loads(guest.run(source).stdout)
    assert ledger["kernel"] == guest.kernel.release
    assert sum(row["frames"] for row in ledger["rows"]) == ledger["frames_present"]
    assert 100_000 < ledger["frames_present"] <= 131_072


def test_a_program_that_fails_says_why(guest: Guest) -> None:
    with pytest.raises(GuestProgramError, match="ended with 1") as failed:
        guest.run("raise ValueError('on purpose')")
    assert "ValueError: on purpose" in failed.value.hint
    assert guest.run("raise SystemExit(7)", check=False).status == 7
    with pytest.raises(GuestProgramError, match="signal 11"):
        guest.run("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    with pytest.raises(GuestProgramError, match="no_such"):
        guest.call("memdesc.no_such:function")


def test_a_program_that_hangs_is_ended_and_the_guest_goes_on(guest: Guest) -> None:
    outcome = guest.run("print('here', flush=True)\nwhile True: pass", seconds=0.5, check=False)
    assert outcome.status == -signal.SIGKILL
    assert outcome.stdout == "here\n"
    assert guest.run("print(1)").stdout == "1\n"


def test_files_go_in_and_come_out_unchanged(guest: Guest, tmp_path: Path) -> None:
    content = bytes(range(256)) * 10_000 + b"\n"
    guest.push(content, "/tmp/some/folder/file")
    assert guest.pull("/tmp/some/folder/file") == content
    guest.pull_folder("/tmp/some", tmp_path / "some")
    assert (tmp_path / "some/folder/file").read_bytes() == content
    with pytest.raises(VmError, match="No such file"):
        guest.pull("/nowhere")


def test_no_network_and_nothing_of_this_machine(guest: Guest) -> None:
    marker = Path(__file__).name
    source = f"""
import os
found = [name for top in ("/usr", "/opt", "/data", "/mnt")
         for _, _, names in os.walk(top) for name in names if name == {marker!r}]
result = [sorted(os.listdir("/sys/class/net")), found]
"""
    assert guest.run(source).value == [["lo"], []]


# --- snapshots ---------------------------------------------------------------------------


def test_a_poisoned_page_is_whole_again_after_loadvm(guest: Guest) -> None:
    frame = str(guest.run(PLANT).value[3])
    assert guest.run(FLAGS_OF, frame).value & ANON
    guest.savevm("planted")
    for _ in range(2):
        source = "from memdesc.vm.inject import hard_offline\nimport sys\n"
        source += "result = hard_offline(int(sys.argv[1])).verdict"
        assert guest.run(source, frame).value == "ok"
        assert guest.run(FLAGS_OF, frame).value & HWPOISON
        guest.loadvm("planted")
        flags = guest.run(FLAGS_OF, frame).value
        assert flags & ANON
        assert not flags & HWPOISON


def test_a_panic_is_told_with_the_console_and_loadvm_brings_the_guest_back(guest: Guest) -> None:
    guest.savevm("healthy")
    with pytest.raises(GuestEndedError, match="kernel panic") as ended:
        guest.run("open('/proc/sysrq-trigger', 'w').write('c')")
    assert "sysrq" in ended.value.hint
    with pytest.raises(GuestEndedError):
        guest.run("print(1)")
    guest.loadvm("healthy")
    assert guest.run("print(1)").stdout == "1\n"


def test_a_guest_stands_still_between_stop_and_cont(guest: Guest) -> None:
    clock = "import time; result = time.monotonic()"
    before = guest.run(clock).value
    guest.stop()
    time.sleep(1.0)
    guest.cont()
    assert guest.run(clock).value - before < 0.9


@pytest.mark.parametrize("kind", ["elf", "kdump-zlib"])
def test_a_dump_opens_in_drgn(guest: Guest, kind: DumpFormat, tmp_path: Path) -> None:
    drgn = pytest.importorskip("drgn", reason="drgn is not installed: pip install drgn")
    path = tmp_path / "vmcore"
    guest.dump(path, kind)
    program = drgn.Program()
    program.set_core_dump(path)
    assert program["VMCOREINFO"].string_().decode().startswith("OSRELEASE=" + guest.kernel.release)
    assert path.stat().st_mode & 0o077 == 0
    assert guest.run("print(1)").stdout == "1\n"


# --- the end -----------------------------------------------------------------------------


def test_a_guest_ends_with_its_block() -> None:
    with Guest(kernel_or_skip(KERNELS[0]), SMALL) as guest:
        pid = guest.pid
        assert Path(f"/proc/{pid}").exists()
        folder = guest._folder
    assert not Path(f"/proc/{pid}").exists()
    assert folder is not None
    assert not folder.exists()
    with pytest.raises(VmError, match="not running"):
        guest.run("print(1)")


def test_a_guest_ends_when_the_process_that_booted_it_is_killed() -> None:
    kernel_or_skip(KERNELS[0])
    source = f"""
import time
from memdesc.vm.guest import Guest
from memdesc.vm.qemu import Machine
with Guest({KERNELS[0]!r}, Machine(memory_mb=256, preload=())) as guest:
    print(guest.pid, flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE) as host:
        assert host.stdout is not None
        pid = int(host.stdout.readline())
        assert Path(f"/proc/{pid}").exists()
        host.kill()
    for _ in range(100):
        if not Path(f"/proc/{pid}").exists():
            return
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    pytest.fail("QEMU outlived the process that booted it")


def test_a_guest_that_does_not_come_up_is_given_up() -> None:
    kernel = kernel_or_skip(KERNELS[0])
    with pytest.raises(GuestTimeoutError, match="did not answer"), Guest(kernel, boot_seconds=0.5):
        pass
