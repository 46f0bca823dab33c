"""The certificate of a remote caller: what it says, and who it was issued by.

Nothing here decides whether a certificate is genuine: the TLS handshake has verified it, or says that it is not. The
names in it that identify a caller are its URIs (a SPIFFE id is one) and DNS names, in the order in which they stand;
its subject is for people.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.x509.oid import ExtendedKeyUsageOID

from sev.errors import MalformedInput
from sev.records import record

CERTIFICATES = 8
"""Most certificates of a chain that are looked at."""

NAMES = 64
"""Most names of one certificate."""

NAME_CHARACTERS = 2048
"""Longest name; longer ones identify nobody."""

SUBJECT_CHARACTERS = 256
"""What of a subject is shown."""

_UNREADABLE = (
    ValueError,
    TypeError,
    OverflowError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)


@record
class ClientCertificate:
    """What is used of a certificate.

    Attributes:
        subject: Its subject (RFC 4514), cut to SUBJECT_CHARACTERS.
        serial: Its serial number.
        names: "uri:…" and "dns:…" of its subject alternative names, in order; DNS names in lower case.
        not_after: Until when it is valid.
        for_clients: Its extended key usage has clientAuth.
        chain: It and what was sent with it, parsed, itself first.
    """

    subject: str
    serial: int
    names: tuple[str, ...]
    not_after: datetime
    for_clients: bool
    chain: tuple[x509.Certificate, ...]

    def expired(self, now: datetime | None = None) -> bool:
        """Whether it is not valid any more."""
        return (now or datetime.now(UTC)) >= self.not_after

    def anchored(self, authorities: Iterable[x509.Certificate], now: datetime | None = None) -> bool:
        """Whether its chain, verified once, still ends at one of these authorities."""
        now = now or datetime.now(UTC)
        anchors = [one for one in authorities if one.not_valid_before_utc <= now < one.not_valid_after_utc]
        current = self.chain[0]
        for _ in range(CERTIFICATES):
            if any(issued(current, by) for by in anchors):
                return True
            above = next((one for one in self.chain[1:] if one is not current and issued(current, one)), None)
            if above is None or above.not_valid_after_utc <= now:
                return False
            if above in anchors:
                return True
            current = above
        return False

    def revoked(self, lists: Iterable[x509.CertificateRevocationList]) -> bool:
        """Whether one of these lists, of its issuer, has it."""
        leaf = self.chain[0]
        return any(
            each.issuer == leaf.issuer and each.get_revoked_certificate_by_serial_number(leaf.serial_number) is not None
            for each in lists
        )

    def facts(self) -> dict[str, object]:
        """What an audit record says of it."""
        return {
            "subject": self.subject,
            "names": list(self.names[:8]),
            "serial": f"{self.serial:x}",
            "not_after": self.not_after.isoformat().replace("+00:00", "Z"),
        }


def read(chain: Sequence[bytes]) -> ClientCertificate:
    """A chain in DER, the caller's own first.

    Raises:
        MalformedInput: There is none, or the first is no certificate that can be read.
    """
    if not chain:
        raise MalformedInput("there is no certificate")
    try:
        leaf = _parsed(chain[0])
        return ClientCertificate(
            subject=_printable(leaf.subject.rfc4514_string())[:SUBJECT_CHARACTERS],
            serial=leaf.serial_number,
            names=tuple(_names(leaf)),
            not_after=leaf.not_valid_after_utc,
            for_clients=_for_clients(leaf),
            chain=(leaf, *_readable(chain[1:CERTIFICATES])),
        )
    except _UNREADABLE as error:
        raise MalformedInput(f"the certificate cannot be read: {str(error)[:200]}") from None


def issued(certificate: x509.Certificate, by: x509.Certificate) -> bool:
    """Whether this certificate carries the signature of that one."""
    if certificate.issuer != by.subject:
        return False
    try:
        certificate.verify_directly_issued_by(by)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def chain_of(message: bytes) -> tuple[bytes, ...]:
    """The certificates in a handshake message Certificate of TLS 1.3, header included (RFC 8446, 4 and 4.4.2), in DER.

    Nothing where the message is not of that form.
    """
    if len(message) < 8 or message[0] != 11:
        return ()
    offset = 5 + message[4]  # the certificate_request_context
    end = offset + 3 + int.from_bytes(message[offset : offset + 3])
    offset += 3
    if end != len(message):
        return ()
    out: list[bytes] = []
    while offset + 3 <= end and len(out) < CERTIFICATES:
        size = int.from_bytes(message[offset : offset + 3])
        offset += 3
        der = message[offset : offset + size]
        offset += size
        extensions = message[offset : offset + 2]
        if not size or len(der) != size or len(extensions) != 2:
            return ()
        out.append(der)
        offset += 2 + int.from_bytes(extensions)
    return tuple(out)


def _parsed(der: bytes) -> x509.Certificate:
    found = x509.load_der_x509_certificate(der)
    _ = found.subject, found.issuer  # read when first asked for, and perhaps not readable
    return found


def _readable(ders: Iterable[bytes]) -> Iterable[x509.Certificate]:
    """Those that can be read: what else a client sends along is its own affair."""
    for der in ders:
        with contextlib.suppress(*_UNREADABLE):
            yield _parsed(der)


def _names(leaf: x509.Certificate) -> Iterable[str]:
    try:
        found = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return
    count = 0
    for name in found:
        if isinstance(name, x509.UniformResourceIdentifier):
            text = f"uri:{name.value}"
        elif isinstance(name, x509.DNSName):
            text = f"dns:{name.value.lower().removesuffix('.')}"
        else:
            continue
        count += 1
        if count > NAMES:
            raise ValueError(f"more than {NAMES} names")
        if len(text) <= NAME_CHARACTERS and text.isascii() and text.isprintable():
            yield text


def _for_clients(leaf: x509.Certificate) -> bool:
    try:
        usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return False
    return ExtendedKeyUsageOID.CLIENT_AUTH in usage


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
