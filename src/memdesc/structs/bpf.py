"""A live kernel's memory, read by a BPF program of a dozen instructions.

`BpfMemory` needs no module, no compiler and no /proc/kcore: it assembles programs of
type BPF_PROG_TYPE_SYSCALL, which call the helper bpf_probe_read_kernel from an address in
their context into an array map that this process has mapped, and runs them with
BPF_PROG_TEST_RUN.  That helper copies with faults handled, so a wild address is an error and
no oops.  There is no instruction in the programs that could write outside the map.

Sources: `kernel/bpf/syscall.c` (bpf_prog_load, map_create), `net/bpf/test_run.c`
(bpf_prog_test_run_syscall), `kernel/bpf/helpers.c` (bpf_base_func_proto: which helper asks
for which capability), `kernel/trace/bpf_trace.c` (bpf_probe_read_kernel) and
`include/uapi/linux/bpf.h`, all @6.12; the program type exists since 5.14.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import platform
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from memdesc.errors import FaultError, NotReadableError
from memdesc.structs.bpf_programs import (
    BLOCK_BYTES,
    BUFFER_BYTES,
    MANY,
    MANY_DATA,
    MANY_LARGEST,
    MANY_LAST_ROW,
    MANY_RESULTS,
    SKEW,
    Context,
    current_task,
    read_many,
    read_one,
)

__all__ = ["BLOCK_BYTES", "BpfMemory"]

_NR_BPF = 321
"""Of x86-64: `arch/x86/entry/syscalls/syscall_64.tbl`."""
_MAP_CREATE, _PROG_LOAD, _PROG_TEST_RUN = 0, 5, 10
_MAP_TYPE_ARRAY = 2
_F_MMAPABLE = 1 << 10
_PROG_TYPE_SYSCALL = 31
_F_SLEEPABLE = 1 << 4
_LOCKDOWN = Path("/sys/kernel/security/lockdown")


class BpfMemory:
    """The memory of the running kernel by kernel virtual address; implements `Memory`.

    Safe for several threads: each uses a buffer of its own while it reads. Close it, or use
    it in a `with` statement.
    """

    def __init__(self) -> None:
        """Load the programs. Raises NotReadableError with the reason where that is not allowed
        or not possible."""
        self._idle: list[_Reader] = []
        self._lock = threading.Lock()
        self._closed = False
        machine = platform.machine()
        if machine != "x86_64":
            raise NotReadableError(
                f"live struct pages are read on x86-64 only, and this is {machine}",
                hint="use --source live:proc",
            )
        self._idle.append(self._new_reader())

    def read(self, address: int, size_bytes: int) -> bytes:
        """As `Memory.read`. One system call for up to `BLOCK_BYTES`."""
        if size_bytes > BLOCK_BYTES:
            whole = np.empty(size_bytes, np.uint8)
            self.read_into(address, whole)
            return whole.tobytes()
        reader = self._take()
        try:
            if reader.copy(address, size_bytes):
                raise _fault(address, size_bytes)
            return reader.buffer[SKEW : SKEW + size_bytes]
        finally:
            self._give_back(reader)

    def read_into(self, address: int, into: NDArray[np.uint8]) -> None:
        """As `Memory.read_into`. Other Python threads run meanwhile."""
        reader = self._take()
        try:
            for start in range(0, into.size, BLOCK_BYTES):
                size = min(BLOCK_BYTES, into.size - start)
                if reader.copy_block(address + start, size):
                    raise _fault(address + start, size)
                into[start : start + size] = reader.view[SKEW : SKEW + size]
        finally:
            self._give_back(reader)

    def read_many(
        self, addresses: NDArray[np.uint64], size_bytes: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Read `size_bytes` (at most 64 KiB) from each of many addresses, hundreds at a time.

        Returns uint8[n, size_bytes] and bool[n]: whether that address could be read; rows of
        those that could not are 0. Order is kept. A fifth of a microsecond per address
        instead of the two of `read`.
        """
        if not 0 < size_bytes <= MANY_LARGEST:
            raise ValueError(f"size_bytes must be 1 to {MANY_LARGEST}: {size_bytes}")
        data = np.empty((addresses.size, size_bytes), np.uint8)
        readable = np.empty(addresses.size, np.bool_)
        at_once = min(MANY, MANY_LAST_ROW // size_bytes + 1)
        reader = self._take()
        try:
            for start in range(0, addresses.size, at_once):
                end = min(start + at_once, addresses.size)
                reader.copy_many(
                    addresses[start:end], size_bytes, data[start:end], readable[start:end]
                )
        finally:
            self._give_back(reader)
        return data, readable

    def current_task(self) -> int:
        """The address of this thread's own task_struct: a first pointer to begin at."""
        reader = self._take()
        try:
            return reader.current_task()
        finally:
            self._give_back(reader)

    def close(self) -> None:
        """Unload the programs and give the buffers back.

        A read that another thread is in ends well, and its program is unloaded then; the next
        one raises NotReadableError.
        """
        with self._lock:
            self._closed = True
        self._drain()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_closed"):
            self.close()

    def _drain(self) -> None:
        # Whoever gives a reader back after this has seen that the memory is closed.
        while True:
            try:
                self._idle.pop().close()
            except IndexError:
                return

    def _give_back(self, reader: _Reader) -> None:
        self._idle.append(reader)
        if self._closed:
            self._drain()

    def _take(self) -> _Reader:
        # list.pop and list.append are atomic, and much cheaper than a lock.
        try:
            return self._idle.pop()
        except IndexError:
            return self._new_reader()

    def _new_reader(self) -> _Reader:
        with self._lock:
            if self._closed:
                raise NotReadableError("this BpfMemory has been closed")
            return _Reader()


class _MapCreate(ctypes.Structure):
    _fields_ = (
        ("map_type", ctypes.c_uint32),
        ("key_size", ctypes.c_uint32),
        ("value_size", ctypes.c_uint32),
        ("max_entries", ctypes.c_uint32),
        ("map_flags", ctypes.c_uint32),
    )


class _ProgLoad(ctypes.Structure):
    _fields_ = (
        ("prog_type", ctypes.c_uint32),
        ("insn_cnt", ctypes.c_uint32),
        ("insns", ctypes.c_uint64),
        ("license", ctypes.c_uint64),
        ("log_level", ctypes.c_uint32),
        ("log_size", ctypes.c_uint32),
        ("log_buf", ctypes.c_uint64),
        ("kern_version", ctypes.c_uint32),
        ("prog_flags", ctypes.c_uint32),
        ("prog_name", ctypes.c_char * 16),
    )


class _TestRun(ctypes.Structure):
    _fields_ = (
        ("prog_fd", ctypes.c_uint32),
        ("retval", ctypes.c_uint32),
        ("data_size_in", ctypes.c_uint32),
        ("data_size_out", ctypes.c_uint32),
        ("data_in", ctypes.c_uint64),
        ("data_out", ctypes.c_uint64),
        ("repeat", ctypes.c_uint32),
        ("duration", ctypes.c_uint32),
        ("ctx_size_in", ctypes.c_uint32),
        ("ctx_size_out", ctypes.c_uint32),
        ("ctx_in", ctypes.c_uint64),
        ("ctx_out", ctypes.c_uint64),
        ("flags", ctypes.c_uint32),
        ("cpu", ctypes.c_uint32),
    )


class _Run:
    """One program, ready to run on one context."""

    def __init__(self, fd: int, context: Context) -> None:
        self.fd = fd
        self._attr = _TestRun(
            prog_fd=fd, ctx_size_in=ctypes.sizeof(context), ctx_in=ctypes.addressof(context)
        )
        self._arguments = _call_arguments(_PROG_TEST_RUN, self._attr)

    def quick(self) -> int:
        """Run it without letting other Python threads run; returns the program's result."""
        if _quick_syscall(*self._arguments):
            self.slow()
        return int(self._attr.retval)

    def slow(self) -> int:
        """Run it while other Python threads run. Raises NotReadableError where the kernel
        refuses to run it at all."""
        if _syscall(*self._arguments):
            raise _refused("running", ctypes.get_errno())
        return int(self._attr.retval)


class _Reader:
    """A buffer that is shared with the kernel, and the programs that fill it."""

    def __init__(self) -> None:
        self._fds: list[int] = []
        self._context = Context()
        self._many: _Run | None = None
        try:
            self._map_fd = self._keep(
                _bpf(
                    _MAP_CREATE,
                    _MapCreate(
                        map_type=_MAP_TYPE_ARRAY,
                        key_size=4,
                        value_size=BUFFER_BYTES,
                        max_entries=1,
                        map_flags=_F_MMAPABLE,
                    ),
                    "creating a map for",
                )
            )
            self.buffer = mmap.mmap(self._map_fd, BUFFER_BYTES)
            self.view: NDArray[np.uint8] = np.frombuffer(self.buffer, np.uint8)
            self._one = _Run(self._keep(_load(read_one(self._map_fd))), self._context)
        except BaseException:
            self.close()
            raise

    def copy(self, address: int, size_bytes: int) -> int:
        """Copy to `SKEW` in `buffer`; returns 0, or -EFAULT as u32."""
        self._context.address = address
        self._context.size = size_bytes
        return self._one.quick()

    def copy_block(self, address: int, size_bytes: int) -> int:
        """As `copy`, for what takes long."""
        self._context.address = address
        self._context.size = size_bytes
        return self._one.slow()

    def copy_many(
        self,
        addresses: NDArray[np.uint64],
        size_bytes: int,
        data: NDArray[np.uint8],
        readable: NDArray[np.bool_],
    ) -> None:
        """Fill `data` and `readable`, at most `MANY` rows."""
        if self._many is None:
            self._many = _Run(self._keep(_load(read_many(self._map_fd))), self._context)
        count = addresses.size
        self.view[: MANY * 8].view(np.uint64)[:count] = addresses
        self._context.size = size_bytes
        self._context.end = count * 8
        assert self._many.slow() == count * 8
        results = self.view[MANY_RESULTS : MANY_RESULTS + MANY * 8].view(np.int64)
        np.equal(results[:count], 0, out=readable)
        end = MANY_DATA + count * size_bytes
        data[...] = self.view[MANY_DATA:end].reshape(count, size_bytes)

    def current_task(self) -> int:
        fd = _load(current_task(self._map_fd))
        try:
            _Run(fd, self._context).slow()
        finally:
            os.close(fd)
        return int(self.view[:8].view(np.uint64)[0])

    def close(self) -> None:
        # The mapping goes with the last array that shows it.
        self.view = np.empty(0, np.uint8)
        while self._fds:
            os.close(self._fds.pop())

    def _keep(self, fd: int) -> int:
        self._fds.append(fd)
        return fd


# --- bpf(2) ------------------------------------------------------------------------------

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_quick_syscall = ctypes.PyDLL(None).syscall
"""Without giving up Python's lock, which for a microsecond costs more than it brings."""
for _function in (_syscall, _quick_syscall):
    _function.restype = ctypes.c_long
    _function.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_uint)


def _call_arguments(
    command: int, attr: ctypes.Structure
) -> tuple[ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_uint]:
    """Of syscall(2), converted once."""
    return (
        ctypes.c_long(_NR_BPF),
        ctypes.c_int(command),
        ctypes.c_void_p(ctypes.addressof(attr)),
        ctypes.c_uint(ctypes.sizeof(attr)),
    )


def _bpf(command: int, attr: ctypes.Structure, doing: str) -> int:
    """bpf(2), for a descriptor. Raises NotReadableError."""
    fd: int = _syscall(*_call_arguments(command, attr))
    if fd < 0:
        raise _refused(doing, ctypes.get_errno())
    return fd


def _load(program: bytes) -> int:
    """The descriptor of a program that the verifier has accepted. Raises NotReadableError."""
    code = ctypes.create_string_buffer(program, len(program))
    licence = ctypes.create_string_buffer(b"GPL")
    attr = _ProgLoad(
        prog_type=_PROG_TYPE_SYSCALL,
        insn_cnt=len(program) // 8,
        insns=ctypes.addressof(code),
        license=ctypes.addressof(licence),
        prog_flags=_F_SLEEPABLE,
        prog_name=b"memdesc",
    )
    return _bpf(_PROG_LOAD, attr, "loading")


def _refused(doing: str, number: int) -> NotReadableError:
    """Why the kernel refused, in words."""
    text = f"{doing} the BPF program that reads kernel memory failed: {os.strerror(number)}"
    lockdown = lockdown_mode()
    if lockdown == "confidentiality":
        return NotReadableError(
            "kernel memory may not be read: this kernel is locked down for confidentiality",
            path=_LOCKDOWN,
            hint="boot without lockdown=confidentiality, or use --source live:proc",
        )
    if number == errno.ENOSYS:
        return NotReadableError(
            f"{text} (no bpf(2) here: CONFIG_BPF_SYSCALL is off, or a seccomp filter hides it)",
            hint="use --source live:proc",
        )
    if number in (errno.EPERM, errno.EACCES):
        return NotReadableError(
            text, hint="run it as root, or give it CAP_BPF, CAP_PERFMON and CAP_SYSLOG"
        )
    if number == errno.EINVAL:
        return NotReadableError(
            f"{text} (the kernel is older than 5.14, or CAP_PERFMON is missing)",
            hint="run it as root; on an older kernel use --source live:proc",
        )
    return NotReadableError(text, hint="use --source live:proc")


def lockdown_mode() -> str:
    """ "none", "integrity" or "confidentiality"; "" where the kernel has no lockdown.

    Source: `security/lockdown/lockdown.c:lockdown_read` @6.12, the mode in brackets.
    """
    try:
        text = _LOCKDOWN.read_text()
    except OSError:
        return ""
    return text.partition("[")[2].partition("]")[0]


def _fault(address: int, size_bytes: int) -> FaultError:
    return FaultError(f"{size_bytes} bytes of kernel memory at {address:#x} are not there", address)
