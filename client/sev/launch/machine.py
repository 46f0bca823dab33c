"""A KVM virtual machine with memory and vCPUs, as far as a launch needs it; nothing here knows SEV commands."""

from __future__ import annotations

import errno
import os
import struct
from functools import lru_cache

from sev.abi import kvm, kvm_vcpu
from sev.errors import KernelError, NotOffered, UsageError
from sev.launch import reset_state
from sev.launch.memory import FOUR_GIB, LOW_RAM_END, PAGE, GuestMemory, Range
from sev.launch.refusals import opening, refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from sev.abi.record import Record
    from sev.launch.seam import Kernel

__all__ = ["FOUR_GIB", "LOW_RAM_END", "PAGE", "Machine"]

_APIC_BASE_OFFSET = kvm_vcpu.Sregs.offsets()["apic_base"][0]
_EBX, _EDX = 16, 24
"""Offsets in struct kvm_cpuid_entry2."""
_REMEDIES = {
    kvm.VM_TYPE_SEV: "SEV guests need SEV enabled in the BIOS and in kvm_amd, and Linux 6.10 or later.",
    kvm.VM_TYPE_SEV_ES: "SEV-ES guests need SEV-ES enabled in the BIOS and in kvm_amd; with recent SNP firmware KVM "
    "offers SNP in their place (AMD-SB-3023).",
    kvm.VM_TYPE_SNP: "SNP guests need SEV-SNP enabled in the BIOS and in kvm_amd, and Linux 6.11 or later.",
}
"""What to do where KVM does not make VMs of a type."""
NO_LOCKED_MEMORY = (
    "The memory of SEV and SEV-ES guests is locked, and what an update takes counts twice meanwhile: raise "
    "RLIMIT_MEMLOCK (LimitMEMLOCK=infinity in the unit, ulimit -l unlimited), or give the process CAP_IPC_LOCK."
)
_X2APIC_LEAVES = (0xB, 0x1F, 0x80000026)


class _Slot:
    """One memory slot: a range of guest memory, the address of its shared view, and its guest_memfd (-1: none)."""

    __slots__ = ("address", "fd", "range")

    def __init__(self, part: Range, address: int, fd: int) -> None:
        self.range = part
        self.address = address
        self.fd = fd


class Machine:
    """One VM. Every failure after `__init__` leaves a machine that `close` undoes.

    Args:
        kernel: The kernel as this process sees it.
        path: Device of KVM.
        vm_type: sev.abi.kvm.VM_TYPE_*. Memory of SNP guests is private; that of others is what the host maps.

    Attributes:
        finished: Its launch is finished.
        on_conversion: Told of pages that a guest without guest_memfd makes private or shared: (gpa, bytes, private).
        vm_fd: The VM's descriptor.
        vcpu_fds: Those of its vCPUs, the boot vCPU first.
        guest_memory: Its memory; None before `add_memory`.

    Raises:
        DeviceMissing, NotPermitted: The device is not there, or not for this process.
        NotOffered: KVM does not create VMs of this type here.
    """

    def __init__(self, kernel: Kernel, path: str, vm_type: int) -> None:
        self._kernel = kernel
        self._private = vm_type == kvm.VM_TYPE_SNP
        self._slots: list[_Slot] = []
        self._cpuid = b""
        self.vcpu_fds: list[int] = []
        self.guest_memory: GuestMemory | None = None
        self.finished = False
        self.on_conversion: Callable[[int, int, bool], None] | None = None
        self.vm_fd = -1
        try:
            self._kvm_fd = kernel.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise opening(error, path) from None
        try:
            offered = self._extension(kvm.CAP_VM_TYPES) | 1 << kvm.VM_TYPE_DEFAULT
            if not offered >> vm_type & 1:
                raise NotOffered(
                    f"KVM cannot create VMs of type {vm_type} here (it offers the types in 0x{offered:x})",
                    command="KVM_CREATE_VM",
                    remedy=_REMEDIES.get(vm_type, ""),
                )
            self.vm_fd = self._ioctl(self._kvm_fd, kvm.KVM_CREATE_VM, vm_type, "KVM_CREATE_VM")
        except BaseException:
            self.close()
            raise

    def check_vcpu_count(self, count: int) -> None:
        """Raises UsageError if KVM does not make so many vCPUs."""
        most = self._extension(kvm.CAP_MAX_VCPUS)
        if not 1 <= count <= most:
            raise UsageError(f"{count} vCPUs: expected 1 to {most}, KVM's limit here", field="vcpu_count")

    def sev_attribute(self, attribute: int) -> int:
        """A u64 of KVM's attribute group SEV on the device.

        Raises:
            NotOffered: The kernel does not know it.
        """
        value = bytearray(8)
        with _Placed(self._kernel, value) as address:
            try:
                self._structure(
                    self._kvm_fd,
                    kvm.KVM_GET_DEVICE_ATTR,
                    kvm.DeviceAttr(0, kvm.X86_GRP_SEV, attribute, address),
                    "KVM_GET_DEVICE_ATTR",
                )
            except Exception as error:
                if getattr(error, "errno", None) == errno.ENXIO:
                    raise NotOffered(
                        f"KVM has no SEV attribute {attribute} here: SEV is not usable in this kernel",
                        command="KVM_GET_DEVICE_ATTR",
                        errno=errno.ENXIO,
                    ) from None
                raise
        return int.from_bytes(value, "little")

    def enable(self, capability: int, argument: int) -> None:
        """KVM_ENABLE_CAP with one argument."""
        self._structure(self.vm_fd, kvm.KVM_ENABLE_CAP, kvm.EnableCap(capability, arg0=argument), "KVM_ENABLE_CAP")

    def add_memory(self, memory_bytes: int, firmware_bytes: int, *, shared: bool = True) -> None:
        """Guest RAM from address 0, and the firmware region below 4 GiB; `shared` where others may map it too.

        Raises:
            UsageError: Sizes that are not whole pages, or that do not fit the address space.
            KernelError: The kernel refused.
        """
        self.guest_memory = GuestMemory(memory_bytes, firmware_bytes, shared=shared)
        for slot, part in enumerate(self.guest_memory.ranges):
            self._add_slot(slot, part)

    def register_memory(self) -> None:
        """KVM_MEMORY_ENCRYPT_REG_REGION of all memory: its pages stay where they are, as SEV and SEV-ES need it.

        Raises:
            KernelError: ENOMEM: more than RLIMIT_MEMLOCK allows.
        """
        for slot in self._slots:
            region = kvm.EncRegion(slot.address, slot.range.size)
            try:
                self._structure(self.vm_fd, kvm.KVM_MEMORY_ENCRYPT_REG_REGION, region, "KVM_MEMORY_ENCRYPT_REG_REGION")
            except KernelError as error:
                if error.errno == errno.ENOMEM:
                    error.remedy = NO_LOCKED_MEMORY
                raise

    def view(self, gpa: int, size: int) -> memoryview:
        """The shared view of guest memory. Raises UsageError if it is not inside one region."""
        return self._memory().view(gpa, size)

    def address(self, gpa: int, size: int) -> int:
        """Address of the shared view in this process. Raises UsageError if it is not inside one region."""
        part = self._memory().find(gpa, size)
        slot = next(slot for slot in self._slots if slot.range is part)
        return slot.address + gpa - part.gpa

    def private_pages(self, gpa: int, size: int) -> tuple[int, int]:
        """(guest_memfd, offset) that hold the private pages of an address range.

        Raises:
            UsageError: It is not inside one region, or this machine's memory is not private.
        """
        part = self._memory().find(gpa, size)
        slot = next(slot for slot in self._slots if slot.range is part)
        if slot.fd < 0:
            raise UsageError("this machine has no private memory", field="gpa")
        return slot.fd, gpa - part.gpa

    def vcpu_mmap_size(self) -> int:
        """KVM_GET_VCPU_MMAP_SIZE: bytes of a vCPU's shared mapping."""
        return self._ioctl(self._kvm_fd, kvm.KVM_GET_VCPU_MMAP_SIZE, 0, "KVM_GET_VCPU_MMAP_SIZE")

    def supported_cpuid(self, signature: int) -> bytes:
        """KVM_GET_SUPPORTED_CPUID with another CPU signature: the struct kvm_cpuid2."""
        if not self._cpuid:
            buffer = kvm_vcpu.empty_cpuid()
            with _Placed(self._kernel, buffer) as address:
                self._ioctl(self._kvm_fd, kvm.KVM_GET_SUPPORTED_CPUID, address, "KVM_GET_SUPPORTED_CPUID")
            self._cpuid = bytes(buffer)
        return guest_cpuid(self._cpuid, signature)

    def add_vcpus(self, count: int, cpuid_signature: int, ap_reset_address: int) -> None:
        """Makes the vCPUs and gives each its CPUID and QEMU's reset state.

        Raises:
            UsageError: More than one vCPU and no address for the others, or a value above 32 bits.
            KernelError: The kernel refused.
        """
        if count > 1 and not ap_reset_address:
            raise UsageError("more than one vCPU: the others need a reset address", field="ap_reset_address")
        for name, value in (("cpuid_signature", cpuid_signature), ("ap_reset_address", ap_reset_address)):
            if not 0 <= value < 1 << 32:
                raise UsageError(f"{name}: 0x{value:x} does not fit 32 bits", field=name)
        encoded = self.supported_cpuid(cpuid_signature)
        fields = _apic_id_fields(encoded)
        leaves = bytearray(encoded)
        state = bytearray(kvm_vcpu.Sregs.size())
        with (
            _Placed(self._kernel, leaves) as cpuid,
            _Placed(self._kernel, state) as sregs,
            _Placed(self._kernel, reset_state.FPU.encode()) as fpu,
            _Placed(self._kernel, kvm_vcpu.encode_list(reset_state.MSRS)) as msrs,
        ):
            for index in range(count):
                start = ap_reset_address if index else reset_state.BOOT_ADDRESS
                _set_apic_id(leaves, fields, index)
                fd = self._ioctl(self.vm_fd, kvm.KVM_CREATE_VCPU, index, "KVM_CREATE_VCPU")
                self.vcpu_fds.append(fd)
                self._ioctl(fd, kvm.KVM_SET_CPUID2, cpuid, "KVM_SET_CPUID2")
                self._ioctl(fd, kvm.KVM_GET_SREGS, sregs, "KVM_GET_SREGS")
                (apic_base,) = struct.unpack_from("<Q", state, _APIC_BASE_OFFSET)
                state[:] = reset_state.sregs(start, apic_base)
                self._ioctl(fd, kvm.KVM_SET_SREGS, sregs, "KVM_SET_SREGS")
                self._structure(fd, kvm.KVM_SET_REGS, reset_state.regs(start, cpuid_signature), "KVM_SET_REGS")
                self._ioctl(fd, kvm.KVM_SET_FPU, fpu, "KVM_SET_FPU")
                self._ioctl(fd, kvm.KVM_SET_MSRS, msrs, "KVM_SET_MSRS")

    def close(self) -> None:
        """Closes every descriptor and gives the memory back; the VM ends with the last descriptor."""
        for slot in self._slots:
            self._kernel.memory.release(slot.address)
            if slot.fd >= 0:
                self._kernel.close(slot.fd)
        self._slots.clear()
        for fd in (*self.vcpu_fds, self.vm_fd, self._kvm_fd):
            if fd >= 0:
                self._kernel.close(fd)
        self.vcpu_fds.clear()
        self.vm_fd = self._kvm_fd = -1
        if self.guest_memory is not None:
            self.guest_memory.close()

    def _add_slot(self, slot: int, part: Range) -> None:
        fd = -1
        if self._private:
            request = kvm.CreateGuestMemfd(part.size)
            fd = self._structure(self.vm_fd, kvm.KVM_CREATE_GUEST_MEMFD, request, "KVM_CREATE_GUEST_MEMFD")
        try:
            address = self._kernel.memory.place(memoryview(part.pages))
        except BaseException:
            if fd >= 0:
                self._kernel.close(fd)
            raise
        self._slots.append(_Slot(part, address, fd))
        if not self._private:
            shared = kvm.UserMemoryRegion(slot, 0, part.gpa, part.size, address)
            self._structure(self.vm_fd, kvm.KVM_SET_USER_MEMORY_REGION, shared, "KVM_SET_USER_MEMORY_REGION")
            return
        private = kvm.UserMemoryRegion2(slot, kvm.MEM_GUEST_MEMFD, part.gpa, part.size, address, 0, fd)
        self._structure(self.vm_fd, kvm.KVM_SET_USER_MEMORY_REGION2, private, "KVM_SET_USER_MEMORY_REGION2")
        self._structure(
            self.vm_fd,
            kvm.KVM_SET_MEMORY_ATTRIBUTES,
            kvm.MemoryAttributes(part.gpa, part.size, kvm.MEMORY_ATTRIBUTE_PRIVATE),
            "KVM_SET_MEMORY_ATTRIBUTES",
        )

    def _memory(self) -> GuestMemory:
        if self.guest_memory is None:
            raise UsageError("this machine has no memory yet", field="gpa")
        return self.guest_memory

    def _extension(self, capability: int) -> int:
        return self._ioctl(self._kvm_fd, kvm.KVM_CHECK_EXTENSION, capability, "KVM_CHECK_EXTENSION")

    def _structure(self, fd: int, request: int, structure: Record, name: str) -> int:
        with _Placed(self._kernel, structure.encode()) as address:
            return self._ioctl(fd, request, address, name)

    def _ioctl(self, fd: int, request: int, argument: int, name: str) -> int:
        try:
            return self._kernel.ioctl(fd, request, argument)
        except OSError as error:
            raise refused(error, name) from None


class _Placed:
    """Something at an address for the length of a block."""

    __slots__ = ("_address", "_data", "_kernel")

    def __init__(self, kernel: Kernel, data: bytes | bytearray) -> None:
        self._kernel = kernel
        self._data = data

    def __enter__(self) -> int:
        self._address = self._kernel.memory.place(self._data)
        return self._address

    def __exit__(self, *error: object) -> None:
        self._kernel.memory.release(self._address)


@lru_cache(maxsize=16)
def guest_cpuid(supported: bytes, signature: int) -> bytes:
    """A struct kvm_cpuid2 with leaf 1 EAX replaced (0: left alone); remembered: a host's guests want a few of them."""
    if not signature:
        return supported
    return kvm_vcpu.encode_list(kvm_vcpu.with_leaf(kvm_vcpu.decode_cpuid(supported), 1, eax=signature))


@lru_cache(maxsize=16)
def _apic_id_fields(leaves: bytes) -> tuple[tuple[int, bool], ...]:
    """Where a struct kvm_cpuid2 holds the APIC id: (offset, True for an EDX that is all of it)."""
    out = []
    for index, entry in enumerate(kvm_vcpu.decode_cpuid(leaves)):
        at = 8 + index * kvm_vcpu.CPUID_ENTRY_SIZE
        if entry.function == 1:
            out.append((at + _EBX, False))
        elif entry.function in _X2APIC_LEAVES:
            out.append((at + _EDX, True))
    return tuple(out)


def _set_apic_id(leaves: bytearray, fields: tuple[tuple[int, bool], ...], identifier: int) -> None:
    """Puts a vCPU's APIC id in: bits 31:24 of leaf 1 EBX, and EDX of the topology leaves."""
    for at, whole in fields:
        if whole:
            struct.pack_into("<I", leaves, at, identifier)
        else:
            leaves[at + 3] = identifier & 0xFF
