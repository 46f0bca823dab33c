"""Why a remote connection is refused: one stable word for each cause, with what to do about it.

The words go into the audit (`reason`); the caller hears no more than TLS tells it, an alert.
"""

from __future__ import annotations

import ssl

from sev.errors import NotPermitted

CAUSES: dict[str, tuple[str, str]] = {
    "NO_CERTIFICATE": (
        "the client shows no certificate",
        "Give the client its certificate and key (sev --tls-cert, --tls-key).",
    ),
    "UNKNOWN_AUTHORITY": (
        "the certificate is not of an authority that is configured",
        "Have it issued by one of remote.client_ca, with the certificates in between sent along.",
    ),
    "CERTIFICATE_EXPIRED": ("the certificate, or one above it, has expired", "Issue a new one."),
    "CERTIFICATE_NOT_YET_VALID": (
        "the certificate, or one above it, is not valid yet",
        "Compare the clocks of this host and of whoever issued it.",
    ),
    "CERTIFICATE_REVOKED": ("the certificate has been revoked", "Issue a new one."),
    "CERTIFICATE_PURPOSE": (
        "the certificate is not for client authentication",
        "Issue one whose extended key usage has clientAuth.",
    ),
    "CERTIFICATE_INVALID": ("the certificate is not acceptable", "Issue a new one."),
    "REVOCATION_UNKNOWN": (
        "whether the certificate has been revoked cannot be told",
        "Put a current revocation list of its authority into remote.crl.",
    ),
    "IDENTITY_NOT_ALLOWED": (
        "no name in the certificate is allowed here",
        "Add an [[identity]] table that matches one of its names.",
    ),
    "TLS_VERSION": ("the client does not offer TLS 1.3", "Use a client that does."),
    "NO_HTTP2": ("the client does not ask for HTTP/2 (ALPN h2)", "Use a gRPC client."),
    "NOT_TLS": ("the client does not speak TLS", "Use a gRPC client with mutual TLS."),
    "CLIENT_ALERT": (
        "the client ended the handshake",
        "Where it does not know this daemon's authority, give it that (sev --tls-ca).",
    ),
    "HANDSHAKE_TIMEOUT": ("the handshake took too long", "Look at the network; see remote.handshake_seconds."),
    "HANDSHAKE_LOST": ("the client hung up during the handshake", ""),
    "HANDSHAKE_CROWDED_OUT": (
        "too many handshakes are under way, and this was the oldest",
        "See remote.handshakes; keep strangers off the port with a firewall.",
    ),
    "HANDSHAKE_FAILED": ("the handshake failed", ""),
    "NOT_RECORDED": (
        "more refusals within a minute than are recorded one by one",
        "Keep strangers off the port with a firewall.",
    ),
}
"""Every word, what it means, and what to do."""


class RemoteRefused(NotPermitted):
    """A remote connection that may not be; `reason` is one of CAUSES."""

    reason = "REMOTE_REFUSED"

    def __init__(self, cause: str, detail: str = "") -> None:
        """`detail` is added to the sentence in brackets."""
        meaning, remedy = CAUSES[cause]
        super().__init__(f"{meaning} ({detail})" if detail else meaning, remedy=remedy)
        self.reason = cause


_BY_VERIFY_CODE = {
    # X509_V_ERR_* of OpenSSL's x509_vfy.h.
    2: "UNKNOWN_AUTHORITY",  # unable to get issuer certificate
    3: "REVOCATION_UNKNOWN",  # unable to get certificate CRL
    5: "REVOCATION_UNKNOWN",  # unable to decrypt CRL signature
    7: "UNKNOWN_AUTHORITY",  # not signed by the authority of that name
    8: "REVOCATION_UNKNOWN",  # CRL signature failure
    9: "CERTIFICATE_NOT_YET_VALID",
    10: "CERTIFICATE_EXPIRED",
    11: "REVOCATION_UNKNOWN",  # CRL is not yet valid
    12: "REVOCATION_UNKNOWN",  # CRL has expired
    18: "UNKNOWN_AUTHORITY",  # self-signed
    19: "UNKNOWN_AUTHORITY",  # self-signed in chain
    20: "UNKNOWN_AUTHORITY",  # unable to get local issuer certificate
    21: "UNKNOWN_AUTHORITY",  # unable to verify leaf signature
    23: "CERTIFICATE_REVOKED",
    26: "CERTIFICATE_PURPOSE",
    27: "UNKNOWN_AUTHORITY",  # not trusted
    30: "UNKNOWN_AUTHORITY",  # authority and subject key identifier mismatch
    33: "REVOCATION_UNKNOWN",  # unable to get CRL issuer certificate
    35: "REVOCATION_UNKNOWN",  # key usage does not include CRL signing
}

_BY_REASON = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "NO_CERTIFICATE",
    "UNSUPPORTED_PROTOCOL": "TLS_VERSION",
    "VERSION_TOO_LOW": "TLS_VERSION",
    "WRONG_SSL_VERSION": "TLS_VERSION",
    "HTTP_REQUEST": "NOT_TLS",
    "HTTPS_PROXY_REQUEST": "NOT_TLS",
    "WRONG_VERSION_NUMBER": "NOT_TLS",
    "UNKNOWN_PROTOCOL": "NOT_TLS",
    "UNEXPECTED_EOF_WHILE_READING": "HANDSHAKE_LOST",
}


def of(error: OSError) -> RemoteRefused:
    """What a handshake that failed with this error is refused for."""
    if isinstance(error, ssl.SSLCertVerificationError):
        cause = _BY_VERIFY_CODE.get(error.verify_code, "CERTIFICATE_INVALID")
        return RemoteRefused(cause, str(error.verify_message))
    if not isinstance(error, ssl.SSLError) or isinstance(error, ssl.SSLEOFError):
        return RemoteRefused("HANDSHAKE_LOST")
    reason = str(error.reason or "")
    words = reason.replace("_", " ").lower()
    cause = _BY_REASON.get(reason) or ("CLIENT_ALERT" if "ALERT" in reason else "HANDSHAKE_FAILED")
    return RemoteRefused(cause, words if cause in ("CLIENT_ALERT", "HANDSHAKE_FAILED") else "")
