"""Hostile certificates: each kind of damage is refused with an error that names the element."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sev.certs import Certificate, Crl, load, load_all
from sev.certs.der import element
from sev.certs.extensions import MAX_EXTENSIONS
from sev.certs.x509 import MAX_SIZE
from sev.errors import MalformedInput, SevError
from tests.support import forge
from tests.support.forge import AMD, World, extension, integer, sequence, tlv

WORLD = World()
LEAF = WORLD.leaf()
TBS_HEAD = 4
"""Bytes of tag and length before the signed part, whose own head is as long."""


def parts(der: bytes) -> list[bytes]:
    """The elements inside a sequence."""
    _, at, end = element(der, 0, len(der), "test")
    out = []
    while at < end:
        _, _, stop = element(der, at, end, "test")
        out.append(der[at:stop])
        at = stop
    return out


def rebuilt(change: Callable[[list[bytes]], None]) -> bytes:
    """The leaf with the elements of its signed part changed: version, serial, algorithm, issuer, validity, subject,
    key, extensions."""
    tbs, algorithm, signature = parts(LEAF)
    elements = parts(tbs)
    change(elements)
    return sequence(sequence(*elements), algorithm, signature)


def element_is(index: int, content: bytes) -> bytes:
    return rebuilt(lambda elements: elements.__setitem__(index, content))


def extensions_are(*extensions: bytes) -> bytes:
    return element_is(7, tlv(0xA3, sequence(*extensions)))


def extra_extension(*extensions: bytes) -> bytes:
    return extensions_are(*WORLD.leaf_extensions(), *extensions)


def validity(before: bytes, after: bytes = forge.time(datetime(2032, 1, 1, tzinfo=UTC))) -> bytes:
    return element_is(4, sequence(before, after))


EC_HEAD = bytes.fromhex("3076301006072a8648ce3d020106052b8104002203620004")
RSA_HEAD = bytes.fromhex("300d06092a864886f70d0101010500")


def rsa_spki(modulus: bytes, exponent: bytes = integer(65537)) -> bytes:
    return sequence(RSA_HEAD, tlv(0x03, b"\0" + sequence(modulus, exponent)))


HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "nothing at offset 0"),
    "one byte": (b"\x30", "nothing at offset 0"),
    "not a sequence": (b"\x31" + LEAF[1:], "tag 0x31"),
    "truncated by one": (LEAF[:-1], "only"),
    "truncated to the head": (LEAF[:4], "only 0 are left"),
    "one byte more": (LEAF + b"\0", "1 bytes left over"),
    "indefinite length": (b"\x30\x80" + LEAF[4:] + b"\0\0", "bad length"),
    "length of five bytes": (b"\x30\x85\0\0\0\0\x01\0", "bad length"),
    "length cut off": (b"\x30\x82\x05", "bad length"),
    "length not in its shortest form": (b"\x30\x83\x00" + LEAF[2:], "shortest form"),
    "long form for a short length": (b"\x30\x81\x05" + b"\x30\x03\x02\x01\x00", "shortest form"),
    "length of 16 MiB": (b"\x30\x83\xff\xff\xff" + bytes(64), "only"),
    "multi-byte tag": (rebuilt(lambda elements: elements.__setitem__(1, b"\x1f\x01\x00")), "multi-byte tag"),
    "larger than any certificate": (bytes(MAX_SIZE + 1), "at most"),
    "deeply nested": (b"\x30\x82\x20\x00" * 2000, "only"),
    "version 1": (element_is(0, tlv(0xA0, integer(0))), "version"),
    "version 4": (element_is(0, tlv(0xA0, integer(3))), "version"),
    "no version": (rebuilt(lambda elements: elements.__delitem__(0)), "version"),
    "negative serial": (element_is(1, b"\x02\x01\x80"), "negative"),
    "padded serial": (element_is(1, b"\x02\x02\x00\x01"), "shortest form"),
    "empty serial": (element_is(1, b"\x02\x00"), "integer of 0 bytes"),
    "serial of 21 bytes": (element_is(1, tlv(0x02, b"\x01" * 21)), "integer of 21 bytes"),
    "algorithm of another hash": (element_is(2, forge.pss(digest="2.16.840.1.101.3.4.2.1")), "RSASSA-PSS"),
    "algorithm with a short salt": (element_is(2, forge.pss(salt=20)), "RSASSA-PSS"),
    "algorithm without parameters": (element_is(2, sequence(forge.oid("1.2.840.113549.1.1.10"))), "RSASSA-PSS"),
    "ECDSA as algorithm": (element_is(2, sequence(forge.oid("1.2.840.10045.4.3.3"))), "RSASSA-PSS"),
    "two different algorithms": (
        sequence(parts(LEAF)[0], forge.pss(trailer=True), parts(LEAF)[2]),
        "differs from the algorithm",
    ),
    "issuer with two common names": (
        element_is(3, sequence(*[tlv(0x31, sequence(forge.oid("2.5.4.3"), tlv(0x0C, b"SEV-Genoa")))] * 2)),
        "two common names",
    ),
    "issuer in a forbidden string": (
        element_is(3, sequence(tlv(0x31, sequence(forge.oid("2.5.4.3"), tlv(0x1E, b"\0S"))))),
        "string of tag 0x1e",
    ),
    "issuer that is not UTF-8": (
        element_is(3, sequence(tlv(0x31, sequence(forge.oid("2.5.4.3"), tlv(0x0C, b"\xff\xfe"))))),
        "character set",
    ),
    "issuer with a control character": (
        element_is(3, sequence(tlv(0x31, sequence(forge.oid("2.5.4.3"), tlv(0x0C, b"SEV\0Genoa"))))),
        "control characters",
    ),
    "issuer with two attributes in one step": (
        element_is(3, sequence(tlv(0x31, sequence(forge.oid("2.5.4.3"), tlv(0x0C, b"A")) * 2))),
        "left over",
    ),
    "issuer of 17 attributes": (
        element_is(3, sequence(*[tlv(0x31, sequence(forge.oid("2.5.4.6"), tlv(0x13, b"US")))] * 17)),
        "more than 16",
    ),
    "issuer of 2000 bytes": (
        element_is(3, sequence(tlv(0x31, sequence(forge.oid("2.5.4.3"), tlv(0x0C, b"A" * 2000))))),
        "at most 1024",
    ),
    "month 13": (validity(tlv(0x17, b"251301000000Z")), "notBefore.*month"),
    "February 30": (validity(tlv(0x17, b"250230000000Z")), "notBefore.*day"),
    "second 60": (validity(tlv(0x17, b"250101000060Z")), "notBefore.*second"),
    "time without Z": (validity(tlv(0x17, b"250101000000+")), "digits and Z"),
    "time with letters": (validity(tlv(0x17, b"2501010000 0Z")), "digits and Z"),
    "time without seconds": (validity(tlv(0x17, b"2501010000Z")), "to the second"),
    "time with fractions": (validity(tlv(0x18, b"20250101000000.5Z")), "to the second"),
    "time of year 0": (validity(tlv(0x18, b"00000101000000Z")), "notBefore.*year"),
    "time in another type": (validity(tlv(0x13, b"250101000000Z")), "to the second"),
    "three times": (element_is(4, sequence(*[forge.time(forge.AT)] * 3)), "left over"),
    "key on another curve": (
        element_is(6, forge.spki(forge.ec_key("x")).replace(b"\x22", b"\x23", 1)),
        "neither an RSA",
    ),
    "compressed point": (element_is(6, EC_HEAD[:-1] + b"\x02" + bytes(96)), "neither an RSA|PublicKey"),
    "point cut off": (element_is(6, tlv(0x30, EC_HEAD[2:20] + tlv(0x03, b"\0\x04" + bytes(90)))), "neither an RSA"),
    "RSA with a negative modulus": (element_is(6, rsa_spki(tlv(0x02, b"\x80" * 256))), "modulus.*negative"),
    "RSA with a huge modulus": (element_is(6, rsa_spki(tlv(0x02, b"\x01" * 1026))), "modulus.*1026 bytes"),
    "RSA with something behind": (
        element_is(6, sequence(RSA_HEAD, tlv(0x03, b"\0" + sequence(integer(5), integer(3)) + b"\0"))),
        "left over",
    ),
    "unused bits in the key": (element_is(6, sequence(RSA_HEAD, tlv(0x03, b"\x01\x30\x00"))), "whole bytes"),
    "unique identifiers": (rebuilt(lambda elements: elements.insert(7, tlv(0x81, b"\0\x01"))), "extensions: tag 0x81"),
    "something behind the extensions": (rebuilt(lambda elements: elements.append(integer(1))), "left over"),
    "no extension in the list": (extensions_are(), "present but empty"),
    "extension twice": (extra_extension(extension(f"{AMD}.2", tlv(0x16, b"Milan"))), "a second time"),
    "patch level twice": (extra_extension(extension(f"{AMD}.3.1", integer(4))), "once"),
    "patch level twice, long form": (extra_extension(extension(f"{AMD}.3.8", integer(200))), "a second time"),
    "patch level 256": (extensions_are(extension(f"{AMD}.3.1", integer(256))), "256"),
    "negative patch level": (extensions_are(extension(f"{AMD}.3.1", b"\x02\x01\xff")), "negative"),
    "padded patch level": (extensions_are(extension(f"{AMD}.3.1", b"\x02\x02\x00\x05")), "shortest form"),
    "patch level with something behind": (extensions_are(extension(f"{AMD}.3.1", integer(1) + b"\0")), "left over"),
    "patch level in another type": (extensions_are(extension(f"{AMD}.3.1", tlv(0x04, b"\x05"))), "tag 0x04"),
    "critical and unknown": (extra_extension(extension("1.2.3.4", b"", critical=True)), "1.2.3.4: critical"),
    "critical and unknown in AMD's arc": (extra_extension(extension(f"{AMD}.9", b"", critical=True)), "critical"),
    "not critical, written out": (
        extensions_are(sequence(forge.oid("1.2.3"), tlv(0x01, b"\0"), tlv(0x04, b""))),
        "default",
    ),
    "boolean of 1": (extensions_are(sequence(forge.oid("1.2.3"), tlv(0x01, b"\x01"), tlv(0x04, b""))), "boolean"),
    "extension with something behind": (
        extensions_are(sequence(forge.oid("1.2.3"), tlv(0x04, b""), b"\x05\0")),
        "left over",
    ),
    "33 extensions": (
        extensions_are(*[extension(f"1.2.3.{number}", b"") for number in range(MAX_EXTENSIONS + 1)]),
        "one more than 32",
    ),
    "hwID of 63 bytes": (extensions_are(extension(f"{AMD}.4", bytes(63))), "hwID: 63 bytes"),
    "hwID of 16 bytes": (extensions_are(extension(f"{AMD}.4", bytes(16))), "hwID: 16 bytes"),
    "hwID in a sequence": (extensions_are(extension(f"{AMD}.4", tlv(0x30, bytes(64)))), "hwID: tag 0x30"),
    "hwID wrapped with a wrong length": (extensions_are(extension(f"{AMD}.4", b"\x04\x3f" + bytes(64))), "left over"),
    "productName in UTF-8": (extensions_are(extension(f"{AMD}.2", tlv(0x0C, b"Genoa"))), "tag 0x0c"),
    "productName beyond ASCII": (extensions_are(extension(f"{AMD}.2", tlv(0x16, b"Gen\xf6a"))), "printable ASCII"),
    "empty productName": (extensions_are(extension(f"{AMD}.2", tlv(0x16, b""))), "printable ASCII"),
    "cspID with a line end": (extensions_are(extension(f"{AMD}.5", tlv(0x16, b"a\nb"))), "printable ASCII"),
    "basicConstraints with cA false written out": (
        extensions_are(extension("2.5.29.19", sequence(tlv(0x01, b"\0")))),
        "default",
    ),
    "basicConstraints with something behind": (
        extensions_are(extension("2.5.29.19", sequence(tlv(0x01, b"\xff"), integer(0), integer(0)))),
        "left over",
    ),
    "keyUsage with 9 unused bits": (extensions_are(extension("2.5.29.15", tlv(0x03, b"\x09\x06"))), "keyUsage"),
    "keyUsage with unused bits set": (extensions_are(extension("2.5.29.15", tlv(0x03, b"\x02\x07"))), "keyUsage"),
    "keyUsage of nothing": (extensions_are(extension("2.5.29.15", tlv(0x03, b"\x00"))), "keyUsage"),
    "signature with unused bits": (sequence(*parts(LEAF)[:2], tlv(0x03, b"\x01" + bytes(256))), "whole bytes"),
    "no signature": (sequence(*parts(LEAF)[:2]), "signatureValue"),
    "empty signature": (sequence(*parts(LEAF)[:2], tlv(0x03, b"\0")), "whole bytes"),
    "something behind the signature": (sequence(*parts(LEAF), integer(1)), "left over"),
}


def test_what_the_damage_starts_from_is_read() -> None:
    assert Certificate.parse(LEAF).kind == "vcek"
    assert Certificate.parse(rebuilt(lambda elements: None)).der == LEAF
    assert Certificate.parse(extensions_are(*WORLD.leaf_extensions())) == Certificate.parse(LEAF)


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_certificate(case: str) -> None:
    data, message = HOSTILE[case]
    with pytest.raises(MalformedInput, match=message):
        Certificate.parse(data)


@pytest.mark.parametrize("bits", [1024, 8200])
def test_rsa_keys_of_other_sizes_are_no_keys(bits: int) -> None:
    certificate = element_is(6, rsa_spki(integer((1 << bits) - 1)))
    with pytest.raises(MalformedInput, match=r"RSA key of|modulus"):
        Certificate.parse(certificate).public_key()


@pytest.mark.parametrize("spki", [rsa_spki(integer(1 << 2047)), rsa_spki(integer((1 << 2048) - 1), integer(3))])
def test_rsa_numbers_that_are_no_key(spki: bytes) -> None:
    with pytest.raises(MalformedInput, match="RSA key of"):
        Certificate.parse(element_is(6, spki)).public_key()


def test_a_point_that_is_not_on_the_curve_is_no_key() -> None:
    certificate = Certificate.parse(element_is(6, EC_HEAD + b"\x01" * 96))
    with pytest.raises(MalformedInput, match="not a point"):
        certificate.public_key()


def test_both_spellings_of_the_algorithm_and_of_hwid_are_read() -> None:
    with_trailer = WORLD.leaf(algorithm=forge.pss(trailer=True))
    wrapped = WORLD.leaf(ext={"hwid": tlv(0x04, WORLD.hwid)})
    assert Certificate.parse(with_trailer).hwid == Certificate.parse(wrapped).hwid == WORLD.hwid


def test_levels_of_one_and_two_octets_are_the_same_kind() -> None:
    levels = {"bootloader": 0, "tee": 127, "snp": 128, "microcode": 255}
    certificate = Certificate.parse(WORLD.leaf(ext={"levels": levels}))
    assert certificate.tcb == levels
    version = certificate.tcb_version()
    assert version is not None
    assert version.components() == levels


CRL = WORLD.crl([0x20001])

HOSTILE_CRL: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "nothing at offset 0"),
    "truncated": (CRL[:-1], "only"),
    "one byte more": (CRL + b"\0", "left over"),
    "larger than any list": (bytes((1 << 20) + 1), "at most"),
    "version 1": (CRL.replace(integer(1), integer(0), 1), "version: 1"),
    "a certificate": (LEAF, "version"),
    "delta indicator": (WORLD.crl(extensions=(extension("2.5.29.27", integer(1), critical=True),)), "not understood"),
    "issuing distribution point": (
        WORLD.crl(extensions=(extension("2.5.29.28", sequence(), critical=True),)),
        "2.5.29.28",
    ),
    "number twice": (WORLD.crl(extensions=[extension("2.5.29.20", integer(1))] * 2), "each once"),
}


@pytest.mark.parametrize("case", HOSTILE_CRL)
def test_hostile_list(case: str) -> None:
    data, message = HOSTILE_CRL[case]
    with pytest.raises(MalformedInput, match=message):
        Crl.parse(data)


@given(st.binary(max_size=300))
def test_random_bytes_are_never_anything_but_malformed(data: bytes) -> None:
    for reader in (Certificate.parse, Crl.parse, load, load_all):
        with pytest.raises(MalformedInput):
            reader(data)


@given(st.data())
def test_mutated_certificates_and_lists_raise_nothing_else(data: st.DataObject) -> None:
    base = data.draw(st.sampled_from([LEAF, WORLD.leaf("vlek"), WORLD.authority("ask"), CRL]))
    mutated = bytearray(base)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(mutated) - 1))
        kind = data.draw(st.integers(0, 3))
        if kind == 0:
            mutated[at] ^= 1 << data.draw(st.integers(0, 7))
        elif kind == 1:
            mutated[at : at + 8] = b"\xff" * 8
        elif kind == 2:
            mutated[at : at + 1] = data.draw(st.binary(max_size=5))
        else:
            del mutated[at : at + data.draw(st.integers(1, 40))]
        if not mutated:
            break
    try:
        certificates, lists = load_all(bytes(mutated))
        for certificate in certificates:
            certificate.public_key()
            assert certificate.tcb_version() is None or certificate.product is not None
        assert certificates or lists
    except SevError as error:
        assert type(error) is MalformedInput  # noqa: PT017
