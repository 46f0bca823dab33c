"""KVM: struct kvm_run, the page that a vCPU shares with its owner, and what KVM_RUN says there when it returns.

Little-endian, x86-64 (include/uapi/linux/kvm.h). The structure has 2352 bytes; data of port I/O follow in the mapping
at `io.data_offset`. An exit is one value of a small class each; what a guest wrote is in it as bytes.
"""

from __future__ import annotations

import struct
from typing import NamedTuple, TypeAlias

from sev.errors import MalformedInput

SIZE = 2352
"""Bytes of struct kvm_run; the mapping (KVM_GET_VCPU_MMAP_SIZE) is larger."""

IMMEDIATE_EXIT = 1
"""Offset of the byte that makes KVM_RUN return EINTR before it enters the guest."""

EXIT_REASON = 8
UNION = 32
HYPERCALL_RET = 88
MMIO_DATA = 40

EXIT_UNKNOWN = 0
EXIT_EXCEPTION = 1
EXIT_IO = 2
EXIT_HYPERCALL = 3
EXIT_DEBUG = 4
EXIT_HLT = 5
EXIT_MMIO = 6
EXIT_IRQ_WINDOW_OPEN = 7
EXIT_SHUTDOWN = 8
EXIT_FAIL_ENTRY = 9
EXIT_INTR = 10
EXIT_SET_TPR = 11
EXIT_NMI = 16
EXIT_INTERNAL_ERROR = 17
EXIT_SYSTEM_EVENT = 24
EXIT_X86_RDMSR = 29
EXIT_X86_WRMSR = 30
EXIT_AP_RESET_HOLD = 32
EXIT_MEMORY_FAULT = 39
EXIT_SNP_REQ_CERTS = 43

IO_IN, IO_OUT = 0, 1

SYSTEM_EVENTS = {1: "shutdown", 2: "reset", 3: "crash", 4: "wakeup", 5: "suspend", 6: "sev_term", 7: "tdx_fatal"}
"""KVM_SYSTEM_EVENT_* by number; 6 is a guest that ends itself through the GHCB, with the MSR's value as data."""

INTERNAL_ERRORS = {1: "emulation", 2: "simultaneous exceptions", 3: "delivering an event", 4: "unexpected exit"}
"""KVM_INTERNAL_ERROR_* by number."""

MEMORY_FAULT_PRIVATE = 1 << 3
DATA_WORDS = 16
"""u64 that internal errors and system events carry at most."""

OFFSETS = {
    "immediate_exit": (IMMEDIATE_EXIT, 1),
    "exit_reason": (EXIT_REASON, 4),
    "hw.hardware_exit_reason": (32, 8),
    "fail_entry.hardware_entry_failure_reason": (32, 8),
    "fail_entry.cpu": (40, 4),
    "io.direction": (32, 1),
    "io.size": (33, 1),
    "io.port": (34, 2),
    "io.count": (36, 4),
    "io.data_offset": (40, 8),
    "mmio.phys_addr": (32, 8),
    "mmio.data": (MMIO_DATA, 8),
    "mmio.len": (48, 4),
    "mmio.is_write": (52, 1),
    "hypercall.nr": (32, 8),
    "hypercall.args": (40, 48),
    "hypercall.ret": (HYPERCALL_RET, 8),
    "internal.suberror": (32, 4),
    "internal.ndata": (36, 4),
    "internal.data": (40, 128),
    "system_event.type": (32, 4),
    "system_event.ndata": (36, 4),
    "system_event.data": (40, 128),
    "memory_fault.flags": (32, 8),
    "memory_fault.gpa": (40, 8),
    "memory_fault.size": (48, 8),
}
"""Offset and size of every member that is used here, for a comparison with the kernel's header."""

_REASON = struct.Struct("<I")
_IO = struct.Struct("<BBHIQ")
_MMIO = struct.Struct("<Q8sIB")
_HYPERCALL = struct.Struct("<Q6Q")
_FAIL_ENTRY = struct.Struct("<QI")
_COUNTED = struct.Struct("<II")
_MEMORY_FAULT = struct.Struct("<QQQ")
_WORD = struct.Struct("<Q")


class PortRead(NamedTuple):
    """IN: `repeat` values of `size` bytes (1, 2, 4) from a port; more than one for string instructions."""

    port: int
    size: int
    repeat: int


class PortWrite(NamedTuple):
    """OUT: `data` is one or more values of `size` bytes for a port."""

    port: int
    size: int
    data: bytes


class MmioRead(NamedTuple):
    """A read of 1 to 8 bytes from an address without memory."""

    gpa: int
    size: int


class MmioWrite(NamedTuple):
    """A write of 1 to 8 bytes to an address without memory."""

    gpa: int
    data: bytes


class Halt(NamedTuple):
    """HLT, where KVM has no interrupt controller that could end it (also AP_RESET_HOLD)."""


class Shutdown(NamedTuple):
    """A triple fault; for SEV-ES and SNP also a VMSA that cannot be entered any more."""


class FailedEntry(NamedTuple):
    """The processor refused to enter the guest."""

    reason: int
    cpu: int


class InternalError(NamedTuple):
    """KVM gave up: a suberror (INTERNAL_ERRORS) and what it knows about it."""

    suberror: int
    data: tuple[int, ...]


class SystemEvent(NamedTuple):
    """The guest asked for a system-wide event (SYSTEM_EVENTS)."""

    type: int
    data: tuple[int, ...]


class Hypercall(NamedTuple):
    """A hypercall that KVM leaves to the VM's owner; its answer goes to `hypercall.ret`."""

    number: int
    arguments: tuple[int, ...]


class MemoryFault(NamedTuple):
    """An access whose kind (private or shared) is not that of the memory, or that KVM cannot resolve."""

    gpa: int
    size: int
    private: bool


class Interrupted(NamedTuple):
    """The run was interrupted; the guest asked for nothing."""


class Other(NamedTuple):
    """An exit that is not described here, by its number."""

    reason: int


Exit: TypeAlias = (
    PortRead
    | PortWrite
    | MmioRead
    | MmioWrite
    | Halt
    | Shutdown
    | FailedEntry
    | InternalError
    | SystemEvent
    | Hypercall
    | MemoryFault
    | Interrupted
    | Other
)

INTERRUPTED, HALT, SHUTDOWN = Interrupted(), Halt(), Shutdown()
_WITHOUT_DATA: dict[int, Exit] = {
    EXIT_HLT: HALT,
    EXIT_AP_RESET_HOLD: HALT,
    EXIT_SHUTDOWN: SHUTDOWN,
    EXIT_INTR: INTERRUPTED,
    EXIT_IRQ_WINDOW_OPEN: INTERRUPTED,
    EXIT_NMI: INTERRUPTED,
}


def decode(run: memoryview) -> Exit:
    """What KVM_RUN returned with.

    Args:
        run: The whole mapping of the vCPU.

    Raises:
        MalformedInput: A count, size or offset that the structure cannot have.
    """
    (reason,) = _REASON.unpack_from(run, EXIT_REASON)
    if reason == EXIT_IO:
        direction, size, port, count, at = _IO.unpack_from(run, UNION)
        if size not in (1, 2, 4) or not count or at + size * count > len(run):
            raise MalformedInput(
                f"struct kvm_run: io of {count} times {size} bytes at {at} in {len(run)} bytes", field="io"
            )
        if direction == IO_OUT:
            return PortWrite(port, size, bytes(run[at : at + size * count]))
        return PortRead(port, size, count)
    if reason == EXIT_MMIO:
        gpa, data, size, is_write = _MMIO.unpack_from(run, UNION)
        if not 0 < size <= len(data):
            raise MalformedInput(f"struct kvm_run: mmio.len at offset 48 is {size}, expected 1 to 8", field="mmio.len")
        return MmioWrite(gpa, data[:size]) if is_write else MmioRead(gpa, size)
    plain = _WITHOUT_DATA.get(reason)
    if plain is not None:
        return plain
    if reason == EXIT_HYPERCALL:
        number, *arguments = _HYPERCALL.unpack_from(run, UNION)
        return Hypercall(number, tuple(arguments))
    if reason == EXIT_MEMORY_FAULT:
        flags, gpa, size = _MEMORY_FAULT.unpack_from(run, UNION)
        return MemoryFault(gpa, size, bool(flags & MEMORY_FAULT_PRIVATE))
    if reason == EXIT_FAIL_ENTRY:
        return FailedEntry(*_FAIL_ENTRY.unpack_from(run, UNION))
    if reason in (EXIT_INTERNAL_ERROR, EXIT_SYSTEM_EVENT):
        kind, count = _COUNTED.unpack_from(run, UNION)
        words = tuple(word for (word,) in _WORD.iter_unpack(run[40 : 40 + 8 * min(count, DATA_WORDS)]))
        return InternalError(kind, words) if reason == EXIT_INTERNAL_ERROR else SystemEvent(kind, words)
    return Other(reason)
