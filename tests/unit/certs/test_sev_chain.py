"""Chains of SEV platforms: the real ones verify, and nothing else does."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from sev.abi import sev_certificate as abi
from sev.abi.sev_certificate import SevCertificate, Signature
from sev.certs import amd_sev_roots, sev_chain, sev_signatures
from sev.certs.errors import RootsUnusable
from sev.certs.sev_chain import ChainIncomplete, ChainInvalid, SevChain
from sev.certs.sev_roots import SevRoots
from sev.certs.steps import Step
from sev.errors import MalformedInput, UsageError
from tests.support.data import DATA

NAPLES = DATA / "legacy" / "naples"
NAMES = ("pdh", "pek", "oca", "cek")
FILES = {name: (NAPLES / f"{name}.cert").read_bytes() for name in NAMES}
ROW = b"".join(FILES[name] for name in NAMES)
ROOTS = sorted(path for path in (DATA / "roots" / "legacy").iterdir() if path.suffix != ".sig")


def failed(data: bytes, roots: SevRoots | None = None) -> str:
    with pytest.raises(ChainInvalid) as caught:
        sev_chain.verify(SevChain.parse(data), roots=roots)
    results = [step.result for step in caught.value.steps if isinstance(step, Step)]
    assert len(results) == len(sev_chain.STEPS)
    assert results.count("failed") == 1
    return caught.value.field


@pytest.mark.parametrize("data", [ROW, (DATA / "legacy" / "pdh-blob-naples.bin").read_bytes()])
def test_real_chains(data: bytes) -> None:
    verified = sev_chain.verify(SevChain.parse(data))
    assert verified.product == "naples"
    assert [step.result for step in verified.steps] == ["passed"] * len(sev_chain.STEPS)
    assert verified.chain.encode() == data
    assert verified.pdh.usage == abi.PDH


def test_the_order_in_the_file_does_not_matter() -> None:
    data = b"".join(FILES[name] for name in reversed(NAMES))
    assert sev_chain.verify(SevChain.parse(data)).chain.encode() == ROW


@pytest.mark.parametrize("path", ROOTS, ids=lambda path: str(path.name))
def test_amds_files_are_the_keys_built_in(path: Path) -> None:
    certificates, authorities = sev_chain.split(path.read_bytes())
    assert not certificates
    amd = SevRoots.amd()
    for one in authorities:
        known = amd.arks if one.usage == 0 else amd.asks
        assert [each.key_id for each in known if each.modulus == one.modulus] == [one.key_id]


def test_every_line_has_an_ark_and_an_ask() -> None:
    amd = SevRoots.amd()
    assert len(amd.arks) == len(amd.asks) == 5
    assert {amd.product[one.modulus] for one in amd.arks} == {"naples", "rome", "milan", "genoa", "turin"}
    assert [one.certifying_id for one in amd.asks] == [one.key_id for one in amd.arks]


@pytest.mark.parametrize("product", ["naples", "rome", "milan", "genoa", "turin"])
def test_amds_files_are_made_again_byte_for_byte(product: str) -> None:
    digests = {(name, kind): sha256 for name, kind, _, sha256 in amd_sev_roots.IDENTIFIERS}
    ask, ark = SevRoots.amd_files(product)
    for one in (ask, ark):
        assert hashlib.sha256(one.encode()).hexdigest() == digests[product, one.name.lower()]
        sev_signatures.verify_authority(one, ark)
    with pytest.raises(UsageError, match="no SEV authorities of 'venice'"):
        SevRoots.amd_files("venice")


def test_a_signed_cek_is_of_the_key_that_the_chip_exports() -> None:
    signed = FILES["cek"]
    bare = SevCertificate.read(signed).signed(1, Signature())
    exported = bytearray(bare.encode())
    exported[4:6] = b"\x01\x37"  # a platform writes its own API version
    assert sev_chain.same_cek(signed, bytes(exported)).encode() == signed
    exported[0x20] ^= 1
    with pytest.raises(sev_chain.WrongCek, match="not the one that this chip exports"):
        sev_chain.same_cek(signed, bytes(exported))
    with pytest.raises(sev_chain.WrongCek, match="a certificate of PEK"):
        sev_chain.same_cek(FILES["pek"], signed)
    with pytest.raises(MalformedInput):
        sev_chain.same_cek(signed[:-1], signed)


def test_other_roots_do_not_reach() -> None:
    for path in ROOTS:
        try:
            roots = SevRoots.of(path.read_bytes())
        except RootsUnusable:
            continue  # an ASK alone, or the first ARK of Naples, which ends before its signature
        if any(roots.trusts(one) for one in SevRoots.amd().arks[:1]):
            continue
        assert failed(ROW, roots) in ("cek", "ask")


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_certificate(name: str) -> None:
    data = b"".join(FILES[other] for other in NAMES if other != name)
    with pytest.raises(ChainIncomplete, match=name.upper()):
        SevChain.parse(data)


@given(st.sampled_from(NAMES), st.integers(0, abi.BODY_SIZE - 1), st.integers(1, 255))
def test_a_changed_body_is_noticed(name: str, offset: int, change: int) -> None:
    parts = dict(FILES)
    changed = bytearray(parts[name])
    changed[offset] ^= change
    parts[name] = bytes(changed)
    with pytest.raises((ChainInvalid, ChainIncomplete, MalformedInput)):
        sev_chain.verify(SevChain.parse(b"".join(parts.values())))


def test_a_stranger_between_pek_and_pdh() -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    pek = SevCertificate.of_key(abi.PEK, key.public_key(), (0, 16))
    pdh = SevCertificate.of_key(abi.PDH, ec.generate_private_key(ec.SECP384R1()).public_key(), (0, 16))
    pdh = sev_signatures.sign(pdh, key, abi.PEK)
    assert failed(pdh.encode() + FILES["pek"] + FILES["oca"] + FILES["cek"]) == "pdh"
    assert failed(pdh.encode() + pek.encode() + FILES["oca"] + FILES["cek"]) == "oca"
    oca_key = ec.generate_private_key(ec.SECP384R1())
    oca = sev_signatures.sign(SevCertificate.of_key(abi.OCA, oca_key.public_key(), (0, 16)), oca_key, abi.OCA)
    pek = sev_signatures.sign(pek, oca_key, abi.OCA)
    assert failed(pdh.encode() + pek.encode() + oca.encode() + FILES["cek"]) == "pek"


def test_a_cek_as_the_firmware_exports_it() -> None:
    cek = SevCertificate.read(FILES["cek"])
    bare = SevCertificate(*[getattr(cek, name) for name in cek.fields()[:-2]])
    assert failed(FILES["pdh"] + FILES["pek"] + FILES["oca"] + bare.encode()) == "cek"


@given(st.binary(max_size=300), st.integers(0, len(ROW)))
def test_any_bytes_are_a_chain_or_refused(tail: bytes, cut: int) -> None:
    for data in (tail, ROW[:cut], ROW + tail):
        try:
            chain = SevChain.parse(data)
        except (MalformedInput, ChainIncomplete):
            continue
        assert chain.encode() == ROW


def test_roots_that_are_none() -> None:
    for data in (b"", ROW, b"\1" + bytes(63)):
        with pytest.raises(RootsUnusable):
            SevRoots.of(data)
