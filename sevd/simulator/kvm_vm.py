"""A simulated VM: who owns it, how long it lives, its vCPUs, and its ioctls (virt/kvm/kvm_main.c).

A VM belongs to the address space that created it: ioctls from any other process answer EIO. It lives as long as one
descriptor of it, of a vCPU or of a guest_memfd is open anywhere; then its ASID is given back.
"""

from __future__ import annotations

import errno
import threading
from typing import TYPE_CHECKING

from sev.abi import kvm
from sevd.simulator import kvm_sev, kvm_sev_memory
from sevd.simulator.errnos import fail
from sevd.simulator.guest_ref import GuestRef
from sevd.simulator.kvm_memory import VmMemory
from sevd.simulator.process import File, Process
from sevd.simulator.vcpu import Vcpu, VcpuFile

if TYPE_CHECKING:
    from sevd.simulator.kvm import Kvm


class Vm:
    """One VM.

    Args:
        module: KVM.
        owner: The process that created it.
        vm_type: sev.abi.kvm.VM_TYPE_*.

    Attributes:
        name: What its owner calls it; empty for nothing.
        guest: The guest in it.
        dead: The power failed meanwhile: nothing can be done with it.
    """

    def __init__(self, module: Kvm, owner: Process, vm_type: int) -> None:
        self.module = module
        self.owner = owner
        self.type = vm_type
        self.name = ""
        self.guest = GuestRef(self)
        self.dead = False
        self.lock = threading.RLock()
        self.memory = VmMemory(self)
        self.vcpus: list[Vcpu] = []
        self.sev = kvm_sev.SevState(vm_type)
        self._references = 0
        self._count_lock = threading.Lock()
        module.vms.add(self)

    def hold(self) -> None:
        """One more open file that keeps it alive."""
        with self._count_lock:
            self._references += 1

    def drop(self) -> None:
        """One file less; with the last the VM ends."""
        with self._count_lock:
            self._references -= 1
            last = self._references == 0
        if last:
            self.module.vms.discard(self)
            with self.lock:
                kvm_sev.destroy(self)

    def lose(self) -> None:
        """The power failed: firmware and KVM know nothing of it any more."""
        self.dead = True
        self.sev.active = False
        self.sev.context = None
        self.sev.handle = 0

    def check_owner(self, process: Process) -> None:
        """Raises OSError(EIO) if the process does not own the VM, or the VM is dead."""
        if process is not self.owner or self.dead:
            fail(errno.EIO)

    def create_vcpu(self, process: Process, index: int) -> int:
        """KVM_CREATE_VCPU: a descriptor. Raises OSError: EINVAL: id or number; EEXIST: the id is taken; EMFILE."""
        from sevd.simulator.kvm import MAX_VCPU_IDS, MAX_VCPUS

        if index >= MAX_VCPU_IDS or len(self.vcpus) >= MAX_VCPUS:
            fail(errno.EINVAL)
        if any(vcpu.index == index for vcpu in self.vcpus):
            fail(errno.EEXIST)
        vcpu = Vcpu(self, index)
        fd = process.install(VcpuFile(vcpu))
        self.vcpus.append(vcpu)
        return fd

    def enable(self, request: kvm.EnableCap) -> None:
        """KVM_ENABLE_CAP. Raises OSError(EINVAL) for what is not offered."""
        if request.flags or request.cap != kvm.CAP_EXIT_HYPERCALL or request.arg0 & ~(1 << kvm.HC_MAP_GPA_RANGE):
            fail(errno.EINVAL)


class VmFile(File):
    """An open VM."""

    def __init__(self, vm: Vm) -> None:
        super().__init__()
        self.vm = vm
        vm.hold()

    def released(self) -> None:
        """Vcpu and guest_memfd descriptors may keep the VM alive."""
        self.vm.drop()

    def ioctl(self, process: Process, request: int, argument: int) -> int:
        """A VM ioctl. Raises OSError with KVM's errno: EIO from another process, unknown ones ENOTTY."""
        vm = self.vm
        vm.check_owner(process)
        memory = process.memory
        if request == kvm.KVM_MEMORY_ENCRYPT_OP:
            return kvm_sev.encrypt_op(vm, process, argument)
        with vm.lock:
            if request == kvm.KVM_CHECK_EXTENSION:
                return vm.module.extension(argument, vm.type)
            if request == kvm.KVM_CREATE_VCPU:
                return vm.create_vcpu(process, argument & 0xFFFF_FFFF)
            if request == kvm.KVM_CREATE_GUEST_MEMFD:
                return vm.memory.create_memfd(
                    process, kvm.CreateGuestMemfd.decode(memory.read(argument, kvm.CreateGuestMemfd.size()))
                )
            if request == kvm.KVM_ENABLE_CAP:
                vm.enable(kvm.EnableCap.decode(memory.read(argument, kvm.EnableCap.size())))
            elif request == kvm.KVM_SET_USER_MEMORY_REGION2:
                region = kvm.UserMemoryRegion2.decode(memory.read(argument, kvm.UserMemoryRegion2.size()))
                vm.memory.set_region(process, region)
            elif request == kvm.KVM_SET_USER_MEMORY_REGION:
                old = kvm.UserMemoryRegion.decode(memory.read(argument, kvm.UserMemoryRegion.size()))
                region = kvm.UserMemoryRegion2(*(getattr(old, name) for name in old.fields()))
                vm.memory.set_region(process, region, old_form=True)
            elif request == kvm.KVM_SET_MEMORY_ATTRIBUTES:
                vm.memory.set_attributes(
                    kvm.MemoryAttributes.decode(memory.read(argument, kvm.MemoryAttributes.size()))
                )
            elif request in (kvm.KVM_MEMORY_ENCRYPT_REG_REGION, kvm.KVM_MEMORY_ENCRYPT_UNREG_REGION):
                add = request == kvm.KVM_MEMORY_ENCRYPT_REG_REGION
                kvm_sev_memory.change_region(vm, process, argument, add=add)
            else:
                fail(errno.ENOTTY)
        return 0
