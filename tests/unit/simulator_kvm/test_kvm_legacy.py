"""KVM's commands of SEV and SEV-ES guests: order of checks, errno, what is written back, and teardown."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest

from sev import status
from sev.abi import kvm, kvm_vcpu, vmsa
from sev.abi import kvm_sev as ids
from sev.abi import kvm_sev_legacy as abi
from sev.abi.record import Record
from sev.measurement.legacy import SEV_ES_FEATURES
from sev.session import measurement, secret
from sevd.simulator import Simulator
from sevd.simulator.firmware_status import FirmwareStatus
from sevd.simulator.process import Process
from tests.support.caller import PAGE, UNTOUCHED, Machine, attempt
from tests.support.legacy_machine import ES, ES_POLICY, SEV, LegacyMachine, expected, guest_view, owners_start
from tests.support.simulated import EVERY_ERA, template

UNMAPPED = 0x1000
DEFAULT = kvm.VM_TYPE_DEFAULT
EIO, EINVAL, EFAULT, ENOTTY, EBADF, ENOMEM = (
    errno.EIO, errno.EINVAL, errno.EFAULT, errno.ENOTTY, errno.EBADF, errno.ENOMEM,
)  # fmt: skip
STRUCTURES = {number: form for number, form in abi.STRUCTURES.items() if number < ids.SNP_MIN_ID}
OF_GUESTS = [number for number in STRUCTURES if number not in (ids.SEV_INIT, ids.SEV_ES_INIT, ids.SEV_INIT2)]


@pytest.fixture
def host(tmp_path: Path, era: str) -> Iterator[Simulator]:
    """Rome: SEV and SEV-ES, without SNP."""
    shutil.copytree(template("rome"), tmp_path, dirs_exist_ok=True)
    simulator = Simulator.open(tmp_path, product="rome", seed=1, kernel_era_name=era)
    yield simulator
    simulator.close()


@pytest.fixture
def guest(process: Process) -> LegacyMachine:
    """An SEV guest, initialised."""
    return LegacyMachine(process)


@pytest.fixture
def started(guest: LegacyMachine) -> LegacyMachine:
    assert guest.start(0).name == "ok"
    return guest


def short(outcome: object) -> tuple[int, int]:
    number, error = outcome[0], outcome[1]  # type: ignore[index]
    return int(number), int(error)


# The envelope.


@pytest.mark.parametrize("number", OF_GUESTS)
def test_without_a_guest(process: Process, number: int) -> None:
    plain = LegacyMachine(process, DEFAULT, initialise=False)
    wanted = EINVAL if number == ids.RECEIVE_UPDATE_DATA else ENOTTY
    assert short(plain.op(number, UNMAPPED)) == (wanted, UNTOUCHED)


@pytest.mark.parametrize("number", [number for number, form in STRUCTURES.items() if form and number in OF_GUESTS])
def test_an_unreadable_structure(started: LegacyMachine, number: int) -> None:
    wanted = (EFAULT, 0 if number == ids.GUEST_STATUS else UNTOUCHED)  # which is only written
    assert short(started.op(number, UNMAPPED)) == wanted


def filled(guest: LegacyMachine, number: int) -> Record | bytes:
    """A structure that reaches the firmware."""
    at, there = guest.address, guest.place(bytearray(b"\1" * PAGE))
    whole = (there, 52, at, 16, there, 16)
    return {
        ids.LAUNCH_UPDATE_DATA: abi.LaunchUpdateData(at, 16),
        ids.LAUNCH_SECRET: abi.LaunchSecret(*whole),
        ids.LAUNCH_MEASURE: abi.LaunchMeasure(),
        ids.SEND_START: abi.SendStart(),
        ids.SEND_UPDATE_DATA: abi.SendUpdateData(),
        ids.RECEIVE_UPDATE_DATA: abi.ReceiveUpdateData(*whole),
        ids.GUEST_STATUS: bytes(12),
        ids.DBG_DECRYPT: abi.Debug(at, there, 16),
        ids.DBG_ENCRYPT: abi.Debug(there, at, 16),
        ids.GET_ATTESTATION_REPORT: abi.AttestationReport(),
    }.get(number, b"")  # type: ignore[return-value]


REMEMBERED = [
    number for number in OF_GUESTS if number not in (ids.LAUNCH_START, ids.RECEIVE_START, ids.LAUNCH_UPDATE_VMSA)
]


@EVERY_ERA
@pytest.mark.parametrize("number", REMEMBERED)
def test_the_descriptor_of_the_start_is_remembered_by_its_number(started: LegacyMachine, number: int) -> None:
    """What the envelope says is not looked at; another file on the number is EBADF, the device again heals it."""
    process, sev = started.process, started.machine.sev
    device = started.machine.device
    process.close(sev)
    assert short(started.op(number, filled(started, number))) == (EBADF, UNTOUCHED)
    assert process.dup(device) == sev
    assert short(started.op(number, filled(started, number))) == (EBADF, UNTOUCHED)
    process.close(sev)
    assert process.open("/dev/sev", os.O_WRONLY) == sev
    assert started.op(number, filled(started, number), sev_fd=device).error != UNTOUCHED


@EVERY_ERA
@pytest.mark.parametrize("number", REMEMBERED)
def test_before_any_start_descriptor_0_is_asked_of_handle_0(process: Process, number: int) -> None:
    guest = LegacyMachine(process)
    assert guest.machine.sev == 0
    outcome = guest.op(number, filled(guest, number), sev_fd=-1)
    assert outcome.errno == EIO
    assert outcome.error in (status.INVALID_PLATFORM_STATE, status.INVALID_GUEST)
    process.close(0)
    assert short(guest.op(number, filled(guest, number), sev_fd=guest.machine.device)) == (EBADF, UNTOUCHED)


@EVERY_ERA
def test_before_any_start_descriptor_0_may_be_another_file(process: Process) -> None:
    process.open("/dev/kvm", 0)
    guest = LegacyMachine(process)
    assert short(guest.op(ids.LAUNCH_MEASURE, abi.LaunchMeasure())) == (EBADF, UNTOUCHED)


@EVERY_ERA
@pytest.mark.parametrize("number", [ids.LAUNCH_START, ids.RECEIVE_START])
def test_a_start_takes_the_callers_descriptor(guest: LegacyMachine, number: int) -> None:
    there = guest.place(b"\1" * 16)
    request = abi.LaunchStart() if number == ids.LAUNCH_START else abi.ReceiveStart(0, 0, there, 16, there, 16)
    for fd in (guest.machine.device, guest.machine.vm, 99, -1):
        assert short(guest.op(number, request, sev_fd=fd)) == (EBADF, UNTOUCHED)
    path_only = guest.process.open("/dev/sev", os.O_PATH)
    assert short(guest.op(number, request, sev_fd=path_only)) == (EBADF, UNTOUCHED)


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_WRONLY, os.O_RDWR])
def test_any_access_mode_launches(process: Process, flags: int) -> None:
    guest = LegacyMachine(process)
    assert guest.start(0, sev_fd=process.open("/dev/sev", flags)).name == "ok"
    assert guest.update().name == "ok"


# Start.


def test_start_answers_the_handle(host: Simulator, guest: LegacyMachine) -> None:
    outcome = guest.start(0)
    assert short(outcome) == (0, 0)
    assert outcome.data == abi.LaunchStart(1, 0).encode()
    assert guest.status() == abi.GuestStatus(1, 0, abi.STATE_LAUNCH_UPDATE)
    assert host.guest_count() == 1
    assert host.asid(guest.process, guest.machine.vm) == 100


BLOB_CASES: dict[str, tuple[int, int, int]] = {
    # length of a blob that is there, whether its address is good, errno
    "no length": (0, 1, EINVAL),
    "too long": (0x4001, 1, EINVAL),
    "unmapped": (16, 0, EFAULT),
}


@EVERY_ERA
@pytest.mark.parametrize("which", ["dh", "session"])
@pytest.mark.parametrize("case", BLOB_CASES)
def test_blobs_of_the_start(guest: LegacyMachine, case: str, which: str) -> None:
    length, mapped, wanted = BLOB_CASES[case]
    address = guest.place(bytes(0x5000)) if mapped else UNMAPPED
    request = replace(abi.LaunchStart(), **{f"{which}_uaddr": address, f"{which}_len": length})
    assert short(guest.op(ids.LAUNCH_START, request)) == (wanted, UNTOUCHED)


def test_lengths_without_addresses_mean_nothing(guest: LegacyMachine) -> None:
    assert guest.op(ids.LAUNCH_START, abi.LaunchStart(dh_len=5, session_len=0xFFFF)).name == "ok"


def test_a_certificate_without_session_is_the_firmwares_affair(guest: LegacyMachine) -> None:
    request = abi.LaunchStart(0, 0, guest.place(bytes(2084)), 2084)
    assert short(guest.op(ids.LAUNCH_START, request)) == (EIO, status.INVALID_LENGTH)


@pytest.mark.parametrize(("vm_type", "policy"), [(SEV, 4), (ES, 0)])
def test_the_policy_and_the_type_meet_at_the_asid(host: Simulator, process: Process, vm_type: int, policy: int) -> None:
    """KVM does not compare them: the firmware refuses the ASID, and nothing is left of the guest."""
    guest = LegacyMachine(process, vm_type)
    calls: list[str] = []
    host.faults = calls.append
    assert short(guest.start(policy)) == (EIO, status.INVALID_ASID)
    assert calls == ["LAUNCH_START", "ACTIVATE", "DECOMMISSION"]
    assert host.guest_count() == 0
    assert guest.start(policy ^ 4).name == "ok"


def test_a_second_start_finds_the_asid_owned(host: Simulator, started: LegacyMachine) -> None:
    assert short(started.start(0)) == (EIO, status.ASID_OWNED)
    assert host.guest_count() == 1
    assert started.status().handle == 1
    assert started.update().name == "ok"


def test_a_start_whose_answer_cannot_be_written_is_undone(
    host: Simulator, guest: LegacyMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = guest.process.memory
    write = memory.write

    def refusing(address: int, data: bytes) -> None:
        if len(data) == abi.LaunchStart.size():
            raise OSError(EFAULT, "gone")
        write(address, data)

    monkeypatch.setattr(memory, "write", refusing)
    calls: list[str] = []
    host.faults = calls.append
    assert guest.start(0).errno == EFAULT
    assert calls == ["LAUNCH_START", "ACTIVATE", "DEACTIVATE", "DECOMMISSION"]
    assert host.guest_count() == 0


def test_a_shared_key(process: Process) -> None:
    first, second = LegacyMachine(process), LegacyMachine(process)
    assert first.start(0).name == "ok"
    assert short(second.start(1, handle=1)) == (EIO, status.POLICY_FAILURE)
    assert short(second.start(0, handle=9)) == (EIO, status.INVALID_GUEST)
    assert second.start(0, handle=1).data[:4] == b"\2\0\0\0"


# Memory.


def test_update_encrypts_the_callers_memory_in_place(host: Simulator, started: LegacyMachine) -> None:
    content = os.urandom(4 * PAGE)
    started.ram[: 4 * PAGE] = content
    assert short(started.update(PAGE, 2 * PAGE)) == (0, 0)
    assert started.ram[:PAGE] == content[:PAGE]
    assert started.ram[3 * PAGE : 4 * PAGE] == content[3 * PAGE :]
    assert started.ram[PAGE : 3 * PAGE] != content[PAGE : 3 * PAGE]
    assert guest_view(host, started, PAGE, 2 * PAGE) == content[PAGE : 3 * PAGE]
    assert started.decrypted(PAGE, 2 * PAGE) == content[PAGE : 3 * PAGE]
    digest = sha256(content[PAGE : 3 * PAGE]).digest()
    assert host.launch_digest(started.process, started.machine.vm) == digest


def test_memory_may_be_placed_twice(started: LegacyMachine) -> None:
    """Two addresses of the same pages are the same memory, physically."""
    started.ram[PAGE : 2 * PAGE] = b"\7" * PAGE
    again = started.process.memory.place(memoryview(started.ram)[PAGE:])
    assert started.op(ids.LAUNCH_UPDATE_DATA, abi.LaunchUpdateData(again, PAGE)).name == "ok"
    assert started.decrypted(PAGE, PAGE) == b"\7" * PAGE


PINS: dict[str, tuple[int, int, int, int]] = {
    # byte of the memory (-1: unmapped), size, errno, error
    "empty": (0, 0, EINVAL, UNTOUCHED),
    "past its end": (63 * PAGE, PAGE + 16, ENOMEM, UNTOUCHED),
    "unmapped": (-1, 16, ENOMEM, UNTOUCHED),
    "unaligned": (8, 16, EIO, status.INVALID_ADDRESS),
    "of 8 bytes": (0, 8, EIO, status.INVALID_LENGTH),
}


@pytest.mark.parametrize("case", PINS)
def test_memory_that_cannot_be_updated(started: LegacyMachine, case: str) -> None:
    first, size, number, error = PINS[case]
    before = bytes(started.ram)
    address = UNMAPPED if first < 0 else started.address + first
    assert short(started.op(ids.LAUNCH_UPDATE_DATA, abi.LaunchUpdateData(address, size))) == (number, error)
    assert started.ram == before


def test_an_update_stops_at_the_first_refusal(host: Simulator, process: Process) -> None:
    """What was done before is encrypted and measured."""
    guest = LegacyMachine(process, pages=2048)
    guest.start(0)
    seen: list[str] = []

    def third(name: str) -> None:
        seen.append(name)
        if len(seen) == 3:
            raise FirmwareStatus(status.HWERROR_UNSAFE)

    host.faults = third
    assert short(guest.update(0, len(guest.ram))) == (EIO, status.HWERROR_UNSAFE)
    host.faults = lambda _name: None
    assert seen == ["LAUNCH_UPDATE_DATA"] * 3
    assert not any(guest.ram[-PAGE:])
    assert any(guest.ram[:PAGE])
    done = len(guest.ram) - len(bytes(guest.ram).rstrip(b"\0"))
    assert host.launch_digest(process, guest.machine.vm) == sha256(bytes(len(guest.ram) - done)).digest()


def test_regions_are_pinned_by_the_same_rule(guest: LegacyMachine) -> None:
    def register(address: int, size: int) -> str:
        return guest.machine.ioctl(kvm.KVM_MEMORY_ENCRYPT_REG_REGION, kvm.EncRegion(address, size))

    assert register(guest.address, 64 * PAGE) == "ok"
    assert register(guest.address + 3, 5) == "ok", "no alignment is asked for"
    assert register(guest.address, 65 * PAGE) == "ENOMEM"
    assert register(guest.address, 0) == "EINVAL"
    assert register((1 << 64) - PAGE, PAGE) == "EINVAL"
    assert register(guest.address, 1 << 41) == "EINVAL", "more than the machine has"
    assert register(guest.address, (1 << 43) - 1) == "EINVAL", "more pages than can be counted"


def test_older_kernels_do_not_look_at_the_machines_memory(tmp_path: Path) -> None:
    shutil.copytree(template("rome"), tmp_path, dirs_exist_ok=True)
    host = Simulator.open(tmp_path, product="rome", kernel_era_name="B")
    guest = LegacyMachine(host.process())
    region = kvm.EncRegion(guest.address, 1 << 41)
    assert guest.machine.ioctl(kvm.KVM_MEMORY_ENCRYPT_REG_REGION, region) == "ENOMEM"
    host.close()


# VMSAs.


def vcpus(guest: LegacyMachine, count: int) -> list[int]:
    return [guest.machine.vcpu(index) for index in range(count)]


def vcpu_ioctl(guest: LegacyMachine, fd: int, request: int, size: int = 512) -> str:
    number, _ = attempt(guest.process, fd, request, guest.place(bytearray(size)))
    return errno.errorcode.get(number, "ok")


def test_every_vcpu_is_measured_in_order(host: Simulator, process: Process) -> None:
    guest = LegacyMachine(process, ES)
    fds = vcpus(guest, 3)
    regs = kvm_vcpu.Regs(rip=0x1234, rflags=2)
    attempt(process, fds[1], kvm.KVM_SET_REGS, guest.place(regs.encode()))
    models = [vcpu for vm in host.kvm.vms for vcpu in vm.vcpus]
    pages = [bytes(vcpu.vmsa(SEV_ES_FEATURES)) for vcpu in models]
    assert guest.start(ES_POLICY).name == "ok"
    guest.ram[:PAGE] = b"\1" * PAGE
    assert guest.update().name == "ok"
    assert short(guest.op(ids.LAUNCH_UPDATE_VMSA)) == (0, 0)
    assert host.launch_digest(process, guest.machine.vm) == sha256(b"\1" * PAGE + b"".join(pages)).digest()
    assert vmsa.parse(pages[1])["rip"] == 0x1234
    assert vmsa.parse(pages[0])["x87_fcw"] == 0x37F
    assert short(guest.op(ids.LAUNCH_UPDATE_VMSA)) == (EINVAL, UNTOUCHED), "they are encrypted"


def test_vmsas_are_not_for_sev(started: LegacyMachine) -> None:
    assert short(started.op(ids.LAUNCH_UPDATE_VMSA)) == (ENOTTY, UNTOUCHED)


def test_a_debug_register_stops_it(process: Process) -> None:
    guest = LegacyMachine(process, ES)
    (fd,) = vcpus(guest, 1)
    guest.start(ES_POLICY)
    debug = kvm_vcpu.DebugRegs(dr6=0xFFFF0FF0, dr7=0x401)
    assert attempt(process, fd, kvm.KVM_SET_DEBUGREGS, guest.place(debug.encode()))[0] == 0
    assert short(guest.op(ids.LAUNCH_UPDATE_VMSA)) == (EINVAL, UNTOUCHED)


ALL_STATE = {
    "GET_REGS": kvm.KVM_GET_REGS, "SET_REGS": kvm.KVM_SET_REGS, "GET_SREGS": kvm.KVM_GET_SREGS,
    "SET_SREGS": kvm.KVM_SET_SREGS, "GET_DEBUGREGS": kvm.KVM_GET_DEBUGREGS, "SET_DEBUGREGS": kvm.KVM_SET_DEBUGREGS,
    "GET_FPU": kvm.KVM_GET_FPU, "SET_FPU": kvm.KVM_SET_FPU, "GET_MSRS": kvm.KVM_GET_MSRS, "SET_MSRS": kvm.KVM_SET_MSRS,
}  # fmt: skip


@pytest.mark.parametrize("name", ALL_STATE)
def test_encrypted_state_is_refused_by_the_new_types(process: Process, name: str) -> None:
    guest = LegacyMachine(process, ES)
    (fd,) = vcpus(guest, 1)
    guest.start(ES_POLICY)
    assert vcpu_ioctl(guest, fd, ALL_STATE[name]) == "ok"
    guest.op(ids.LAUNCH_UPDATE_VMSA)
    assert vcpu_ioctl(guest, fd, ALL_STATE[name]) == "EINVAL"


@pytest.mark.parametrize("name", ALL_STATE)
def test_encrypted_state_is_stale_or_silent_in_the_old_type(process: Process, name: str) -> None:
    guest = LegacyMachine(process, DEFAULT)
    (fd,) = vcpus(guest, 1)
    guest.start(ES_POLICY)
    guest.op(ids.LAUNCH_UPDATE_VMSA)
    assert vcpu_ioctl(guest, fd, ALL_STATE[name]) == "ok"


def test_silent_means_without_effect(process: Process) -> None:
    guest = LegacyMachine(process, DEFAULT)
    (fd,) = vcpus(guest, 1)
    guest.start(ES_POLICY)
    guest.op(ids.LAUNCH_UPDATE_VMSA)
    buffer = bytearray(b"\xaa" * 416)
    for request in (kvm.KVM_GET_FPU, kvm.KVM_GET_MSRS):
        assert attempt(process, fd, request, guest.place(buffer))[0] == 0
        assert buffer == b"\xaa" * 416
    assert attempt(process, fd, kvm.KVM_SET_FPU, UNMAPPED)[0] == 0
    regs = bytearray(144)
    attempt(process, fd, kvm.KVM_GET_REGS, guest.place(regs))
    assert kvm_vcpu.Regs.decode(regs).rip == 0xFFF0, "KVM's stale copy"


def test_the_old_type_has_no_x87_in_its_vmsa(host: Simulator, process: Process) -> None:
    guest = LegacyMachine(process, DEFAULT)
    vcpus(guest, 1)
    guest.start(ES_POLICY)
    guest.op(ids.LAUNCH_UPDATE_VMSA)
    page = next(iter(host.kvm.vms)).vcpus[0].page
    assert page is not None
    registers = vmsa.parse(bytes(page))
    assert registers["rip"] == 0xFFF0
    assert not {"mxcsr", "x87_fcw", "x87_ftw"} & set(registers)


# Measurement, report.


LENGTHS: dict[str, tuple[int | None, int, int, int, int | None]] = {
    # address (None: none), length, errno, error, length afterwards (None: as it was)
    "probe": (None, 0, EIO, status.INVALID_LENGTH, -1),
    "probe with a buffer": (1, 0, EIO, status.INVALID_LENGTH, -1),
    "a length without a buffer": (None, 300, EIO, status.INVALID_LENGTH, None),
    "too short": (1, 47, EIO, status.INVALID_LENGTH, None),
    "too long": (1, 0x4001, EINVAL, UNTOUCHED, None),
    "longer": (1, 300, 0, 0, -1),
}


@EVERY_ERA
@pytest.mark.parametrize("case", LENGTHS)
@pytest.mark.parametrize("number", [ids.LAUNCH_MEASURE, ids.GET_ATTESTATION_REPORT])
def test_lengths(started: LegacyMachine, number: int, case: str) -> None:
    address, length, wanted, error, after = LENGTHS[case]
    size = 48 if number == ids.LAUNCH_MEASURE else 208
    if number == ids.GET_ATTESTATION_REPORT:
        started.measure()
    buffer = bytearray(b"\xaa" * 0x5000)
    at = started.place(buffer) if address else 0
    request: Record = abi.LaunchMeasure(at, length)
    if number == ids.GET_ATTESTATION_REPORT:
        request = abi.AttestationReport(bytes(range(16)), at, length)
    outcome = started.op(number, request)
    assert short(outcome) == (wanted, error)
    found = type(request).decode(outcome.data).len  # type: ignore[attr-defined]
    assert found == (length if after is None else size)
    if wanted:
        assert set(buffer) == {0xAA}
    else:
        assert any(buffer[:size])
        assert bytes(buffer[size:length]) == bytes(length - size), "as long as the caller said"
        assert set(buffer[length:]) == {0xAA}


def test_a_measurement_that_cannot_be_written(started: LegacyMachine) -> None:
    assert short(started.op(ids.LAUNCH_MEASURE, abi.LaunchMeasure(UNMAPPED, 48))) == (EFAULT, 0)
    assert started.status().state == abi.STATE_LAUNCH_SECRET, "it was made"


def test_the_report_answers_the_nonce(started: LegacyMachine) -> None:
    started.measure()
    buffer = bytearray(208)
    request = abi.AttestationReport(b"0123456789abcdef", started.place(buffer), 208)
    assert started.op(ids.GET_ATTESTATION_REPORT, request).name == "ok"
    assert buffer[:48] == b"0123456789abcdef" + sha256(b"").digest()


# An owner's launch, and its secret.


@pytest.mark.parametrize(("vm_type", "policy"), [(SEV, 1), (ES, ES_POLICY)])
def test_a_whole_launch_with_an_owner(host: Simulator, process: Process, vm_type: int, policy: int) -> None:
    guest = LegacyMachine(process, vm_type)
    content = os.urandom(16 * PAGE)
    guest.ram[: len(content)] = content
    pages = b""
    if vm_type == ES:
        vcpus(guest, 2)
        pages = b"".join(bytes(vcpu.vmsa(0)) for vcpu in next(iter(host.kvm.vms)).vcpus)
    session, start = owners_start(host, policy)
    assert guest.start(start).name == "ok"
    assert guest.update(0, len(content)).name == "ok"
    if vm_type == ES:
        assert guest.op(ids.LAUNCH_UPDATE_VMSA).name == "ok"
    launch = expected(host, policy, sha256(content + pages).digest())
    answer = guest.measure()
    measure = measurement.check(session.keys.tik, answer, launch)
    other = replace(launch, digest=sha256(content[:-1] + b"!" + pages).digest())
    with pytest.raises(measurement.BadMeasurement):
        measurement.check(session.keys.tik, answer, other)
    assert guest.status().state == abi.STATE_LAUNCH_SECRET
    packet = secret.seal(session.keys, secret.table([(secret.DISK_PASSPHRASE, b"open sesame")]), measure)
    changed = bytes((packet.payload[0] ^ 1,)) + packet.payload[1:]
    assert short(guest.secret(packet.header, changed, 32 * PAGE)) == (EIO, status.BAD_MEASUREMENT)
    assert not any(guest.ram[32 * PAGE : 33 * PAGE])
    assert short(guest.secret(packet.header, packet.payload, 32 * PAGE)) == (0, 0)
    assert b"sesame" not in guest.ram
    seen = guest_view(host, guest, 32 * PAGE, len(packet.payload))
    assert secret.read_table(seen) == [(secret.DISK_PASSPHRASE, b"open sesame")]
    assert guest.finish().name == "ok"
    assert guest.status() == abi.GuestStatus(1, policy, abi.STATE_RUNNING)
    buffer = guest.place(bytearray(16))
    assert short(guest.debug(ids.DBG_DECRYPT, guest.address + 32 * PAGE, buffer, 16)) == (EIO, status.POLICY_FAILURE)


SECRETS: dict[str, tuple[dict[str, int], int]] = {
    "no memory": ({"guest_len": 0}, EINVAL),
    "memory unmapped": ({"guest_uaddr": UNMAPPED, "trans_uaddr": 0}, ENOMEM),
    "no packet": ({"trans_uaddr": 0}, EINVAL),
    "empty packet": ({"trans_len": 0, "hdr_uaddr": UNMAPPED}, EINVAL),
    "packet too long": ({"trans_len": 0x4001}, EINVAL),
    "packet unmapped": ({"trans_uaddr": UNMAPPED, "hdr_len": 0}, EFAULT),
    "no header": ({"hdr_uaddr": 0}, EINVAL),
    "empty header": ({"hdr_len": 0}, EINVAL),
    "header too long": ({"hdr_len": 0x4001}, EINVAL),
    "header unmapped": ({"hdr_uaddr": UNMAPPED}, EFAULT),
}


@EVERY_ERA
@pytest.mark.parametrize("case", SECRETS)
def test_secrets_that_do_not_reach_the_firmware(started: LegacyMachine, case: str) -> None:
    changes, wanted = SECRETS[case]
    started.measure()
    request = filled(started, ids.LAUNCH_SECRET)
    assert isinstance(request, abi.LaunchSecret)
    assert short(started.op(ids.LAUNCH_SECRET, replace(request, **changes))) == (wanted, UNTOUCHED)


ORDER: dict[str, tuple[int, ...]] = {
    "finish before measure": (ids.LAUNCH_FINISH,),
    "secret before measure": (ids.LAUNCH_SECRET,),
    "report before measure": (),
    "send before it runs": (ids.SEND_FINISH,),
    "cancel before it runs": (ids.SEND_CANCEL,),
    "receive": (ids.RECEIVE_FINISH,),
}


@pytest.mark.parametrize("case", ORDER)
def test_order_is_the_firmwares_affair(started: LegacyMachine, case: str) -> None:
    for number in ORDER[case]:
        assert short(started.op(number, filled(started, number))) == (EIO, status.INVALID_GUEST_STATE)
    if not ORDER[case]:
        request = abi.AttestationReport(bytes(16), started.place(bytearray(208)), 208)
        assert short(started.op(ids.GET_ATTESTATION_REPORT, request)) == (EIO, status.INVALID_GUEST_STATE)
    assert started.status().state == abi.STATE_LAUNCH_UPDATE


def test_nothing_is_updated_after_the_measurement(started: LegacyMachine) -> None:
    started.measure()
    assert short(started.update()) == (EIO, status.INVALID_GUEST_STATE)


# Debugging.


DEBUGS: dict[str, tuple[int, int, int, int]] = {
    # source, target (0: none, 1: memory, 2: unmapped), size, errno
    "no length": (1, 1, 0, EINVAL),
    "no source": (0, 1, 16, EINVAL),
    "no target": (1, 0, 16, EINVAL),
    "source unmapped": (2, 1, 16, ENOMEM),
    "target unmapped": (1, 2, 16, ENOMEM),
}


@pytest.mark.parametrize("case", DEBUGS)
@pytest.mark.parametrize("number", [ids.DBG_DECRYPT, ids.DBG_ENCRYPT])
def test_debugging_that_does_not_reach_the_firmware(started: LegacyMachine, number: int, case: str) -> None:
    source, target, size, wanted = DEBUGS[case]
    places = (0, started.address, UNMAPPED)
    assert short(started.debug(number, places[source], places[target], size)) == (wanted, UNTOUCHED)
    wraps = started.debug(number, (1 << 64) - 8, started.address, 16)
    assert short(wraps) == (EINVAL, UNTOUCHED)


@pytest.mark.parametrize(("first", "size"), [(0, 16), (5, 3), (15, 2), (PAGE - 3, 6), (7, 2 * PAGE), (16, 40)])
def test_debugging_goes_by_the_byte(host: Simulator, process: Process, first: int, size: int) -> None:
    content = os.urandom(4 * PAGE)
    guest = LegacyMachine(process).running(0, content)
    assert guest.decrypted(first, size) == content[first : first + size]
    new = os.urandom(size)
    assert guest.debug(ids.DBG_ENCRYPT, guest.place(b"\0" + new) + 1, guest.address + first, size).name == "ok"
    wanted = content[:first] + new + content[first + size :]
    assert guest_view(host, guest, 0, 4 * PAGE) == wanted
    assert guest.decrypted(0, 4 * PAGE) == wanted


def test_a_policy_forbids_debugging(process: Process) -> None:
    guest = LegacyMachine(process).running(1, bytes(PAGE))
    there = guest.place(bytearray(PAGE))
    for number, source, target in ((17, guest.address, there), (18, there, guest.address)):
        assert short(guest.debug(number, source, target, 16)) == (EIO, status.POLICY_FAILURE)


# Its end.


@pytest.mark.parametrize("last", ["vm", "vcpu", "exit"])
def test_the_end(host: Simulator, last: str) -> None:
    process = host.process()
    guest = LegacyMachine(process).running(0)
    vcpu = guest.machine.vcpu()
    process.close(guest.machine.sev)
    calls: list[str] = []
    host.faults = calls.append
    if last == "vm":
        process.close(vcpu)
    process.close(guest.machine.vm) if last != "exit" else None
    if last == "vcpu":
        assert calls == []
        assert host.asids()["sev"][1] == host.guest_count() == 1
        calls.clear()
        process.close(vcpu)
    process.exit()
    assert [name for name in calls if name != "PLATFORM_STATUS"] == ["DEACTIVATE", "DECOMMISSION"]
    host.faults = lambda _name: None
    assert (host.asids()["sev"][1], host.guest_count()) == (0, 0)


def test_a_guest_that_was_never_started_ends_without_the_firmware(host: Simulator) -> None:
    process = host.process()
    LegacyMachine(process)
    calls: list[str] = []
    host.faults = calls.append
    process.exit()
    assert (calls, host.asids()["sev"][1]) == ([], 0)


def test_asids_come_back_after_a_flush(host: Simulator, process: Process) -> None:
    """Guests that ran leave dirty ASIDs; KVM flushes the machine once before they are used again."""
    total = host.asids()["sev"][0]
    for _ in range(3):
        held = [Machine.make(process, SEV) for _ in range(total - 1)]
        assert all(one.init2().name == "ok" for one in held)
        guest = LegacyMachine(process).running(0, bytes(16))
        process.close(guest.machine.vm)
        for one in held:
            process.close(one.vm)
    assert host.kvm.asids["sev"].flushes >= 2


def test_a_reset_waits_for_guests(host: Simulator, process: Process) -> None:
    guest = LegacyMachine(process).running(0)
    assert host.firmware.platform_status()[2] == 2
    process.close(guest.machine.vm)
    assert host.firmware.platform_status()[2] == 1


def test_a_power_loss_takes_guests_with_it(host: Simulator, process: Process) -> None:
    guest = LegacyMachine(process).running(0)
    host._cycle_power()
    assert host.guest_count() == 0
    assert guest.update().errno == EIO
    again = LegacyMachine(process)
    assert again.start(0).name == "ok"
    process.close(guest.machine.vm)
    assert host.guest_count() == 1


def test_nothing_runs_here(process: Process) -> None:
    guest = LegacyMachine(process, ES)
    (fd,) = vcpus(guest, 1)
    guest.start(ES_POLICY)
    assert attempt(process, fd, kvm.KVM_RUN)[0] == EINVAL
    guest.op(ids.LAUNCH_UPDATE_VMSA)
    guest.measure()
    guest.finish()
    assert attempt(process, fd, kvm.KVM_RUN)[0] == errno.EOPNOTSUPP
