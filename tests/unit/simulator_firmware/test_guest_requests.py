"""Guest messages: a known message, every error of command and request, derived keys, CPUID and TSC."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sev import products, status
from sev.abi import guest_message as messages
from sev.abi.guest_message import Header, KeyRequest
from sev.abi.tcb import TcbVersion
from sev.errors import MalformedInput, UsageError
from sevd.simulator import guest_requests
from sevd.simulator.firmware import Firmware
from sevd.simulator.firmware_status import FirmwareStatus
from sevd.simulator.gctx import GuestContext
from sevd.simulator.hash_sticks import kdf
from tests.support.simulated_firmware import (
    AUTHOR_KEY,
    ID_KEY,
    Open,
    config,
    id_auth,
    id_block,
    initialised,
    refused,
    running,
    started,
    update,
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


# Key requests

MIX_GUEST = GuestContext(
    address=0x1000,
    launch_tcb=bytes(8),
    launch_mitigations=0,
    policy=0x30000,
    digest=bytes(range(0x80, 0xB0)),
    image_id=b"\x11" * 16,
    family_id=b"\x22" * 16,
    host_data=b"\x33" * 32,
    guest_svn=7,
)
VCEK_HASH = bytes.fromhex(
    "98b4e76e54fbe6f158976da9952aba7330342a2a763693858b29b6a3fa1be35df0d3665dc3e2647bca1d767d9e16d893"
)
EMPTY_MIX = bytes.fromhex(
    "000000000000000000000000000000000100000000000000000000000000000000000000000000000000000000000000"
    "000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000"
    "00000000000000003333333333333333333333333333333333333333333333333333333333333333"
    "0000000000000000000000000000000000000000000000000000000000000000"
)


@pytest.mark.parametrize(
    ("identity", "request_", "root", "derived"),
    [
        (0, KeyRequest(vmpl=1), VCEK_HASH, "c2275aebc878f34bae2216a5d4e90e55f4ab7b6e7069549e2715cb9ada7a4aa9"),
        (
            1,
            KeyRequest(guest_field_select=0x3F, vmpl=1, guest_svn=7, tcb_version=0x7308000000000003),
            VCEK_HASH,
            "b223067847bfdb3aa1d2b5f84d70d12f2ad9b71a173531b22b5cb863fe3891f1",
        ),
        (
            2,
            KeyRequest(root_key_select=1, guest_field_select=0xB, vmpl=1, guest_svn=7, tcb_version=0x7308000000000003),
            bytes(range(0xC0, 0xE0)),
            "2ff01a16fa6e0c7b51b9748dea44fd8240a23303d4f07a027ab3865ab7372704",
        ),
    ],
)
def test_known_derived_keys(identity: int, request_: KeyRequest, root: bytes, derived: str) -> None:
    guest = replace(
        MIX_GUEST,
        id_block_en=identity > 0,
        auth_key_en=identity == 2,
        id_key_digest=b"\x44" * 48,
        author_key_digest=b"\x55" * 48,
    )
    mixed = guest_requests.mix(guest, request_)
    assert len(mixed) == 0xA8
    if identity == 0:
        assert mixed == EMPTY_MIX
    assert kdf(root, "gmsg-keyreq", mixed, 32).hex() == derived


def test_mitigation_vector_is_mixed_only_where_selected() -> None:
    plain = guest_requests.mix(MIX_GUEST, KeyRequest(guest_field_select=1))
    assert guest_requests.mix(MIX_GUEST, KeyRequest(guest_field_select=1, launch_mit_vector=3)) == plain
    chosen = guest_requests.mix(MIX_GUEST, KeyRequest(guest_field_select=0x41, launch_mit_vector=3))
    assert chosen[0xA8:] == bytes((3, 0, 0, 0, 0, 0, 0, 0))


@pytest.fixture
def identified(firmware: Firmware) -> int:
    """A running guest with an ID block of SVN 7 and an author key."""
    gctx = started(firmware)
    update(firmware, gctx, 1, 0x1000)
    block = id_block(firmware.launch_digest(gctx))
    firmware.snp_launch_finish(gctx, block, id_auth(block, ID_KEY, AUTHOR_KEY), auth_key_en=True)
    return gctx


def test_keys_are_stable_and_depend_on_what_is_chosen(firmware: Firmware, identified: int) -> None:
    keys = [
        firmware.guest_key(identified, request)
        for request in (
            KeyRequest(),
            KeyRequest(vmpl=1),
            KeyRequest(root_key_select=1),
            KeyRequest(guest_field_select=1),
            KeyRequest(guest_field_select=0x10, guest_svn=7),
            KeyRequest(guest_field_select=0x10, guest_svn=6),
            KeyRequest(guest_field_select=0x20, tcb_version=firmware.committed_tcb),
            KeyRequest(guest_field_select=0x20, tcb_version=0),
            KeyRequest(guest_field_select=0x40, launch_mit_vector=1),
        )
    ]
    assert len(set(keys)) == len(keys)
    assert {len(key) for key in keys} == {32}
    assert firmware.guest_key(identified, KeyRequest()) == keys[0]


def test_vcek_keys_outlive_the_guest_and_vmrk_keys_do_not(firmware: Firmware) -> None:
    pairs = []
    for asid in (1, 2):
        gctx = running(firmware, asid=asid)
        pairs.append([firmware.guest_key(gctx, KeyRequest(root_key_select=root)) for root in (0, 1)])
    assert pairs[0][0] == pairs[1][0]
    assert pairs[0][1] != pairs[1][1]


def test_an_older_tcb_gives_the_key_it_gave_then(open_firmware: Open) -> None:
    firmware = initialised(open_firmware("milan", (1, 55, 29)))
    firmware.snp_commit()
    old_tcb = firmware.committed_tcb
    request = KeyRequest(guest_field_select=0x20, tcb_version=old_tcb)
    before = firmware.guest_key(running(firmware), request)
    newer = initialised(open_firmware("milan", (1, 55, 35)))
    newer.snp_commit()
    assert newer.committed_tcb != old_tcb
    assert newer.guest_key(running(newer), request) == before


def test_vlek_as_root(firmware: Firmware, identified: int) -> None:
    vcek = firmware.guest_key(identified, KeyRequest(key_selection=1))
    with refused(status.INVALID_KEY, in_response=True):
        firmware.guest_key(identified, KeyRequest(key_selection=2))
    firmware.snp_vlek_load(firmware.vlek_hashstick())
    vlek = firmware.guest_key(identified, KeyRequest(key_selection=2))
    assert firmware.guest_key(identified, KeyRequest()) == vlek != vcek
    assert firmware.guest_key(identified, KeyRequest(key_selection=1)) == vcek


@pytest.mark.parametrize("reserved", [(1, 0), (1 << 28, 0), (0, 1), (0, 1 << 31)])
def test_reserved_fields_of_a_key_request(firmware: Firmware, identified: int, reserved: tuple[int, int]) -> None:
    with refused(status.INVALID_PARAM, in_response=True):
        firmware.guest_key(identified, KeyRequest(reserved=reserved))


@pytest.mark.parametrize(
    "request_",
    [
        KeyRequest(guest_field_select=0x40),
        KeyRequest(guest_field_select=0x80, launch_mit_vector=0),
        KeyRequest(guest_field_select=1 << 63),
        KeyRequest(guest_svn=8),
        KeyRequest(vmpl=4),
        KeyRequest(vmpl=0xFFFFFFFF),
        KeyRequest(launch_mit_vector=0x10),
    ],
)
def test_key_requests_that_ask_for_too_much(firmware: Firmware, identified: int, request_: KeyRequest) -> None:
    with refused(status.INVALID_PARAM, in_response=True):
        firmware.guest_key(identified, request_)


@pytest.mark.parametrize("component", ["bootloader", "tee", "snp", "microcode"])
def test_tcb_above_the_committed_one(firmware: Firmware, identified: int, component: str) -> None:
    committed = TcbVersion.from_int(firmware.committed_tcb, products.GENOA)
    above = committed.replace(**{component: committed.components()[component] + 1}).raw
    with refused(status.INVALID_PARAM, in_response=True):
        firmware.guest_key(identified, KeyRequest(guest_field_select=0x20, tcb_version=above))


def test_level_of_a_key_below_the_message_key(firmware: Firmware, identified: int) -> None:
    reply = firmware.guest_message(identified, messages.KEY_REQ, KeyRequest(vmpl=0).encode(), vmpck=1)
    assert messages.key_response(reply) == (status.INVALID_PARAM, b"")


@pytest.mark.parametrize("selection", [0, 1, 2, 3])
def test_masked_chip_key(firmware: Firmware, identified: int, selection: int) -> None:
    firmware.snp_vlek_load(firmware.vlek_hashstick())
    firmware.snp_config(config(0, 2))
    with refused(status.INVALID_KEY, in_response=True):
        firmware.guest_key(identified, KeyRequest(key_selection=selection))
    assert len(firmware.guest_key(identified, KeyRequest(root_key_select=1))) == 32


def test_vcek_disabled_for_the_guest(firmware: Firmware) -> None:
    gctx = started(firmware)
    firmware.snp_launch_finish(gctx, None, None, vcek_dis=True)
    with refused(status.INVALID_KEY, in_response=True):
        firmware.guest_key(gctx, KeyRequest())
    firmware.guest_key(gctx, KeyRequest(root_key_select=1))


def test_version_2_needs_newer_firmware(open_firmware: Open) -> None:
    firmware = initialised(open_firmware("genoa", (1, 55, 40)))
    gctx = running(firmware)
    with refused(status.INVALID_PARAM):
        firmware.guest_key(gctx, KeyRequest(launch_mit_vector=0))
    firmware.guest_key(gctx, KeyRequest())


def test_key_request_forms() -> None:
    request = KeyRequest(1, 2, 0x3F, 3, 4, 5, 6)
    assert KeyRequest.decode(request.encode(), 2) == request
    assert len(request.encode()) == 0x30
    assert len(KeyRequest().encode()) == 0x20
    with pytest.raises(UsageError):
        KeyRequest(key_selection=4).encode()
    with pytest.raises(UsageError):
        KeyRequest(vmpl=1 << 32).encode()
    with pytest.raises(MalformedInput):
        KeyRequest.decode(bytes(0x20), 2)
    with pytest.raises(MalformedInput):
        messages.key_response(bytes(63))


# TSC and CPUID requests


def test_tsc_info(firmware: Firmware) -> None:
    gctx = firmware.snp_gctx_create()
    firmware.snp_launch_start(gctx, 0x30000, bytes(16), desired_tsc_khz=4_800_000)
    firmware.snp_activate(gctx, 1)
    firmware.snp_launch_finish(gctx, None, None)
    reply = firmware.guest_message(gctx, messages.TSC_INFO_REQ, bytes(128))
    assert reply == struct.pack("<IIQQI", 0, 0, 2 << 32, 0, 200).ljust(128, b"\0")
    reply = firmware.guest_message(gctx, messages.TSC_INFO_REQ, bytes(127) + b"\1")
    assert int.from_bytes(reply[:4], "little") == status.INVALID_PARAM


def test_cpuid_request(firmware: Firmware) -> None:
    gctx = running(firmware)
    eax, ebx, ecx, edx = firmware.hardware_cpuid(0x80000001)
    good = struct.pack("<IIQQIIIIQ", 0x80000001, 0, 0, 0, eax, ebx, ecx, edx, 0)
    reply = firmware.guest_message(gctx, messages.CPUID_REQ, struct.pack("<IIQ", 1, 0, 0) + good)
    assert reply == struct.pack("<IIQ", 0, 1, 0) + good
    wrong = struct.pack("<IIQQIIIIQ", 0x80000001, 0, 0, 0, eax, ebx, 0xFFFFFFFF, edx, 0)
    reply = firmware.guest_message(gctx, messages.CPUID_REQ, struct.pack("<IIQ", 1, 0, 0) + wrong)
    assert reply == struct.pack("<IIQ", status.INVALID_PARAM, 1, 0) + good
    for head in ((65, 0, 0), (2, 0, 0), (1, 1, 0), (1, 0, 1)):
        reply = firmware.guest_message(gctx, messages.CPUID_REQ, struct.pack("<IIQ", *head) + good)
        assert reply == status.INVALID_PARAM.to_bytes(4, "little") + bytes(12)
    full = struct.pack("<IIQ", 64, 0, 0) + good * 64
    assert len(firmware.guest_message(gctx, messages.CPUID_REQ, full)) == 16 + 64 * 48
