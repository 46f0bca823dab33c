"""How a key distribution service fails to answer."""

from __future__ import annotations

from sev.errors import CollateralError

THROTTLED = 429
"""Status of a service that one client asked too often."""

AGAIN = frozenset({THROTTLED, 500, 502, 503, 504})
"""Statuses of a service that cannot answer for now."""


class KdsUnavailable(CollateralError):
    """The service does not answer, or not what was asked for; whether something is genuine is left open.

    Attributes:
        passes: Asking again later may help without anybody changing anything.
    """

    reason = "KDS_UNAVAILABLE"
    default_remedy = (
        "Try again later; behind a proxy set HTTPS_PROXY; for a mirror or a simulator name it with --kds, and with "
        "--kds-ca the certificate that it is to be trusted by."
    )
    passes: bool = False


class NotAtKds(KdsUnavailable):
    """The service does not know what was asked for."""

    reason = "NOT_AT_KDS"
    default_remedy = "Compare product, chip identifier and TCB: sev certs url shows what is asked."


def busy(status: int) -> str:
    """Why a service does not answer that has one of the statuses AGAIN."""
    return "it has had too many requests" if status == THROTTLED else f"HTTP {status}"


def refused(service: str, what: str, status: int) -> KdsUnavailable:
    """The error of an answer that is final, whatever is tried: NotAtKds for what the service does not have."""
    if status in (400, 404):
        return NotAtKds(f"{service} does not have {what} (HTTP {status})", field="kds")
    return KdsUnavailable(f"{service} refuses {what} (HTTP {status})", field="kds")


def retry_after(text: str) -> float | None:
    """Seconds that a Retry-After asks for: a number, or a date (RFC 9110, 10.2.3); None if it is neither."""
    import time
    from email.utils import parsedate_to_datetime

    text = text.strip()
    if text.isascii() and text.isdigit() and len(text) < 9:
        return float(text)
    try:
        return max(parsedate_to_datetime(text).timestamp() - time.time(), 0.0)
    except (TypeError, ValueError, OverflowError):
        return None
