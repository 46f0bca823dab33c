"""The CPUID instruction, really executed: what this processor, or the hypervisor above it, says of itself.

Three ways, in this order: the instruction (a few bytes of machine code in a page of their own, which is never writable
and executable at once), the kernel's `/dev/cpu/N/cpuid`, and nothing. /proc/cpuinfo, which shows less, is another
matter: see `sev.host.machine`. x86-64 only.

Source: AMD64 Architecture Programmer's Manual volume 3, appendix E.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
import threading

from sev.errors import NotOffered

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Registers = tuple[int, int, int, int]

    Source = Callable[[int, int], Registers]

CODE = bytes.fromhex(
    "53"  # push rbx: the caller's
    "89f8"  # mov eax, edi: the leaf
    "89f1"  # mov ecx, esi: the subleaf
    "4989d0"  # mov r8, rdx: where the answer goes
    "0fa2"  # cpuid
    "418900"  # mov [r8], eax
    "41895804"  # mov [r8 + 4], ebx
    "41894808"  # mov [r8 + 8], ecx
    "4189500c"  # mov [r8 + 12], edx
    "5b"  # pop rbx
    "c3"  # ret
)
"""void f(uint32_t leaf, uint32_t subleaf, uint32_t out[4]), System V calling convention."""

DEVICE = "/dev/cpu/{}/cpuid"
"""The kernel's device: 16 bytes at offset subleaf << 32 | leaf."""

EXTENDED = 0x8000_0000
"""First leaf of AMD's range; its EAX is the highest leaf there."""

_REGISTERS = struct.Struct("<4I")


class CpuidUnavailable(NotOffered):
    """CPUID cannot be asked here; the message says why, and starts with "skipped: not x86-64" on other machines."""

    reason = "CPUID_UNAVAILABLE"


class Cpuid:
    """One way of asking CPUID.

    Attributes:
        source: "instruction" or "device".
    """

    def __init__(self, ask: Source, source: str) -> None:
        self._ask = ask
        self.source = source
        self._highest: dict[int, int] = {}

    def registers(self, leaf: int, subleaf: int = 0) -> Registers:
        """EAX, EBX, ECX, EDX of a leaf, each 32 bits; zeros for a leaf above the highest of its range.

        (Without that rule Intel's processors answer such a leaf with the data of another one.)

        Raises:
            CpuidUnavailable: The device stopped answering.
        """
        first = leaf & 0xFFFF_0000
        if first not in self._highest:
            self._highest[first] = self._ask(first, 0)[0]
        if leaf > self._highest[first]:
            return 0, 0, 0, 0
        return self._ask(leaf, subleaf)


def instruction() -> Cpuid:
    """CPUID by executing it.

    Raises:
        CpuidUnavailable: Not x86-64, or this process may not execute code that it brings along.
    """
    if os.uname().machine != "x86_64" or struct.calcsize("P") != 8:
        raise CpuidUnavailable(f"skipped: not x86-64 ({os.uname().machine}, {struct.calcsize('P') * 8}-bit process)")
    try:
        page = _page()
    except OSError as error:
        raise CpuidUnavailable(
            f"this process may not execute code of its own ({os.strerror(error.errno or 0)})", errno=error.errno
        ) from None
    function = ctypes.CFUNCTYPE(None, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_void_p)(page)

    def ask(leaf: int, subleaf: int) -> Registers:
        out = (ctypes.c_uint32 * 4)()
        function(leaf, subleaf, ctypes.addressof(out))
        return out[0], out[1], out[2], out[3]

    return Cpuid(ask, "instruction")


def device(cpu: int = 0, path: str = DEVICE) -> Cpuid:
    """CPUID through the kernel's device.

    Raises:
        CpuidUnavailable: The device is not there (modprobe cpuid), or may not be opened.
    """
    name = path.format(cpu)

    def ask(leaf: int, subleaf: int) -> Registers:
        try:
            fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
            try:
                data = os.pread(fd, _REGISTERS.size, subleaf << 32 | leaf)
            finally:
                os.close(fd)
        except OSError as error:
            raise CpuidUnavailable(f"{name}: {os.strerror(error.errno or 0)}", errno=error.errno) from None
        if len(data) != _REGISTERS.size:
            raise CpuidUnavailable(f"{name}: {len(data)} bytes at leaf 0x{leaf:x}, expected {_REGISTERS.size}")
        eax, ebx, ecx, edx = _REGISTERS.unpack(data)
        return eax, ebx, ecx, edx

    ask(0, 0)
    return Cpuid(ask, "device")


def find() -> Cpuid:
    """The best way that works here.

    Raises:
        CpuidUnavailable: None does; the message has the reasons.
    """
    reasons = []
    for way in (instruction, device):
        try:
            return way()
        except CpuidUnavailable as error:
            reasons.append(error.message)
            if error.message.startswith("skipped"):
                break
    raise CpuidUnavailable("; ".join(reasons), remedy="Load the module cpuid (modprobe cpuid) and run as root.")


_found: Cpuid | None = None
_lock = threading.Lock()


def cpuid(leaf: int, subleaf: int = 0) -> Registers:
    """EAX, EBX, ECX, EDX of a leaf of this processor, zeros for a leaf that it does not have.

    Raises:
        CpuidUnavailable: It cannot be asked here.
    """
    global _found  # noqa: PLW0603 - found once for the process
    with _lock:
        if _found is None:
            _found = find()
    return _found.registers(leaf, subleaf)


def _page() -> int:
    """Address of an executable page with CODE, for the rest of the process's life. Raises OSError.

    The code is written to a memory file and mapped readable and executable from there: no page is ever writable and
    executable, nor turned from one into the other, so this also works under MemoryDenyWriteExecute.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [
        ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long,
    ]  # fmt: skip
    fd = os.memfd_create("cpuid", os.MFD_CLOEXEC)
    try:
        os.write(fd, CODE.ljust(mmap.PAGESIZE, b"\xcc"))
        address = libc.mmap(None, mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_EXEC, mmap.MAP_PRIVATE, fd, 0)
    finally:
        os.close(fd)
    if address is None or address == ctypes.c_void_p(-1).value:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return int(address)
