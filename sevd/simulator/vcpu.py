"""A simulated vCPU: the ioctls that read and change its state, until KVM encrypts it.

No guest code is ever run: KVM_RUN of a vCPU that could run answers EOPNOTSUPP.
"""

from __future__ import annotations

import errno
import struct
from dataclasses import replace
from typing import TYPE_CHECKING

from sev.abi import kvm, kvm_vcpu
from sev.abi.kvm_vcpu import DebugRegs, Fpu, Regs, Sregs
from sevd.simulator import vcpu_state
from sevd.simulator.errnos import fail
from sevd.simulator.process import File, Process

if TYPE_CHECKING:
    from sevd.simulator.kvm_vm import Vm

_COUNT = struct.Struct("<II")


class Vcpu:
    """One vCPU of a VM.

    Args:
        vm: Its VM.
        index: Its id; 0 is the boot processor.
    """

    def __init__(self, vm: Vm, index: int) -> None:
        self.vm = vm
        self.index = index
        reset = vcpu_state.after_reset(index == 0)
        self.regs, self.sregs, self.fpu, self.debug = reset.regs, reset.sregs, reset.fpu, reset.debug
        self.msrs = list(reset.msrs)
        self.cpuid = kvm_vcpu.encode_list(())
        self.protected = False
        self.page: bytearray | None = None

    def vmsa(self, sev_features: int) -> bytearray:
        """The save area as KVM makes it from the current state, 4096 bytes.

        Raises:
            OSError: EINVAL: it is encrypted already, or a debug register is set.
        """
        if self.protected or self.debug.dr7 & ~vcpu_state.DR7_RESET:
            fail(errno.EINVAL)
        state = vcpu_state.VcpuState(self.regs, self.sregs, self.fpu, self.debug, tuple(self.msrs))
        # A VM of the default type is an SEV-ES guest of the old kind, whose floating point state KVM forgets.
        return bytearray(vcpu_state.save_area(state, sev_features, x87=self.vm.type != kvm.VM_TYPE_DEFAULT))

    def ioctl(self, process: Process, request: int, argument: int) -> int:
        """One vCPU ioctl, of the VM's owner. Raises OSError with KVM's errno."""
        memory = process.memory
        if request == kvm.KVM_RUN:
            # Of a guest with encrypted state: there is none to enter before the launch has encrypted it.
            if argument or self.vm.sev.needs_init or (self.vm.sev.es and not self.protected):
                fail(errno.EINVAL)
            fail(errno.EOPNOTSUPP)
        if request == kvm.KVM_SET_CPUID2:
            count, _ = _COUNT.unpack(memory.read(argument, _COUNT.size))
            if count > kvm_vcpu.CPUID_ENTRIES_MAX:
                fail(errno.E2BIG)
            self.cpuid = memory.read(argument, _COUNT.size + count * kvm_vcpu.CPUID_ENTRY_SIZE)
            return 0
        if request == kvm.KVM_GET_CPUID2:
            (room, _), (have, _) = _COUNT.unpack(memory.read(argument, _COUNT.size)), _COUNT.unpack_from(self.cpuid)
            if room < have:
                fail(errno.E2BIG)
            memory.write(argument, self.cpuid)
            return 0
        if request not in _STATE:
            fail(errno.EINVAL)
        if self.protected:
            if self.vm.type != kvm.VM_TYPE_DEFAULT:
                fail(errno.EINVAL)
            if request in _SILENT:
                return 0
        return self._state(process, request, argument)

    def _state(self, process: Process, request: int, argument: int) -> int:
        memory = process.memory
        if request == kvm.KVM_GET_REGS:
            memory.write(argument, self.regs.encode())
        elif request == kvm.KVM_SET_REGS:
            self.regs = vcpu_state.regs_of(memory.read(argument, Regs.size()))
        elif request == kvm.KVM_GET_SREGS:
            memory.write(argument, vcpu_state.shown(self.sregs))
        elif request == kvm.KVM_SET_SREGS:
            sregs = vcpu_state.sregs_of(memory.read(argument, Sregs.size()))
            if not vcpu_state.valid_sregs(sregs):
                fail(errno.EINVAL)
            self.sregs = sregs
        elif request == kvm.KVM_GET_FPU:
            memory.write(argument, self.fpu.encode())
        elif request == kvm.KVM_SET_FPU:
            self.fpu = vcpu_state.fpu_of(memory.read(argument, Fpu.size()))
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
        entries = bytearray(memory.read(argument + _COUNT.size, count * size))
        done = 0
        for done in range(count):
            entry = kvm_vcpu.MsrEntry.decode(entries[done * size : (done + 1) * size])
            at = vcpu_state.ORDER.get(entry.index)
            if at is None:
                break
            if not store:
                entries[done * size : (done + 1) * size] = replace(entry, data=self.msrs[at]).encode()
            elif vcpu_state.valid_msr(entry.index, entry.data):
                self.msrs[at] = entry.data
            else:
                break
        else:
            done = count
        if not store:
            memory.write(argument + _COUNT.size, entries)
        return done


_SILENT = frozenset({kvm.KVM_GET_FPU, kvm.KVM_SET_FPU, kvm.KVM_GET_MSRS, kvm.KVM_SET_MSRS})
"""What KVM answers without effect for an encrypted vCPU of a VM of the default type."""


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
