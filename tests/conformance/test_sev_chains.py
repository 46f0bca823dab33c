"""Real chains of legacy SEV and AMD's own roots: every byte, every signature, and no other direction."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from sev.abi import id_block
from sev.abi.amd_certificate import AmdCertificate
from sev.abi.sev_certificate import SevCertificate, Signature
from sev.certs import sev_signatures
from sev.certs.sev_signatures import NotSignedBy, SevSignatureInvalid
from tests.support.data import DATA, FACTS

PRODUCTS = ("naples", "rome", "milan", "genoa", "turin")
KINDS = ("cek", "oca", "pek", "pdh")


def root(name: str) -> AmdCertificate:
    raw = (DATA / "roots" / "legacy" / f"{name}.cert").read_bytes()
    certificate = AmdCertificate.decode(raw)
    assert certificate.encode() == raw
    return certificate


def rebuilt(fields: dict[str, Any]) -> SevCertificate:
    """A certificate from published numbers; its SHA-256 says that every byte is right."""
    key = id_block.encode_key(int(fields["pub_x"], 16), int(fields["pub_y"], 16))
    slots = [Signature(), Signature()]
    for number, each in enumerate(fields["signatures"]):
        if "sig_r" in each:
            data = id_block.encode_signature(int(each["sig_r"], 16), int(each["sig_s"], 16))
        else:
            data = bytes.fromhex(each.get("value_hex_be", ""))[::-1].ljust(512, b"\0")
        slots[number] = Signature(each["usage"], each["algo"], data)
    return SevCertificate(
        fields["version"], fields["api_major"], fields["api_minor"], 0, fields["usage"], fields["algo"], key, *slots
    )


@pytest.fixture(scope="module")
def naples() -> dict[str, SevCertificate]:
    out = {}
    for kind in KINDS:
        raw = (DATA / "legacy" / "naples" / f"{kind}.cert").read_bytes()
        out[kind] = SevCertificate.read(raw, kind)
        assert out[kind].encode() == raw
        assert out[kind].name == kind.upper()
    return out


@pytest.mark.parametrize("product", PRODUCTS)
def test_amds_roots(product: str) -> None:
    ark, ask = root(f"{product}-ark"), root(f"{product}-ask")
    sev_signatures.verify_authority(ark, ark)
    sev_signatures.verify_authority(ask, ark)
    with pytest.raises(NotSignedBy):
        sev_signatures.verify_authority(ark, ask)
    other = root("milan-ark" if product != "milan" else "rome-ark")
    with pytest.raises(NotSignedBy):
        sev_signatures.verify_authority(ask, other)
    forged = AmdCertificate(
        other.key_id, other.certifying_id, other.usage, other.exponent, other.modulus, other.bits, ark.signature
    )
    with pytest.raises(SevSignatureInvalid):
        sev_signatures.verify_authority(forged, forged)


def test_the_first_naples_root_ends_before_its_signature() -> None:
    cut, whole = root("naples-ark-bad"), root("naples-ark")
    assert (cut.modulus, cut.key_id, cut.signature) == (whole.modulus, whole.key_id, b"")
    with pytest.raises(NotSignedBy, match="ends before"):
        sev_signatures.verify_authority(cut, whole)


def test_a_real_chain(naples: dict[str, SevCertificate]) -> None:
    edges = {
        ("cek", "ask"): 1, ("oca", "oca"): 1, ("pek", "oca"): 1, ("pek", "cek"): 2, ("pdh", "pek"): 1,
    }  # fmt: skip
    signers: dict[str, SevCertificate | AmdCertificate] = {**naples, "ask": root("naples-ask")}
    for (subject, signer), slot in edges.items():
        assert sev_signatures.verify(naples[subject], signers[signer]) == slot


@pytest.mark.parametrize(
    ("subject", "signer"),
    [("cek", "pek"), ("oca", "pek"), ("pek", "pdh"), ("pek", "pek"), ("pdh", "oca"), ("pdh", "cek"), ("oca", "cek")],
)
def test_no_other_direction(naples: dict[str, SevCertificate], subject: str, signer: str) -> None:
    with pytest.raises(NotSignedBy):
        sev_signatures.verify(naples[subject], naples[signer])


def test_a_cek_under_another_products_ask(naples: dict[str, SevCertificate]) -> None:
    for product in PRODUCTS[1:]:
        with pytest.raises(SevSignatureInvalid):
            sev_signatures.verify(naples["cek"], root(f"{product}-ask"))


@pytest.mark.parametrize("product", ["naples", "rome"])
def test_chains_of_published_numbers(product: str) -> None:
    chains = json.loads((FACTS / "sev-vectors.json").read_text())["real_sev_chains"]
    certificates = next(each["certs"] for each in chains if each["product"] == product)
    made = {kind: rebuilt(fields) for kind, fields in certificates.items()}
    for kind, certificate in made.items():
        assert hashlib.sha256(certificate.encode()).hexdigest() == certificates[kind]["file_sha256"], kind
    assert sev_signatures.verify(made["cek"], root(f"{product}-ask")) == 1
    assert sev_signatures.verify(made["oca"], made["oca"]) == 1
    assert sev_signatures.verify(made["pek"], made["oca"]) == 1
    assert sev_signatures.verify(made["pek"], made["cek"]) == 2
    assert sev_signatures.verify(made["pdh"], made["pek"]) == 1
    for other in PRODUCTS:
        if other != product:
            with pytest.raises(SevSignatureInvalid):
                sev_signatures.verify(made["cek"], root(f"{other}-ask"))
    for subject, signer in (("pek", "pdh"), ("cek", "pek"), ("oca", "pek")):
        with pytest.raises(NotSignedBy):
            sev_signatures.verify(made[subject], made[signer])


def test_every_file_of_the_older_form_is_looked_at() -> None:
    """Nothing that lies there is left out of these tests."""
    known = {f"{product}-{kind}.cert" for product in PRODUCTS for kind in ("ark", "ask")} | {"naples-ark-bad.cert"}
    assert {path.name for path in (DATA / "roots" / "legacy").glob("*.cert")} == known
    assert {path.name for path in (DATA / "legacy").rglob("*") if path.is_file()} == {
        "pdh-blob-naples.bin", *(f"{kind}.cert" for kind in KINDS),
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["oca", "pek", "pdh", "cek"])
@pytest.mark.parametrize("offset", [0x04, 0x06, 0x14, 0x3FF, 0x413], ids=hex)
def test_one_bit_of_the_body(naples: dict[str, SevCertificate], kind: str, offset: int) -> None:
    raw = bytearray(naples[kind].encode())
    raw[offset] ^= 1
    signers: dict[str, SevCertificate | AmdCertificate] = {
        "oca": naples["oca"], "pek": naples["cek"], "pdh": naples["pek"], "cek": root("naples-ask"),
    }  # fmt: skip
    with pytest.raises(SevSignatureInvalid):
        sev_signatures.verify(SevCertificate.read(bytes(raw)), signers[kind])
