"""Driving the simulated firmware in tests: a guest from start to finish, ID blocks, reports checked with bare primitives."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from sev import status
from sevd.simulator.firmware import Firmware
from sevd.simulator.firmware_status import FirmwareStatus
from sevd.simulator.versions import Version

PAGE = 4096
POLICY = 0x30000
PATTERN = bytes(range(256)) * 16
SEED = 20261
ID_KEY = ec.derive_private_key(0x1D, ec.SECP384R1())
AUTHOR_KEY = ec.derive_private_key(0xA0, ec.SECP384R1())


class Open(Protocol):
    """Opens this test's chip; called again, it opens the same state again."""

    def __call__(
        self,
        product: str = "genoa",
        version: Version | None = None,
        *,
        seed: int | None = SEED,
        clock: Callable[[], float] | None = None,
    ) -> Firmware: ...


@contextmanager
def refused(code: int, *, pages_done: int = 0, in_response: bool = False) -> Iterator[None]:
    """The block must be refused with exactly this status."""
    with pytest.raises(FirmwareStatus) as caught:
        yield
    assert status.name(caught.value.code) == status.name(code)
    assert (caught.value.pages_done, caught.value.in_response) == (pages_done, in_response)


def initialised(firmware: Firmware) -> Firmware:
    """SNP initialised and all ASIDs clean."""
    firmware.snp_init()
    firmware.snp_df_flush()
    return firmware


def started(firmware: Firmware, *, asid: int = 1, policy: int = POLICY, gosvw: bytes = bytes(16)) -> int:
    """A guest in LAUNCH with an ASID."""
    gctx = firmware.snp_gctx_create()
    firmware.snp_launch_start(gctx, policy, gosvw)
    firmware.snp_activate(gctx, asid)
    return gctx


def update(firmware: Firmware, gctx: int, page_type: int, gpa: int, contents: bytes = bytes(PAGE)) -> bytes:
    """Adds whole pages, and answers what is in memory afterwards."""
    memory = bytearray(contents)
    rmp = bytearray(b"\x01" * (len(memory) // PAGE))
    firmware.snp_launch_update(gctx, page_type, gpa, memoryview(memory), memoryview(rmp))
    assert set(rmp) == {2}
    return bytes(memory)


def running(firmware: Firmware, *, asid: int = 1, policy: int = POLICY, host_data: bytes = bytes(32)) -> int:
    """A guest with one measured page that runs."""
    gctx = started(firmware, asid=asid, policy=policy)
    update(firmware, gctx, 1, 0x1000, PATTERN)
    firmware.snp_launch_finish(gctx, None, None, host_data=host_data)
    return gctx


def config(reported: int = 0, flags: int = 0, tail: bytes = bytes(52)) -> bytes:
    """The buffer of SNP_CONFIG."""
    return reported.to_bytes(8, "little") + flags.to_bytes(4, "little") + tail


def key_record(key: ec.EllipticCurvePublicKey) -> bytes:
    """A public key in the firmware's form, 0x404 bytes."""
    numbers = key.public_numbers()
    body = (2).to_bytes(4, "little") + numbers.x.to_bytes(72, "little") + numbers.y.to_bytes(72, "little")
    return body.ljust(0x404, b"\0")


def signature_record(key: ec.EllipticCurvePrivateKey, message: bytes) -> bytes:
    """A signature in the firmware's form, 512 bytes."""
    r, s = decode_dss_signature(key.sign(message, ec.ECDSA(hashes.SHA384())))
    return (r.to_bytes(72, "little") + s.to_bytes(72, "little")).ljust(512, b"\0")


def id_block(digest: bytes, *, policy: int = POLICY, svn: int = 7) -> bytes:
    """An ID block, 96 bytes; family id 0x22.., image id 0x11.."""
    ids = b"\x22" * 16 + b"\x11" * 16
    return digest + ids + (1).to_bytes(4, "little") + svn.to_bytes(4, "little") + policy.to_bytes(8, "little")


def id_auth(
    block: bytes, id_key: ec.EllipticCurvePrivateKey, author_key: ec.EllipticCurvePrivateKey | None = None
) -> bytes:
    """An ID authentication page, 4096 bytes."""
    page = bytearray(PAGE)
    page[0:8] = b"\x01\0\0\0\x01\0\0\0" if author_key else b"\x01\0\0\0\0\0\0\0"
    page[0x40:0x240] = signature_record(id_key, block)
    record = key_record(id_key.public_key())
    page[0x240:0x644] = record
    if author_key:
        page[0x680:0x880] = signature_record(author_key, record)
        page[0x880:0xC84] = key_record(author_key.public_key())
    return bytes(page)


def report_is_signed_by(report: bytes, key: ec.EllipticCurvePublicKey) -> None:
    """Checks a report's signature with nothing but ECDSA; raises InvalidSignature."""
    assert len(report) == 1184
    assert report[0x2A0 + 144 :] == bytes(512 - 144)
    r, s = (int.from_bytes(report[at : at + 72], "little") for at in (0x2A0, 0x2E8))
    key.verify(encode_dss_signature(r, s), report[:0x2A0], ec.ECDSA(hashes.SHA384()))


def extend(digest: bytes, contents: bytes, page_type: int, gpa: int) -> bytes:
    """The launch digest after a page, written out by hand."""
    tail = bytes((0x70, 0, page_type, 0, 0, 0, 0, 0)) + gpa.to_bytes(8, "little")
    return hashlib.sha384(digest + contents + tail).digest()
