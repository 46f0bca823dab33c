"""The owner's session end to end with a platform's PDH: what the owner wraps, the platform unwraps."""

from __future__ import annotations

import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from sev.abi import sev_certificate as abi
from sev.abi.sev_certificate import SevCertificate
from sev.abi.sev_policy import SevPolicy
from sev.errors import UsageError
from sev.session import Session, TransportKeys, blob
from tests.support.data import FACTS

VECTOR: dict[str, Any] = json.loads((FACTS / "sev-vectors.json").read_text())["computed"]["session"]


def private(name: str) -> ec.EllipticCurvePrivateKey:
    return ec.derive_private_key(int(VECTOR[name]["d"], 16), ec.SECP384R1())


def pdh(key: ec.EllipticCurvePrivateKey) -> SevCertificate:
    return SevCertificate.of_key(abi.PDH, key.public_key(), (1, 55))


def test_the_computed_session() -> None:
    keys = TransportKeys(
        bytes.fromhex("303132333435363738393a3b3c3d3e3f"), bytes.fromhex("404142434445464748494a4b4c4d4e4f")
    )
    start = Session(SevPolicy(3), keys).start_unverified(
        pdh(private("platform_pdh")),
        key=private("owner_dh"),
        nonce=bytes.fromhex("101112131415161718191a1b1c1d1e1f"),
        iv=bytes.fromhex("202122232425262728292a2b2c2d2e2f"),
    )
    made = blob.SessionBlob.decode(start.session)
    assert made.wrap_tk.hex() == "748059804bf94e8dfe4b751aca4be78ba408e913ed3a24200d9eb65ea88f1430"
    assert made.policy_mac.hex() == "ae1c7d4bdf356b985a50fb920bc7207bc00668866171fc294e995aae8b782695"
    certificate = SevCertificate.read(start.certificate)
    assert certificate.usage == abi.PDH
    assert certificate.public_key().public_numbers().x == int(VECTOR["owner_dh"]["pub_x"], 16)


def test_a_platform_gets_the_keys() -> None:
    platform = ec.generate_private_key(ec.SECP384R1())
    session = Session.create(5)
    start = session.start_unverified(pdh(platform))
    owner = SevCertificate.read(start.certificate).public_key()
    shared = platform.exchange(ec.ECDH(), owner)
    assert blob.unwrap(blob.SessionBlob.decode(start.session), shared, start.policy) == session.keys
    assert session.start_unverified(pdh(platform)).session != start.session


def test_refusals() -> None:
    key = private("platform_pdh")
    with pytest.raises(UsageError, match="reserved"):
        Session.create(0x40)
    with pytest.raises(UsageError, match="PEK"):
        Session.create(1).start_unverified(SevCertificate.of_key(abi.PEK, key.public_key(), (1, 55)))
    with pytest.raises(UsageError, match="P-384"):
        Session.create(1).start_unverified(pdh(key), key=ec.generate_private_key(ec.SECP256R1()))


@pytest.mark.parametrize(
    ("text", "raw"),
    [("1", 1), ("0x5", 5), ("nodbg,es", 5), ("nodbg, noks ,es,nosend,domain,sev", 0x3F), ("es,api=1.55", 0x37010004)],
)
def test_policies(text: str, raw: int) -> None:
    policy = SevPolicy.parse(text)
    assert policy.raw == raw
    assert SevPolicy.parse(f"{raw:#x}") == policy
    assert int(str(policy.document()["raw"]), 16) == raw


@pytest.mark.parametrize("text", ["", "debug", "nodbg;es", "0x100000000", "-1", "api=1", "api=1.256", "api=a.b"])
def test_words_that_are_no_policy(text: str) -> None:
    with pytest.raises(UsageError):
        SevPolicy.parse(text)
