"""/dev/kvm: version, capabilities, types, attributes, CPUID; memory slots, guest_memfd, attributes; vCPUs."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest

from sev import products
from sev.abi import kvm, kvm_vcpu
from sevd.simulator import Simulator
from sevd.simulator.firmware_platform import Platform
from sevd.simulator.process import Process
from sevd.simulator.versions import parse
from tests.support.caller import PAGE, Machine, attempt, code
from tests.support.simulated import simulated_host

UNMAPPED = 0x1000


@pytest.fixture
def device(process: Process) -> int:
    return process.open("/dev/kvm", os.O_RDONLY)


@pytest.mark.parametrize(
    ("request_number", "argument", "expected"),
    [
        (kvm.KVM_GET_API_VERSION, 0, 12),
        (kvm.KVM_GET_API_VERSION, 1, "EINVAL"),
        (kvm.KVM_GET_VCPU_MMAP_SIZE, 0, 12288),
        (kvm.KVM_GET_VCPU_MMAP_SIZE, 1, "EINVAL"),
        (0xAEFF, 0, "EINVAL"),
        (0x5300, 0, "EINVAL"),
        (kvm.KVM_CREATE_VCPU, 0, "EINVAL"),
    ],
)
def test_system_ioctls(process: Process, device: int, request_number: int, argument: int, expected: int | str) -> None:
    number, value = attempt(process, device, request_number, argument)
    assert (errno.errorcode[number] if number else value) == expected


@pytest.mark.parametrize(
    ("capability", "value"),
    [
        (kvm.CAP_USER_MEMORY, 1),
        (kvm.CAP_NR_MEMSLOTS, 32764),
        (kvm.CAP_MAX_VCPUS, 1024),
        (kvm.CAP_MAX_VCPU_ID, 4096),
        (kvm.CAP_EXIT_HYPERCALL, 4096),
        (kvm.CAP_USER_MEMORY2, 1),
        (kvm.CAP_GUEST_MEMFD, 1),
        (kvm.CAP_GUEST_MEMFD_FLAGS, 3),
        (kvm.CAP_MEMORY_ATTRIBUTES, 8),
        (kvm.CAP_VM_MOVE_ENC_CONTEXT_FROM, 0),
        (kvm.CAP_VM_COPY_ENC_CONTEXT_FROM, 0),
        (9999, 0),
    ],
)
def test_capabilities(process: Process, device: int, capability: int, value: int) -> None:
    assert process.ioctl(device, kvm.KVM_CHECK_EXTENSION, capability) == value


@pytest.mark.parametrize(
    ("product", "version", "types"),
    [
        ("milan", "1.55.20", {0, 2, 3, 4}),
        ("milan", None, {0, 2, 4}),
        ("genoa", "1.55.40", {0, 2, 3, 4}),
        ("genoa", None, {0, 2, 4}),
        ("turin", None, {0, 2, 4}),
    ],
)
def test_vm_types_and_how_es_is_masked(tmp_path: Path, product: str, version: str | None, types: set[int]) -> None:
    """AMD-SB-3023: from SNP security version 0x1B (Zen 3, 4) or 4 (Zen 5) KVM offers no SEV-ES VMs."""
    state = tmp_path / "state"
    with simulated_host(state, product):
        pass
    if version:
        Platform.store_new(products.by_name(product), state / product, parse(version))
    host = Simulator.open(state, product=product)
    process = host.process()
    device = process.open("/dev/kvm", os.O_RDWR)
    mask = process.ioctl(device, kvm.KVM_CHECK_EXTENSION, kvm.CAP_VM_TYPES)
    assert {number for number in range(32) if mask >> number & 1} == types
    for number in range(8):
        expected = "ok" if number in types else "EINVAL"
        assert code(process, device, kvm.KVM_CREATE_VM, number) == expected
    assert code(process, device, kvm.KVM_CREATE_VM, 1 << 40) == "EINVAL"
    host.close()


@pytest.mark.parametrize(
    ("group", "number", "expected"),
    [
        (1, 0, 0x220),
        (1, 1, 0x1FB_FFFF & ~(1 << 24)),
        (1, 2, 1),
        (0, 0, 0x2E7),
        (1, 3, None),
        (2, 0, None),
        (0, 1, None),
    ],
)
def test_device_attributes(process: Process, device: int, group: int, number: int, expected: int | None) -> None:
    value = bytearray(8)
    attr = kvm.DeviceAttr(0, group, number, process.memory.place(value))
    result = "ok" if expected is not None else "ENXIO"
    assert code(process, device, kvm.KVM_HAS_DEVICE_ATTR, attr) == result
    assert int.from_bytes(value, "little") == 0
    assert code(process, device, kvm.KVM_GET_DEVICE_ATTR, attr) == result
    assert int.from_bytes(value, "little") == (expected or 0)
    if expected is not None:
        assert code(process, device, kvm.KVM_GET_DEVICE_ATTR, replace(attr, addr=UNMAPPED)) == "EFAULT"
    assert code(process, device, kvm.KVM_GET_DEVICE_ATTR, UNMAPPED) == "EFAULT"


def supported(process: Process, device: int) -> list[kvm_vcpu.CpuidEntry]:
    buffer = kvm_vcpu.empty_cpuid()
    process.ioctl(device, kvm.KVM_GET_SUPPORTED_CPUID, process.memory.place(buffer))
    return kvm_vcpu.decode_cpuid(buffer)


def test_supported_cpuid(host: Simulator, process: Process, device: int) -> None:
    entries = supported(process, device)
    assert 30 < len(entries) <= 64
    sev = next(entry for entry in entries if entry.function == 0x8000001F)
    real = host.firmware.hardware_cpuid(0x8000001F)
    assert (sev.eax, sev.ecx, sev.edx) == (real[0], real[2], real[3])
    assert sev.ebx == real[1] & 0x3F
    assert all(entry.flags == 1 for entry in entries if entry.function in (0x7, 0xD, 0x8000001D))


@pytest.mark.parametrize("room", [0, 1, 10])
def test_supported_cpuid_without_room_is_e2big(process: Process, device: int, room: int) -> None:
    assert code(process, device, kvm.KVM_GET_SUPPORTED_CPUID, kvm_vcpu.empty_cpuid(room)) == "E2BIG"
    assert code(process, device, kvm.KVM_GET_SUPPORTED_CPUID, UNMAPPED) == "EFAULT"


def test_vm_ioctls(machine: Machine, plain: Machine) -> None:
    assert machine.ioctl(0xAEFF) == "ENOTTY"
    assert machine.process.ioctl(plain.vm, kvm.KVM_CHECK_EXTENSION, kvm.CAP_MEMORY_ATTRIBUTES) == 0
    assert machine.process.ioctl(machine.vm, kvm.KVM_CHECK_EXTENSION, kvm.CAP_MEMORY_ATTRIBUTES) == 8
    assert machine.process.ioctl(machine.vm, kvm.KVM_CHECK_EXTENSION, kvm.CAP_GUEST_MEMFD_FLAGS) == 1


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (kvm.EnableCap(kvm.CAP_EXIT_HYPERCALL, arg0=4096), "ok"),
        (kvm.EnableCap(kvm.CAP_EXIT_HYPERCALL), "ok"),
        (kvm.EnableCap(kvm.CAP_EXIT_HYPERCALL, arg0=1), "EINVAL"),
        (kvm.EnableCap(kvm.CAP_EXIT_HYPERCALL, flags=1, arg0=4096), "EINVAL"),
        (kvm.EnableCap(kvm.CAP_VM_MOVE_ENC_CONTEXT_FROM), "EINVAL"),
        (kvm.EnableCap(9999), "EINVAL"),
    ],
)
def test_enable_cap(machine: Machine, request_: kvm.EnableCap, expected: str) -> None:
    assert machine.ioctl(kvm.KVM_ENABLE_CAP, request_) == expected


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (kvm.CreateGuestMemfd(PAGE), "ok"),
        (kvm.CreateGuestMemfd(1 << 50), "ok"),
        (kvm.CreateGuestMemfd(PAGE, kvm.GUEST_MEMFD_MMAP), "ok"),
        (kvm.CreateGuestMemfd(0), "EINVAL"),
        (kvm.CreateGuestMemfd(PAGE + 1), "EINVAL"),
        (kvm.CreateGuestMemfd(1 << 63), "EINVAL"),
        (kvm.CreateGuestMemfd((1 << 64) - PAGE), "EINVAL"),
        (kvm.CreateGuestMemfd(PAGE, kvm.GUEST_MEMFD_INIT_SHARED), "EINVAL"),
        (kvm.CreateGuestMemfd(PAGE, 4), "EINVAL"),
    ],
)
def test_create_guest_memfd(machine: Machine, request_: kvm.CreateGuestMemfd, expected: str) -> None:
    assert machine.ioctl(kvm.KVM_CREATE_GUEST_MEMFD, request_) == expected


def region(machine: Machine, **changes: int) -> kvm.UserMemoryRegion2:
    address = machine.process.memory.place(bytearray(16 * PAGE))
    base = kvm.UserMemoryRegion2(0, 0, 0, 16 * PAGE, address)
    return replace(base, **changes)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "ok"),
        ({"flags": 1}, "ok"),
        ({"flags": 2}, "ok"),
        ({"flags": 8}, "EINVAL"),
        ({"flags": 5}, "EINVAL"),
        ({"flags": 6}, "EINVAL"),
        ({"memory_size": 1}, "EINVAL"),
        ({"memory_size": 0}, "EINVAL"),
        ({"guest_phys_addr": 1}, "EINVAL"),
        ({"userspace_addr": 1}, "EINVAL"),
        ({"userspace_addr": 1 << 63}, "EINVAL"),
        ({"slot": 32763}, "ok"),
        ({"slot": 32764}, "EINVAL"),
        ({"slot": 65536}, "EINVAL"),
        ({"guest_phys_addr": (1 << 64) - PAGE}, "EINVAL"),
        ({"memory_size": 1 << 44}, "EINVAL"),
        ({"flags": 4, "guest_memfd": 99}, "EBADF"),
        ({"flags": 4, "guest_memfd": 0}, "EINVAL"),
        ({"flags": 4, "guest_memfd_offset": 1}, "EINVAL"),
        ({"flags": 4, "guest_memfd_offset": (1 << 64) - PAGE}, "EINVAL"),
    ],
    ids=str,
)
def test_memory_regions(machine: Machine, changes: dict[str, int], expected: str) -> None:
    assert machine.ioctl(kvm.KVM_SET_USER_MEMORY_REGION2, region(machine, **changes)) == expected


def test_the_old_region_form_takes_no_memfd(plain: Machine) -> None:
    at = plain.process.memory.place(bytearray(PAGE))
    assert plain.ioctl(kvm.KVM_SET_USER_MEMORY_REGION, kvm.UserMemoryRegion(0, 4, 0, PAGE, at)) == "EINVAL"
    assert plain.ioctl(kvm.KVM_SET_USER_MEMORY_REGION, kvm.UserMemoryRegion(0, 0, 0, PAGE, at)) == "ok"


def test_slots_overlap_move_and_go(plain: Machine) -> None:
    def put(slot: int, gpa: int, pages: int, flags: int = 0, at: int = UNMAPPED) -> str:
        return plain.ioctl(kvm.KVM_SET_USER_MEMORY_REGION2, kvm.UserMemoryRegion2(slot, flags, gpa, pages * PAGE, at))

    assert put(0, 0, 2) == "ok"
    assert put(1, PAGE, 2) == "EEXIST"
    assert put(1, 2 * PAGE, 2) == "ok"
    assert put(0, 0, 3) == "EINVAL"  # another size
    assert put(0, 0, 2, at=2 * UNMAPPED) == "EINVAL"  # another address
    assert put(0, 0, 2, flags=2) == "EINVAL"  # read-only is for ever
    assert put(0, 0, 2, flags=1) == "ok"
    assert put(0, 3 * PAGE, 2) == "EEXIST"
    assert put(0, 8 * PAGE, 2) == "ok"  # moved
    assert put(0, 0, 0) == "ok"
    assert put(0, 0, 0) == "EINVAL"


def test_slots_with_private_memory_are_immutable(machine: Machine) -> None:
    machine.add_memory(8)
    same = kvm.UserMemoryRegion2(0, 4, 0, 8 * PAGE, machine.address, 0, machine.memfd)
    assert machine.ioctl(kvm.KVM_SET_USER_MEMORY_REGION2, same) == "EINVAL"
    assert machine.ioctl(kvm.KVM_SET_USER_MEMORY_REGION2, replace(same, memory_size=0)) == "ok"
    assert machine.ioctl(kvm.KVM_SET_USER_MEMORY_REGION2, same) == "ok"


def test_binding_a_guest_memfd(machine: Machine, process: Process) -> None:
    machine.add_memory(8)
    other = Machine.make(process)
    other.add_memory(8)
    at = machine.address

    def bind(slot: int, memfd: int, offset: int, pages: int = 4) -> str:
        gpa = (1 << 32) + slot * 0x10000
        request = kvm.UserMemoryRegion2(slot, 4, gpa, pages * PAGE, at, offset * PAGE, memfd)
        return machine.ioctl(kvm.KVM_SET_USER_MEMORY_REGION2, request)

    assert bind(1, other.memfd, 0) == "EINVAL"  # another VM's
    assert bind(1, machine.vm, 0) == "EINVAL"
    assert bind(1, machine.memfd, 6) == "EINVAL"  # past its end
    assert bind(1, machine.memfd, 4) == "EEXIST"  # bound already
    spare = process.ioctl(
        machine.vm, kvm.KVM_CREATE_GUEST_MEMFD, process.memory.place(kvm.CreateGuestMemfd(8 * PAGE).encode())
    )
    assert bind(1, spare, 0) == "ok"
    assert bind(2, spare, 3) == "EEXIST"
    assert bind(2, spare, 4) == "ok"


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (kvm.MemoryAttributes(0, PAGE, 8), "ok"),
        (kvm.MemoryAttributes(0, PAGE, 0), "ok"),
        (kvm.MemoryAttributes(1 << 40, PAGE, 8), "ok"),
        (kvm.MemoryAttributes(0, 0, 8), "EINVAL"),
        (kvm.MemoryAttributes(1, PAGE, 8), "EINVAL"),
        (kvm.MemoryAttributes(0, PAGE + 1, 8), "EINVAL"),
        (kvm.MemoryAttributes(0, PAGE, 9), "EINVAL"),
        (kvm.MemoryAttributes(0, PAGE, 8, flags=1), "EINVAL"),
        (kvm.MemoryAttributes((1 << 64) - PAGE, PAGE, 8), "EINVAL"),
    ],
    ids=str,
)
def test_memory_attributes(machine: Machine, request_: kvm.MemoryAttributes, expected: str) -> None:
    assert machine.ioctl(kvm.KVM_SET_MEMORY_ATTRIBUTES, request_) == expected


def test_private_memory_is_for_guests_that_have_it(plain: Machine) -> None:
    assert plain.set_private(0, 1) == "EINVAL"
    assert plain.set_private(0, 1, attributes=0) == "ok"


def test_creating_vcpus(machine: Machine) -> None:
    assert machine.ioctl(kvm.KVM_CREATE_VCPU, 0) == "ok"
    assert machine.ioctl(kvm.KVM_CREATE_VCPU, 0) == "EEXIST"
    assert machine.ioctl(kvm.KVM_CREATE_VCPU, 4095) == "ok"
    for index in (4096, (1 << 32) - 1):
        assert machine.ioctl(kvm.KVM_CREATE_VCPU, index) == "EINVAL"
    for index in range(1, 1023):
        machine.vcpu(index)
    assert machine.ioctl(kvm.KVM_CREATE_VCPU, 2000) == "EINVAL"  # 1024 exist
