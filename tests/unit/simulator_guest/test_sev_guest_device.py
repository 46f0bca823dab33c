"""/dev/sev-guest: order of checks, errnos, and what is written back."""

from __future__ import annotations

import errno
import os

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from sev import status
from sev.abi import cert_table
from sev.abi import guest_device as abi
from sev.attestation import Report
from sev.certs.x509 import Certificate
from sevd.simulator import Simulator
from sevd.simulator.guest_device import USER_END, SevGuestDevice
from sevd.simulator.guest_ref import GuestRef
from sevd.simulator.process import Process
from tests.support.caller import attempt
from tests.support.guest_program import NONCE, PATH, UNTOUCHED, GuestProgram, nowhere, running_guest
from tests.support.simulated_firmware import report_is_signed_by

ALL = pytest.mark.parametrize("request_number", list(abi.IOCTL_NAMES), ids=list(abi.IOCTL_NAMES.values()))
SIZES = {
    abi.SNP_GET_REPORT: abi.ReportRequest.size(),
    abi.SNP_GET_DERIVED_KEY: abi.DerivedKeyRequest.size(),
    abi.SNP_GET_EXT_REPORT: abi.ExtReportRequest.size(),
}
INVALID_LEN = abi.vmm_error(abi.VMM_ERROR_INVALID_LEN)


def vcek(table: bytes) -> ec.EllipticCurvePublicKey:
    key = Certificate.parse(dict(cert_table.parse(table))[cert_table.VCEK]).public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    return key


def test_a_report_is_the_firmwares_and_signed(program: GuestProgram, table: bytes) -> None:
    outcome = program.report()
    assert (outcome.name, outcome.status) == ("ok", 0)
    assert outcome.response[abi.REPORT_OFFSET + 1184 :] == bytes(4000 - 32 - 1184)
    report = Report.parse(outcome.report)
    assert report.report_data == NONCE
    assert report.vmpl == 0
    report_is_signed_by(outcome.report, vcek(table))


def test_a_success_leaves_the_callers_structure_alone(program: GuestProgram) -> None:
    assert program.report().exitinfo2 == UNTOUCHED
    assert program.ext_report(0x4000).exitinfo2 == UNTOUCHED
    assert program.key().exitinfo2 == UNTOUCHED


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_WRONLY, os.O_RDWR])
def test_the_open_mode_does_not_matter(device: SevGuestDevice, flags: int) -> None:
    program = GuestProgram(device)
    program.fd = program.process.open(PATH, flags)
    assert program.report().name == "ok"


def test_a_structure_that_cannot_be_read_is_EFAULT(program: GuestProgram) -> None:
    with pytest.raises(OSError, match="Bad address"):
        program.process.ioctl(program.fd, abi.SNP_GET_REPORT, 0x1000)


@ALL
def test_message_version_zero_is_EINVAL_and_nothing_is_written_back(program: GuestProgram, request_number: int) -> None:
    outcome = program.ioctl(request_number, bytes(112), version=0)
    assert (outcome.name, outcome.exitinfo2) == ("EINVAL", UNTOUCHED)


@pytest.mark.parametrize("request_number", [0xC0205303, 0xC0105300, 0x5300, 0xC0105300 | 1 << 31, 0])
def test_an_unknown_ioctl_is_ENOTTY_and_writes_back(program: GuestProgram, request_number: int) -> None:
    outcome = program.ioctl(request_number, bytes(112))
    assert (outcome.name, outcome.exitinfo2) == ("ENOTTY", abi.EXITINFO2_UNSET)


def test_an_unknown_ioctl_with_version_zero_is_EINVAL(program: GuestProgram) -> None:
    assert program.ioctl(0xC0205303, bytes(112), version=0).name == "EINVAL"


@ALL
@pytest.mark.parametrize("missing", ["req_data", "resp_data"])
def test_a_null_address_is_EINVAL(program: GuestProgram, request_number: int, missing: str) -> None:
    if missing == "req_data":
        outcome = program.ioctl(request_number, 0)
    else:
        outcome = program.ioctl(request_number, bytes(112), resp_data=0)
    assert (outcome.name, outcome.exitinfo2) == ("EINVAL", abi.EXITINFO2_UNSET)
    assert not program.device.channel.wiped


@ALL
def test_a_request_that_cannot_be_read_is_EFAULT(program: GuestProgram, request_number: int) -> None:
    outcome = program.ioctl(request_number, 0x1000)
    assert (outcome.name, outcome.exitinfo2) == ("EFAULT", abi.EXITINFO2_UNSET)
    short = bytes(SIZES[request_number] - 1)
    assert program.ioctl(request_number, short).name == "EFAULT"
    assert program.report().name == "ok"


@ALL
def test_a_response_that_cannot_be_written_is_EFAULT_and_the_key_stays(guest: GuestRef, request_number: int) -> None:
    program = GuestProgram(SevGuestDevice(guest, lambda: b""))
    data = bytes(SIZES[request_number])
    outcome = program.ioctl(request_number, data, resp_data=0x1000)
    assert (outcome.name, outcome.exitinfo2) == ("EFAULT", UNTOUCHED)
    size = abi.KEY_RESPONSE_SIZE if request_number == abi.SNP_GET_DERIVED_KEY else abi.REPORT_RESPONSE_SIZE
    assert program.ioctl(request_number, data, response=size - 1).name == "EFAULT"
    assert program.ioctl(request_number, data, response=size).name == "ok"


def test_padding_of_the_structure_survives_the_write_back(program: GuestProgram) -> None:
    memory = program.process.memory
    envelope = bytearray(b"\x01" + b"\xab" * 7 + bytes(16) + b"\xcd" * 8)
    with pytest.raises(OSError, match="Invalid argument"):
        program.process.ioctl(program.fd, abi.SNP_GET_REPORT, memory.place(envelope))
    assert envelope == b"\x01" + b"\xab" * 7 + bytes(16) + b"\xff" + bytes(7)


@pytest.mark.parametrize("vmpl", [0, 1, 2, 3])
def test_levels_from_the_keys_on_are_reported(program: GuestProgram, vmpl: int) -> None:
    assert Report.parse(program.report(vmpl=vmpl).report).vmpl == vmpl


def test_an_invalid_level_is_a_status_of_a_successful_ioctl(program: GuestProgram) -> None:
    outcome = program.report(vmpl=4)
    assert (outcome.name, outcome.status, outcome.report) == ("ok", status.INVALID_PARAM, b"")
    assert program.report().name == "ok"


def test_a_key_that_is_not_there_is_a_status_too(program: GuestProgram) -> None:
    request = abi.ReportRequest(NONCE, 0, (2).to_bytes(4, "little") + bytes(24)).encode()
    outcome = program.ioctl(abi.SNP_GET_REPORT, request)
    assert (outcome.name, outcome.status) == ("ok", status.INVALID_KEY)


def test_an_unknown_message_version_is_refused_by_the_firmware_and_costs_the_key(program: GuestProgram) -> None:
    outcome = program.report(version=9)
    assert (outcome.name, outcome.exitinfo2) == ("EIO", status.INVALID_PARAM)
    again = program.report()
    assert (again.name, again.exitinfo2) == ("ENOTTY", UNTOUCHED)


def test_derived_keys_depend_on_what_is_selected(program: GuestProgram) -> None:
    keys = [
        program.key(),
        program.key(root_key_select=1),
        program.key(guest_field_select=0b1000),
        program.key(guest_field_select=0b1000, vmpl=3),
    ]
    assert {outcome.name for outcome in keys} == {"ok"}
    assert {outcome.status for outcome in keys} == {0}
    assert len({outcome.response[abi.KEY_OFFSET :] for outcome in keys}) == 4
    assert program.key().response == keys[0].response
    assert len(keys[0].response) == abi.KEY_RESPONSE_SIZE


def test_derived_keys_are_those_of_the_firmware(program: GuestProgram, host: Simulator, guest: GuestRef) -> None:
    from sev.abi.guest_message import KeyRequest

    context = guest._vm.sev.context
    assert context is not None
    expected = host.firmware.guest_key(context, KeyRequest(root_key_select=1, guest_field_select=1))
    assert program.key(root_key_select=1, guest_field_select=1).response[abi.KEY_OFFSET :] == expected


@pytest.mark.parametrize(
    "fields",
    [{"guest_svn": 1, "guest_field_select": 16}, {"tcb_version": (1 << 64) - 1}, {"rsvd": 1}, {"vmpl": 4}],
    ids=lambda fields: next(iter(fields)),
)
def test_refused_key_requests_are_a_status(program: GuestProgram, fields: dict[str, int]) -> None:
    outcome = program.key(**fields)
    assert (outcome.name, outcome.status) == ("ok", status.INVALID_PARAM)
    assert outcome.response[abi.KEY_OFFSET :] == bytes(32)


def test_version_2_of_a_key_request_is_too_short_for_the_firmware(program: GuestProgram) -> None:
    assert program.key(version=2).exitinfo2 == status.INVALID_PARAM


def test_the_certificate_probe_fails_and_tells_the_length(program: GuestProgram, table: bytes) -> None:
    outcome = program.ext_report(0)
    assert (outcome.name, outcome.exitinfo2) == ("EIO", INVALID_LEN)
    assert outcome.certs_len == -(-len(table) // 4096) * 4096
    assert outcome.response == b"\xee" * 4000
    assert program.ext_report(outcome.certs_len).name == "ok"


@pytest.mark.parametrize(
    ("address", "length"), [((1 << 64) - 1, 0), (0, 0x4000), (0, 3)], ids=["length", "address", "odd"]
)
def test_no_address_or_no_length_is_a_probe(program: GuestProgram, address: int, length: int) -> None:
    request = abi.ExtReportRequest(abi.ReportRequest(NONCE), address, length).encode()
    outcome = program.ioctl(abi.SNP_GET_EXT_REPORT, request)
    assert (outcome.name, outcome.exitinfo2, outcome.certs_len) == ("EIO", INVALID_LEN, 8192)


def test_a_buffer_of_one_page_is_too_small(program: GuestProgram) -> None:
    outcome = program.ext_report(4096)
    assert (outcome.name, outcome.exitinfo2, outcome.certs_len) == ("EIO", INVALID_LEN, 8192)
    assert outcome.certificates == b"\xdd" * 4096


def test_only_the_length_of_the_request_is_written(program: GuestProgram) -> None:
    request = bytearray(abi.ExtReportRequest(abi.ReportRequest(NONCE), 0, 0).encode())
    request[108:] = b"\x99" * 4
    left = program.ioctl(abi.SNP_GET_EXT_REPORT, bytes(request)).request
    assert left == bytes(request[:104]) + (8192).to_bytes(4, "little") + b"\x99" * 4


@pytest.mark.parametrize("shift", [0, 1, 8, 4095])
def test_the_buffer_may_lie_anywhere(program: GuestProgram, table: bytes, shift: int) -> None:
    outcome = program.ext_report(8192, shift=shift)
    assert outcome.name == "ok"
    assert outcome.certificates == table.ljust(8192, b"\0")
    assert cert_table.parse(outcome.certificates) == cert_table.parse(table)
    assert Report.parse(outcome.report).report_data == NONCE


@pytest.mark.parametrize("length", [1, 4095, 4097, 0x4001, 0x5000, 0xFFFFF000])
def test_lengths_that_are_no_pages_or_too_many_are_EINVAL(program: GuestProgram, length: int) -> None:
    request = abi.ExtReportRequest(abi.ReportRequest(NONCE), 0x7000_0000_0000, length).encode()
    outcome = program.ioctl(abi.SNP_GET_EXT_REPORT, request)
    assert (outcome.name, outcome.exitinfo2) == ("EINVAL", abi.EXITINFO2_UNSET)
    assert outcome.request == request


def test_a_buffer_outside_of_any_program_is_EFAULT_before_anything_is_sent(program: GuestProgram) -> None:
    request = abi.ExtReportRequest(abi.ReportRequest(NONCE), USER_END - 4095, 4096).encode()
    outcome = program.ioctl(abi.SNP_GET_EXT_REPORT, request)
    assert (outcome.name, outcome.exitinfo2) == ("EFAULT", abi.EXITINFO2_UNSET)


def test_a_buffer_that_is_not_there_is_EFAULT_after_success(program: GuestProgram) -> None:
    request = abi.ExtReportRequest(abi.ReportRequest(NONCE), 0x1000, 0x4000).encode()
    outcome = program.ioctl(abi.SNP_GET_EXT_REPORT, request)
    assert (outcome.name, outcome.exitinfo2, outcome.response) == ("EFAULT", UNTOUCHED, b"\xee" * 4000)
    assert program.report().name == "ok"


@pytest.mark.parametrize("size", [0, 4096, 0x4000])
def test_a_host_without_certificates_gives_zeros(guest: GuestRef, size: int) -> None:
    outcome = GuestProgram(SevGuestDevice(guest, lambda: b"")).ext_report(size)
    assert (outcome.name, outcome.exitinfo2, outcome.certs_len) == ("ok", UNTOUCHED, size)
    assert outcome.certificates == bytes(size)
    assert Report.parse(outcome.report).report_data == NONCE


def test_a_host_with_more_certificates_than_fit(guest: GuestRef) -> None:
    outcome = GuestProgram(SevGuestDevice(guest, lambda: bytes(0x4001))).ext_report(0x4000)
    assert (outcome.name, outcome.exitinfo2, outcome.certs_len) == ("EIO", INVALID_LEN, 0x5000)


def test_a_guest_that_has_ended_is_ENODEV(host: Simulator) -> None:
    with running_guest(host) as guest:
        program = GuestProgram(SevGuestDevice(guest, lambda: b""))
        assert program.report().name == "ok"
    assert program.report().name == "ENODEV"


def test_the_device_and_the_host_that_plays_the_guest_share_the_count(
    program: GuestProgram, host: Simulator, guest: GuestRef
) -> None:
    context = guest._vm.sev.context
    assert context is not None
    for _ in range(3):
        assert program.report().name == "ok"
        host.firmware.guest_report(context, NONCE)


ADDRESSES = st.one_of(st.integers(0, (1 << 64) - 1), st.sampled_from([0, 0x7000_0000_0000, USER_END, (1 << 64) - 1]))


@settings(max_examples=150)
@given(
    raw=st.tuples(st.binary(min_size=1, max_size=1), ADDRESSES, ADDRESSES),
    number=st.sampled_from([*abi.IOCTL_NAMES, 0xC0205303]),
    length=st.integers(0, 32),
)
def test_hostile_structures_get_an_errno(raw: tuple[bytes, int, int], number: int, length: int) -> None:
    program = GuestProgram(nowhere())
    version, req_data, resp_data = raw
    envelope = version + bytes(7) + req_data.to_bytes(8, "little") + resp_data.to_bytes(8, "little") + bytes(8)
    address = program.process.memory.place(bytearray(envelope[:length] if length < 32 else envelope))
    number, _ = attempt(program.process, program.fd, number, address)
    assert errno.errorcode[number] in ("EFAULT", "EINVAL", "ENOTTY")


@settings(max_examples=150)
@given(data=st.binary(min_size=112, max_size=112), number=st.sampled_from(list(abi.IOCTL_NAMES)))
def test_hostile_requests_get_an_errno_or_an_answer(data: bytes, number: int) -> None:
    outcome = GuestProgram(nowhere()).ioctl(number, data)
    assert outcome.name in ("EINVAL", "EFAULT", "EIO")


def test_a_program_needs_the_device(device: SevGuestDevice) -> None:
    process = Process({PATH: device.open})
    with pytest.raises(OSError, match="No such file"):
        process.open("/dev/sev", 0)
