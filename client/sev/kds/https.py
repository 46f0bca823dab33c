"""One question over HTTPS, and its answer: bounded in size and time, no redirection elsewhere, proxies as told.

What comes back proves nothing. Patience, and what is believed, are the business of others (sev.kds.service,
sev.kds.certificates).
"""

from __future__ import annotations

import ssl
from http.client import HTTPException, HTTPResponse
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.error import HTTPError, URLError
from urllib.request import BaseHandler, HTTPRedirectHandler, HTTPSHandler, ProxyHandler, Request, build_opener

from sev.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

HEADERS = ("etag", "last-modified", "retry-after", "content-type")
"""Headers of an answer that are told, in lower case."""

HEADER_MAX = 256
"""Characters of one of them; a longer one is left out, and one of other characters than ASCII's."""

REDIRECTIONS_MAX = 3
ENVIRONMENT, DIRECT = "", "none"
"""Proxies: those of the environment (HTTPS_PROXY, NO_PROXY); none at all. Anything else is the address of one."""

_CHUNK = 64 << 10


class NoAnswer(Exception):
    """There is no usable answer.

    Attributes:
        passes: Another attempt may do better.
    """

    def __init__(self, why: str, *, passes: bool) -> None:
        super().__init__(why)
        self.passes = passes


class Answer(NamedTuple):
    """An answer.

    Attributes:
        status: The HTTP status.
        headers: Those of HEADERS that it has.
        body: Its content; empty for any status but 200.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes


class Https:
    """A way to ask.

    Args:
        ca_file: PEM of the authorities by which a service's TLS certificate is trusted; None: the system's.
        client_file: PEM of a certificate and its key, for services that want one.
        proxy: ENVIRONMENT, DIRECT, or the address of a proxy.
        allowed: Whether a redirection may be followed to this address; https is demanded besides.

    Raises:
        UsageError: A file without certificates.
    """

    def __init__(
        self,
        *,
        ca_file: str | None = None,
        client_file: str | None = None,
        proxy: str = ENVIRONMENT,
        allowed: Callable[[str], bool] = lambda url: True,
    ) -> None:
        handlers: list[BaseHandler] = [HTTPSHandler(context=_context(ca_file, client_file)), _Redirects(allowed)]
        if proxy:
            handlers.append(ProxyHandler({} if proxy == DIRECT else {"http": proxy, "https": proxy}))
        self._opener = build_opener(*handlers)
        self._opener.addheaders = [("User-Agent", "sev (AMD SEV tools)"), ("Accept", "*/*")]

    def ask(
        self,
        url: str,
        *,
        limit: int,
        seconds: float,
        headers: Mapping[str, str] | None = None,
        content: bytes | None = None,
        late: Callable[[], bool] = lambda: False,
    ) -> Answer:
        """Asks once.

        Args:
            url: A whole http(s) URL.
            limit: Most bytes to accept.
            seconds: For how long the service may say nothing.
            headers: Headers of the question.
            content: JSON to post; None: a GET.
            late: Whether it takes too long by now; looked at whenever a piece of the answer has come.

        Raises:
            NoAnswer: No connection, one that breaks or is not trusted, or more than `limit` bytes.
        """
        kinds = {} if content is None else {"Content-Type": "application/json"}
        request = Request(url, data=content, headers={**kinds, **(headers or {})})  # noqa: S310 - http(s), see above
        try:
            with self._opener.open(request, timeout=seconds) as response:
                return Answer(response.status, _told(response.headers), _body(response, limit, late))
        except HTTPError as error:
            with error:
                return Answer(error.code, _told(error.headers), b"")
        except URLError as error:
            if isinstance(error.reason, ssl.SSLCertVerificationError):
                why = f"its TLS certificate is not trusted: {error.reason.verify_message}"
                raise NoAnswer(why, passes=False) from None
            raise NoAnswer(f"no connection ({error.reason})", passes=True) from None
        except (OSError, HTTPException) as error:
            raise NoAnswer(f"the connection broke ({str(error) or type(error).__name__})", passes=True) from None


class _Redirects(HTTPRedirectHandler):
    """Follows within https only, and only where it may: neither to files nor down to plain text."""

    max_redirections = REDIRECTIONS_MAX

    def __init__(self, allowed: Callable[[str], bool]) -> None:
        self._allowed = allowed

    def redirect_request(self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Request | None:
        if not newurl.lower().startswith("https://") or not self._allowed(newurl):
            return None  # the redirection itself is the answer then, an error
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _body(response: HTTPResponse, limit: int, late: Callable[[], bool]) -> bytes:
    chunks, have = [], 0
    # What is there, not as much as that: a service that drips is left when the patience ends.
    while chunk := response.read1(min(_CHUNK, limit + 1 - have)):
        chunks.append(chunk)
        have += len(chunk)
        if have > limit:
            raise NoAnswer(f"more than {limit} bytes", passes=False)
        if late():
            raise NoAnswer("the answer takes too long", passes=True)
    length = response.headers.get("Content-Length", "")
    if length.isascii() and length.isdigit() and len(length) < 12 and have != int(length):
        raise NoAnswer(f"the answer was cut off after {have} of {length} bytes", passes=True)
    return b"".join(chunks)


def _told(headers: Any) -> dict[str, str]:
    found = {name: str(headers.get(name, "")) for name in HEADERS}
    return {
        name: text
        for name, text in found.items()
        if 0 < len(text) <= HEADER_MAX and text.isascii() and text.isprintable()
    }


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
