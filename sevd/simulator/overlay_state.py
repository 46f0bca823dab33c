"""The state of a real vCPU, taken from the save area (VMSA) that a simulated launch measured.

What the page holds is what the vCPU starts with. Two bits are KVM's own addition for the processor and not the guest's:
EFER.SVME stays out. The local APIC is in no save area, and stays as the real KVM has reset it.
"""

from __future__ import annotations

import errno
import logging
import struct
from collections.abc import Mapping, Sequence

from sev.abi import kvm, kvm_vcpu, vmsa
from sev.abi.kvm_vcpu import CpuidEntry, DebugRegs, DescriptorTable, Fpu, MsrEntry, Regs, Segment, Sregs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sev.abi.record import Record
    from sev.launch.linux import LinuxKernel

log = logging.getLogger(__name__)

EFER_SVME = 1 << 12

MSRS = {
    "sysenter_cs": 0x174,
    "sysenter_esp": 0x175,
    "sysenter_eip": 0x176,
    "dbgctl": 0x1D9,
    "g_pat": kvm_vcpu.MSR_IA32_PAT,
    "xss": 0xDA0,
    "star": 0xC0000081,
    "lstar": 0xC0000082,
    "cstar": 0xC0000083,
    "sfmask": 0xC0000084,
    "kernel_gs_base": 0xC0000102,
    "tsc_aux": 0xC0000103,
}
"""Where the registers of a save area are MSRs."""

_FEATURES = frozenset({0x1, 0x7, 0x80000001})
_OWN = frozenset({0xD, 0x80000008})
"""Leaves that KVM compares with the processor: extended state, address widths."""

_X87_DP, _X87, _XMM = slice(0x400, 0x408), 0x420, slice(0x470, 0x570)
_APIC_BASE = Sregs.offsets()["apic_base"][0]

Registers = Mapping[str, int | tuple[int, int, int, int]]


def apply(kernel: LinuxKernel, fd: int, page: bytes) -> None:
    """Gives a real vCPU the state of a save area, 4096 bytes.

    Raises:
        OSError: KVM does not take it.
        MalformedInput: It is no save area.
    """
    registers = vmsa.parse(page)
    _put(kernel, fd, kvm.KVM_SET_SREGS, sregs(registers, _apic_base(kernel, fd)))
    _put(kernel, fd, kvm.KVM_SET_REGS, Regs(**{name: _number(registers, name) for name in Regs.fields()}))
    _put(kernel, fd, kvm.KVM_SET_FPU, fpu(registers, page))
    _put(kernel, fd, kvm.KVM_SET_DEBUGREGS, DebugRegs(dr6=_number(registers, "dr6"), dr7=_number(registers, "dr7")))
    for name, index in MSRS.items():
        value = _number(registers, name)
        if (value or name == "g_pat") and not _put_msr(kernel, fd, MsrEntry(index, value)):
            log.warning("the real vCPU does not take %s (MSR 0x%x) as it was measured", name, index)


def set_cpuid(kernel: LinuxKernel, device: int, fd: int, argument: int) -> None:
    """KVM_SET_CPUID2 of a real vCPU with what the simulated one was given, as far as this processor can do it.

    Args:
        kernel: The real kernel.
        device: /dev/kvm.
        fd: The vCPU.
        argument: Address of the struct kvm_cpuid2.

    Raises:
        OSError: KVM does not take it.
    """
    try:
        kernel.ioctl(fd, kvm.KVM_SET_CPUID2, argument)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        (count,) = struct.unpack("<I", kernel.memory.read(argument, 4))
        wanted = kvm_vcpu.decode_cpuid(kernel.memory.read(argument, 8 + count * kvm_vcpu.CPUID_ENTRY_SIZE))
        room = kvm_vcpu.empty_cpuid()
        address = kernel.memory.place(room)
        try:
            kernel.ioctl(device, kvm.KVM_GET_SUPPORTED_CPUID, address)
        finally:
            kernel.memory.release(address)
        log.warning("this processor has not all features of the simulated one: the guest gets those that it has")
        put(kernel, fd, kvm.KVM_SET_CPUID2, kvm_vcpu.encode_list(common(wanted, kvm_vcpu.decode_cpuid(room))))


def common(wanted: Sequence[CpuidEntry], offered: Sequence[CpuidEntry]) -> list[CpuidEntry]:
    """The leaves that are wanted, with no more than what is offered in those that list features."""
    there = {(entry.function, entry.subleaf): entry for entry in offered}
    out = []
    for entry in wanted:
        other = there.get((entry.function, entry.subleaf))
        if other is not None and entry.function in _FEATURES:
            entry = entry._replace(  # noqa: PLW2901 - the same leaf
                ebx=entry.ebx & other.ebx if entry.function == 7 else entry.ebx,
                ecx=entry.ecx & other.ecx,
                edx=entry.edx & other.edx,
            )
        elif other is not None and entry.function in _OWN:
            entry = other  # noqa: PLW2901 - the same leaf
        elif other is None and entry.function in _FEATURES | _OWN:
            continue
        out.append(entry)
    return out


def sregs(registers: Registers, apic_base: int) -> Sregs:
    """Segments, tables and control registers of a save area."""
    return Sregs(
        cs=segment(registers, "cs"),
        ds=segment(registers, "ds"),
        es=segment(registers, "es"),
        fs=segment(registers, "fs"),
        gs=segment(registers, "gs"),
        ss=segment(registers, "ss"),
        tr=segment(registers, "tr"),
        ldt=segment(registers, "ldtr"),
        gdt=_table(registers, "gdtr"),
        idt=_table(registers, "idtr"),
        cr0=_number(registers, "cr0"),
        cr2=_number(registers, "cr2"),
        cr3=_number(registers, "cr3"),
        cr4=_number(registers, "cr4"),
        cr8=0,
        efer=_number(registers, "efer") & ~EFER_SVME,
        apic_base=apic_base,
    )


def segment(registers: Registers, name: str) -> Segment:
    """One segment: attributes as svm_get_segment unpacks them."""
    selector, attributes, limit, base = _parts(registers, name)
    present = attributes >> 7 & 1
    return Segment(
        base=base,
        limit=limit,
        selector=selector,
        type=attributes & 15,
        s=attributes >> 4 & 1,
        dpl=attributes >> 5 & 3,
        present=present,
        avl=attributes >> 8 & 1,
        l=attributes >> 9 & 1,
        db=attributes >> 10 & 1,
        g=attributes >> 11 & 1,
        unusable=1 - present,
    )


def fpu(registers: Registers, page: bytes) -> Fpu:
    """x87 and SSE registers of a save area."""
    stack = b"".join(page[at : at + 10] + bytes(6) for at in range(_X87, _X87 + 80, 10))
    return Fpu(
        fpr=stack,
        fcw=_number(registers, "x87_fcw"),
        fsw=_number(registers, "x87_fsw"),
        ftwx=_number(registers, "x87_ftw") & 0xFF,
        last_opcode=_number(registers, "x87_fop"),
        last_ip=_number(registers, "x87_rip"),
        last_dp=int.from_bytes(page[_X87_DP], "little"),
        xmm=page[_XMM],
    )


def _table(registers: Registers, name: str) -> DescriptorTable:
    _, _, limit, base = _parts(registers, name)
    return DescriptorTable(base=base, limit=limit & 0xFFFF)


def _parts(registers: Registers, name: str) -> tuple[int, int, int, int]:
    value = registers.get(name, (0, 0, 0, 0))
    return value if isinstance(value, tuple) else (0, 0, 0, 0)


def _number(registers: Registers, name: str) -> int:
    value = registers.get(name, 0)
    return value if isinstance(value, int) else 0


def _apic_base(kernel: LinuxKernel, fd: int) -> int:
    state = bytearray(Sregs.size())
    address = kernel.memory.place(state)
    try:
        kernel.ioctl(fd, kvm.KVM_GET_SREGS, address)
    finally:
        kernel.memory.release(address)
    (value,) = struct.unpack_from("<Q", state, _APIC_BASE)
    return int(value)


def _put(kernel: LinuxKernel, fd: int, request: int, structure: Record) -> int:
    return put(kernel, fd, request, structure.encode())


def _put_msr(kernel: LinuxKernel, fd: int, entry: MsrEntry) -> int:
    return put(kernel, fd, kvm.KVM_SET_MSRS, kvm_vcpu.encode_list((entry,)))


def put(kernel: LinuxKernel, fd: int, request: int, data: bytes) -> int:
    """An ioctl that reads a structure. Raises OSError."""
    address = kernel.memory.place(data)
    try:
        return kernel.ioctl(fd, request, address)
    finally:
        kernel.memory.release(address)
