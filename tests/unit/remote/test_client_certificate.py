"""What is read out of clients' certificates, and that nothing else comes of bytes that are none."""

from __future__ import annotations

import datetime

import pytest
from cryptography.hazmat.primitives import serialization
from hypothesis import given, settings
from hypothesis import strategies as st

from sev.errors import MalformedInput
from sevd.access import client_certificate
from sevd.access.client_certificate import chain_of, read
from tests.support.authority import CLIENT, HOUR, SERVER, Authority, now

CA = Authority("clients")
LEAF = CA.issue("vmm", uris=["spiffe://example.org/vmm"], dns=["A.example.org", "b.example.org"])


def message(*ders: bytes, context: bytes = b"") -> bytes:
    """A TLS 1.3 Certificate message."""
    entries = b"".join(len(der).to_bytes(3) + der + b"\0\0" for der in ders)
    body = bytes([len(context)]) + context + len(entries).to_bytes(3) + entries
    return b"\x0b" + len(body).to_bytes(3) + body


def test_names_are_in_order_and_dns_in_lower_case() -> None:
    found = read((LEAF.der,))
    assert found.names == ("uri:spiffe://example.org/vmm", "dns:a.example.org", "dns:b.example.org")
    assert (found.subject, found.serial, found.for_clients) == ("CN=vmm", LEAF.certificate.serial_number, True)
    assert found.facts()["serial"] == f"{LEAF.certificate.serial_number:x}"


@pytest.mark.parametrize(("usage", "fit"), [(CLIENT, True), (SERVER, False), ((*SERVER, *CLIENT), True), (None, False)])
def test_the_purpose(usage: object, fit: bool) -> None:
    assert read((CA.issue("x", usage=usage).der,)).for_clients is fit  # type: ignore[arg-type]


def test_names_that_are_too_long_or_too_many_identify_nobody() -> None:
    long = CA.issue("x", uris=["spiffe://example.org/" + "x" * 4000, "spiffe://example.org/short"])
    assert read((long.der,)).names == ("uri:spiffe://example.org/short",)
    with pytest.raises(MalformedInput, match="more than 64 names"):
        read((CA.issue("x", dns=[f"h{number}.example.org" for number in range(65)]).der,))


def test_a_subject_is_shortened_and_shows_no_control_characters() -> None:
    assert read((CA.issue("a\nb\x1b[31m" + "x" * 50).der,)).subject.isprintable()


def test_an_end() -> None:
    found = read((CA.issue("x", ends=60).der,))
    assert not found.expired()
    assert found.expired(now() + datetime.timedelta(seconds=61))


def test_anchors() -> None:
    middle = Authority("middle", CA)
    lower = Authority("lower", middle)
    leaf = lower.issue("x")
    ders = (leaf.der, *(_der(one) for one in (lower, middle)))
    assert read(ders).anchored([CA.certificate])
    assert read(ders).anchored([middle.certificate])
    assert read(ders).anchored([lower.certificate])
    assert not read(ders).anchored([])
    assert not read(ders).anchored([Authority("clients").certificate])
    assert not read((leaf.der, _der(lower))).anchored([CA.certificate])
    assert not read(ders).anchored([CA.certificate], now() + datetime.timedelta(days=60))


def test_a_chain_that_goes_round_ends() -> None:
    alone = Authority("alone")
    assert not read((_der(alone), _der(alone))).anchored([CA.certificate])


def test_lists() -> None:
    from cryptography import x509

    found = read((LEAF.der,))
    listed = x509.load_pem_x509_crl(CA.crl(LEAF))
    assert found.revoked([listed])
    assert not found.revoked([x509.load_pem_x509_crl(CA.crl())])
    assert not found.revoked([x509.load_pem_x509_crl(Authority("others").crl(LEAF))])


def test_a_message_of_several_certificates() -> None:
    assert chain_of(message(LEAF.der, _der(CA))) == (LEAF.der, _der(CA))
    assert chain_of(message(LEAF.der, context=b"abc")) == (LEAF.der,)
    assert chain_of(message()) == ()
    assert len(chain_of(message(*[LEAF.der] * 50))) == client_certificate.CERTIFICATES


@pytest.mark.parametrize("cut", range(0, len(message(b"xyz")), 1))
def test_a_message_that_is_cut_holds_nothing(cut: int) -> None:
    assert chain_of(message(b"xyz")[:cut]) == ()


@settings(max_examples=200)
@given(st.binary(max_size=200) | st.binary(max_size=100).map(lambda tail: b"\x0b\x00\x00" + tail))
def test_any_bytes_for_a_message(data: bytes) -> None:
    assert all(chain_of(data))


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
@settings(max_examples=150, deadline=None)
@given(st.integers(0, len(LEAF.der) - 1), st.integers(0, 255))
def test_a_certificate_with_one_byte_changed(at: int, value: int) -> None:
    der = bytearray(LEAF.der)
    der[at] = value
    try:
        found = read((bytes(der),))
    except MalformedInput:
        return
    assert found.subject.isprintable()
    assert all(name.isascii() for name in found.names)
    found.anchored([CA.certificate])
    assert isinstance(found.expired(now() + datetime.timedelta(seconds=HOUR)), bool)


@settings(max_examples=50)
@given(st.binary(max_size=300))
def test_bytes_that_are_no_certificate(data: bytes) -> None:
    with pytest.raises(MalformedInput):
        read((data,))


def test_no_certificate() -> None:
    with pytest.raises(MalformedInput):
        read(())


def _der(one: Authority) -> bytes:
    return one.certificate.public_bytes(serialization.Encoding.DER)
