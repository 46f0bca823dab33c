"""TLS keys and certificates of the simulator's HTTPS service: an authority of its own, kept; a server's and a client's.

    ca.pem  ca.key          the authority, for as long as the simulated chip lives: what clients are told to trust
    server.pem  server.key  for 127.0.0.1, ::1, localhost and kdsintf.amd.com
    provider.pem            certificate and key of a cloud provider, for what the KDS gives to providers only

Nothing of AMD's is signed with these keys. Private keys are readable by their owner only.
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from sev.records import record
from sevd.simulator import store

DNS_NAMES = ("localhost", "kdsintf.amd.com")
ADDRESSES = ("127.0.0.1", "::1")

CA_DAYS, LEAF_DAYS = 25 * 365, 397
"""Validity. Leaves live no longer than what clients of the web accept."""

RENEW = timedelta(days=30)
"""Leaves with less than this left are made anew when the service starts."""

_ORGANISATION = "sevd simulator"


@record
class TlsMaterial:
    """What an HTTPS service needs.

    Attributes:
        ca: The authority's certificate, PEM.
        certificate: File with the server's certificate, PEM.
        key: File with its key, PEM.
        authority: File with the authority's certificate, PEM.
        provider: File with a provider's certificate and key, PEM, for its client.
    """

    ca: bytes
    certificate: Path
    key: Path
    authority: Path
    provider: Path


def open_material(directory: Path, clock: Callable[[], float] = time.time) -> TlsMaterial:
    """The material kept in a directory; what is not there, or about to run out, is made.

    Raises:
        CorruptState: A file is damaged.
        NotStored: It cannot be kept.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    now = datetime.fromtimestamp(int(clock()), UTC)
    material = TlsMaterial(
        b"", directory / "server.pem", directory / "server.key", directory / "ca.pem", directory / "provider.pem"
    )
    if not material.authority.exists():
        _make_authority(directory, now)
    authority = _certificate(material.authority)
    signer = _key(directory / "ca.key", authority)
    if not (material.key.exists() and _lasts(material.certificate, authority, now)):
        key = ec.generate_private_key(ec.SECP256R1())
        names: list[x509.GeneralName] = [x509.DNSName(name) for name in DNS_NAMES]
        names += [x509.IPAddress(ipaddress.ip_address(address)) for address in ADDRESSES]
        leaf = _leaf("kdsintf.amd.com", key, authority, signer, now, ExtendedKeyUsageOID.SERVER_AUTH, names)
        # The key goes first: a certificate that is there has its key.
        store.write(material.key, _private(key), secret=True)
        store.write(material.certificate, leaf.public_bytes(Encoding.PEM))
    else:
        _key(material.key, _certificate(material.certificate))
    if not _lasts(material.provider, authority, now):
        key = ec.generate_private_key(ec.SECP256R1())
        names = [x509.DNSName("provider.sevd-simulator.invalid")]
        leaf = _leaf("provider", key, authority, signer, now, ExtendedKeyUsageOID.CLIENT_AUTH, names)
        store.write(material.provider, leaf.public_bytes(Encoding.PEM) + _private(key), secret=True)
    ca = authority.public_bytes(Encoding.PEM)
    return TlsMaterial(ca, material.certificate, material.key, material.authority, material.provider)


def _make_authority(directory: Path, now: datetime) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("sevd simulator KDS authority")
    usage = x509.KeyUsage(
        digital_signature=False, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=CA_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    store.write(directory / "ca.key", _private(key), secret=True)
    store.write(directory / "ca.pem", certificate.public_bytes(Encoding.PEM))


def _leaf(
    common_name: str,
    key: ec.EllipticCurvePrivateKey,
    authority: x509.Certificate,
    signer: ec.EllipticCurvePrivateKey,
    now: datetime,
    purpose: x509.ObjectIdentifier,
    names: list[x509.GeneralName],
) -> x509.Certificate:
    identifier = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return (
        x509.CertificateBuilder()
        .subject_name(_name(common_name))
        .issuer_name(authority.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=LEAF_DAYS))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
        .sign(signer, hashes.SHA256())
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, _ORGANISATION),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(store.read(path))
    except ValueError:
        raise store.CorruptState(path, "this is no certificate") from None


def _key(path: Path, certificate: x509.Certificate) -> ec.EllipticCurvePrivateKey:
    try:
        key = load_pem_private_key(store.read(path), None)
    except (ValueError, TypeError):
        raise store.CorruptState(path, "this is no private key") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise store.CorruptState(path, "this key does not belong to its certificate")
    return key


def _lasts(path: Path, authority: x509.Certificate, now: datetime) -> bool:
    """Whether a certificate is there, is of this authority, and has time left."""
    if not path.exists():
        return False
    certificate = _certificate(path)
    try:
        certificate.verify_directly_issued_by(authority)
    except Exception:  # whatever is wrong with it, a new one is made
        return False
    return certificate.not_valid_after_utc - now > RENEW
