"""Certificate authorities of the tests' own making, what they issue, and their revocation lists."""

from __future__ import annotations

import datetime
import ipaddress
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CLIENT = (ExtendedKeyUsageOID.CLIENT_AUTH,)
SERVER = (ExtendedKeyUsageOID.SERVER_AUTH,)
HOUR = 3600


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def key_pem(key: ec.EllipticCurvePrivateKey, password: bytes = b"") -> bytes:
    """A private key, encrypted if there is a password."""
    how: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if password:
        how = serialization.BestAvailableEncryption(password)
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, how)


@dataclass(frozen=True)
class Issued:
    """A certificate with its key, as objects and as PEM."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    chain: tuple[x509.Certificate, ...] = ()

    @property
    def pem(self) -> bytes:
        """The certificate, and those above it that are sent along."""
        return b"".join(one.public_bytes(serialization.Encoding.PEM) for one in (self.certificate, *self.chain))

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.DER)

    def write(self, folder: Path, stem: str) -> tuple[Path, Path]:
        """Writes STEM.pem and STEM.key (0600), each by a rename; their paths."""
        folder.mkdir(parents=True, exist_ok=True)
        return place(folder / f"{stem}.pem", self.pem), place(folder / f"{stem}.key", key_pem(self.key))


def place(path: Path, data: bytes, mode: int = 0o600) -> Path:
    """Puts a file in place in one step."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_bytes(data)
    os.chmod(temporary, mode)
    temporary.rename(path)
    return path


class Authority:
    """A certificate authority, a root or below another one."""

    def __init__(self, common: str, above: Authority | None = None, *, days: float = 30) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.above = above
        moment = now()
        issuer = above.certificate.subject if above else name(common)
        self.certificate: x509.Certificate = (
            x509.CertificateBuilder()
            .subject_name(name(common))
            .issuer_name(issuer)
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(moment - datetime.timedelta(days=31))
            .not_valid_after(moment + datetime.timedelta(days=days))
            .add_extension(x509.BasicConstraints(True, None), critical=True)
            .sign(above.key if above else self.key, hashes.SHA256())
        )

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def issue(
        self,
        common: str,
        *,
        uris: Iterable[str] = (),
        dns: Iterable[str] = (),
        ips: Iterable[str] = (),
        usage: tuple[x509.ObjectIdentifier, ...] | None = CLIENT,
        begins: float = -HOUR,
        ends: float = HOUR,
    ) -> Issued:
        """A leaf; `begins` and `ends` are seconds from now."""
        key = ec.generate_private_key(ec.SECP256R1())
        moment = now()
        builder = (
            x509.CertificateBuilder()
            .subject_name(name(common))
            .issuer_name(self.certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(moment + datetime.timedelta(seconds=begins))
            .not_valid_after(moment + datetime.timedelta(seconds=ends))
            .add_extension(x509.BasicConstraints(False, None), critical=True)
        )
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(one) for one in uris]
        names += [x509.DNSName(one) for one in dns]
        names += [x509.IPAddress(ipaddress.ip_address(one)) for one in ips]
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        if usage is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage(list(usage)), critical=False)
        chain = (self.certificate,) if self.above else ()
        return Issued(builder.sign(self.key, hashes.SHA256()), key, chain)

    def server(self, common: str = "sevd", *, begins: float = -HOUR, ends: float = HOUR) -> Issued:
        """A certificate for a daemon on this machine."""
        return self.issue(common, dns=["localhost"], ips=["127.0.0.1", "::1"], usage=SERVER, begins=begins, ends=ends)

    def crl(self, *revoked: Issued, begins: float = -HOUR, ends: float = HOUR) -> bytes:
        """A revocation list, PEM."""
        moment = now()
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(moment + datetime.timedelta(seconds=begins))
            .next_update(moment + datetime.timedelta(seconds=ends))
        )
        for one in revoked:
            entry = x509.RevokedCertificateBuilder().serial_number(one.certificate.serial_number)
            builder = builder.add_revoked_certificate(entry.revocation_date(moment).build())
        return builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
