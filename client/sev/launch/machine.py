"""A KVM virtual machine with memory and vCPUs, as far as a launch needs it; nothing here knows SEV commands."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import struct
from functools import lru_cache

from sev.abi import kvm, kvm_vcpu
from sev.errors import NotOffered, UsageError
from sev.launch import reset_state
from sev.launch.refusals import opening, refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sev.abi.record import Record
    from sev.launch.seam import Kernel

PAGE = 4096
LOW_RAM_END = 2 << 30
FOUR_GIB = 4 << 30
_ADDRESS_LIMIT = 1 << 52

_APIC_BASE_OFFSET = kvm_vcpu.Sregs.offsets()["apic_base"][0]
_EBX, _EDX = 16, 24
"""Offsets in struct kvm_cpuid_entry2."""
_X2APIC_LEAVES = (0xB, 0x1F, 0x80000026)


class _Region:
    """One memory slot: guest physical range, its shared view and its guest_memfd."""

    __slots__ = ("address", "fd", "gpa", "ram", "size")

    def __init__(self, gpa: int, size: int, ram: mmap.mmap, address: int, fd: int) -> None:
        self.gpa = gpa
        self.size = size
        self.ram = ram
        self.address = address
        self.fd = fd


class Machine:
    """One VM. Every failure after `__init__` leaves a machine that `close` undoes.

    Args:
        kernel: The kernel as this process sees it.
        path: Device of KVM.
        vm_type: sev.abi.kvm.VM_TYPE_*.

    Raises:
        DeviceMissing, NotPermitted: The device is not there, or not for this process.
        NotOffered: KVM does not create VMs of this type here.
    """

    def __init__(self, kernel: Kernel, path: str, vm_type: int) -> None:
        self._kernel = kernel
        self._regions: list[_Region] = []
        self._vcpus: list[int] = []
        self._cpuid = b""
        self.finished = False
        self.vm_fd = -1
        try:
            self._kvm_fd = kernel.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise opening(error, path) from None
        try:
            offered = self._extension(kvm.CAP_VM_TYPES)
            if not offered >> vm_type & 1:
                raise NotOffered(
                    f"KVM cannot create VMs of type {vm_type} here (it offers the types in 0x{offered:x})",
                    command="KVM_CREATE_VM",
                    remedy="SNP guests need SEV-SNP enabled in the BIOS and in kvm_amd, and Linux 6.11 or later.",
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

    def add_memory(self, memory_bytes: int, firmware_bytes: int) -> None:
        """Guest RAM from address 0, and the firmware region below 4 GiB, all private.

        Raises:
            UsageError: Sizes that are not whole pages, or that do not fit the address space.
            KernelError: The kernel refused.
        """
        for name, size in (("memory_bytes", memory_bytes), ("firmware_bytes", firmware_bytes)):
            if size < 0 or size % PAGE or size > _ADDRESS_LIMIT - FOUR_GIB:
                raise UsageError(f"{name}: {size} is not a possible size in whole pages of {PAGE}", field=name)
        if not memory_bytes + firmware_bytes:
            raise UsageError("a guest needs memory", field="memory_bytes")
        if firmware_bytes > FOUR_GIB - LOW_RAM_END:
            raise UsageError(
                f"firmware_bytes: {firmware_bytes} does not fit between 2 and 4 GiB", field="firmware_bytes"
            )
        low = min(memory_bytes, LOW_RAM_END)
        layout = ((0, low), (FOUR_GIB - firmware_bytes, firmware_bytes), (FOUR_GIB, memory_bytes - low))
        for slot, (gpa, size) in enumerate(layout):
            if size:
                self._add_region(slot, gpa, size)

    def view(self, gpa: int, size: int) -> memoryview:
        """The shared view of guest memory. Raises UsageError if it is not inside one region."""
        region = self._region(gpa, size)
        return memoryview(region.ram)[gpa - region.gpa : gpa - region.gpa + size]

    def address(self, gpa: int, size: int) -> int:
        """Address of the shared view in this process. Raises UsageError if it is not inside one region."""
        region = self._region(gpa, size)
        return region.address + gpa - region.gpa

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
                self._vcpus.append(fd)
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
        for region in self._regions:
            self._kernel.memory.release(region.address)
            self._kernel.close(region.fd)
        # An mmap whose views are still in the caller's hands is freed with the last of them.
        self._regions.clear()
        for fd in (*self._vcpus, self.vm_fd, self._kvm_fd):
            if fd >= 0:
                self._kernel.close(fd)
        self._vcpus.clear()
        self.vm_fd = self._kvm_fd = -1

    def _add_region(self, slot: int, gpa: int, size: int) -> None:
        try:
            ram = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            if gpa < FOUR_GIB <= gpa + size:
                # The firmware fills its region; RAM is touched here and there, and stays in small pages.
                with contextlib.suppress(OSError):
                    ram.madvise(mmap.MADV_HUGEPAGE)
        except (OSError, ValueError, OverflowError) as error:
            raise UsageError(
                f"memory_bytes: {size} bytes cannot be had from this machine: {error}", field="memory_bytes"
            ) from None
        request = kvm.CreateGuestMemfd(size)
        fd = self._structure(self.vm_fd, kvm.KVM_CREATE_GUEST_MEMFD, request, "KVM_CREATE_GUEST_MEMFD")
        try:
            address = self._kernel.memory.place(memoryview(ram))
        except BaseException:
            self._kernel.close(fd)
            raise
        self._regions.append(_Region(gpa, size, ram, address, fd))
        self._structure(
            self.vm_fd,
            kvm.KVM_SET_USER_MEMORY_REGION2,
            kvm.UserMemoryRegion2(slot, kvm.MEM_GUEST_MEMFD, gpa, size, address, 0, fd),
            "KVM_SET_USER_MEMORY_REGION2",
        )
        self._structure(
            self.vm_fd,
            kvm.KVM_SET_MEMORY_ATTRIBUTES,
            kvm.MemoryAttributes(gpa, size, kvm.MEMORY_ATTRIBUTE_PRIVATE),
            "KVM_SET_MEMORY_ATTRIBUTES",
        )

    def _region(self, gpa: int, size: int) -> _Region:
        for region in self._regions:
            if size >= 0 and region.gpa <= gpa and gpa + size <= region.gpa + region.size:
                return region
        raise UsageError(f"0x{gpa:x} and {size} bytes are not inside one region of guest memory", field="gpa")

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
    """A struct kvm_cpuid2 with leaf 1 EAX replaced; remembered, since a host's guests want a few of them."""
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
