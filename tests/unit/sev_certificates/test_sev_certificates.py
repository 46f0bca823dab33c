"""SEV's own certificates: bytes in, bytes out, and what is refused."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from sev.abi import amd_certificate, sev_certificate
from sev.abi.amd_certificate import AmdCertificate
from sev.abi.sev_certificate import SevCertificate, Signature
from sev.errors import MalformedInput

KEY = ec.derive_private_key(0x5EED, ec.SECP384R1())
PEK = SevCertificate.of_key(sev_certificate.PEK, KEY.public_key(), (1, 55))


def modulus(bits: int) -> int:
    """A number of the size of a modulus; no key."""
    return 1 << bits - 1 | 1


def ark(bits: int = 4096, signature: bytes | None = None) -> AmdCertificate:
    made = signature if signature is not None else bytes(range(256)) * (bits // 2048)
    return AmdCertificate(b"\1" * 16, b"\1" * 16, amd_certificate.ARK, 65537, modulus(bits), bits, made)


def test_the_layout_is_the_specifications() -> None:
    assert SevCertificate.offsets() == {
        "version": (0x000, 4),
        "api_major": (0x004, 1),
        "api_minor": (0x005, 1),
        "reserved": (0x006, 2),
        "usage": (0x008, 4),
        "algorithm": (0x00C, 4),
        "key": (0x010, 0x404),
        "signature1": (0x414, 520),
        "signature2": (0x61C, 520),
    }
    assert (SevCertificate.size(), Signature.size()) == (0x824, 8 + 512)


def test_a_certificate_by_hand() -> None:
    numbers = KEY.public_key().public_numbers()
    raw = (
        bytes.fromhex("01000000 01 37 0000 02100000 02000000 02000000")
        + numbers.x.to_bytes(72, "little")
        + numbers.y.to_bytes(72, "little")
    ).ljust(0x414, b"\0")
    free = bytes.fromhex("00100000 00000000") + bytes(512)
    assert PEK.encode() == raw + free + free
    assert PEK.body == raw
    assert SevCertificate.read(raw + free + free) == PEK
    assert (PEK.name, [each.free for each in PEK.signatures]) == ("PEK", [True, True])
    assert PEK.public_key().public_numbers() == numbers


@settings(max_examples=60, deadline=None)
@given(st.binary(min_size=2080, max_size=2080))
def test_every_byte_is_kept(tail: bytes) -> None:
    raw = b"\1\0\0\0" + tail
    certificate = SevCertificate.read(raw)
    assert certificate.encode() == raw
    assert certificate.body == raw[:0x414]
    assert b"".join(each.encode() for each in certificate.signatures) == raw[0x414:]
    with contextlib.suppress(MalformedInput):
        certificate.public_key()


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=4200))
def test_other_bytes_are_refused_or_kept(raw: bytes) -> None:
    for read in (SevCertificate.read, AmdCertificate.decode):
        with contextlib.suppress(MalformedInput):
            assert read(raw).encode() == raw
    with contextlib.suppress(MalformedInput):
        assert b"".join(each.encode() for each in amd_certificate.split(raw)) == raw


def changed(offset: int, data: bytes) -> bytes:
    raw = bytearray(PEK.encode())
    raw[offset : offset + len(data)] = data
    return bytes(raw)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "0 bytes"),
        (PEK.encode()[:-1], "2083 bytes"),
        (PEK.encode() + b"\0", "2085 bytes"),
        (changed(0, b"\2"), "version 2"),
        (changed(0, b"\0"), "version 0"),
        (changed(3, b"\1"), "version 16777217"),
    ],
    ids=["empty", "short", "long", "version 2", "version 0", "high byte of the version"],
)
def test_what_is_no_certificate(raw: bytes, words: str) -> None:
    with pytest.raises(MalformedInput, match=words):
        SevCertificate.read(raw, "PEK")


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (changed(0x0C, b"\0"), "algorithm"),
        (changed(0x0C, b"\4"), "algorithm"),
        (changed(0x10, b"\1"), "curve 1"),
        (changed(0x14 + 48, b"\1"), "QX"),
        (changed(0x5C + 71, b"\1"), "QY"),
        (changed(0x14, bytes((PEK.key[4] ^ 1,))), "not a point"),
        (changed(0x14, bytes(144)), "not a point"),
        (changed(0x14, b"\xff" * 48), "not a point"),
        (changed(0x0C, b"\1"), "RSA key of 2 bits"),
    ],
    ids=["no algorithm", "unknown algorithm", "other curve", "long X", "long Y", "one bit", "zero", "above p", "RSA"],
)
def test_what_is_no_key(raw: bytes, words: str) -> None:
    certificate = SevCertificate.read(raw)
    assert certificate.encode() == raw, "still kept"
    with pytest.raises(MalformedInput, match=words):
        certificate.public_key()


def test_an_rsa_key() -> None:
    key = rsa.generate_private_key(65537, 2048).public_key()
    numbers = key.public_numbers()
    record = (2048).to_bytes(4, "little") + (65537).to_bytes(512, "little") + numbers.n.to_bytes(512, "little")
    certificate = SevCertificate(1, 0, 0, 0, sev_certificate.ASK, sev_certificate.RSA_SHA256, record)
    assert SevCertificate.read(certificate.encode()).public_key().public_numbers() == numbers


def test_a_chain() -> None:
    other = SevCertificate.of_key(sev_certificate.OCA, KEY.public_key(), (0, 22))
    assert sev_certificate.split(PEK.encode() + other.encode()) == (PEK, other)
    for raw in (b"", PEK.encode() + b"\0", PEK.encode()[1:]):
        with pytest.raises(MalformedInput, match="multiple of 2084"):
            sev_certificate.split(raw)
    with pytest.raises(MalformedInput, match="certificate at 0x824"):
        sev_certificate.split(PEK.encode() + changed(0, b"\7"))


@pytest.mark.parametrize(("bits", "size"), [(2048, 832), (4096, 1600)])
def test_an_amd_certificate_by_hand(bits: int, size: int) -> None:
    certificate = ark(bits)
    raw = certificate.encode()
    assert len(raw) == size
    assert raw[:4] == b"\1\0\0\0"
    assert raw[0x24:0x40] == bytes(20) + bits.to_bytes(4, "little") * 2
    assert raw[0x40:0x44] == b"\1\0\1\0"
    assert AmdCertificate.decode(raw) == certificate
    assert certificate.signed_bytes == raw[: size - bits // 8]


@settings(max_examples=40, deadline=None)
@given(st.binary(min_size=32, max_size=32), st.binary(min_size=16, max_size=16), st.binary(min_size=256, max_size=256))
def test_amd_certificates_keep_every_byte(ids: bytes, reserved: bytes, signature: bytes) -> None:
    certificate = AmdCertificate(ids[:16], ids[16:], 0x13, 65537, modulus(2048), 2048, signature, reserved)
    assert AmdCertificate.decode(certificate.encode()) == certificate


def amd_changed(offset: int, data: bytes) -> bytes:
    raw = bytearray(ark(2048).encode())
    raw[offset : offset + len(data)] = data
    return bytes(raw)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "0 bytes"),
        (ark().encode()[:63], "63 bytes"),
        (amd_changed(0, b"\2"), "version 2"),
        (amd_changed(0x24, b"\1"), "usage 0x1"),
        (amd_changed(0x38, b"\0\1"), "expected twice"),
        (amd_changed(0x3C, b"\0\x20"), "expected twice"),
        (amd_changed(0x38, bytes(8)), "expected twice"),
        (amd_changed(0x40, b"\3"), "exponent"),
        (amd_changed(0x140, b"\2"), "modulus"),
        (amd_changed(0x23F, b"\x7f"), "modulus"),
        (ark(2048).encode()[:575], "cut off"),
        (ark(2048).encode()[:577], "cut off"),
        (ark(2048).encode()[:-1], "cut off"),
        (ark(2048).encode() + b"\0", "exactly 832"),
        (amd_changed(0x38, b"\0\x10\0\0\0\x10\0\0"), "cut off"),
    ],
    ids=[
        "empty", "half a header", "version", "usage", "odd exponent size", "odd modulus size", "no sizes", "exponent",
        "even modulus", "short modulus", "cut in the modulus", "cut in the signature", "one byte short", "one more",
        "larger than it is",
    ],
)  # fmt: skip
def test_what_is_no_amd_certificate(raw: bytes, words: str) -> None:
    with pytest.raises(MalformedInput, match=words):
        AmdCertificate.decode(raw)


def test_an_amd_certificate_without_its_signature() -> None:
    bare = ark(2048, signature=b"")
    assert len(bare.encode()) == 576
    assert AmdCertificate.decode(bare.encode()) == bare


def test_a_bundle() -> None:
    both = ark(2048), ark(4096)
    assert amd_certificate.split(both[0].encode() + both[1].encode()) == both
    with pytest.raises(MalformedInput, match="more than 8"):
        amd_certificate.split(ark(2048).encode() * 9)
    with pytest.raises(MalformedInput, match="at 0x340"):
        amd_certificate.split(ark(2048).encode() + bytes(100))


@pytest.mark.parametrize("make", [lambda: PEK, lambda: ark(2048)], ids=["SEV", "AMD"])
def test_values_compare_and_hash(make: Callable[[], object]) -> None:
    assert make() == make()
    assert hash(make()) == hash(make())
