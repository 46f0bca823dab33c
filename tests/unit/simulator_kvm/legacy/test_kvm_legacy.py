"""KVM's commands of SEV and SEV-ES guests: order of checks, errno, what is written back."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from hashlib import sha256

import pytest

from sev import status
from sev.abi import kvm
from sev.abi import kvm_sev as ids
from sev.abi import kvm_sev_legacy as abi
from sev.abi.record import Record
from sev.session import measurement, secret
from sevd.simulator import Simulator
from sevd.simulator.process import Process
from tests.support.caller import PAGE, UNTOUCHED
from tests.support.legacy_machine import (
    ES,
    ES_POLICY,
    SEV,
    LegacyMachine,
    expected,
    guest_view,
    owners_start,
    short,
    vcpus,
)
from tests.support.simulated import EVERY_ERA

UNMAPPED = 0x1000
DEFAULT = kvm.VM_TYPE_DEFAULT
EIO, EINVAL, EFAULT, ENOTTY, EBADF, ENOMEM = (
    errno.EIO, errno.EINVAL, errno.EFAULT, errno.ENOTTY, errno.EBADF, errno.ENOMEM,
)  # fmt: skip
STRUCTURES = {number: form for number, form in abi.STRUCTURES.items() if number < ids.SNP_MIN_ID}
OF_GUESTS = [number for number in STRUCTURES if number not in (ids.SEV_INIT, ids.SEV_ES_INIT, ids.SEV_INIT2)]


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
    other = replace(launch, digest=sha256(content[:-1] + bytes([content[-1] ^ 1]) + pages).digest())
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
