"""KVM: the state of a vCPU as ioctls carry it (arch/x86/include/uapi/asm/kvm.h).

Little-endian. The variable lists (CPUID entries, MSRs) start with a count u32 and a pad u32.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import ClassVar, NamedTuple

from sev.abi.record import Record
from sev.errors import MalformedInput
from sev.records import record

CPUID_ENTRIES_MAX = 256
MSRS_MAX = 256

CPUID_FLAG_SIGNIFICANT_INDEX = 1 << 0

MSR_IA32_PAT = 0x277
PAT_RESET = 0x0007040600070406

_COUNT = struct.Struct("<II")
_CPUID_ENTRY = struct.Struct("<7I12x")
CPUID_ENTRY_SIZE = _CPUID_ENTRY.size


@record
class Regs(Record):
    """struct kvm_regs, 144 bytes."""

    rax: int = 0
    rbx: int = 0
    rcx: int = 0
    rdx: int = 0
    rsi: int = 0
    rdi: int = 0
    rsp: int = 0
    rbp: int = 0
    r8: int = 0
    r9: int = 0
    r10: int = 0
    r11: int = 0
    r12: int = 0
    r13: int = 0
    r14: int = 0
    r15: int = 0
    rip: int = 0
    rflags: int = 0

    FORMAT: ClassVar[str] = "Q Q Q Q Q Q Q Q Q Q Q Q Q Q Q Q Q Q"


@record
class Segment(Record):
    """struct kvm_segment, 24 bytes: limit in bytes; `type` and the bits of the descriptor, each in a byte."""

    base: int = 0
    limit: int = 0xFFFF
    selector: int = 0
    type: int = 0
    present: int = 1
    dpl: int = 0
    db: int = 0
    s: int = 1
    l: int = 0  # noqa: E741 - the field's own name
    g: int = 0
    avl: int = 0
    unusable: int = 0

    FORMAT: ClassVar[str] = "Q I H B B B B B B B B B x"


@record
class DescriptorTable(Record):
    """struct kvm_dtable, 16 bytes."""

    base: int = 0
    limit: int = 0xFFFF

    FORMAT: ClassVar[str] = "Q H 6x"


@record
class Sregs(Record):
    """struct kvm_sregs, 312 bytes."""

    cs: Segment
    ds: Segment
    es: Segment
    fs: Segment
    gs: Segment
    ss: Segment
    tr: Segment
    ldt: Segment
    gdt: DescriptorTable
    idt: DescriptorTable
    cr0: int
    cr2: int
    cr3: int
    cr4: int
    cr8: int
    efer: int
    apic_base: int
    interrupt_bitmap: bytes = bytes(32)

    FORMAT: ClassVar[str] = "24s 24s 24s 24s 24s 24s 24s 24s 16s 16s Q Q Q Q Q Q Q 32s"
    NESTED: ClassVar[dict[str, type[Record]]] = {
        **dict.fromkeys(("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt"), Segment),
        "gdt": DescriptorTable,
        "idt": DescriptorTable,
    }


@record
class Fpu(Record):
    """struct kvm_fpu, 416 bytes. KVM neither reads nor writes `mxcsr` through these ioctls."""

    fpr: bytes = bytes(128)
    fcw: int = 0
    fsw: int = 0
    ftwx: int = 0
    last_opcode: int = 0
    last_ip: int = 0
    last_dp: int = 0
    xmm: bytes = bytes(256)
    mxcsr: int = 0

    FORMAT: ClassVar[str] = "128s H H B x H Q Q 256s I 4x"


@record
class DebugRegs(Record):
    """struct kvm_debugregs, 128 bytes."""

    db0: int = 0
    db1: int = 0
    db2: int = 0
    db3: int = 0
    dr6: int = 0
    dr7: int = 0
    flags: int = 0

    FORMAT: ClassVar[str] = "Q Q Q Q Q Q Q 72x"


class CpuidEntry(NamedTuple):
    """struct kvm_cpuid_entry2, 40 bytes: one leaf; `flags` bit 0 says that the subleaf (`index`) counts."""

    function: int
    subleaf: int
    flags: int
    eax: int
    ebx: int
    ecx: int
    edx: int

    def encode(self) -> bytes:
        """The 40 bytes.

        Raises:
            MalformedInput: A value does not fit 32 bits.
        """
        try:
            return _CPUID_ENTRY.pack(*self)
        except struct.error as error:
            raise MalformedInput(f"kvm_cpuid_entry2: {error}", field="kvm_cpuid_entry2") from None


@record
class MsrEntry(Record):
    """struct kvm_msr_entry, 16 bytes."""

    index: int
    data: int = 0

    FORMAT: ClassVar[str] = "I 4x Q"


def encode_list(entries: Sequence[Record] | Sequence[CpuidEntry]) -> bytes:
    """A count u32, a pad u32 and the entries: struct kvm_cpuid2, struct kvm_msrs."""
    return _COUNT.pack(len(entries), 0) + b"".join(entry.encode() for entry in entries)


def empty_cpuid(count: int = CPUID_ENTRIES_MAX) -> bytearray:
    """A struct kvm_cpuid2 with room for `count` entries, for the kernel to fill."""
    return bytearray(_COUNT.pack(count, 0) + bytes(count * CPUID_ENTRY_SIZE))


def decode_cpuid(data: bytes | bytearray | memoryview) -> list[CpuidEntry]:
    """Reads a struct kvm_cpuid2; what follows its entries is ignored.

    Raises:
        MalformedInput: The count says more than the data hold.
    """
    if len(data) < _COUNT.size:
        raise MalformedInput(f"struct kvm_cpuid2: {len(data)} bytes, expected at least 8", field="kvm_cpuid2")
    count, _ = _COUNT.unpack_from(data)
    size = CPUID_ENTRY_SIZE
    if count > CPUID_ENTRIES_MAX or _COUNT.size + count * size > len(data):
        room = min(CPUID_ENTRIES_MAX, (len(data) - _COUNT.size) // size)
        raise MalformedInput(
            f"struct kvm_cpuid2: nent at offset 0 is {count}, expected at most {room}",
            field="nent",
        )
    view = memoryview(data)[_COUNT.size : _COUNT.size + count * size]
    return [CpuidEntry._make(values) for values in _CPUID_ENTRY.iter_unpack(view)]


def with_leaf(entries: Iterable[CpuidEntry], function: int, **registers: int) -> list[CpuidEntry]:
    """The entries with some output registers of one leaf replaced; the leaf is added if it is not there."""
    out, found = [], False
    for entry in entries:
        if entry.function == function:
            found = True
            out.append(entry._replace(**registers))
        else:
            out.append(entry)
    if not found:
        out.append(CpuidEntry(function, 0, 0, 0, 0, 0, 0)._replace(**registers))
    return out
