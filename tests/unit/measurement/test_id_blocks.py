"""ID blocks: records, signing, checking, keys from files."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives import serialization as forms
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st

from sev.abi.id_block import (
    IdAuth,
    IdBlock,
    decode_key,
    decode_signature,
    encode_key,
    encode_signature,
    key_digest,
)
from sev.errors import MalformedInput, SevError, UsageError
from sev.measurement.id_block import (
    BadIdSignature,
    authenticate,
    load_private_key,
    load_public_key,
    public_digest,
    public_record,
    verify,
)

KEY, AUTHOR = ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP384R1())
BLOCK = IdBlock(bytes(range(48)), family_id=b"f" * 16, image_id=b"i" * 16, guest_svn=7, policy=0x3001F)
AUTH = authenticate(BLOCK, KEY, AUTHOR)


def test_fields_lie_where_they_should() -> None:
    data = BLOCK.encode()
    assert len(data) == 96
    assert (data[:48], data[0x30:0x40], data[0x40:0x50]) == (bytes(range(48)), b"f" * 16, b"i" * 16)
    assert data[0x50:] == b"\x01\0\0\0" + b"\x07\0\0\0" + b"\x1f\0\x03\0\0\0\0\0"
    assert IdBlock.decode(data) == BLOCK
    assert hash(IdBlock.decode(data)) == hash(BLOCK)
    assert IdBlock(bytes(48)) != BLOCK


def test_both_signatures_verify() -> None:
    verify(BLOCK, AUTH)
    verify(BLOCK, IdAuth.decode(AUTH.encode()))
    assert AUTH.has_author
    assert AUTH.id_key == public_record(KEY.public_key())
    assert key_digest(AUTH.author_key) == public_digest(AUTHOR.public_key())


def test_without_an_author() -> None:
    auth = authenticate(BLOCK, KEY)
    assert not auth.has_author
    verify(BLOCK, auth)
    assert auth.encode()[0x680:] == bytes(4096 - 0x680)


def _with(change: Callable[[IdAuth], None]) -> IdAuth:
    auth = IdAuth.decode(AUTH.encode())
    change(auth)
    return auth


def _set(name: str, value: object) -> Callable[[IdAuth], None]:
    return lambda auth: setattr(auth, name, value)


BAD: dict[str, tuple[IdBlock, IdAuth]] = {
    "another block": (IdBlock(bytes(48)), AUTH),
    "another policy": (IdBlock(BLOCK.launch_digest, family_id=b"f" * 16, image_id=b"i" * 16, guest_svn=7), AUTH),
    "algorithm of the ID key": (BLOCK, _with(_set("id_key_algorithm", 0))),
    "algorithm of the author key": (BLOCK, _with(_set("author_key_algorithm", 2))),
    "another ID key": (BLOCK, _with(_set("id_key", public_record(AUTHOR.public_key())))),
    "another author key": (BLOCK, _with(_set("author_key", public_record(KEY.public_key())))),
    "point not on the curve": (BLOCK, _with(_set("id_key", encode_key(1, 1)))),
    "point of zeros": (BLOCK, _with(_set("id_key", encode_key(0, 0)))),
    "signature of zeros": (BLOCK, _with(_set("block_signature", bytes(512)))),
    "signatures swapped": (BLOCK, _with(_set("block_signature", AUTH.id_key_signature))),
}


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_verify(name: str) -> None:
    block, auth = BAD[name]
    with pytest.raises(BadIdSignature):
        verify(block, auth)


MALFORMED: dict[str, Callable[[], object]] = {
    "short block": lambda: IdBlock.decode(bytes(95)),
    "long block": lambda: IdBlock.decode(bytes(97)),
    "short page": lambda: IdAuth.decode(bytes(4095)),
    "short digest": lambda: IdBlock(bytes(47)),
    "short family id": lambda: IdBlock(bytes(48), family_id=b""),
    "long image id": lambda: IdBlock(bytes(48), image_id=bytes(17)),
    "short key": lambda: decode_key(bytes(1027)),
    "curve 0": lambda: decode_key(bytes(1028)),
    "curve 1": lambda: decode_key(b"\x01" + bytes(1027)),
    "coordinate of 72 bytes": lambda: decode_key(b"\x02\0\0\0" + b"\xff" * 72 + bytes(952)),
    "short signature": lambda: decode_signature(bytes(511)),
    "half of 72 bytes": lambda: decode_signature(bytes(72) + b"\xff" * 72 + bytes(368)),
    "digest of a short key": lambda: key_digest(b""),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_records(name: str) -> None:
    with pytest.raises(MalformedInput):
        MALFORMED[name]()


def _meaning(auth: IdAuth) -> tuple[object, ...]:
    """What the firmware looks at: not the reserved bytes, nor those behind a number."""
    author = (auth.author_key_algorithm, decode_key(auth.author_key), decode_signature(auth.id_key_signature))
    return auth.id_key_algorithm, auth.id_key, decode_signature(auth.block_signature), *author


@given(st.integers(0, 4095), st.binary(min_size=1, max_size=100), st.sampled_from([AUTH.encode(), bytes(4096)]))
def test_changed_pages_are_refused_or_mean_the_same(at: int, data: bytes, page: bytes) -> None:
    auth = IdAuth.decode((page[:at] + data + page[at + len(data) :])[:4096])
    try:
        verify(BLOCK, auth)
    except (BadIdSignature, MalformedInput):
        return
    if _meaning(auth) != _meaning(AUTH):
        pytest.fail(f"bytes at {at:#x} change the page and it still verifies")


@given(st.binary(min_size=96, max_size=96))
def test_every_block_reads_back(data: bytes) -> None:
    assert IdBlock.decode(data).encode() == data


@given(st.integers(0, 2**384 - 1), st.integers(0, 2**384 - 1))
def test_numbers_read_back(one: int, two: int) -> None:
    assert decode_key(encode_key(one, two)) == (one, two)
    assert decode_signature(encode_signature(one, two)) == (one, two)


SEC1 = forms.PrivateFormat.TraditionalOpenSSL


def _file(
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey,
    form: forms.PrivateFormat = forms.PrivateFormat.PKCS8,
    encoding: forms.Encoding = forms.Encoding.PEM,
) -> bytes:
    return key.private_bytes(encoding, form, forms.NoEncryption())


PARAMETERS = b"-----BEGIN EC PARAMETERS-----\nBgUrgQQAIg==\n-----END EC PARAMETERS-----\n"
"""What `openssl ecparam -genkey` writes before the key."""


@pytest.mark.parametrize(
    "data",
    [
        _file(KEY),
        _file(KEY, SEC1),
        _file(KEY, encoding=forms.Encoding.DER),
        _file(KEY, SEC1, forms.Encoding.DER),
        PARAMETERS + _file(KEY, SEC1),
    ],
    ids=["pkcs8 pem", "sec1 pem", "pkcs8 der", "sec1 der", "parameters first"],
)
def test_private_keys_in_every_form(data: bytes) -> None:
    assert load_private_key(data).private_numbers() == KEY.private_numbers()
    assert public_digest(load_public_key(data)) == public_digest(KEY.public_key())


@pytest.mark.parametrize("encoding", [forms.Encoding.PEM, forms.Encoding.DER])
def test_public_keys(encoding: forms.Encoding) -> None:
    data = KEY.public_key().public_bytes(encoding, forms.PublicFormat.SubjectPublicKeyInfo)
    assert public_digest(load_public_key(data)) == public_digest(KEY.public_key())
    with pytest.raises(MalformedInput, match="not a private key"):
        load_private_key(data)


def test_encrypted_keys_are_refused_with_what_to_do() -> None:
    data = KEY.private_bytes(
        forms.Encoding.PEM, forms.PrivateFormat.PKCS8, forms.BestAvailableEncryption(b"secret word")
    )
    for load in (load_private_key, load_public_key):
        with pytest.raises(UsageError, match="encrypted") as caught:
            load(data)
        assert "openssl pkey" in caught.value.remedy


@pytest.mark.parametrize(
    "data",
    [_file(ec.generate_private_key(ec.SECP256R1())), _file(rsa.generate_private_key(65537, 2048))],
    ids=["P-256", "RSA"],
)
def test_other_keys_are_refused(data: bytes) -> None:
    for load in (load_private_key, load_public_key):
        with pytest.raises(UsageError, match="P-384"):
            load(data)


@given(st.binary(max_size=300) | st.binary(max_size=300).map(lambda data: b"-----BEGIN EC PRIVATE KEY-----\n" + data))
def test_arbitrary_files_are_no_keys(data: bytes) -> None:
    for load in (load_private_key, load_public_key):
        with pytest.raises(SevError):
            load(data)
