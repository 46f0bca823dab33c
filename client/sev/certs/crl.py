"""Certificate revocation lists of AMD's root keys.

Source: RFC 5280, and the lists that AMD's KDS serves: version 2, signed by the ARK with RSASSA-PSS, one per product,
valid for about six weeks, naming serial numbers of authorities (ASK, ASVK). Leaf certificates all have serial 0, so a
list cannot name one of them. Delta lists and lists of an indirect issuer are refused: their extensions are critical.
"""

from __future__ import annotations

from functools import lru_cache

from sev.certs import der, names, signatures
from sev.certs.extensions import authority_key_id, sequence
from sev.errors import MalformedInput

TYPE_CHECKING = False
if TYPE_CHECKING:
    from datetime import datetime

MAX_SIZE = 1 << 20
"""Larger lists are refused, in bytes; real ones have under 1000."""

_NUMBER = b"\x55\x1d\x14"
_AUTHORITY_KEY_ID = b"\x55\x1d\x23"
_HARMLESS_ENTRY = (b"\x55\x1d\x15", b"\x55\x1d\x18")
"""reasonCode and invalidityDate of an entry: they explain, they change nothing."""


class Crl:
    """One revocation list, read once; immutable in use. Equal if the DER is.

    Attributes:
        der: The whole list.
        tbs: The signed part.
        signature: The signature, big-endian.
        issuer: DER of the issuer's name.
        issuer_cn: Its common name.
        this_update, next_update: The window in which the list speaks, in UTC.
        revoked: Serial number to revocation time.
        number: CRL number, if it has one.
        authority_key_id: Key identifier of the issuer, if it names one.
    """

    __slots__ = (
        "_hash", "authority_key_id", "der", "issuer", "issuer_cn", "issuer_text", "next_update", "number", "revoked",
        "signature", "tbs", "this_update",
    )  # fmt: skip

    der: bytes
    tbs: bytes
    signature: bytes
    issuer: bytes
    issuer_cn: str
    issuer_text: str
    this_update: datetime
    next_update: datetime
    revoked: dict[int, datetime]
    number: int | None
    authority_key_id: bytes | None
    _hash: int

    @staticmethod
    def parse(data: bytes | bytearray | memoryview) -> Crl:
        """Reads one DER list. The last few that were read are remembered.

        Raises:
            MalformedInput: Not such a list; says which element, at which offset.
        """
        return _parse(bytes(data))

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Crl) and self.der == other.der)

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        return f"<Crl of {self.issuer_cn!r}, number {self.number}, {len(self.revoked)} revoked>"


@lru_cache(maxsize=16)
def _parse(data: bytes) -> Crl:
    size = len(data)
    if size > MAX_SIZE:
        raise MalformedInput(f"CRL: {size} bytes, expected at most {MAX_SIZE}", field="crl")
    start, end = der.expect(data, 0, size, der.SEQUENCE, "CRL")
    der.finish(end, size, "CRL")
    at, tbs_end = der.expect(data, start, end, der.SEQUENCE, "tbsCertList")
    out = Crl()
    out.der, out._hash = data, hash(data)
    out.tbs = data[start:tbs_end]
    version, at = der.integer(data, at, tbs_end, "version")
    if version != 1:
        raise MalformedInput(f"CRL version: {version + 1}, expected 2", field="version")
    algorithm, at = _slice(data, at, tbs_end, "signature")
    if algorithm not in signatures.ACCEPTED:
        raise MalformedInput("CRL signature: algorithm is not RSASSA-PSS with SHA-384 and salt 48", field="signature")
    out.issuer, at = _slice(data, at, tbs_end, "issuer")
    out.issuer_cn, out.issuer_text = names.parse(out.issuer, "issuer")
    out.this_update, at = der.time(data, at, tbs_end, "thisUpdate")
    out.next_update, at = der.time(data, at, tbs_end, "nextUpdate")
    out.revoked = {}
    out.number = out.authority_key_id = None
    if at < tbs_end and data[at] == der.SEQUENCE:
        at = _entries(out.revoked, data, at, tbs_end)
    if at < tbs_end:
        wrapper, wrapper_end = der.expect(data, at, tbs_end, 0xA0, "crlExtensions")
        der.finish(wrapper_end, tbs_end, "tbsCertList")
        _extensions(out, data, wrapper, wrapper_end)
    again, at = _slice(data, tbs_end, end, "signatureAlgorithm")
    if again != algorithm:
        raise MalformedInput("CRL signatureAlgorithm: differs from the algorithm in the signed part")
    out.signature, at = der.bit_string(data, at, end, "signatureValue")
    der.finish(at, end, "CRL")
    return out


def _slice(data: bytes, at: int, end: int, what: str) -> tuple[bytes, int]:
    _, stop = der.expect(data, at, end, der.SEQUENCE, what)
    return data[at:stop], stop


def _entries(revoked: dict[int, datetime], data: bytes, at: int, end: int) -> int:
    at, stop = der.expect(data, at, end, der.SEQUENCE, "revokedCertificates")
    while at < stop:
        inner, entry_end = der.expect(data, at, stop, der.SEQUENCE, "revoked certificate")
        serial, inner = der.integer(data, inner, entry_end, "userCertificate")
        when, inner = der.time(data, inner, entry_end, "revocationDate")
        if inner != entry_end:
            for oid, critical, _, _ in sequence(data, inner, entry_end):
                if critical and oid not in _HARMLESS_ENTRY:
                    raise MalformedInput(
                        f"CRL entry at offset {at}: critical extension {der.oid_text(oid)} not understood"
                    )
        revoked[serial] = when
        at = entry_end
    return stop


def _extensions(out: Crl, data: bytes, at: int, end: int) -> None:
    for oid, critical, start, stop in sequence(data, at, end):
        if oid == _NUMBER:
            out.number, after = der.integer(data, start, stop, "cRLNumber")
            der.finish(after, stop, "cRLNumber")
        elif oid == _AUTHORITY_KEY_ID:
            out.authority_key_id = authority_key_id(data, start, stop)
        elif critical:
            raise MalformedInput(f"CRL extension {der.oid_text(oid)}: critical and not understood", field="crl")
