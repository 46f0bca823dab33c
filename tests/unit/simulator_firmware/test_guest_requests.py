"""Guest messages: a known message, every error of command and request, derived keys, CPUID and TSC."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sev import status
from sev.abi import guest_message as messages
from sev.abi.guest_message import Header
from sev.errors import MalformedInput, UsageError
from sevd.simulator import guest_requests
from sevd.simulator.firmware import Firmware
from sevd.simulator.firmware_status import FirmwareStatus
from tests.support.simulated_firmware import (
    refused,
    running,
    started,
)

REQUEST = messages.report_request(bytes(range(64)))


def header(**changes: int) -> Header:
    plain = Header(b"", 1, messages.REPORT_REQ, 1, len(REQUEST), 0)
    return replace(plain, **changes)  # type: ignore[arg-type]


# The message form


def test_known_message() -> None:
    message = guest_requests.seal(bytes(range(32)), header(), REQUEST)
    assert (
        message[0x30:0x60].hex()
        == "010160000501600000000000000000000000000000000000000000000000000000000000000000000000000000000000"
    )
    assert message[:0x10].hex() == "0f354f26b13f7433d3674d8eebcaf847"
    assert message[0x60:].hex() == (
        "e22d803ca0aaea00420d0fc830cc86c4dc70dd3d68bd7d05560647e5013b996fccddd2ea048788e8f0f437f862242ea7"
        "c0e4fcb7d1456ca0bbb1da492b891678bcafa49213c0f2445044cd48be94fd5eb5f3e8b761e80896f353185b4abd740d"
    )
    assert guest_requests.unseal(bytes(range(32)), Header.decode(message), message) == REQUEST


def test_header_round_trip() -> None:
    written = Header(bytes(range(16)), 1 << 40, 5, 1, 96, 3)
    assert Header.decode(written.encode()) == written
    assert len(written.encode()) == 96
    with pytest.raises(MalformedInput, match="96"):
        Header.decode(bytes(95))


def test_responses_count_in_pairs(firmware: Firmware) -> None:
    gctx = running(firmware)
    for sequence in (1, 3, 5):
        reply = ask(firmware, gctx, header(sequence=sequence))
        assert Header.decode(reply).sequence == sequence + 1
        assert Header.decode(reply).message_type == messages.REPORT_RSP
    assert Header.decode(ask(firmware, gctx, header(vmpck=1), messages.report_request(bytes(64), 1))).sequence == 2


def ask(firmware: Firmware, gctx: int, head: Header, payload: bytes = REQUEST) -> bytes:
    return firmware.snp_guest_request(gctx, guest_requests.seal(firmware.vmpck(gctx, head.vmpck & 3), head, payload))


# Errors of the command


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"header_version": 0}, status.INVALID_PARAM),
        ({"header_version": 2}, status.INVALID_PARAM),
        ({"header_size": 0x50}, status.INVALID_PARAM),
        ({"header_size": 0x70}, status.INVALID_PARAM),
        ({"algorithm": 0}, status.INVALID_PARAM),
        ({"algorithm": 2}, status.INVALID_PARAM),
        ({"message_size": 0}, status.INVALID_PARAM),
        ({"message_size": 0x61}, status.INVALID_PARAM),
        ({"message_size": 0x70}, status.INVALID_PARAM),
        ({"message_size": 0xFFF0}, status.INVALID_PARAM),
        ({"message_size": 0x50}, status.BAD_MEASUREMENT),
        ({"vmpck": 4}, status.INVALID_PARAM),
        ({"vmpck": 255}, status.INVALID_PARAM),
        ({"sequence": 0}, status.AEAD_OFLOW),
        ({"sequence": 2}, status.AEAD_OFLOW),
        ({"sequence": 3}, status.AEAD_OFLOW),
        ({"sequence": (1 << 64) - 1}, status.AEAD_OFLOW),
        ({"message_type": 0}, status.INVALID_PARAM),
        ({"message_type": messages.REPORT_RSP}, status.INVALID_PARAM),
        ({"message_type": messages.EXPORT_REQ}, status.INVALID_PARAM),
        ({"message_type": messages.ABSORB_NOMA_REQ}, status.INVALID_PARAM),
        ({"message_type": 255}, status.INVALID_PARAM),
        ({"message_version": 0}, status.INVALID_PARAM),
        ({"message_version": 2}, status.INVALID_PARAM),
        ({"message_type": messages.KEY_REQ, "message_version": 3}, status.INVALID_PARAM),
        ({"message_type": messages.TSC_INFO_REQ}, status.INVALID_PARAM),
    ],
)
def test_errors_of_the_command(firmware: Firmware, changes: dict[str, int], code: int) -> None:
    gctx = running(firmware)
    with refused(code):
        ask(firmware, gctx, header(**changes))
    ask(firmware, gctx, header())  # the sequence was not used up


def test_payload_too_short_for_its_type(firmware: Firmware) -> None:
    gctx = running(firmware)
    with refused(status.INVALID_PARAM):
        ask(firmware, gctx, header(message_size=0x50), REQUEST[:0x50])


@pytest.mark.parametrize("at", [0x00, 0x0F, 0x3D, 0x5F, 0x60, 0xBF])
def test_changed_message(firmware: Firmware, at: int) -> None:
    gctx = running(firmware)
    message = bytearray(guest_requests.seal(firmware.vmpck(gctx, 0), header(), REQUEST))
    message[at] ^= 1
    with refused(status.BAD_MEASUREMENT):
        firmware.snp_guest_request(gctx, bytes(message))


def test_tag_is_checked_before_the_sequence(firmware: Firmware) -> None:
    gctx = running(firmware)
    message = guest_requests.seal(bytes(32), header(sequence=9), REQUEST)
    with refused(status.BAD_MEASUREMENT):
        firmware.snp_guest_request(gctx, message)


def test_replay(firmware: Firmware) -> None:
    gctx = running(firmware)
    message = guest_requests.seal(firmware.vmpck(gctx, 0), header(), REQUEST)
    firmware.snp_guest_request(gctx, message)
    with refused(status.AEAD_OFLOW):
        firmware.snp_guest_request(gctx, message)


def test_key_of_another_level(firmware: Firmware) -> None:
    gctx = running(firmware)
    with refused(status.BAD_MEASUREMENT):
        firmware.snp_guest_request(gctx, guest_requests.seal(firmware.vmpck(gctx, 1), header(), REQUEST))


def test_rest_of_the_page_is_ignored(firmware: Firmware) -> None:
    gctx = running(firmware)
    message = guest_requests.seal(firmware.vmpck(gctx, 0), header(), REQUEST)
    firmware.snp_guest_request(gctx, message.ljust(4096, b"\xee"))


def test_requests_need_a_running_guest(firmware: Firmware) -> None:
    gctx = started(firmware)
    with refused(status.INVALID_GUEST_STATE):
        ask(firmware, gctx, header())
    with refused(status.INVALID_GUEST):
        firmware.snp_guest_request(0xDEAD000, bytes(4096))


@pytest.mark.parametrize("size", [0, 1, 95, 96])
def test_truncated_messages(firmware: Firmware, size: int) -> None:
    gctx = running(firmware)
    message = guest_requests.seal(firmware.vmpck(gctx, 0), header(), REQUEST)
    with refused(status.INVALID_PARAM):
        firmware.snp_guest_request(gctx, message[:size])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(raw=st.binary(max_size=4200))
def test_hostile_bytes_are_refused_with_a_status(firmware: Firmware, raw: bytes) -> None:
    firmware.snp_df_flush()
    gctx = running(firmware)
    try:
        with pytest.raises(FirmwareStatus) as caught:
            firmware.snp_guest_request(gctx, raw)
        assert caught.value.code in (status.INVALID_PARAM, status.BAD_MEASUREMENT)
    finally:
        firmware.snp_decommission(gctx)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.integers(0, 255),
    version=st.integers(0, 255),
    payload=st.binary(min_size=1, max_size=300),
    vmpck=st.integers(0, 3),
)
def test_hostile_requests_with_a_good_tag(
    firmware: Firmware, kind: int, version: int, payload: bytes, vmpck: int
) -> None:
    firmware.snp_df_flush()
    gctx = running(firmware)
    payload = payload.ljust(-(-len(payload) // 16) * 16, b"\0")
    head = Header(b"", 1, kind, version, len(payload), vmpck)
    code, reply = status.SUCCESS, b""
    try:
        reply = ask(firmware, gctx, head, payload)
    except FirmwareStatus as refusal:
        code = refusal.code
    if code == status.SUCCESS:
        answered = Header.decode(reply)
        clear = guest_requests.unseal(firmware.vmpck(gctx, vmpck), answered, reply)
        assert clear is not None
        assert len(reply) <= 4096
        assert int.from_bytes(clear[:4], "little") in (status.SUCCESS, status.INVALID_PARAM, status.INVALID_KEY)
    else:
        assert code == status.INVALID_PARAM
    firmware.snp_decommission(gctx)


# Report requests


@pytest.mark.parametrize(
    ("at", "value"),
    [(0x44, 4), (0x47, 0x80), (0x48, 1), (0x5F, 1)],
    ids=["key_sel bit 2", "key_sel bit 31", "0x48", "0x5f"],
)
def test_reserved_fields_of_a_report_request(firmware: Firmware, at: int, value: int) -> None:
    payload = bytearray(REQUEST)
    payload[at] = value
    reply = firmware.guest_message(running(firmware), messages.REPORT_REQ, bytes(payload))
    assert messages.report_response(reply) == (status.INVALID_PARAM, b"")


def test_level_below_the_key(firmware: Firmware) -> None:
    reply = firmware.guest_message(
        running(firmware), messages.REPORT_REQ, messages.report_request(bytes(64), 1), vmpck=2
    )
    assert messages.report_response(reply)[0] == status.INVALID_PARAM


def test_level_above_the_key(firmware: Firmware) -> None:
    reply = firmware.guest_message(
        running(firmware), messages.REPORT_REQ, messages.report_request(bytes(64), 3), vmpck=1
    )
    assert messages.report_response(reply)[0] == status.SUCCESS


@pytest.mark.parametrize("size", [0, 63, 65])
def test_report_data_of_another_size(size: int) -> None:
    with pytest.raises(UsageError, match="expected 64"):
        messages.report_request(bytes(size))


@pytest.mark.parametrize("payload", [b"", bytes(31), bytes(0x4C0), struct.pack("<II24x", 0, 0x4A0) + bytes(100)])
def test_what_is_no_report_response(payload: bytes) -> None:
    with pytest.raises(MalformedInput):
        messages.report_response(payload)
