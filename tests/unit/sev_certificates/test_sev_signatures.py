"""Signatures of SEV's own certificates, made and checked with keys made here."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from sev.abi import amd_certificate
from sev.abi import sev_certificate as abi
from sev.abi.amd_certificate import AmdCertificate
from sev.abi.sev_certificate import SevCertificate, Signature
from sev.certs import sev_signatures
from sev.certs.sev_signatures import NotSignedBy, SevSignatureInvalid
from sev.errors import UsageError


def key(number: int) -> ec.EllipticCurvePrivateKey:
    return ec.derive_private_key(number, ec.SECP384R1())


def bare(usage: int, number: int) -> SevCertificate:
    return SevCertificate.of_key(usage, key(number).public_key(), (1, 55))


OCA = sev_signatures.sign(bare(abi.OCA, 1), key(1), abi.OCA)
CEK = bare(abi.CEK, 2)
PEK = sev_signatures.sign(sev_signatures.sign(bare(abi.PEK, 3), key(1), abi.OCA), key(2), abi.CEK)


def test_a_new_authority_is_nothing_before_it_is_signed() -> None:
    with pytest.raises(NotSignedBy):
        sev_signatures.verify(bare(abi.OCA, 1), bare(abi.OCA, 1))
    assert sev_signatures.verify(OCA, OCA) == 1
    pdh = sev_signatures.sign(bare(abi.PDH, 4), key(3), abi.PEK)
    assert sev_signatures.verify(pdh, PEK) == 1


def test_both_slots_in_either_order() -> None:
    assert (sev_signatures.verify(PEK, OCA), sev_signatures.verify(PEK, CEK)) == (1, 2)
    turned = PEK.signed(1, PEK.signature2).signed(2, PEK.signature1)
    assert (sev_signatures.verify(turned, OCA), sev_signatures.verify(turned, CEK)) == (2, 1)
    with pytest.raises(UsageError, match="taken"):
        sev_signatures.sign(PEK, key(1), abi.OCA)
    again = sev_signatures.sign(PEK, key(1), abi.OCA, slot=2)
    assert sev_signatures.verify(again, OCA) == 1


def test_the_second_slot_counts_where_the_first_is_bad() -> None:
    broken = PEK.signed(1, Signature(abi.OCA, abi.ECDSA_SHA256, bytes(512))).signed(2, PEK.signature1)
    assert sev_signatures.verify(broken, OCA) == 2


@pytest.mark.parametrize(
    "slot",
    [
        Signature(abi.OCA, abi.ECDSA_SHA384, PEK.signature1.data),
        Signature(abi.OCA, abi.RSA_SHA256, PEK.signature1.data),
        Signature(abi.OCA, abi.NONE, PEK.signature1.data),
        Signature(abi.OCA, 0x999, PEK.signature1.data),
        Signature(abi.OCA, abi.ECDSA_SHA256, bytes(512)),
        Signature(abi.OCA, abi.ECDSA_SHA256, b"\xff" * 512),
        Signature(abi.OCA, abi.ECDSA_SHA256, PEK.signature2.data),
    ],
    ids=["other hash", "RSA", "no algorithm", "unknown", "zeros", "ones", "of another key"],
)
def test_signatures_that_are_none(slot: Signature) -> None:
    with pytest.raises(SevSignatureInvalid):
        sev_signatures.verify(PEK.signed(1, slot), OCA)


@pytest.mark.parametrize(("bits", "algorithm"), [(2048, abi.RSA_SHA256), (4096, abi.RSA_SHA384)])
def test_a_cek_signed_by_an_ask(bits: int, algorithm: int) -> None:
    ark_key, ask_key = (rsa.generate_private_key(65537, bits) for _ in range(2))

    def authority(usage: int, own: rsa.RSAPrivateKey, number: bytes) -> AmdCertificate:
        numbers = own.public_key().public_numbers()
        plain = AmdCertificate(number * 16, b"\1" * 16, usage, numbers.e, numbers.n, bits)
        return sev_signatures.sign_authority(plain, ark_key)

    ark = authority(amd_certificate.ARK, ark_key, b"\1")
    ask = authority(amd_certificate.ASK, ask_key, b"\2")
    sev_signatures.verify_authority(ark, ark)
    sev_signatures.verify_authority(AmdCertificate.decode(ask.encode()), ark)
    signed = sev_signatures.sign(CEK, ask_key, abi.ASK)
    assert signed.signature1.algorithm == algorithm
    assert signed.signature1.data[bits // 8 :] == bytes(512 - bits // 8)
    assert sev_signatures.verify(signed, ask) == 1
    padded = Signature(abi.ASK, algorithm, signed.signature1.data[:-1] + b"\1")
    if bits == 2048:
        with pytest.raises(SevSignatureInvalid):
            sev_signatures.verify(signed.signed(1, padded), ask)
    with pytest.raises(NotSignedBy):
        sev_signatures.verify(signed, ark)


def test_other_rsa_sizes_do_not_exist() -> None:
    with pytest.raises(UsageError, match="3072"):
        sev_signatures.sign(CEK, rsa.generate_private_key(65537, 3072), abi.ASK)


def test_deterministic_signatures_repeat() -> None:
    def once(*, deterministic: bool) -> SevCertificate:
        return sev_signatures.sign(bare(abi.OCA, 1), key(1), abi.OCA, deterministic=deterministic)

    assert once(deterministic=True) == once(deterministic=True)
    assert once(deterministic=False) != once(deterministic=False)


@pytest.mark.parametrize("make", [lambda: NotSignedBy("x"), lambda: SevSignatureInvalid("x")])
def test_refusals_say_what_to_do(make: Callable[[], NotSignedBy | SevSignatureInvalid]) -> None:
    refused = make()
    assert (refused.exit_code, bool(refused.remedy), bool(refused.reason)) == (3, True, True)
