"""SEV and SEV-ES guests of a simulated host that execute on the real /dev/kvm; the host sees ciphertext."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator
from hashlib import sha256

import pytest

from sev.abi import kvm, kvm_run, kvm_sev, kvm_vcpu
from sev.abi import kvm_sev_legacy as abi
from sev.abi.record import Record
from sev.abi.sev_certificate import SevCertificate
from sev.errors import FirmwareError
from sev.launch.machine import FOUR_GIB
from sev.launch.platform import SevDevice
from sev.launch.sev import Sev, SevEs
from sev.launch.vcpu import Vcpu
from sev.measurement.vcpu_types import signature
from sev.session import Session, measurement, secret
from sevd.simulator.overlay import OverlayKernel, _Vm
from tests.support import real_mode as rm
from tests.support.device_files import DeviceFiles, device_files
from tests.support.needs import need_kvm
from tests.support.overlay_guests import run
from tests.support.tiny_firmware import AP_RESET, DEBUG_PORT, HALT, PRINT, SIZE, tiny_firmware

PAGE = 4096
SECRET_AT = 0x6000
ROM = FOUR_GIB - SIZE
TECHNOLOGIES = {"sev": (Sev, 0), "sev-es": (SevEs, 4)}

AGAIN = bytes.fromhex(
    "31c0" "8ed8"  # ax = ds = 0
    "bae900"  # mov dx, DEBUG_PORT
    "a00060" "ee"  # again: mov al, [0x6000]; out dx, al
    "fe060060"  # inc byte [0x6000]
    "f4" "ebf5"  # hlt; jmp again
)  # fmt: skip
"""Prints the byte at SECRET_AT and counts it up, each time it is let go on."""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DeviceFiles]:
    need_kvm()
    with device_files(tmp_path_factory.mktemp("overlay"), product="rome") as files:
        yield files


@pytest.fixture
def kernel(served: DeviceFiles) -> Iterator[OverlayKernel]:
    made = OverlayKernel(served.devices)
    yield made
    made.exit()


class Guest:
    """A launch of tiny firmware with an owner's session."""

    def __init__(
        self, kernel: OverlayKernel, served: DeviceFiles, firmware: bytes, technology: str = "sev", policy: int = 0
    ) -> None:
        driver, bits = TECHNOLOGIES[technology]
        self.kernel, self.firmware, self.policy, self.es = kernel, firmware, policy | bits, bool(bits)
        with SevDevice(kernel, path=str(served.sev)) as device:
            pdh, _ = device.pdh_export()
            self.version = device.platform_status()
        self.session = Session.create(self.policy)
        self.blob = self.session.start_unverified(SevCertificate.read(pdh))
        self.sev = driver(kernel, sev_path=str(served.sev))
        self.sev.create(1 << 20, len(firmware), 1, signature("EPYC-v4"), AP_RESET)
        self.sev.memory(ROM, SIZE)[:] = firmware

    def launch(self, packed: bytes = b"") -> None:
        self.sev.start(self.policy, self.blob.certificate, self.blob.session)
        self.sev.update(ROM, SIZE)
        if self.es:
            self.sev.update_vmsa()
        digest = self.kernel.launch_digest(self.sev.vm_fd)
        if not self.es:
            assert digest == sha256(self.firmware).digest()
        expected = measurement.Launch(digest, self.policy, self.version[0], self.version[1], self.version[7])
        measure = measurement.check(self.session.keys.tik, self.sev.measure(), expected)
        if packed:
            packet = secret.seal(self.session.keys, packed, measure)
            self.sev.secret(SECRET_AT, packet.header, packet.payload)
        self.sev.finish()

    def vcpu(self) -> Vcpu:
        machine = self.sev.machine
        return Vcpu(self.kernel, machine.vcpu_fds[0], machine.vcpu_mmap_size())


@pytest.mark.parametrize("technology", TECHNOLOGIES)
def test_what_runs_is_what_was_measured_and_the_host_sees_ciphertext(
    kernel: OverlayKernel, served: DeviceFiles, technology: str
) -> None:
    guest = Guest(kernel, served, tiny_firmware(PRINT + HALT, b"measured\n"), technology)
    guest.launch()
    seen = bytes(guest.sev.memory(ROM, SIZE))
    assert b"measured" not in seen
    assert seen[:PAGE] != guest.firmware[:PAGE]
    vcpu = guest.vcpu()
    assert run(vcpu) == (b"measured\n", kvm_run.HALT)
    vcpu.close()
    assert guest.sev.debug_read(ROM, SIZE - 1) == guest.firmware[:-1]
    guest.sev.close()


@pytest.mark.parametrize("technology", TECHNOLOGIES)
def test_a_secret_is_read_by_the_guest_alone(kernel: OverlayKernel, served: DeviceFiles, technology: str) -> None:
    guest = Guest(kernel, served, tiny_firmware(AGAIN), technology, policy=1)
    guest.launch(b"S3cret")
    shown = bytes(guest.sev.memory(0, 1 << 20))
    assert b"S3cret" not in shown
    vcpu = guest.vcpu()
    assert [run(vcpu)[0] for _ in range(3)] == [b"S", b"T", b"U"]
    assert b"V3cret" not in bytes(guest.sev.memory(0, 1 << 20))
    with pytest.raises(FirmwareError, match="POLICY_FAILURE"):
        guest.sev.debug_read(SECRET_AT, 16)
    vcpu.close()
    guest.sev.close()


def test_debugging_sees_and_changes_what_the_guest_has(kernel: OverlayKernel, served: DeviceFiles) -> None:
    guest = Guest(kernel, served, tiny_firmware(AGAIN))
    guest.launch(b"abc")
    vcpu = guest.vcpu()
    assert run(vcpu)[0] == b"a"
    assert guest.sev.debug_read(SECRET_AT, 4) == b"bbc\0"
    guest.sev.debug_write(SECRET_AT + 1, b"XY")
    assert run(vcpu)[0] == b"b"
    assert guest.sev.debug_read(SECRET_AT, 5) == b"cXY\0\0"
    guest.sev.debug_write(SECRET_AT, b"z")
    assert run(vcpu)[0] == b"z"
    # A page that was never encrypted: what the guest wrote there is read as well.
    guest.sev.memory(0x9000, 4)[:] = b"open"
    assert guest.sev.debug_read(0x9000, 4) == b"open"
    vcpu.close()
    guest.sev.close()


def test_nothing_runs_before_the_launch_is_finished(kernel: OverlayKernel, served: DeviceFiles) -> None:
    guest = Guest(kernel, served, tiny_firmware(PRINT + HALT, b"x"))
    with pytest.raises(OSError, match="not supported"):
        kernel.ioctl(guest.sev.machine.vcpu_fds[0], kvm.KVM_RUN)
    guest.launch()
    vcpu = guest.vcpu()
    assert run(vcpu) == (b"x", kvm_run.HALT)
    vcpu.close()
    guest.sev.close()


def test_an_es_guest_without_its_state_cannot_be_entered(kernel: OverlayKernel, served: DeviceFiles) -> None:
    guest = Guest(kernel, served, tiny_firmware(PRINT + HALT, b"x"), "sev-es")
    guest.sev.start(guest.policy)
    guest.sev.measure()
    guest.sev.finish()
    with pytest.raises(OSError, match="Invalid argument"):
        kernel.ioctl(guest.sev.machine.vcpu_fds[0], kvm.KVM_RUN)
    guest.sev.close()


def test_a_guest_shares_a_page_and_takes_it_back(kernel: OverlayKernel, served: DeviceFiles) -> None:
    """What the overlay does on the exit of KVM_HC_MAP_GPA_RANGE, while the guest counts on in that page."""
    guest = Guest(kernel, served, tiny_firmware(AGAIN))
    guest.launch(b"secret")
    vm = kernel.file(guest.sev.vm_fd)
    assert isinstance(vm, _Vm)
    page = guest.sev.memory(SECRET_AT, PAGE)
    vcpu = guest.vcpu()
    assert run(vcpu)[0] == b"s"
    assert bytes(page[1:6]) != b"ecret"
    vm.guest_asks(kvm_run.Hypercall(kvm.HC_MAP_GPA_RANGE, (SECRET_AT, 1, 0, 0, 0, 0)))
    assert bytes(page[:6]) == b"tecret", "the guest shows it"
    page[0] = ord("A")
    assert run(vcpu)[0] == b"A"
    assert page[0] == ord("B")
    vm.guest_asks(kvm_run.Hypercall(kvm.HC_MAP_GPA_RANGE, (SECRET_AT, 1, 1 << 4, 0, 0, 0)))
    assert bytes(page[:6]) != b"Becret", "it is the guest's alone again"
    page[0] = 0
    assert run(vcpu)[0] == b"B"
    assert guest.sev.debug_read(SECRET_AT, 6) == b"Cecret"
    page.release()
    vcpu.close()
    guest.sev.close()


def test_a_guest_that_ran_moves(kernel: OverlayKernel, served: DeviceFiles) -> None:
    """Its page goes as the guest left it; the receiver's guest reads the same, registers and all, and counts on."""
    source = Guest(kernel, served, tiny_firmware(AGAIN))
    source.launch(b"a")
    vcpu = source.vcpu()
    assert [run(vcpu)[0] for _ in range(2)] == [b"a", b"b"]
    with SevDevice(kernel, path=str(served.sev)) as device:
        pdh, chain = device.pdh_export()
    target = Guest(kernel, served, bytes(SIZE))
    start = Send(kernel, source.sev)
    session = start.begin(pdh, chain)
    receive = Receive(kernel, target.sev)
    receive.begin(source.policy, pdh, session)
    for gpa in (SECRET_AT, ROM, ROM + PAGE):
        receive.page(gpa, *start.page(gpa))
    receive.end()
    arrived = target.vcpu()
    for get, put, size in REGISTERS:
        data = bytearray(size)
        place = kernel.memory.place(data)
        kernel.ioctl(source.sev.machine.vcpu_fds[0], get, place)
        kernel.ioctl(target.sev.machine.vcpu_fds[0], put, place)
        kernel.memory.release(place)
    start.end()
    assert source.sev.status().state == 6
    assert run(arrived)[0] == b"c"
    assert target.sev.debug_read(ROM, SIZE - 1) == source.firmware[:-1]
    arrived.close()
    vcpu.close()
    target.sev.close()
    source.sev.close()


REGISTERS = ((kvm.KVM_GET_SREGS, kvm.KVM_SET_SREGS, 312), (kvm.KVM_GET_REGS, kvm.KVM_SET_REGS, 144))


class _Commands:
    """KVM's commands of one guest by hand."""

    def __init__(self, kernel: OverlayKernel, sev: Sev) -> None:
        self.kernel, self.sev = kernel, sev
        self.fd = sev._sev_fd

    def op(self, number: int, data: bytearray | None = None) -> None:
        memory = self.kernel.memory
        place = memory.place(data) if data is not None else 0
        envelope = memory.place(kvm_sev.SevCmd(number, place, 0, self.fd).encode())
        try:
            self.kernel.ioctl(self.sev.vm_fd, kvm.KVM_MEMORY_ENCRYPT_OP, envelope)
        finally:
            memory.release(envelope)
            if place:
                memory.release(place)


class Send(_Commands):
    """The source's side."""

    def begin(self, pdh: bytes, chain: bytes) -> bytes:
        place, session = self.kernel.memory.place, bytearray(128)
        request = abi.SendStart(
            0, place(pdh), len(pdh), place(chain), len(chain), place(b"unused"), 6, place(session), len(session)
        )
        self.op(kvm_sev.SEND_START, bytearray(request.encode()))
        return bytes(session)

    def page(self, gpa: int) -> tuple[bytes, bytes]:
        header, packet, place = bytearray(52), bytearray(PAGE + 1), self.kernel.memory.place
        address = self.sev.machine.address(gpa, PAGE)
        request = abi.SendUpdateData(place(header), 52, address, PAGE, place(packet), PAGE)
        self.op(kvm_sev.SEND_UPDATE_DATA, bytearray(request.encode()))
        return bytes(header), bytes(packet[:PAGE])

    def end(self) -> None:
        self.op(kvm_sev.SEND_FINISH)


class Receive(_Commands):
    """The target's side."""

    def begin(self, policy: int, pdh: bytes, session: bytes) -> None:
        place = self.kernel.memory.place
        request = abi.ReceiveStart(0, policy, place(pdh), len(pdh), place(session), len(session))
        self.op(kvm_sev.RECEIVE_START, bytearray(request.encode()))

    def page(self, gpa: int, header: bytes, packet: bytes) -> None:
        place, address = self.kernel.memory.place, self.sev.machine.address(gpa, PAGE)
        request = abi.ReceiveUpdateData(place(header), len(header), address, PAGE, place(packet), len(packet))
        self.op(kvm_sev.RECEIVE_UPDATE_DATA, bytearray(request.encode()))

    def end(self) -> None:
        self.op(kvm_sev.RECEIVE_FINISH)


class Raw:
    """A VM of 64 KiB by raw ioctls, in the order that a test wants."""

    def __init__(
        self, kernel: OverlayKernel, served: DeviceFiles, vm_type: int, initialise: int, *, shared: bool
    ) -> None:
        self.kernel = kernel
        self.sev = kernel.open(str(served.sev), os.O_RDONLY)
        self.device = kernel.open("/dev/kvm", os.O_RDWR)
        self.vm = kernel.ioctl(self.device, kvm.KVM_CREATE_VM, vm_type)
        flags = mmap.MAP_ANONYMOUS | (mmap.MAP_SHARED if shared else mmap.MAP_PRIVATE)
        self.ram = mmap.mmap(-1, rm.RAM, flags=flags)
        self.address = kernel.memory.place(memoryview(self.ram))
        self.op(initialise, kvm_sev.SevInit() if initialise == kvm_sev.SEV_INIT2 else None)

    def op(self, number: int, data: Record | None = None) -> None:
        """A command."""
        place = self.kernel.memory.place(data.encode() if data is not None else b"\0")
        self.ask(self.vm, kvm.KVM_MEMORY_ENCRYPT_OP, kvm_sev.SevCmd(number, place, 0, self.sev))
        self.kernel.memory.release(place)

    def ask(self, fd: int, request: int, structure: Record) -> None:
        """An ioctl with a structure."""
        place = self.kernel.memory.place(structure.encode())
        try:
            self.kernel.ioctl(fd, request, place)
        finally:
            self.kernel.memory.release(place)

    def slot(self, size: int = rm.RAM) -> None:
        """All memory at address 0; 0 bytes take it away."""
        self.ask(self.vm, kvm.KVM_SET_USER_MEMORY_REGION, kvm.UserMemoryRegion(0, 0, 0, size, self.address))

    def vcpu(self) -> Vcpu:
        """A vCPU in real mode at LOAD."""
        fd = self.kernel.ioctl(self.vm, kvm.KVM_CREATE_VCPU, 0)
        state = bytearray(kvm_vcpu.Sregs.size())
        place = self.kernel.memory.place(state)
        self.kernel.ioctl(fd, kvm.KVM_GET_SREGS, place)
        struct.pack_into("<QIH", state, 0, 0, 0xFFFF, 0)  # cs: base 0, selector 0
        self.kernel.ioctl(fd, kvm.KVM_SET_SREGS, place)
        self.kernel.memory.release(place)
        self.ask(fd, kvm.KVM_SET_REGS, kvm_vcpu.Regs(rip=rm.LOAD, rflags=2, rsp=0x7000))
        return Vcpu(self.kernel, fd, self.kernel.ioctl(self.device, kvm.KVM_GET_VCPU_MMAP_SIZE))

    def launch(self, program: bytes, policy: int, *, slot_first: bool) -> None:
        """A launch of one page, but for the state of vCPUs."""
        self.ram[rm.LOAD : rm.LOAD + len(program)] = program
        if slot_first:
            self.slot()
        self.op(kvm_sev.LAUNCH_START, abi.LaunchStart(0, policy))
        self.op(kvm_sev.LAUNCH_UPDATE_DATA, abi.LaunchUpdateData(self.address + rm.LOAD, PAGE))
        if not slot_first:
            self.slot()

    def finish(self) -> None:
        """LAUNCH_MEASURE and LAUNCH_FINISH."""
        self.op(kvm_sev.LAUNCH_MEASURE, abi.LaunchMeasure(self.kernel.memory.place(bytes(48)), 48))
        self.op(kvm_sev.LAUNCH_FINISH)


PROGRAM = rm.text(DEBUG_PORT, b"hello") + rm.HLT
INITIALISES = {
    "SEV": (kvm.VM_TYPE_SEV, kvm_sev.SEV_INIT2, 0),
    "SEV-ES": (kvm.VM_TYPE_SEV_ES, kvm_sev.SEV_INIT2, 4),
    "old SEV": (kvm.VM_TYPE_DEFAULT, kvm_sev.SEV_INIT, 0),
    "old SEV-ES": (kvm.VM_TYPE_DEFAULT, kvm_sev.SEV_ES_INIT, 4),
}


@pytest.mark.parametrize("slot_first", [True, False])
@pytest.mark.parametrize("kind", INITIALISES)
def test_any_order_and_any_kind_of_vm(kernel: OverlayKernel, served: DeviceFiles, kind: str, slot_first: bool) -> None:
    vm_type, initialise, policy = INITIALISES[kind]
    guest = Raw(kernel, served, vm_type, initialise, shared=True)
    vcpu = guest.vcpu()
    guest.launch(PROGRAM, policy, slot_first=slot_first)
    if policy:
        guest.op(kvm_sev.LAUNCH_UPDATE_VMSA)
    guest.finish()
    assert guest.ram[rm.LOAD : rm.LOAD + len(PROGRAM)] != PROGRAM
    assert run(vcpu) == (b"hello", kvm_run.HALT)
    vcpu.close()


def test_memory_that_is_no_shared_mapping_is_refused(kernel: OverlayKernel, served: DeviceFiles) -> None:
    guest = Raw(kernel, served, kvm.VM_TYPE_SEV, kvm_sev.SEV_INIT2, shared=False)
    fd = kernel.ioctl(guest.vm, kvm.KVM_CREATE_VCPU, 0)
    guest.launch(PROGRAM, 0, slot_first=True)
    with pytest.raises(OSError, match="Invalid argument"):
        guest.finish()
    with pytest.raises(OSError, match="not supported"):
        kernel.ioctl(fd, kvm.KVM_RUN)
