"""The files of the remote listener: read whole, checked together, and only then used.

What is checked: the key is its owner's alone and fits the certificate; the certificate is for servers and valid now;
every client authority is one (basic constraints); every revocation list is signed by one of them and current. What is
read is what is used: OpenSSL gets the bytes that were checked, not the paths.

Files that are only too old never replace others. A start takes them, with a warning: nobody gets in by them (clients
do not trust an expired certificate, and an old list refuses everybody), and the local sockets must not suffer for it.
"""

from __future__ import annotations

import os
import ssl
import stat
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from sev.errors import UsageError
from sev.records import record

FILE_BYTES = 1 << 20
"""Largest certificate, key or bundle of authorities."""

CRL_BYTES = 16 << 20
"""Largest file of revocation lists."""

CREDENTIAL = "sevd-tls.key"
"""The name of systemd's credential that is the key where no path is configured."""

_AUTHORITIES = 256


@record
class TlsFiles:
    """Where they are.

    Attributes:
        certificate: The daemon's certificate and those between it and its authority, PEM.
        key: Its private key, PEM.
        client_ca: The authorities whose certificates clients have, PEM.
        crl: Their revocation lists, PEM; None: none is asked for.
        credentials: The directory of systemd's credentials, which only the service can enter; None: none.
    """

    certificate: Path
    key: Path
    client_ca: Path
    crl: Path | None = None
    credentials: Path | None = None

    def stamp(self) -> tuple[object, ...]:
        """Something that is another one when one of the files was replaced or written."""
        out: list[object] = []
        for path in (self.certificate, self.key, self.client_ca, self.crl):
            if path is None:
                continue
            try:
                found = os.stat(path)
            except OSError as error:
                out.append(error.errno)
            else:
                out.append((found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns))
        return tuple(out)


@record
class Credentials:
    """What handshakes use.

    Attributes:
        context: For OpenSSL.
        certificate: The daemon's own certificate.
        authorities: Whose certificates clients have.
        lists: Revocation lists.
        stamp: That of the files, from before they were read: what changed meanwhile is seen as a change.
        stale: What is out of date, in sentences.
    """

    context: ssl.SSLContext
    certificate: x509.Certificate
    authorities: tuple[x509.Certificate, ...]
    lists: tuple[x509.CertificateRevocationList, ...]
    stamp: tuple[object, ...]
    stale: tuple[str, ...] = ()

    def warnings(self) -> list[str]:
        """What an administrator should know, in sentences."""
        out = list(self.stale)
        if self.lists:
            listed = {one.issuer for one in self.lists}
            for authority in self.authorities:
                if authority.subject not in listed:
                    out.append(
                        f"remote.crl has no list of {authority.subject.rfc4514_string()}: "
                        "certificates that it issued itself are refused"
                    )
        return out

    def ending(self, now: datetime | None = None) -> list[str]:
        """What is in the last tenth of its life, or past it, in sentences."""
        now = now or datetime.now(UTC)
        own = self.certificate
        found = [("the certificate for remote callers ends", own.not_valid_before_utc, own.not_valid_after_utc)]
        for one in self.lists:
            if one.next_update_utc is not None:
                what = f"the revocation list of {one.issuer.rfc4514_string()} must be renewed"
                found.append((what, one.last_update_utc, one.next_update_utc))
        return [f"{what} by {_day(end)}" for what, begin, end in found if now >= end - (end - begin) / 10]


def files_of(paths: Mapping[str, Path | None], environ: Mapping[str, str]) -> TlsFiles:
    """The files of a configuration: `paths` by name ("certificate", "key", "client_ca", "crl").

    Raises:
        UsageError: One that is needed is not named.
    """
    directory = environ.get("CREDENTIALS_DIRECTORY")
    credentials = Path(directory) if directory else None
    key = paths.get("key")
    if key is None and credentials is not None and (credentials / CREDENTIAL).exists():
        key = credentials / CREDENTIAL
    certificate, client_ca = paths.get("certificate"), paths.get("client_ca")
    for name, path in (("certificate", certificate), ("key", key), ("client_ca", client_ca)):
        if path is None:
            raise UsageError(
                f"remote.{name} is not set, and remote callers are to be served",
                field=f"remote.{name}",
                remedy="Set remote.certificate, remote.key and remote.client_ca, or disable sevd-mtls.socket and "
                "remote.listen.",
            )
    assert certificate is not None
    assert key is not None
    assert client_ca is not None
    return TlsFiles(certificate, key, client_ca, paths.get("crl"), credentials)


def load(files: TlsFiles, *, now: datetime | None = None, stale: bool = False) -> Credentials:
    """Reads and checks everything; with `stale` also takes what is out of date.

    Raises:
        UsageError: A file cannot be read or used; `field` is its setting, such as "remote.key".
    """
    now = now or datetime.now(UTC)
    stamp = files.stamp()
    chain = _read("certificate", files.certificate, FILE_BYTES)
    key = _read("key", files.key, FILE_BYTES, secret=True, credentials=files.credentials)
    bundle = _read("client_ca", files.client_ca, FILE_BYTES)
    certificates = _certificates("certificate", files.certificate, chain)
    authorities = _certificates("client_ca", files.client_ca, bundle)
    crl = None if files.crl is None else _read("crl", files.crl, CRL_BYTES)
    lists = () if crl is None or files.crl is None else _lists(files.crl, crl, authorities)
    _check_server(files.certificate, certificates[0])
    _check_authorities(files.client_ca, authorities)
    old = [*_old_certificates(files, certificates[0], authorities, now), *_old_lists(files, lists, now)]
    if old and not stale:
        raise old[0]
    context = _context()
    with ExitStack() as stack:
        _load(context, files, _held(stack, chain), _held(stack, key))
        try:
            context.load_verify_locations(_held(stack, bundle))
            if crl is not None:
                context.load_verify_locations(_held(stack, crl))
                context.verify_flags |= ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF
        except (ssl.SSLError, OSError) as error:
            raise _bad("client_ca", files.client_ca, f"OpenSSL does not take it: {error}") from None
    return Credentials(context, certificates[0], authorities, lists, stamp, tuple(one.message for one in old))


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    # What is configured is what is trusted, also where it is no root.
    context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    # Every connection shows its certificate: none is taken up again without.
    context.num_tickets = 0
    context.set_alpn_protocols(["h2"])
    return context


def _load(context: ssl.SSLContext, files: TlsFiles, chain: str, key: str) -> None:
    def no_password() -> str:
        raise UsageError(
            f"remote.key: {files.key} is encrypted",
            field="remote.key",
            remedy="Decrypt it, and keep it with mode 0600 or as a credential of systemd.",
        )

    try:
        context.load_cert_chain(chain, key, password=no_password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise _bad("key", files.key, f"it is not the key of {files.certificate}") from None
        # OpenSSL's words for a key that it cannot read hold nothing of the key.
        raise _bad(
            "key", files.key, f"no certificate and key that go together: {error.reason or 'unreadable'}"
        ) from None


def _check_server(path: Path, own: x509.Certificate) -> None:
    try:
        usage = own.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except (x509.ExtensionNotFound, ValueError):
        return
    if ExtendedKeyUsageOID.SERVER_AUTH not in usage:
        raise _bad("certificate", path, "it is not for servers: its extended key usage has no serverAuth")


def _old_certificates(
    files: TlsFiles, own: x509.Certificate, authorities: tuple[x509.Certificate, ...], now: datetime
) -> Iterator[UsageError]:
    if now >= own.not_valid_after_utc:
        yield _bad("certificate", files.certificate, f"it expired on {_day(own.not_valid_after_utc)}")
    if now < own.not_valid_before_utc:
        yield _bad("certificate", files.certificate, f"it is valid from {_day(own.not_valid_before_utc)} on")
    if all(now >= one.not_valid_after_utc for one in authorities):
        yield _bad("client_ca", files.client_ca, "every authority in it has expired")


def _old_lists(
    files: TlsFiles, lists: tuple[x509.CertificateRevocationList, ...], now: datetime
) -> Iterator[UsageError]:
    for one in lists:
        assert files.crl is not None
        name = one.issuer.rfc4514_string()
        if one.next_update_utc is not None and now >= one.next_update_utc:
            yield _bad("crl", files.crl, f"the list of {name} is out of date since {_day(one.next_update_utc)}")
        if now < one.last_update_utc:
            yield _bad("crl", files.crl, f"the list of {name} holds from {_day(one.last_update_utc)} on")


def _day(when: datetime) -> str:
    return f"{when:%Y-%m-%d %H:%M} UTC"


def _check_authorities(path: Path, authorities: tuple[x509.Certificate, ...]) -> None:
    for one in authorities:
        name = one.subject.rfc4514_string()
        try:
            is_authority = one.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        except (x509.ExtensionNotFound, ValueError):
            is_authority = False
        if not is_authority:
            raise _bad("client_ca", path, f"{name} is no certificate of an authority (basic constraints: CA)")


def _lists(
    path: Path, data: bytes, authorities: tuple[x509.Certificate, ...]
) -> tuple[x509.CertificateRevocationList, ...]:
    end = b"-----END X509 CRL-----"
    pieces = [piece + end for piece in data.split(end)[:-1]]
    try:
        lists = tuple(x509.load_pem_x509_crl(piece) for piece in pieces)
    except ValueError as error:
        raise _bad("crl", path, f"no revocation list in PEM: {str(error)[:200]}") from None
    if not lists:
        raise _bad("crl", path, "it holds no revocation list in PEM")
    for one in lists:
        name = one.issuer.rfc4514_string()
        signers = [by for by in authorities if by.subject == one.issuer]
        if signers and not any(_signed(one, by) for by in signers):
            raise _bad("crl", path, f"the list of {name} is not signed by the authority of this name")
    return lists


def _signed(one: x509.CertificateRevocationList, by: x509.Certificate) -> bool:
    try:
        return one.is_signature_valid(by.public_key())  # type: ignore[arg-type]  # of other keys: TypeError
    except (TypeError, ValueError):
        return False


def _certificates(name: str, path: Path, data: bytes) -> tuple[x509.Certificate, ...]:
    try:
        found = tuple(x509.load_pem_x509_certificates(data))
    except ValueError:
        raise _bad(name, path, "it holds no certificate in PEM") from None
    if len(found) > _AUTHORITIES:
        raise _bad(name, path, f"{len(found)} certificates, expected at most {_AUTHORITIES}")
    return found


def _read(name: str, path: Path, limit: int, *, secret: bool = False, credentials: Path | None = None) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise _bad(name, path, "it is no regular file")
            if secret:
                _check_private(path, found, credentials)
            _check_owner(name, path, found)
            data = file.read(limit + 1)
    except OSError as error:
        raise _bad(name, path, os.strerror(error.errno or 0)) from None
    if len(data) > limit:
        raise _bad(name, path, f"it is larger than {limit} bytes")
    return data


def _check_owner(name: str, path: Path, found: os.stat_result) -> None:
    """Who can write any of them decides who gets in."""
    if found.st_uid not in (0, os.geteuid()):
        raise _bad(name, path, f"it belongs to uid {found.st_uid}", "It must be root's or the daemon's own.")
    if found.st_mode & 0o022:
        mode = stat.S_IMODE(found.st_mode)
        raise _bad(name, path, f"others than its owner may write it (mode {mode:04o})", f"chmod go-w {path}")


def _check_private(path: Path, found: os.stat_result, credentials: Path | None) -> None:
    # For a service with User= systemd gives access by an ACL, whose mask shows as the group's bits.
    others = 0o037 if credentials is not None and path.parent == credentials else 0o077
    if found.st_mode & others:
        mode = stat.S_IMODE(found.st_mode)
        raise _bad("key", path, f"others than its owner may use it (mode {mode:04o})", f"chmod 600 {path}")


def _held(stack: ExitStack, data: bytes) -> str:
    """A path under which OpenSSL finds these bytes, and nobody else."""
    descriptor = os.memfd_create("tls", os.MFD_CLOEXEC)
    stack.callback(os.close, descriptor)
    with open(descriptor, "wb", closefd=False) as file:
        file.write(data)
    return f"/proc/self/fd/{descriptor}"


def _bad(name: str, path: Path, why: str, remedy: str = "") -> UsageError:
    return UsageError(f"remote.{name}: {path}: {why}", field=f"remote.{name}", remedy=remedy)
