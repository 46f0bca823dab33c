"""configfs-tsm in a guest with an SVSM: its services, their manifests, and what it does not have."""

from __future__ import annotations

import hashlib

import pytest

from sev.attestation import Report
from sevd.simulator.svsm import MANIFEST_GUID, VTPM_GUID
from tests.support.guest_program import NONCE
from tests.support.tsm_tree import Tree


def test_an_svsm_attests_all_its_services(under_svsm: Tree, table: bytes) -> None:
    under_svsm.write("inblob", NONCE)
    under_svsm.write("service_provider", b"svsm\n")
    report = Report.parse(under_svsm.read("outblob"))
    manifest = under_svsm.read("manifestblob")
    assert report.report_data == hashlib.sha512(NONCE + manifest).digest()
    assert report.vmpl == 0
    assert manifest[:16] == MANIFEST_GUID.bytes_le
    assert int.from_bytes(manifest[16:20], "little") == len(manifest)
    assert int.from_bytes(manifest[20:24], "little") == 1
    assert manifest[24:40] == VTPM_GUID.bytes_le
    offset, size = (int.from_bytes(manifest[at : at + 4], "little") for at in (40, 44))
    assert (offset, offset + size) == (48, len(manifest))
    assert under_svsm.read("auxblob") == table
    under_svsm.write("service_guid", str(VTPM_GUID).encode())
    assert under_svsm.read("manifestblob") == manifest[offset:]


def test_an_svsm_attests_one_service(under_svsm: Tree) -> None:
    under_svsm.write("inblob", NONCE)
    under_svsm.write("service_provider", b"svsm")
    under_svsm.write("service_guid", str(VTPM_GUID).upper().encode() + b"\n")
    under_svsm.write("service_manifest_version", b"0")
    manifest = under_svsm.read("manifestblob")
    assert Report.parse(under_svsm.read("outblob")).report_data == hashlib.sha512(NONCE + manifest).digest()
    # TPMT_PUBLIC: an ECC key, SHA-256, restricted decryption, on NIST P-256.
    assert manifest[:8] == bytes.fromhex("0023000b000300b2")
    assert len(manifest) == 2 + 2 + 4 + 34 + 12 + 34 + 34
    assert manifest[42:54] == bytes.fromhex("000600800043001000030010")


@pytest.mark.parametrize(
    ("attribute", "text"),
    [
        ("service_provider", b"tdx"),
        ("service_guid", b"00000000-0000-0000-0000-000000000001"),
        ("service_manifest_version", b"1"),
    ],
)
def test_what_the_svsm_does_not_have_is_EINVAL_when_it_is_read(under_svsm: Tree, attribute: str, text: bytes) -> None:
    under_svsm.write("inblob", NONCE)
    under_svsm.write("service_provider", b"svsm")
    under_svsm.write("service_guid", str(VTPM_GUID).encode())
    assert under_svsm.error("outblob") == "ok"
    under_svsm.write(attribute, text)
    assert under_svsm.error("outblob") == "EINVAL"


def test_a_guid_that_is_none_becomes_the_null_guid(under_svsm: Tree) -> None:
    under_svsm.write("inblob", NONCE)
    under_svsm.write("service_provider", b"svsm")
    under_svsm.write("service_guid", str(VTPM_GUID).encode())
    assert under_svsm.error("service_guid", b"{c476f1eb}") == "EINVAL"
    assert under_svsm.generation == 4
    assert under_svsm.read("manifestblob")[:16] == MANIFEST_GUID.bytes_le


@pytest.mark.parametrize(
    ("text", "expected"), [(b"0", "ok"), (b"7\n", "ok"), (b"x", "EINVAL"), (b"0x100000000", "ERANGE")]
)
def test_service_manifest_version(under_svsm: Tree, text: bytes, expected: str) -> None:
    assert under_svsm.error("service_manifest_version", text) == expected
