"""Why a remote daemon does not answer: one connection of our own, to hear what gRPC does not tell.

gRPC says only that a connection failed. With TLS 1.3 a server refuses a client's certificate after the handshake looks
done from this side: the reason comes as an alert in place of the first answer, and a name that is not allowed as the
end of the connection.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import time

from sev.errors import NotPermitted, SevError, Unreachable, UsageError
from sev.target import ClientFiles, endpoint

SECONDS = 2.0
"""How long each step may take."""

CLOSED = 2
"""So many connections in a row that are closed at once are no daemon that stops."""

PAUSE_SECONDS = 0.2
"""Between them."""

_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))  # with empty SETTINGS (RFC 9113, 3.4)

_ALERTS = {
    "CERTIFICATE_REQUIRED": "it asks for a certificate and got none",
    "UNKNOWN_CA": "it does not know the authority of this certificate",
    "DECRYPT_ERROR": "its authority has not signed this certificate",
    "CERTIFICATE_EXPIRED": "this certificate, or one above it, has expired",
    "CERTIFICATE_REVOKED": "this certificate has been revoked",
    "UNSUPPORTED_CERTIFICATE": "this certificate is not for clients",
    "BAD_CERTIFICATE": "it does not accept this certificate; perhaps it is not valid yet",
    "CERTIFICATE_UNKNOWN": "it does not accept this certificate",
    "PROTOCOL_VERSION": "it asks for TLS 1.3",
    "NO_APPLICATION_PROTOCOL": "it does not serve HTTP/2 there",
}
_REMEDY = "The daemon's audit says why (on its host: sev audit --result refused), with the address and the certificate."


def refusal(address: str, files: ClientFiles) -> SevError | None:
    """What keeps a client with these files from a remote target, for good; None if nothing does, or waiting may help.

    Args:
        address: The target, `dns:HOST:PORT`.
        files: The client's.
    """
    host, port = endpoint(address)
    try:
        context = _context(files)
    except UsageError as error:
        return error
    for attempt in range(CLOSED):
        if attempt:
            time.sleep(PAUSE_SECONDS)
        try:
            plain = socket.create_connection((host, port), SECONDS)
        except OSError:
            return None
        with plain:
            try:
                if not _closed(plain, context, address, host):
                    return None
            except SevError as error:
                return error
    return NotPermitted(
        f"{address}: the daemon closes the connection at once: no name in this certificate is allowed there, "
        "or it has too many connections",
        field="--tls-cert",
        remedy=_REMEDY,
    )


def _closed(plain: socket.socket, context: ssl.SSLContext, address: str, host: str) -> bool:
    """Whether the connection is closed as soon as hands are shaken. Raises SevError for a refusal in so many words."""
    shaken = False
    try:
        with context.wrap_socket(plain, server_hostname=host) as tls:
            shaken = True
            if tls.selected_alpn_protocol() != "h2":
                raise Unreachable(
                    f"{address}: what answers there does not serve HTTP/2",
                    field="socket",
                    remedy="Name the port of sevd's remote listener.",
                )
            with contextlib.suppress(ConnectionError):  # what it has said before can still be heard
                tls.sendall(_HELLO)
            return not tls.recv(1)
    except ssl.SSLCertVerificationError as error:
        raise Unreachable(
            f"{address}: the daemon's certificate is not trusted: {error.verify_message}",
            field="--tls-ca",
            remedy="Give the authority that issued it with --tls-ca, and dial a name that stands in it.",
        ) from None
    except ssl.SSLEOFError:
        return shaken
    except ssl.SSLError as error:
        raise _refused(address, str(error.reason or "")) from None
    except TimeoutError:
        return False
    except OSError:  # a reset
        return shaken


def _context(files: ClientFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["h2"])
    option, path = "--tls-ca", files.ca
    try:
        context.load_verify_locations(path)
        option, path = "--tls-cert", files.certificate
        context.load_cert_chain(path, files.key, password=lambda: b"")
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        reason = str(getattr(error, "reason", None) or getattr(error, "strerror", None) or error)
        if reason == "KEY_VALUES_MISMATCH":
            raise UsageError(
                f"--tls-key: {files.key!r} is not the key of {files.certificate!r}", field="--tls-key"
            ) from None
        raise UsageError(f"{option}: cannot use {path!r} ({reason})", field=option) from None
    return context


def _refused(address: str, reason: str) -> SevError:
    if "ALERT" not in reason:
        words = reason.replace("_", " ").lower() or "no TLS"
        return Unreachable(
            f"{address}: no TLS 1.3 with what answers there ({words})",
            field="socket",
            remedy="Name the port of sevd's remote listener.",
        )
    why = next((text for word, text in _ALERTS.items() if reason.endswith(word)), reason.replace("_", " ").lower())
    return NotPermitted(f"{address}: the daemon refuses the connection: {why}", field="--tls-cert", remedy=_REMEDY)
