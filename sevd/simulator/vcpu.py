"""A simulated vCPU: its state after reset, the ioctls that read and change it, and the VMSA that KVM makes of it.

The state after reset is KVM's own (init_vmcb and kvm_vcpu_reset of arch/x86/kvm); what QEMU sets on top of it is the
launch driver's affair. No guest code is ever run: KVM_RUN of a launched vCPU answers EOPNOTSUPP.
"""

from __future__ import annotations

import errno
import struct
from dataclasses import replace
from typing import TYPE_CHECKING

from sev.abi import kvm, kvm_vcpu, vmsa
from sev.abi.kvm_vcpu import DebugRegs, DescriptorTable, Fpu, Regs, Segment, Sregs
from sevd.simulator.errnos import fail
from sevd.simulator.process import File, Process

if TYPE_CHECKING:
    from sevd.simulator.kvm_vm import Vm

CR0_PE, CR0_NW, CR0_CD, CR0_PG = 1 << 0, 1 << 29, 1 << 30, 1 << 31
CR4_PAE, CR4_MCE = 1 << 5, 1 << 6
EFER_LME, EFER_LMA, EFER_SVME = 1 << 8, 1 << 10, 1 << 12
DR6_RESET, DR7_RESET = 0xFFFF0FF0, 0x400
MXCSR_RESET = 0x1F80
APIC_BASE_RESET, APIC_BSP = 0xFEE00800, 1 << 8
PAT_TYPES = frozenset({0, 1, 4, 5, 6, 7})

_MSRS = {
    0x174: "sysenter_cs", 0x175: "sysenter_esp", 0x176: "sysenter_eip", 0x1D9: "dbgctl",
    kvm_vcpu.MSR_IA32_PAT: "g_pat", 0xDA0: "xss", 0xC0000081: "star", 0xC0000082: "lstar", 0xC0000083: "cstar",
    0xC0000084: "sfmask", 0xC0000102: "kernel_gs_base", 0xC0000103: "tsc_aux",
}  # fmt: skip
"""MSRs that the save area holds; others are refused, as KVM refuses MSRs that it does not know."""

_X87_DP, _X87, _XMM = 0x400, 0x420, 0x470
_COUNT = struct.Struct("<II")
_SEGMENTS = ("es", "cs", "ss", "ds", "fs", "gs", "tr")


def _reset_sregs(index: int) -> Sregs:
    data = Segment(type=0x2)
    return Sregs(
        cs=Segment(base=0xFFFF0000, selector=0xF000, type=0xA),
        ds=data,
        es=data,
        fs=data,
        gs=data,
        ss=data,
        tr=Segment(type=0x3, s=0),
        ldt=Segment(type=0x2, s=0),
        gdt=DescriptorTable(),
        idt=DescriptorTable(),
        cr0=0x60000010,
        cr2=0,
        cr3=0,
        cr4=0,
        cr8=0,
        efer=0,
        apic_base=APIC_BASE_RESET | (0 if index else APIC_BSP),
    )


class Vcpu:
    """One vCPU of a VM.

    Args:
        vm: Its VM.
        index: Its id; 0 is the boot processor.
    """

    def __init__(self, vm: Vm, index: int) -> None:
        self.vm = vm
        self.index = index
        self.regs = Regs(rdx=0x600, rip=0xFFF0, rflags=2)
        self.sregs = _reset_sregs(index)
        self.fpu = Fpu(fcw=0x37F)
        self.debug = DebugRegs(dr6=DR6_RESET, dr7=DR7_RESET)
        self.msrs = dict.fromkeys(_MSRS, 0) | {kvm_vcpu.MSR_IA32_PAT: kvm_vcpu.PAT_RESET}
        self.cpuid = kvm_vcpu.encode_list(())
        self.protected = False
        self.page: bytearray | None = None

    def vmsa(self, sev_features: int) -> bytearray:
        """The save area as KVM makes it from the current state, 4096 bytes.

        Raises:
            OSError: EINVAL: it is encrypted already, or a debug register is set.
        """
        if self.protected or self.debug.dr7 != DR7_RESET:
            fail(errno.EINVAL)
        sregs, regs, fpu = self.sregs, self.regs, self.fpu
        values: dict[str, int | tuple[int, int, int, int]] = {
            name: _save_segment(getattr(sregs, name)) for name in _SEGMENTS
        }
        values |= {
            "ldtr": _save_segment(sregs.ldt),
            "gdtr": (0, 0, sregs.gdt.limit, sregs.gdt.base),
            "idtr": (0, 0, sregs.idt.limit, sregs.idt.base),
            "cpl": sregs.ss.dpl,
            "efer": sregs.efer | EFER_SVME,
            # KVM hides CD and NW from the processor, and keeps the host's machine checks on.
            "cr0": sregs.cr0 & ~(CR0_CD | CR0_NW),
            "cr2": sregs.cr2,
            "cr3": sregs.cr3,
            "cr4": sregs.cr4 | CR4_MCE,
            "dr6": self.debug.dr6,
            "dr7": self.debug.dr7,
            "sev_features": sev_features,
            "xcr0": 1,
            "mxcsr": MXCSR_RESET,
            "x87_ftw": fpu.ftwx,
            "x87_fsw": fpu.fsw,
            "x87_fcw": fpu.fcw,
            "x87_fop": fpu.last_opcode,
            "x87_rip": fpu.last_ip,
        }
        values |= {name: getattr(regs, name) for name in Regs.fields()}
        values |= {name: self.msrs[number] for number, name in _MSRS.items()}
        page = bytearray(vmsa.build(values))
        page[_X87_DP : _X87_DP + 8] = fpu.last_dp.to_bytes(8, "little")
        for register in range(8):
            page[_X87 + 10 * register : _X87 + 10 * register + 10] = fpu.fpr[16 * register : 16 * register + 10]
        page[_XMM : _XMM + 256] = fpu.xmm
        return page

    def ioctl(self, process: Process, request: int, argument: int) -> int:
        """One vCPU ioctl, of the VM's owner. Raises OSError with KVM's errno."""
        memory = process.memory
        if request == kvm.KVM_RUN:
            if argument or self.vm.sev.needs_init:
                fail(errno.EINVAL)
            fail(errno.EOPNOTSUPP)
        if request == kvm.KVM_SET_CPUID2:
            count, _ = _COUNT.unpack(memory.read(argument, _COUNT.size))
            if count > kvm_vcpu.CPUID_ENTRIES_MAX:
                fail(errno.E2BIG)
            self.cpuid = memory.read(argument, _COUNT.size + count * kvm_vcpu.CpuidEntry.size())
            return 0
        if request == kvm.KVM_GET_CPUID2:
            (room, _), (have, _) = _COUNT.unpack(memory.read(argument, _COUNT.size)), _COUNT.unpack_from(self.cpuid)
            if room < have:
                fail(errno.E2BIG)
            memory.write(argument, self.cpuid)
            return 0
        if request not in _STATE:
            fail(errno.EINVAL)
        if self.protected and self.vm.type in (kvm.VM_TYPE_SEV_ES, kvm.VM_TYPE_SNP):
            fail(errno.EINVAL)
        return self._state(process, request, argument)

    def _state(self, process: Process, request: int, argument: int) -> int:
        memory = process.memory
        if request == kvm.KVM_GET_REGS:
            memory.write(argument, self.regs.encode())
        elif request == kvm.KVM_SET_REGS:
            regs = Regs.decode(memory.read(argument, Regs.size()))
            # KVM sets the reserved bit 1 of RFLAGS itself.
            self.regs = replace(regs, rflags=regs.rflags | 2)
        elif request == kvm.KVM_GET_SREGS:
            memory.write(argument, _shown(self.sregs).encode())
        elif request == kvm.KVM_SET_SREGS:
            sregs = Sregs.decode(memory.read(argument, Sregs.size()))
            if not _valid(sregs):
                fail(errno.EINVAL)
            self.sregs = sregs
        elif request == kvm.KVM_GET_FPU:
            memory.write(argument, self.fpu.encode())
        elif request == kvm.KVM_SET_FPU:
            # MXCSR does not travel this way.
            self.fpu = replace(Fpu.decode(memory.read(argument, Fpu.size())), mxcsr=0)
        elif request == kvm.KVM_GET_DEBUGREGS:
            memory.write(argument, self.debug.encode())
        elif request == kvm.KVM_SET_DEBUGREGS:
            debug = DebugRegs.decode(memory.read(argument, DebugRegs.size()))
            if debug.flags or debug.dr6 >> 32 or debug.dr7 >> 32:
                fail(errno.EINVAL)
            self.debug = debug
        else:
            return self._msrs(process, argument, store=request == kvm.KVM_SET_MSRS)
        return 0

    def _msrs(self, process: Process, argument: int, *, store: bool) -> int:
        """KVM_SET_MSRS and KVM_GET_MSRS: how many were done before the first that could not be."""
        memory = process.memory
        count: int = _COUNT.unpack(memory.read(argument, _COUNT.size))[0]
        if count >= kvm_vcpu.MSRS_MAX:
            fail(errno.E2BIG)
        if not count:
            return 0
        size = kvm_vcpu.MsrEntry.size()
        view = memory.view(argument + _COUNT.size, count * size)
        for number in range(count):
            entry = kvm_vcpu.MsrEntry.decode(view[number * size : (number + 1) * size])
            if entry.index not in self.msrs:
                return number
            if not store:
                view[number * size : (number + 1) * size] = replace(entry, data=self.msrs[entry.index]).encode()
            elif _valid_msr(entry.index, entry.data):
                self.msrs[entry.index] = entry.data
            else:
                return number
        return count


class VcpuFile(File):
    """An open vCPU."""

    def __init__(self, vcpu: Vcpu) -> None:
        super().__init__()
        self.vcpu = vcpu
        vcpu.vm.hold()

    def released(self) -> None:
        """The vCPU stays part of its VM; only the descriptor is gone."""
        self.vcpu.vm.drop()

    def ioctl(self, process: Process, request: int, argument: int) -> int:
        """A vCPU ioctl. Raises OSError(EIO) from another process, or KVM's errno."""
        vm = self.vcpu.vm
        vm.check_owner(process)
        with vm.lock:
            return self.vcpu.ioctl(process, request, argument)


_STATE = frozenset(
    {
        kvm.KVM_GET_REGS, kvm.KVM_SET_REGS, kvm.KVM_GET_SREGS, kvm.KVM_SET_SREGS, kvm.KVM_GET_FPU, kvm.KVM_SET_FPU,
        kvm.KVM_GET_MSRS, kvm.KVM_SET_MSRS, kvm.KVM_GET_DEBUGREGS, kvm.KVM_SET_DEBUGREGS,
    }
)  # fmt: skip


def _save_segment(segment: Segment) -> tuple[int, int, int, int]:
    """(selector, attributes, limit, base) as svm_set_segment packs them."""
    present = segment.present & 1 and not segment.unusable
    attributes = (
        (segment.type & 15)
        | (segment.s & 1) << 4
        | (segment.dpl & 3) << 5
        | int(present) << 7
        | (segment.avl & 1) << 8
        | (segment.l & 1) << 9
        | (segment.db & 1) << 10
        | (segment.g & 1) << 11
    )
    return segment.selector, attributes, segment.limit, segment.base


def _shown(sregs: Sregs) -> Sregs:
    """Segments as svm_get_segment tells them: data segments accessed, the task segment busy."""
    return replace(
        sregs,
        ds=_typed(sregs.ds, 1),
        es=_typed(sregs.es, 1),
        fs=_typed(sregs.fs, 1),
        gs=_typed(sregs.gs, 1),
        tr=_typed(sregs.tr, 2),
    )


def _typed(segment: Segment, bits: int) -> Segment:
    return replace(segment, type=segment.type | bits)


def _valid(sregs: Sregs) -> bool:
    """kvm_is_valid_sregs: paging, long mode and control registers that go together."""
    if sregs.cr0 >> 32 or sregs.cr4 >> 32:
        return False
    if (sregs.cr0 & CR0_NW and not sregs.cr0 & CR0_CD) or (sregs.cr0 & CR0_PG and not sregs.cr0 & CR0_PE):
        return False
    if sregs.efer & EFER_LME and sregs.cr0 & CR0_PG:
        return bool(sregs.cr4 & CR4_PAE and sregs.efer & EFER_LMA)
    return not sregs.efer & EFER_LMA and not sregs.cs.l


def _valid_msr(index: int, value: int) -> bool:
    if index == kvm_vcpu.MSR_IA32_PAT:
        return all(byte in PAT_TYPES for byte in value.to_bytes(8, "little"))
    return index != 0xC0000103 or value >> 32 == 0
