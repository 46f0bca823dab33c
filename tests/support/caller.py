"""A program that drives /dev/sev and /dev/kvm by raw ioctls, as a C program would, and tells errno and copy-back."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from sev.abi import kvm, kvm_sev, sev_device
from sev.abi.record import Record
from sevd.simulator.process import Process

PAGE = 4096
UNTOUCHED = 0xA5A5A5A5
"""What the caller has in `error` before the call: the kernel leaves it where the firmware was not reached."""
RAM_PAGES = 64
POLICY = 0x30000


class Outcome(NamedTuple):
    """errno (0: success), the envelope's `error`, the data as the kernel left them, and what the ioctl returned."""

    errno: int
    error: int
    data: bytes
    value: int = 0

    @property
    def name(self) -> str:
        return errno.errorcode.get(self.errno, str(self.errno)) if self.errno else "ok"


def attempt(process: Process, fd: int, request: int, argument: int = 0) -> tuple[int, int]:
    """(errno, returned value) of an ioctl."""
    try:
        return 0, process.ioctl(fd, request, argument)
    except OSError as refused:
        return refused.errno or -1, -1


def code(process: Process, fd: int, request: int, argument: int | bytes | bytearray | Record = 0) -> str:
    """The errno's name of an ioctl, "ok" for success. Bytes and structures are placed for the call."""
    if isinstance(argument, int):
        return Outcome(attempt(process, fd, request, argument)[0], 0, b"").name
    data = argument.encode() if isinstance(argument, Record) else argument
    address = process.memory.place(data)
    try:
        return Outcome(attempt(process, fd, request, address)[0], 0, b"").name
    finally:
        process.memory.release(address)


def issue(process: Process, fd: int, command: int, data: bytes | int = 0) -> Outcome:
    """SEV_ISSUE_CMD; bytes are placed, an integer is the address itself."""
    buffer = bytearray(data) if isinstance(data, bytes) else bytearray()
    address = process.memory.place(buffer) if isinstance(data, bytes) else data
    envelope = bytearray(sev_device.IssueCmd(command, address, UNTOUCHED).encode())
    place = process.memory.place(envelope)
    number, value = attempt(process, fd, sev_device.SEV_ISSUE_CMD, place)
    return Outcome(number, sev_device.IssueCmd.decode(envelope).error, bytes(buffer), value)


@dataclass
class Machine:
    """A VM made by hand, with all its numbers."""

    process: Process
    sev: int
    device: int
    vm: int
    ram: bytearray | None = None
    address: int = 0
    memfd: int = -1

    @classmethod
    def make(cls, process: Process, vm_type: int = kvm.VM_TYPE_SNP) -> Machine:
        sev = process.open("/dev/sev", os.O_RDONLY)
        device = process.open("/dev/kvm", os.O_RDWR)
        return cls(process, sev, device, process.ioctl(device, kvm.KVM_CREATE_VM, vm_type))

    def op(self, number: int, data: Record | bytes | int = 0, sev_fd: int | None = None) -> Outcome:
        """KVM_MEMORY_ENCRYPT_OP."""
        raw = data.encode() if isinstance(data, Record) else data
        buffer = bytearray(raw) if isinstance(raw, bytes) else bytearray()
        address = self.process.memory.place(buffer) if isinstance(raw, bytes) else raw
        fd = self.sev if sev_fd is None else sev_fd
        envelope = bytearray(kvm_sev.SevCmd(number, address, UNTOUCHED, fd & 0xFFFFFFFF).encode())
        place = self.process.memory.place(envelope)
        errno_, value = attempt(self.process, self.vm, kvm.KVM_MEMORY_ENCRYPT_OP, place)
        return Outcome(errno_, kvm_sev.SevCmd.decode(envelope).error, bytes(buffer), value)

    def ioctl(self, request: int, argument: int | bytes | bytearray | Record = 0) -> str:
        return code(self.process, self.vm, request, argument)

    def vcpu(self, index: int = 0) -> int:
        return self.process.ioctl(self.vm, kvm.KVM_CREATE_VCPU, index)

    def init2(self, **changes: Any) -> Outcome:
        return self.op(kvm_sev.SEV_INIT2, replace(kvm_sev.SevInit(), **changes))

    def add_memory(self, pages: int = RAM_PAGES, *, private: bool = True) -> None:
        """Slot 0 at address 0."""
        self.ram = bytearray(pages * PAGE)
        self.address = self.process.memory.place(self.ram)
        request = self.process.memory.place(kvm.CreateGuestMemfd(pages * PAGE).encode())
        self.memfd = self.process.ioctl(self.vm, kvm.KVM_CREATE_GUEST_MEMFD, request)
        region = kvm.UserMemoryRegion2(0, kvm.MEM_GUEST_MEMFD, 0, pages * PAGE, self.address, 0, self.memfd)
        assert self.ioctl(kvm.KVM_SET_USER_MEMORY_REGION2, region) == "ok"
        if private:
            assert self.set_private(0, pages) == "ok"

    def set_private(self, first: int, pages: int, attributes: int = kvm.MEMORY_ATTRIBUTE_PRIVATE) -> str:
        request = kvm.MemoryAttributes(first * PAGE, pages * PAGE, attributes)
        return self.ioctl(kvm.KVM_SET_MEMORY_ATTRIBUTES, request)

    def start(self, policy: int = POLICY, **changes: Any) -> Outcome:
        fd = changes.pop("sev_fd", self.sev)
        return self.op(kvm_sev.SNP_LAUNCH_START, replace(kvm_sev.SnpLaunchStart(policy), **changes), fd)

    def update(
        self,
        first: int = 0,
        pages: int = 1,
        page_type: int = kvm_sev.PAGE_NORMAL,
        *,
        uaddr: int | None = None,
        sev_fd: int | None = None,
        length: int | None = None,
        flags: int = 0,
    ) -> Outcome:
        source = self.address + first * PAGE if uaddr is None else uaddr
        size = pages * PAGE if length is None else length
        request = kvm_sev.SnpLaunchUpdate(first, source, size, page_type, flags)
        return self.op(kvm_sev.SNP_LAUNCH_UPDATE, request, sev_fd)

    def finish(self, sev_fd: int | None = None, **changes: Any) -> Outcome:
        return self.op(kvm_sev.SNP_LAUNCH_FINISH, replace(kvm_sev.SnpLaunchFinish(), **changes), sev_fd)


def ready(process: Process, *, vcpus: int = 1) -> Machine:
    """An SNP VM with private memory and vCPUs, before the start of its launch."""
    machine = Machine.make(process)
    assert machine.init2() == Outcome(0, UNTOUCHED, kvm_sev.SevInit().encode())
    machine.add_memory()
    for index in range(vcpus):
        machine.vcpu(index)
    return machine


def launching(process: Process, *, vcpus: int = 1) -> Machine:
    """The same, started."""
    machine = ready(process, vcpus=vcpus)
    assert machine.start().name == "ok"
    return machine
