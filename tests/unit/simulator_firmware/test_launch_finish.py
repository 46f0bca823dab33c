"""SNP_LAUNCH_FINISH: every check with its status, and the rules of ID blocks."""

from __future__ import annotations

import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from sev import status
from sevd.simulator.firmware import Firmware
from tests.support.simulated_firmware import (
    AUTHOR_KEY,
    ID_KEY,
    PAGE,
    PATTERN,
    POLICY,
    id_auth,
    id_block,
    key_record,
    refused,
    started,
    update,
)

OTHER_KEY = ec.derive_private_key(0x07, ec.SECP384R1())
ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973


def test_finish_without_an_id_block(firmware: Firmware) -> None:
    gctx = started(firmware)
    update(firmware, gctx, 1, 0x1000, PATTERN)
    firmware.snp_launch_finish(gctx, None, None, host_data=b"\x33" * 32, auth_key_en=True)
    report = firmware.guest_report(gctx, bytes(64))
    assert report[0x90:0xC0].hex() == (
        "d9ee416942ec5db1caf25b01cff7feaed0d7ac42422f811c6164e4857e3f800d270202f572ade105c96b3959107b8521"
    )
    assert report[0xC0:0xE0] == b"\x33" * 32
    assert report[0x48] & 1, "AUTHOR_KEY_EN is only a bit then"
    assert report[0xE0:0x140] == bytes(96)
    assert report[0x10:0x30] == bytes(32)
    assert report[4:8] == bytes(4)


def measured(firmware: Firmware) -> tuple[int, bytes]:
    gctx = started(firmware)
    update(firmware, gctx, 1, 0x1000, PATTERN)
    return gctx, firmware.launch_digest(gctx)


@pytest.mark.parametrize("with_author", [False, True])
def test_finish_with_an_id_block(firmware: Firmware, with_author: bool) -> None:
    gctx, digest = measured(firmware)
    block = id_block(digest)
    auth = id_auth(block, ID_KEY, AUTHOR_KEY if with_author else None)
    firmware.snp_launch_finish(gctx, block, auth, auth_key_en=with_author)
    report = firmware.guest_report(gctx, bytes(64))
    assert report[4:8] == bytes((7, 0, 0, 0))
    assert report[0x10:0x30] == b"\x22" * 16 + b"\x11" * 16
    assert report[0x48] == int(with_author)
    assert report[0xE0:0x110] == hashlib.sha384(key_record(ID_KEY.public_key())).digest()
    author = hashlib.sha384(key_record(AUTHOR_KEY.public_key())).digest() if with_author else bytes(48)
    assert report[0x110:0x140] == author


def flipped(data: bytes, at: int, value: int = 1) -> bytes:
    changed = bytearray(data)
    changed[at] ^= value
    return bytes(changed)


def number(data: bytes, at: int, value: int, size: int) -> bytes:
    return data[:at] + value.to_bytes(size, "little") + data[at + size :]


@pytest.mark.parametrize(
    ("name", "author", "code"),
    [
        ("another digest", False, status.BAD_MEASUREMENT),
        ("another policy", False, status.POLICY_FAILURE),
        ("block changed after signing", False, status.BAD_SIGNATURE),
        ("ID key algorithm 0", False, status.INVALID_PARAM),
        ("ID key algorithm 2", True, status.INVALID_PARAM),
        ("author key algorithm 0", True, status.INVALID_PARAM),
        ("author key algorithm 0, unused", False, None),
        ("ID key curve 1", False, status.BAD_SIGNATURE),
        ("ID key not on the curve", False, status.BAD_SIGNATURE),
        ("ID key beyond the field", False, status.BAD_SIGNATURE),
        ("another ID key", False, status.BAD_SIGNATURE),
        ("signature r changed", False, status.BAD_SIGNATURE),
        ("signature s changed", False, status.BAD_SIGNATURE),
        ("signature all zero", False, status.BAD_SIGNATURE),
        ("signature all ones", False, status.BAD_SIGNATURE),
        ("signature r is the order", False, status.BAD_SIGNATURE),
        ("author key curve 3", True, status.BAD_SIGNATURE),
        ("author key zero", True, status.BAD_SIGNATURE),
        ("another author key", True, status.BAD_SIGNATURE),
        ("ID key padding changed after signing", True, status.BAD_SIGNATURE),
        ("author key broken, unused", False, None),
        ("block of 95 bytes", False, status.INVALID_PARAM),
        ("block of 97 bytes", False, status.INVALID_PARAM),
        ("page of 4095 bytes", False, status.INVALID_PARAM),
        ("no page", False, status.INVALID_PARAM),
    ],
)
def test_id_block_rules(firmware: Firmware, name: str, author: bool, code: int | None) -> None:
    gctx, digest = measured(firmware)
    block = id_block(digest)
    auth: bytes | None = id_auth(block, ID_KEY, AUTHOR_KEY)
    assert auth is not None
    match name:
        case "another digest":
            block = id_block(flipped(digest, 47))
        case "another policy":
            block = id_block(digest, policy=POLICY | 1 << 19)
        case "block changed after signing":
            block = flipped(block, 0x54)
        case "ID key algorithm 0":
            auth = number(auth, 0, 0, 4)
        case "ID key algorithm 2":
            auth = number(auth, 0, 2, 4)
        case "author key algorithm 0" | "author key algorithm 0, unused":
            auth = number(auth, 4, 0, 4)
        case "ID key curve 1":
            auth = number(auth, 0x240, 1, 4)
        case "ID key not on the curve":
            auth = flipped(auth, 0x244)
        case "ID key beyond the field":
            auth = auth[:0x244] + b"\xff" * 72 + auth[0x28C:]
        case "another ID key":
            auth = auth[:0x240] + key_record(OTHER_KEY.public_key()) + auth[0x644:]
        case "signature r changed":
            auth = flipped(auth, 0x40)
        case "signature s changed":
            auth = flipped(auth, 0x88)
        case "signature all zero":
            auth = auth[:0x40] + bytes(512) + auth[0x240:]
        case "signature all ones":
            auth = auth[:0x40] + b"\xff" * 512 + auth[0x240:]
        case "signature r is the order":
            auth = number(auth, 0x40, ORDER, 72)
        case "author key curve 3":
            auth = number(auth, 0x880, 3, 4)
        case "author key zero":
            auth = auth[:0x884] + bytes(144) + auth[0x914:]
        case "another author key":
            auth = auth[:0x880] + key_record(OTHER_KEY.public_key()) + auth[0xC84:]
        case "ID key padding changed after signing":
            auth = flipped(auth, 0x643)
        case "author key broken, unused":
            auth = auth[:0x680] + bytes(0x604) + auth[0xC84:]
        case "block of 95 bytes":
            block = block[:-1]
        case "block of 97 bytes":
            block += b"\0"
        case "page of 4095 bytes":
            auth = auth[:-1]
        case "no page":
            auth = None
    if code is None:
        firmware.snp_launch_finish(gctx, block, auth, auth_key_en=author)
        return
    with refused(code):
        firmware.snp_launch_finish(gctx, block, auth, auth_key_en=author)
    assert firmware.snp_guest_status(gctx)[12] == 1, "still in LAUNCH"
    good = id_block(digest)
    firmware.snp_launch_finish(gctx, good, id_auth(good, ID_KEY))


def test_id_block_checks_in_their_order(firmware: Firmware) -> None:
    gctx, digest = measured(firmware)
    broken = number(id_auth(id_block(digest), ID_KEY, AUTHOR_KEY), 0, 9, 4)
    broken = flipped(broken, 0x40)
    with refused(status.BAD_MEASUREMENT):
        firmware.snp_launch_finish(gctx, id_block(bytes(48), policy=0), broken)
    with refused(status.POLICY_FAILURE):
        firmware.snp_launch_finish(gctx, id_block(digest, policy=0), broken)
    with refused(status.INVALID_PARAM):
        firmware.snp_launch_finish(gctx, id_block(digest), broken)
    with refused(status.BAD_SIGNATURE):
        firmware.snp_launch_finish(gctx, id_block(digest), number(broken, 0, 1, 4))


def test_a_signature_whose_key_nobody_holds(firmware: Firmware) -> None:
    """(r, s) = (2, 1) and the public key recovered from it: valid, so digest and policy alone are committed to."""
    gctx, digest = measured(firmware)
    block = id_block(digest)
    prime = 2**384 - 2**128 - 2**96 + 2**32 - 1
    b = 0xB3312FA7E23EE7E4988E056BE3F82D19181D9C6EFE8141120314088F5013875AC656398D8A2ED19D2A85C8EDD3EC2AEF
    g = (
        0xAA87CA22BE8B05378EB1C71EF320AD746E1D3B628BA79B9859F741E082542A385502F25DBF55296C3A545E3872760AB7,
        0x3617DE4A96262C6F5D9E98BF9292DC29F8F41DBD289A147CE9DA3113B5F0B8C00A60B1CE1D7E819D7A431D7C90EA0E5F,
    )

    def add(p: tuple[int, int], q: tuple[int, int]) -> tuple[int, int]:
        slope = (
            (3 * p[0] ** 2 - 3) * pow(2 * p[1], -1, prime) if p == q else (q[1] - p[1]) * pow(q[0] - p[0], -1, prime)
        )
        x = (slope**2 - p[0] - q[0]) % prime
        return x, (slope * (p[0] - x) - p[1]) % prime

    def times(k: int, p: tuple[int, int]) -> tuple[int, int]:
        result: tuple[int, int] | None = None
        while k:
            if k & 1:
                result = p if result is None else add(result, p)
            p = add(p, p)
            k >>= 1
        assert result is not None
        return result

    y = pow((8 - 6 + b) % prime, (prime + 1) // 4, prime)
    assert y * y % prime == (8 - 6 + b) % prime
    e = int.from_bytes(hashlib.sha384(block).digest(), "big")
    inverse = pow(2, -1, ORDER)
    x_q, y_q = add(times(inverse, (2, y)), times((-e * inverse) % ORDER, g))
    record = (2).to_bytes(4, "little") + x_q.to_bytes(72, "little") + y_q.to_bytes(72, "little")
    page = bytearray(PAGE)
    page[0] = 1
    page[0x40], page[0x88] = 2, 1
    page[0x240 : 0x240 + len(record)] = record
    firmware.snp_launch_finish(gctx, block, bytes(page))


def test_finish_checks(firmware: Firmware) -> None:
    gctx = firmware.snp_gctx_create()
    with refused(status.INVALID_GUEST_STATE):
        firmware.snp_launch_finish(gctx, None, None)
    firmware.snp_launch_start(gctx, POLICY, bytes(16))
    with refused(status.INACTIVE):
        firmware.snp_launch_finish(gctx, None, None)
    firmware.snp_activate(gctx, 1)
    with refused(status.INVALID_PARAM):
        firmware.snp_launch_finish(gctx, None, None, reserved_flags=8)
    with refused(status.INVALID_PARAM):
        firmware.snp_launch_finish(gctx, None, None, host_data=bytes(31))
    firmware.snp_launch_finish(gctx, None, None)
    with refused(status.INVALID_GUEST_STATE):
        firmware.snp_launch_finish(gctx, None, None)
    with refused(status.INVALID_GUEST):
        firmware.snp_launch_finish(0xDEAD000, None, None)
