"""What files hold: certificates and revocation lists in DER, in PEM, one or several, with or without text around.

PEM as RFC 7468 has it, both line ends; only the labels CERTIFICATE and X509 CRL are read, others are refused rather
than skipped, because a private key in such a file is a mistake worth stopping for.
"""

from __future__ import annotations

from binascii import Error, a2b_base64
from functools import lru_cache

from sev.certs import der
from sev.certs.crl import Crl
from sev.certs.x509 import Certificate
from sev.errors import MalformedInput

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_SIZE = 2 << 20
MAX_OBJECTS = 64
"""Limits of one file: bytes, and certificates and lists in it."""

_BEGIN, _END, _DASHES = b"-----BEGIN ", b"-----END ", b"-----"
_LABELS = {b"CERTIFICATE": "certificate", b"X509 CRL": "crl"}


def load(data: bytes) -> list[Certificate]:
    """The certificates in DER or PEM, in order; at least one.

    Raises:
        MalformedInput: None in there, something else in there, or one of them is malformed.
    """
    return list(load_certificates(data))


def load_certificates(data: bytes) -> tuple[Certificate, ...]:
    """As `load`, as a tuple."""
    certificates, crls = load_all(data)
    if crls or not certificates:
        raise MalformedInput("expected certificates, found " + ("a revocation list" if crls else "none"))
    return certificates


def load_crls(data: bytes) -> list[Crl]:
    """The revocation lists in DER or PEM, in order; at least one.

    Raises:
        MalformedInput: None in there, something else in there, or one of them is malformed.
    """
    certificates, crls = load_all(data)
    if certificates or not crls:
        raise MalformedInput("expected a revocation list, found " + ("certificates" if certificates else "none"))
    return list(crls)


@lru_cache(maxsize=256)
def load_all(data: bytes) -> tuple[tuple[Certificate, ...], tuple[Crl, ...]]:
    """The certificates and the revocation lists in DER or PEM, each in order.

    Raises:
        MalformedInput: Neither form, more than 64 objects, more than 2 MiB, or one of the objects is malformed.
    """
    if len(data) > MAX_SIZE:
        raise MalformedInput(f"{len(data)} bytes, expected at most {MAX_SIZE} of certificates and lists")
    # Text has no zero bytes; DER of a certificate always has some.
    objects = _blocks(data) if _BEGIN in data and 0 not in data else _sequences(data)
    certificates: list[Certificate] = []
    crls: list[Crl] = []
    for count, (kind, content) in enumerate(objects):
        if count == MAX_OBJECTS:
            raise MalformedInput(f"more than {MAX_OBJECTS} certificates and lists")
        if kind == "crl":
            crls.append(Crl.parse(content))
        else:
            certificates.append(Certificate.parse(content))
    return tuple(certificates), tuple(crls)


def _sequences(data: bytes) -> Iterator[tuple[str, bytes]]:
    at = 0
    while at < len(data) or at == 0:
        start, end = der.expect(data, at, len(data), der.SEQUENCE, "certificate or list")
        yield _kind(data, start, end), data[at:end]
        at = end


def _kind(data: bytes, at: int, end: int) -> str:
    """A certificate's signed part starts with [0] version, a list's with INTEGER version."""
    inner, inner_end = der.expect(data, at, end, der.SEQUENCE, "signed part")
    tag, _, _ = der.element(data, inner, inner_end, "version")
    return "crl" if tag == der.INTEGER else "certificate"


def _blocks(data: bytes) -> Iterator[tuple[str, bytes]]:
    at = data.find(_BEGIN)
    while at >= 0:
        head = data.find(_DASHES, at + len(_BEGIN))
        label = data[at + len(_BEGIN) : max(head, 0)]
        if head < 0 or label not in _LABELS:
            raise MalformedInput(
                f"PEM at offset {at}: label {label[:32]!r}, expected CERTIFICATE or X509 CRL", field="pem"
            )
        body = head + len(_DASHES)
        closing = _END + label + _DASHES
        tail = data.find(closing, body)
        if tail < 0:
            raise MalformedInput(f"PEM at offset {at}: no END line", field="pem")
        yield _LABELS[label], _base64(data[body:tail], at)
        at = data.find(_BEGIN, tail + len(closing))


def _base64(text: bytes, at: int) -> bytes:
    try:
        return a2b_base64(text.translate(None, b" \t\r\n"), strict_mode=True)
    except Error as error:
        raise MalformedInput(f"PEM at offset {at}: not base64 ({error})", field="pem") from None
