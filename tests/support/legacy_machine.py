"""An SEV or SEV-ES guest launched by raw ioctls, and its owner."""

from __future__ import annotations

from typing import Any

from sev.abi import kvm, sev_certificate
from sev.abi import kvm_sev as ids
from sev.abi import kvm_sev_legacy as abi
from sev.abi.record import Record
from sev.abi.sev_device import PlatformStatus
from sev.abi.sev_policy import SevPolicy
from sev.session import Session, measurement
from sev.session.keys import TransportKeys
from sev.session.launch import LaunchStart
from sevd.simulator import Simulator
from sevd.simulator.legacy_guest import LUPDATE, LegacyGuest
from sevd.simulator.memory_cipher import MemoryKey
from sevd.simulator.process import Process
from tests.support.caller import PAGE, Machine, Outcome

SEV, ES = kvm.VM_TYPE_SEV, kvm.VM_TYPE_SEV_ES
ES_POLICY = 5
"""No debugging, SEV-ES."""


def some_guest(policy: int = 0, state: int = LUPDATE) -> LegacyGuest:
    """A guest that no command made."""
    return LegacyGuest(SevPolicy(policy), MemoryKey(bytes(range(32))), state, TransportKeys(bytes(16), bytes(16)))


class LegacyMachine:
    """A guest of a process.

    Attributes:
        machine: Its VM.
        ram: Its memory as the host sees it.
        address: Where that lies.
    """

    def __init__(self, process: Process, vm_type: int = SEV, pages: int = 64, *, initialise: bool = True) -> None:
        self.process = process
        self.machine = Machine.make(process, vm_type)
        if initialise and vm_type == kvm.VM_TYPE_DEFAULT:
            assert self.machine.op(ids.SEV_ES_INIT).name == "ok"
        elif initialise:
            assert self.machine.init2().name == "ok"
        self.ram = bytearray(pages * PAGE)
        self.address = process.memory.place(self.ram)

    def op(self, number: int, data: Record | bytes | int = 0, sev_fd: int | None = None) -> Outcome:
        """A command."""
        return self.machine.op(number, data, sev_fd)

    def place(self, data: bytes | bytearray) -> int:
        """An address for data; 0 for none."""
        return self.process.memory.place(data) if data else 0

    def start(self, start: LaunchStart | int, *, handle: int = 0, sev_fd: int | None = None) -> Outcome:
        """LAUNCH_START, with an owner's session or with a policy alone."""
        if isinstance(start, int):
            return self.op(ids.LAUNCH_START, abi.LaunchStart(handle, start), sev_fd)
        request = abi.LaunchStart(
            handle, start.policy, self.place(start.certificate), len(start.certificate),
            self.place(start.session), len(start.session),
        )  # fmt: skip
        return self.op(ids.LAUNCH_START, request, sev_fd)

    def update(self, first: int = 0, size: int = PAGE) -> Outcome:
        """LAUNCH_UPDATE_DATA from a byte of the memory on."""
        return self.op(ids.LAUNCH_UPDATE_DATA, abi.LaunchUpdateData(self.address + first, size))

    def measure(self) -> bytes:
        """LAUNCH_MEASURE: 48 bytes."""
        out = bytearray(measurement.BLOB_SIZE)
        outcome = self.op(ids.LAUNCH_MEASURE, abi.LaunchMeasure(self.place(out), len(out)))
        assert outcome.name == "ok", outcome
        return bytes(out)

    def secret(self, header: bytes, packet: bytes, first: int, size: int | None = None) -> Outcome:
        """LAUNCH_SECRET to a byte of the memory."""
        request = abi.LaunchSecret(
            self.place(header), len(header), self.address + first, len(packet) if size is None else size,
            self.place(packet), len(packet),
        )  # fmt: skip
        return self.op(ids.LAUNCH_SECRET, request)

    def finish(self) -> Outcome:
        """LAUNCH_FINISH."""
        return self.op(ids.LAUNCH_FINISH)

    def status(self) -> abi.GuestStatus:
        """GUEST_STATUS."""
        outcome = self.op(ids.GUEST_STATUS, bytes(abi.GuestStatus.size()))
        assert outcome.name == "ok", outcome
        return abi.GuestStatus.decode(outcome.data)

    def debug(self, number: int, source: int, target: int, size: int) -> Outcome:
        """DBG_DECRYPT or DBG_ENCRYPT."""
        return self.op(number, abi.Debug(source, target, size))

    def decrypted(self, first: int, size: int) -> bytes:
        """Memory as DBG_DECRYPT tells it."""
        out = bytearray(size)
        assert self.debug(ids.DBG_DECRYPT, self.address + first, self.place(out), size).name == "ok"
        return bytes(out)

    def running(self, policy: int = 0, data: bytes = b"") -> LegacyMachine:
        """The same, launched."""
        self.ram[: len(data)] = data
        assert self.start(policy).name == "ok"
        if data:
            assert self.update(0, len(data)).name == "ok"
        self.measure()
        assert self.finish().name == "ok"
        return self


def guest_view(host: Simulator, guest: LegacyMachine, first: int, size: int) -> bytes:
    """What the guest reads in its memory: the model's own view, whatever the policy."""
    handle = guest.status().handle
    memory = guest.process.memory
    location = memory.location(guest.address + first)
    sealed = memory.read(guest.address + first, size)
    return host.firmware.legacy_memory(handle).decrypt(location, sealed)


def owners_start(host: Simulator, policy: int = 1, **fixed: Any) -> tuple[Session, LaunchStart]:
    """An owner's session with a host, and what LAUNCH_START takes."""
    session = Session.create(policy)
    pdh, _ = host.firmware.pdh_cert_export(sev_certificate.SIZE, sev_certificate.CHAIN_SIZE)
    return session, session.start_unverified(sev_certificate.SevCertificate.read(pdh), **fixed)


def expected(host: Simulator, policy: int, digest: bytes) -> measurement.Launch:
    """What an owner expects to be measured on this host."""
    now = PlatformStatus.decode(host.firmware.platform_status())
    return measurement.Launch(digest, policy, now.api_major, now.api_minor, now.build)


def short(outcome: object) -> tuple[int, int]:
    """(errno, the envelope's error) of a command."""
    number, error = outcome[0], outcome[1]  # type: ignore[index]
    return int(number), int(error)


def vcpus(guest: LegacyMachine, count: int) -> list[int]:
    """Descriptors of so many new vCPUs."""
    return [guest.machine.vcpu(index) for index in range(count)]
