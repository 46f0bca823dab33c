"""Derived keys, and the other messages beside the report: MSG_KEY_REQ, MSG_TSC_INFO_REQ, MSG_CPUID_REQ."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest

from sev import products, status
from sev.abi import guest_message as messages
from sev.abi.guest_message import KeyRequest
from sev.abi.tcb import TcbVersion
from sev.errors import MalformedInput, UsageError
from sevd.simulator import guest_requests
from sevd.simulator.firmware import Firmware
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
