"""Runs an unmodified program as on another processor: chosen CPUID leaves, by ptrace (x86-64 Linux).

    python tests/support/cpuid.py PLACES LEAF=EAX,EBX,ECX,EDX ... -- COMMAND ...

In the program's memory a breakpoint stands in the place of every CPUID instruction of its own file. Where it is met, the
leaves that were named get those registers, all others what this processor says, in every thread. Its libraries and
what it executes see the machine as it is. PLACES are the instructions' addresses, which `places` finds with objdump. The exit
code is the command's, 128 + N after signal N.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path

_TRACEME, _CONT, _GETREGS, _SETREGS, _SETOPTIONS = 0, 7, 12, 13, 0x4200
_TRACECLONE, _EXITKILL = 0x8, 0x100000
_WALL = 0x40000000
_ET_DYN = 3
_BREAKPOINT = b"\xcc"
_REGISTERS = (
    *(
        "r15",
        "r14",
        "r13",
        "r12",
        "rbp",
        "rbx",
        "r11",
        "r10",
        "r9",
        "r8",
        "rax",
        "rcx",
        "rdx",
        "rsi",
        "rdi",
        "orig_rax",
    ),
    *("rip", "cs", "eflags", "rsp", "ss", "fs_base", "gs_base", "ds", "es", "fs", "gs"),
)

# eax and ecx from the first two arguments, the four registers to the third's address.
_CODE = bytes.fromhex("53 4989d0 89f8 89f1 0fa2 418900 41895804 41894808 4189500c 5b c3")

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.restype = ctypes.c_long
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


class _Registers(ctypes.Structure):
    """struct user_regs_struct."""

    _fields_ = [(name, ctypes.c_ulonglong) for name in _REGISTERS]
    rax: int
    rbx: int
    rcx: int
    rdx: int
    rip: int


def _ptrace(request: int, pid: int, data: int = 0) -> None:
    if _libc.ptrace(request, pid, 0, data) == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


class _Processor:
    """CPUID of this machine."""

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        self._page.write(_CODE)
        kind = ctypes.CFUNCTYPE(None, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_void_p)
        self._call = kind(ctypes.addressof(ctypes.c_char.from_buffer(self._page)))

    def ask(self, leaf: int, index: int) -> tuple[int, ...]:
        """eax, ebx, ecx, edx."""
        out = (ctypes.c_uint32 * 4)()
        self._call(leaf, index, ctypes.addressof(out))
        return tuple(out)


@cache
def places(program: str) -> str:
    """Addresses of the CPUID instructions in a file, as it was linked: hexadecimal, with commas between them."""
    listing = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", program], check=True, capture_output=True, text=True
    ).stdout
    return ",".join(re.findall(r"^ *([0-9a-f]+):\tcpuid", listing, re.MULTILINE))


def _base(pid: int, program: str) -> int:
    """By how much a program was moved when it was loaded."""
    header = Path(program).read_bytes()[:18]
    if int.from_bytes(header[16:18], "little") != _ET_DYN:
        return 0
    maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return next(int(line.split("-")[0], 16) for line in maps if line.endswith(program))


def run(found: list[int], leaves: dict[int, tuple[int, ...]], command: list[str]) -> int:
    """Runs a command with these leaves at these places of its program; answers its exit code."""
    program = os.path.realpath(command[0])
    processor = _Processor()
    pid = os.fork()
    if pid == 0:
        _ptrace(_TRACEME, 0)
        os.execv(program, command)
    os.waitpid(pid, 0)
    _ptrace(_SETOPTIONS, pid, _EXITKILL | _TRACECLONE)
    base = _base(pid, program)
    traps = {base + place for place in found}
    with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
        for trap in traps:
            memory.seek(trap)
            memory.write(_BREAKPOINT)
    registers, threads = _Registers(), {pid}
    thread, number = pid, 0
    while True:
        with suppress(ProcessLookupError):  # killed since it stopped
            _ptrace(_CONT, thread, number)
        while True:
            thread, status = os.waitpid(-1, _WALL)
            if os.WIFSTOPPED(status):
                break
            if thread == pid:
                return os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)
        number = os.WSTOPSIG(status)
        if thread not in threads:
            # A new thread begins with a stop of its own.
            threads.add(thread)
            number = 0
        elif status >> 16:
            number = 0
        elif number == signal.SIGTRAP:
            _ptrace(_GETREGS, thread, ctypes.addressof(registers))
            if registers.rip - 1 in traps:
                leaf, index = registers.rax & 0xFFFFFFFF, registers.rcx & 0xFFFFFFFF
                answer = leaves.get(leaf) or processor.ask(leaf, index)
                registers.rax, registers.rbx, registers.rcx, registers.rdx = answer
                # The instruction has two bytes; the breakpoint was one.
                registers.rip += 1
                _ptrace(_SETREGS, thread, ctypes.addressof(registers))
                number = 0


def main(arguments: list[str]) -> int:
    """Runs what the command line says."""
    end = arguments.index("--")
    found = [int(place, 16) for place in arguments[0].split(",")]
    leaves = {}
    for argument in arguments[1:end]:
        leaf, _, values = argument.partition("=")
        leaves[int(leaf, 0)] = tuple(int(value, 0) for value in values.split(","))
    return run(found, leaves, arguments[end + 1 :])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
