"""SNP_LAUNCH_UPDATE: every check with its status, the digest, and what the firmware writes."""

from __future__ import annotations

import hashlib
import struct

import pytest

from sev import status
from sev.abi import page_info
from sevd.simulator.firmware import Firmware
from tests.support.simulated_firmware import (
    PAGE,
    PATTERN,
    POLICY,
    Open,
    extend,
    initialised,
    refused,
    running,
    started,
    update,
)

LD_CHAIN = [
    (1, 0x1000, "d9ee416942ec5db1caf25b01cff7feaed0d7ac42422f811c6164e4857e3f800d270202f572ade105c96b3959107b8521"),
    (3, 0x2000, "41abe912edf6b601e54bc0ee72b38a80d58e75adc5139d3ea845d3c77ae30a3c1b3fd0bc3759ff4dc65b5d514cecff49"),
    (4, 0x3000, "e752b83782e789fd2757100f339ea7a22f39ae567b437584526c53b37faba6f66b81dd2004937a706163f1586b16580b"),
    (5, 0x4000, "08f5c5ab36b0448811b51c81c7b9d3e04fe101154a7cc28714b56b38d556bc4aec1ad493d29abfa1ee78127eea4b925c"),
    (6, 0x5000, "45ed993b1465aabc89d3818594801f4f9e5eb079360e2f38aef6179442e9b033b0fe94bbce023f9ae408f7bfb7bd3914"),
    (2, page_info.VMSA_GPA, "7fc905a24a86d30627e17db6897841dfa1f82b0b79158dab544cfcf1ef4a747558862a7d5b9ae0cdbb05d83cd46f8fe1"),
]  # fmt: skip


def test_known_digest_chain(firmware: Firmware) -> None:
    gctx = started(firmware)
    assert firmware.launch_digest(gctx) == bytes(48)
    for page_type, gpa, digest in LD_CHAIN:
        update(firmware, gctx, page_type, gpa, PATTERN if page_type == 1 else bytes(PAGE))
        assert firmware.launch_digest(gctx).hex() == digest


def test_known_digest_with_permissions(firmware: Firmware) -> None:
    gctx = started(firmware)
    firmware.snp_launch_update(
        gctx, 1, 0x1000, memoryview(bytearray(PATTERN)), memoryview(bytearray(b"\1")), vmpl_permissions=(0xF, 7, 1)
    )
    assert firmware.launch_digest(gctx).hex() == (
        "53dc11e35079e8742375dba4b30c2957dd473e199aba39916082df58084544d5a6cd96af53c8ea5b401a4a574906f0cf"
    )


@pytest.mark.parametrize("large", [False, True])
def test_known_digest_of_two_mebibytes(firmware: Firmware, large: bool) -> None:
    gctx = started(firmware)
    memory, rmp = bytearray(PATTERN * 512), bytearray(b"\1" * 512)
    firmware.snp_launch_update(gctx, 3, 0x200000, memoryview(memory), memoryview(rmp), large=large)
    assert firmware.launch_digest(gctx).hex() == (
        "486f227165b308e323ee24622225b050f2478d61d45cfca44fb031f4eabdbe6d8400a1afa6b5dfbcfceb70f317a47856"
    )
    assert not any(memory), "zero pages are zeroed"
    assert set(rmp) == {2}


@pytest.mark.parametrize("page_type", [1, 3, 4])
def test_a_run_equals_page_by_page(firmware: Firmware, page_type: int) -> None:
    contents = b"".join(bytes((number,)) * PAGE for number in range(1, 8))
    whole, single = started(firmware, asid=1), started(firmware, asid=2)
    after = update(firmware, whole, page_type, 0x10000, contents)
    for number in range(7):
        update(firmware, single, page_type, 0x10000 + number * PAGE, contents[number * PAGE : (number + 1) * PAGE])
    assert firmware.launch_digest(whole) == firmware.launch_digest(single)
    assert after == (bytes(len(contents)) if page_type == 3 else contents)


def test_the_chain_is_the_one_of_the_library(firmware: Firmware) -> None:
    gctx = started(firmware)
    update(firmware, gctx, 1, 0x7000, PATTERN)
    digest = page_info.extend(bytes(48), hashlib.sha384(PATTERN).digest(), 1, 0x7000)
    assert firmware.launch_digest(gctx) == digest == extend(bytes(48), hashlib.sha384(PATTERN).digest(), 1, 0x7000)


def attempt(
    firmware: Firmware, gctx: int, page_type: int, gpa: int, pages: int = 1, rmp: bytes = b"", **options: object
) -> None:
    states = memoryview(bytearray(rmp or b"\1" * pages))
    firmware.snp_launch_update(gctx, page_type, gpa, memoryview(bytearray(pages * PAGE)), states, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("page_type", [0, 7, 8, -1, 256])
def test_unknown_page_types(firmware: Firmware, page_type: int) -> None:
    gctx = started(firmware)
    with refused(status.INVALID_PARAM):
        attempt(firmware, gctx, page_type, 0)
    assert firmware.launch_digest(gctx) == bytes(48)


@pytest.mark.parametrize("state", [0, 2, 3, 4, 255])
def test_page_in_another_rmp_state(firmware: Firmware, state: int) -> None:
    gctx = started(firmware)
    with refused(status.INVALID_PAGE_STATE):
        attempt(firmware, gctx, 1, 0, rmp=bytes((state,)))
    assert firmware.launch_digest(gctx) == bytes(48)


def test_the_pages_before_a_wrong_one_are_added(firmware: Firmware) -> None:
    gctx, same = started(firmware, asid=1), started(firmware, asid=2)
    memory, rmp = bytearray(PATTERN * 5), bytearray(b"\1\1\1\2\1")
    with refused(status.INVALID_PAGE_STATE, pages_done=3):
        firmware.snp_launch_update(gctx, 1, 0, memoryview(memory), memoryview(rmp))
    assert bytes(rmp) == b"\2\2\2\2\1"
    update(firmware, same, 1, 0, PATTERN * 3)
    assert firmware.launch_digest(gctx) == firmware.launch_digest(same)


@pytest.mark.parametrize(
    ("page_type", "gpa", "pages", "code"),
    [
        (2, 0x200000, 512, status.INVALID_PAGE_SIZE),
        (5, 0x200000, 512, status.INVALID_PAGE_SIZE),
        (6, 0x200000, 512, status.INVALID_PAGE_SIZE),
        (1, 0x201000, 512, status.INVALID_ADDRESS),
        (1, 0x200000, 1, status.INVALID_ADDRESS),
        (0, 0x201000, 512, status.INVALID_ADDRESS),
        (0, 0x200000, 512, status.INVALID_PARAM),
    ],
)
def test_large_pages(firmware: Firmware, page_type: int, gpa: int, pages: int, code: int) -> None:
    gctx = started(firmware)
    with refused(code):
        attempt(firmware, gctx, page_type, gpa, pages, large=True)


@pytest.mark.parametrize("gpa", [1, 0xFFF, -PAGE, 1 << 52, (1 << 52) - 0x800, 1 << 64])
def test_unusable_addresses(firmware: Firmware, gpa: int) -> None:
    gctx = started(firmware)
    with refused(status.INVALID_ADDRESS):
        attempt(firmware, gctx, 1, gpa)


@pytest.mark.parametrize(("size", "states"), [(0, 0), (PAGE - 1, 1), (PAGE, 2), (2 * PAGE, 1), (PAGE + 1, 1)])
def test_what_is_no_run_of_pages(firmware: Firmware, size: int, states: int) -> None:
    gctx = started(firmware)
    with refused(status.INVALID_ADDRESS):
        firmware.snp_launch_update(gctx, 1, 0, memoryview(bytearray(size)), memoryview(bytearray(b"\1" * states)))


def test_update_checks_in_their_order(firmware: Firmware) -> None:
    """Each step mends the first thing that is wrong; the next check then shows."""
    gctx = firmware.snp_gctx_create()
    with refused(status.INVALID_GUEST):
        attempt(firmware, 0xDEAD000, 0, 0x1000, rmp=b"\0")
    with refused(status.INVALID_PAGE_STATE):
        attempt(firmware, gctx, 0, 0x1000, rmp=b"\0")
    with refused(status.INVALID_PARAM):
        attempt(firmware, gctx, 0, 0x1000)
    with refused(status.INVALID_GUEST_STATE):
        attempt(firmware, gctx, 1, 0x1000)
    firmware.snp_launch_start(gctx, POLICY, bytes(16), flags=2)
    with refused(status.INACTIVE):
        attempt(firmware, gctx, 1, 0x1000, owner=9)
    firmware.snp_activate(gctx, 3)
    with refused(status.INVALID_PAGE_OWNER):
        attempt(firmware, gctx, 1, 0x1000, owner=9)
    with refused(status.INVALID_PARAM):
        attempt(firmware, gctx, 1, 0x1000, owner=3)
    attempt(firmware, gctx, 1, 0x1000, owner=3, imi_page=True)
    with refused(status.INVALID_GUEST_STATE):
        firmware.snp_launch_finish(gctx, None, None)


def test_update_after_finish(firmware: Firmware) -> None:
    gctx = running(firmware)
    before = firmware.launch_digest(gctx)
    with refused(status.INVALID_GUEST_STATE):
        attempt(firmware, gctx, 1, 0x9000)
    assert firmware.launch_digest(gctx) == before


def test_secrets_page(firmware: Firmware) -> None:
    gctx = started(firmware, gosvw=bytes(range(16)))
    page = update(firmware, gctx, 5, 0x4000, b"\xee" * PAGE)
    assert struct.unpack_from("<IIII", page) == (4, 0, 0xA10F11, 0)
    assert page[0x10:0x20] == bytes(range(16))
    for number in range(4):
        assert page[0x20 + 32 * number : 0x40 + 32 * number] == firmware.vmpck(gctx, number)
    assert page[0xA0:0x160] == bytes(0xC0)
    assert page[0x160:0x168] == b"\xc8" + bytes(7)
    assert page[0x168:] == bytes(PAGE - 0x168)


@pytest.mark.parametrize(
    ("product", "version", "secrets_version", "vector"),
    [
        ("milan", (1, 52, 4), 3, 0),
        ("genoa", (1, 55, 40), 3, 0),
        ("genoa", (1, 58, 0), 4, 0x0B),
        ("turin", (1, 55, 65), 4, 0),
    ],
)
def test_secrets_page_by_version(
    open_firmware: Open, product: str, version: tuple[int, int, int], secrets_version: int, vector: int
) -> None:
    firmware = initialised(open_firmware(product, version))
    if version[1] == 58:
        firmware.snp_commit()
    page = update(firmware, started(firmware), 5, 0x4000)
    assert int.from_bytes(page[:4], "little") == secrets_version
    assert int.from_bytes(page[0x168:0x170], "little") == vector


def vmsa(features: int = 1) -> bytes:
    page = bytearray(PATTERN)
    page[0x3B0:0x3B8] = features.to_bytes(8, "little")
    return bytes(page)


@pytest.mark.parametrize("features", [0x1, 0x21, 0x201])
def test_vmsa_is_measured_without_its_tsc_fields(firmware: Firmware, features: int) -> None:
    gctx = started(firmware)
    page = vmsa(features)
    after = update(firmware, gctx, 2, page_info.VMSA_GPA, page)
    cleared = page[:0x2F0] + bytes(16) + page[0x300:]
    assert firmware.launch_digest(gctx) == extend(bytes(48), hashlib.sha384(cleared).digest(), 2, page_info.VMSA_GPA)
    assert after[:0x2F0] + after[0x300:] == page[:0x2F0] + page[0x300:]
    wanted = struct.pack("<QQ", 1 << 32, 0) if features & 0x200 else page[0x2F0:0x300]
    assert after[0x2F0:0x300] == wanted


def test_secure_tsc_scale(firmware: Firmware) -> None:
    gctx = firmware.snp_gctx_create()
    firmware.snp_launch_start(gctx, POLICY, bytes(16), desired_tsc_khz=1_200_000)
    firmware.snp_activate(gctx, 1)
    assert struct.unpack_from("<Q", update(firmware, gctx, 2, page_info.VMSA_GPA, vmsa(0x201)), 0x2F0) == (1 << 31,)


def test_a_run_of_vmsas_has_one_address(firmware: Firmware) -> None:
    whole, single = started(firmware, asid=1), started(firmware, asid=2)
    update(firmware, whole, 2, page_info.VMSA_GPA, vmsa() * 3)
    for _ in range(3):
        update(firmware, single, 2, page_info.VMSA_GPA, vmsa())
    assert firmware.launch_digest(whole) == firmware.launch_digest(single)
