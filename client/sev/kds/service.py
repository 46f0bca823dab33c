"""HTTPS to a key distribution service: what it answers to a GET, within bounds of size and time.

A service that throttles (429) or cannot answer for now (5xx, no connection) is asked again: after what Retry-After
says, else after a growing pause, until the patience is used up. Proxies are those of the environment (HTTPS_PROXY,
NO_PROXY). What comes back proves nothing: `sev.kds.certificates` decides what of it is believed.
"""

from __future__ import annotations

import ssl
import time
from email.utils import parsedate_to_datetime
from http.client import HTTPException, HTTPResponse
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.error import HTTPError, URLError
from urllib.request import HTTPRedirectHandler, HTTPSHandler, Request, build_opener

from sev.errors import CollateralError, UsageError
from sev.kds import urls

if TYPE_CHECKING:
    from collections.abc import Callable

TIMEOUT_SECONDS = 15.0
"""Seconds for which one attempt may say nothing."""

PATIENCE_SECONDS = 60.0
"""Seconds for all attempts of one question together, pauses included."""

FIRST_PAUSE = 1.0
THROTTLED_PAUSE = 10.0
"""Pause after a 429 that names none: AMD's service takes about one request in ten seconds from one client."""

LONGEST_PAUSE = 30.0
BODY_MAX = 256 << 10
"""Bytes of an answer at most."""

_CHUNK = 64 << 10
_AGAIN = frozenset({429, 500, 502, 503, 504})


class KdsUnavailable(CollateralError):
    """The service does not answer, or not what was asked for; whether something is genuine is left open."""

    reason = "KDS_UNAVAILABLE"
    default_remedy = (
        "Try again later; behind a proxy set HTTPS_PROXY; for a mirror or a simulator name it with --kds, and with "
        "--kds-ca the certificate that it is to be trusted by."
    )


class NotAtKds(KdsUnavailable):
    """The service does not know what was asked for."""

    reason = "NOT_AT_KDS"
    default_remedy = "Compare product, chip identifier and TCB: sev certs url shows what is asked."


class _Again(Exception):
    """This attempt failed in a way that another may not; after `pause` seconds, if it is known."""

    def __init__(self, why: str, pause: float | None = None, *, throttled: bool = False) -> None:
        super().__init__(why)
        self.pause = pause
        self.throttled = throttled


class Clock(NamedTuple):
    """Time, for those who test without waiting.

    Attributes:
        now: Monotonic seconds.
        sleep: Waits so many seconds.
    """

    now: Callable[[], float]
    sleep: Callable[[float], None]


REAL = Clock(time.monotonic, time.sleep)


class Service:
    """A key distribution service.

    Args:
        url: Its base URL.
        ca_file: PEM of the authorities by which its TLS certificate is trusted; None: the system's.
        client_file: PEM of a certificate and its key, for what the service gives to cloud providers only.
        timeout: Seconds for which one attempt may say nothing.
        patience: Seconds for all attempts together.
        told: Told in a sentence why it takes longer.
        clock: Time.

    Raises:
        UsageError: No URL, or a file without certificates.
    """

    def __init__(
        self,
        url: str = urls.AMD,
        *,
        ca_file: str | None = None,
        client_file: str | None = None,
        timeout: float = TIMEOUT_SECONDS,
        patience: float = PATIENCE_SECONDS,
        told: Callable[[str], None] = lambda sentence: None,
        clock: Clock = REAL,
    ) -> None:
        self.url = urls.base(url)
        self._timeout = timeout
        self._patience = patience
        self._told = told
        self._clock = clock
        context = _context(ca_file, client_file)
        self._opener = build_opener(HTTPSHandler(context=context), _Redirects())
        self._opener.addheaders = [("User-Agent", "sev (AMD SEV tools)"), ("Accept", "*/*")]

    def get(self, url: str, what: str, limit: int = BODY_MAX) -> bytes:
        """What is at an address.

        Args:
            url: A whole URL (sev.kds.urls).
            what: What it is, for errors, such as "the VCEK".
            limit: Most bytes to accept.

        Raises:
            NotAtKds: It is not there.
            KdsUnavailable: No answer within the patience, a refusal, or more than `limit` bytes.
        """
        if not url.startswith(f"{self.url}/"):
            raise UsageError(f"{url!r:.200} is no address of {self.url}", field="kds")
        until = self._clock.now() + self._patience
        pause = FIRST_PAUSE
        while True:
            try:
                return self._attempt(url, what, limit, until)
            except _Again as failed:
                wait = failed.pause if failed.pause is not None else (THROTTLED_PAUSE if failed.throttled else pause)
                pause = min(pause * 2, LONGEST_PAUSE)
                left = until - self._clock.now()
                if wait >= left:
                    asks = f"; it asks to wait {failed.pause:.0f} s" if failed.pause is not None else ""
                    raise KdsUnavailable(
                        f"{what} is not to be had from {self.url}: {failed}{asks}", field="kds"
                    ) from None
                self._told(f"{self.url}: {failed}; asking again in {wait:.0f} s")
                self._clock.sleep(wait)

    def _attempt(self, url: str, what: str, limit: int, until: float) -> bytes:
        seconds = max(min(self._timeout, until - self._clock.now()), 0.1)
        try:
            with self._opener.open(Request(url), timeout=seconds) as response:  # noqa: S310 - ours, so http(s)
                return self._body(response, what, limit, until)
        except HTTPError as error:
            with error:
                raise self._refused(error, what) from None
        except URLError as error:
            if isinstance(error.reason, ssl.SSLCertVerificationError):
                why = f"its TLS certificate is not trusted: {error.reason.verify_message}"
                raise KdsUnavailable(f"{self.url}: {why}", field="kds") from None
            raise _Again(f"no connection ({error.reason})") from None
        except (OSError, HTTPException) as error:
            raise _Again(f"the connection broke ({str(error) or type(error).__name__})") from None

    def _body(self, response: HTTPResponse, what: str, limit: int, until: float) -> bytes:
        chunks, have = [], 0
        # What is there, not as much as that: a service that drips is left when the patience ends.
        while chunk := response.read1(min(_CHUNK, limit + 1 - have)):
            chunks.append(chunk)
            have += len(chunk)
            if have > limit:
                raise KdsUnavailable(f"{what}: {self.url} answers more than {limit} bytes", field="kds")
            if self._clock.now() > until:
                raise _Again("the answer takes too long")
        length = response.headers.get("Content-Length", "")
        if length.isascii() and length.isdigit() and len(length) < 12 and have != int(length):
            raise _Again(f"the answer was cut off after {have} of {length} bytes")
        return b"".join(chunks)

    def _refused(self, error: HTTPError, what: str) -> Exception:
        if error.code in _AGAIN:
            throttled = error.code == 429
            why = "it has had too many requests" if throttled else f"HTTP {error.code}"
            return _Again(why, _retry_after(error.headers.get("Retry-After", "")), throttled=throttled)
        if error.code in (400, 404):
            return NotAtKds(f"{self.url} does not have {what} (HTTP {error.code})", field="kds")
        return KdsUnavailable(f"{self.url} refuses {what} (HTTP {error.code})", field="kds")


class _Redirects(HTTPRedirectHandler):
    """Follows within https only: neither to files nor down to plain text."""

    max_redirections = 3

    def redirect_request(self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Request | None:
        if not newurl.lower().startswith("https://"):
            return None  # the redirection itself is the answer then, an error
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _context(ca_file: str | None, client_file: str | None) -> ssl.SSLContext:
    using = ca_file
    try:
        context = ssl.create_default_context(cafile=ca_file)
        if client_file is not None:
            using = client_file
            context.load_cert_chain(client_file)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"cannot use {using!r} for talking to the KDS: {reason}", field=using or "kds_ca") from None
    return context


def _retry_after(text: str) -> float | None:
    """Seconds that a Retry-After asks for: a number, or a date (RFC 9110, 10.2.3); None if it is neither."""
    text = text.strip()
    if text.isascii() and text.isdigit() and len(text) < 9:
        return float(text)
    try:
        return max(parsedate_to_datetime(text).timestamp() - time.time(), 0.0)
    except (TypeError, ValueError, OverflowError):
        return None
