"""Loads and stores that survive the signals they cause.

A fault of Python itself ends Python, so the accesses are machine code of our own, on a page of
its own, and the handler of SIGSEGV and SIGBUS is machine code too: it notes the signal and goes
on behind the access, the way `copy_from_user` does it inside the kernel with its exception table.
"""

from __future__ import annotations

import ctypes
import signal
import struct
from dataclasses import dataclass

from . import calls

__all__ = ["PAGE", "Access", "Fault"]

PAGE = 4096

_SA_SIGINFO, _SA_RESTORER, _SA_ONSTACK, _SA_NODEFER = 0x4, 0x04000000, 0x08000000, 0x40000000
_STACK_BYTES = 64 << 10

# Offsets in the page of data behind the code.
_BEGIN, _END, _RECOVER, _SIGNAL, _CODE, _ADDRESS, _LOADED, _LATE, _LATE_CODE = range(0, 72, 8)

_CODES = {
    signal.SIGSEGV: {1: "MAPERR", 2: "ACCERR", 3: "BNDERR", 4: "PKUERR"},
    signal.SIGBUS: {1: "ADRALN", 2: "ADRERR", 3: "OBJERR", 4: "MCEERR_AR", 5: "MCEERR_AO"},
}
_BUS_MCEERR_AR = 4


@dataclass(frozen=True)
class Fault:
    """A signal that an access caused."""

    signal: str
    """"SIGSEGV"."""
    code: str
    """"ACCERR", as si_code without its prefix."""
    address: int
    """si_addr: what was touched."""


class Access:
    """The machine code of one process; it and its handlers are inherited over fork."""

    def __init__(self) -> None:
        self._data = calls.mmap(PAGE)
        code, places = _code(self._data)
        self._code = calls.mmap(PAGE)
        ctypes.memmove(self._code, code, len(code))
        calls.mprotect(self._code, PAGE, calls.PROT_READ | calls.PROT_EXEC)
        self._put(_BEGIN, self._code)
        self._put(_END, self._code + places["end"])
        self._put(_RECOVER, self._code + places["recover"])
        word = ctypes.c_uint64
        self._store = ctypes.CFUNCTYPE(word, word, word)(self._code + places["store"])
        self._load = ctypes.CFUNCTYPE(word, word, word)(self._code + places["load"])
        calls.sigaltstack(calls.mmap(_STACK_BYTES), _STACK_BYTES)
        flags = _SA_SIGINFO | _SA_RESTORER | _SA_ONSTACK | _SA_NODEFER
        for number in (signal.SIGSEGV, signal.SIGBUS):
            calls.sigaction(
                number, self._code + places["handler"], flags, self._code + places["restorer"]
            )

    def store_page(self, address: int, word: int) -> Fault | None:
        """Fill a page with a word: one store to its first word, then the rest; never a load."""
        return self._fault() if self._store(address, word) else None

    def load(self, address: int) -> int | Fault:
        """Load the word at an address."""
        if self._load(address, self._data + _LOADED):
            return self._fault()
        return self._get(_LOADED)

    def late(self) -> Fault | None:
        """The last signal that no access of ours caused (SIGBUS MCEERR_*); it is forgotten."""
        address = self._get(_LATE)
        if not address:
            return None
        self._put(_LATE, 0)
        code = ctypes.c_int32(self._get(_LATE_CODE) & 0xFFFFFFFF).value
        return Fault("SIGBUS", _CODES[signal.SIGBUS].get(code, str(code)), address & ~1)

    def _fault(self) -> Fault:
        number = signal.Signals(self._get(_SIGNAL) & 0xFFFFFFFF)
        code = ctypes.c_int32(self._get(_CODE) & 0xFFFFFFFF).value
        return Fault(number.name, _CODES[number].get(code, str(code)), self._get(_ADDRESS))

    def _get(self, offset: int) -> int:
        return ctypes.c_uint64.from_address(self._data + offset).value

    def _put(self, offset: int, value: int) -> None:
        ctypes.c_uint64.from_address(self._data + offset).value = value


def _code(data: int) -> tuple[bytes, dict[str, int]]:
    """The machine code, and where its parts begin; `data` is the address of the page of data.

    Arguments of functions come in rdi, rsi, rdx; the handler's are the signal's number, its
    `siginfo_t` (si_signo 0, si_code 8, si_addr 16) and its `ucontext_t`, where the interrupted
    instruction's address lies at 0xA8 (`arch/x86/include/uapi/asm/sigcontext.h`).
    """
    places = {}
    code = bytearray()

    # store(address, word): 1 when a signal came.  The string store can be restarted anywhere.
    places["store"] = len(code)
    code += b"\x48\x89\x37"  # mov [rdi], rsi
    code += b"\x48\x89\xf0"  # mov rax, rsi
    code += b"\xb9\xff\x01\x00\x00"  # mov ecx, 511
    code += b"\x48\x83\xc7\x08"  # add rdi, 8
    code += b"\xf3\x48\xab"  # rep stosq
    code += b"\x31\xc0\xc3"  # xor eax, eax; ret

    # load(address, result): 1 when a signal came.
    places["load"] = len(code)
    code += b"\x48\x8b\x07"  # mov rax, [rdi]
    code += b"\x48\x89\x06"  # mov [rsi], rax
    code += b"\x31\xc0\xc3"  # xor eax, eax; ret
    places["end"] = len(code)

    # Where an access goes on after a signal.  Neither function has moved the stack pointer.
    places["recover"] = len(code)
    code += b"\xb8\x01\x00\x00\x00\xc3"  # mov eax, 1; ret

    places["handler"] = len(code)
    code += b"\x48\xb8" + struct.pack("<Q", data)  # mov rax, data
    code += b"\x48\x8b\x8a\xa8\x00\x00\x00"  # mov rcx, [rdx+0xA8]      the interrupted rip
    code += b"\x48\x3b\x48" + bytes([_BEGIN])  # cmp rcx, [rax+BEGIN]
    outside = len(code)
    code += b"\x72\x00"  # jb foreign
    code += b"\x48\x3b\x48" + bytes([_END])  # cmp rcx, [rax+END]
    beyond = len(code)
    code += b"\x73\x00"  # jae foreign
    code += b"\x48\x8b\x0e"  # mov rcx, [rsi]           si_signo
    code += b"\x48\x89\x48" + bytes([_SIGNAL])  # mov [rax+SIGNAL], rcx
    code += b"\x48\x8b\x4e\x08"  # mov rcx, [rsi+8]         si_code
    code += b"\x48\x89\x48" + bytes([_CODE])  # mov [rax+CODE], rcx
    code += b"\x48\x8b\x4e\x10"  # mov rcx, [rsi+16]        si_addr
    code += b"\x48\x89\x48" + bytes([_ADDRESS])  # mov [rax+ADDRESS], rcx
    code += b"\x48\x8b\x48" + bytes([_RECOVER])  # mov rcx, [rax+RECOVER]
    code += b"\x48\x89\x8a\xa8\x00\x00\x00"  # mov [rdx+0xA8], rcx
    code += b"\xc3"  # ret                      to the restorer
    places["foreign"] = len(code)
    for jump in (outside, beyond):
        code[jump + 1] = places["foreign"] - (jump + 2)
    # Only a memory error may come from elsewhere, out of a system call: note it and go on.
    code += b"\x83\x3e" + bytes([signal.SIGBUS])  # cmp dword [rsi], SIGBUS
    code += b"\x75\x06"  # jne +6
    code += b"\x83\x7e\x08" + bytes([_BUS_MCEERR_AR])  # cmp dword [rsi+8], 4
    code += b"\x7d\x02"  # jge +2
    code += b"\x0f\x0b"  # ud2                      a fault of Python: end
    code += b"\x48\x8b\x4e\x10"  # mov rcx, [rsi+16]
    code += b"\x48\x83\xc9\x01"  # or rcx, 1                never 0
    code += b"\x48\x89\x48" + bytes([_LATE])  # mov [rax+LATE], rcx
    code += b"\x48\x8b\x4e\x08"  # mov rcx, [rsi+8]
    code += b"\x48\x89\x48" + bytes([_LATE_CODE])  # mov [rax+LATE_CODE], rcx
    code += b"\xc3"  # ret

    places["restorer"] = len(code)
    code += b"\xb8\x0f\x00\x00\x00\x0f\x05"  # mov eax, 15; syscall     rt_sigreturn
    return bytes(code), places
