"""HTTPS to a key distribution service: what it answers to a GET, within bounds of size and time.

A service that throttles (429) or cannot answer for now (5xx, no connection) is asked again: after what Retry-After
says, else after a growing pause, until the patience is used up. Proxies are those of the environment (HTTPS_PROXY,
NO_PROXY). What comes back proves nothing: `sev.kds.certificates` decides what of it is believed.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

from sev.errors import UsageError
from sev.kds import urls
from sev.kds.errors import AGAIN, THROTTLED, KdsUnavailable, NotAtKds, busy, refused, retry_after
from sev.kds.https import Https, NoAnswer

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["BODY_MAX", "Clock", "KdsUnavailable", "NotAtKds", "Service"]

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
        self._https = Https(ca_file=ca_file, client_file=client_file)

    def get(self, url: str, what: str, limit: int = BODY_MAX, *, content: bytes | None = None) -> bytes:
        """What is at an address.

        Args:
            url: A whole URL (sev.kds.urls).
            what: What it is, for errors, such as "the VCEK".
            limit: Most bytes to accept.
            content: JSON to post there; None: it is got.

        Raises:
            NotAtKds: It is not there.
            KdsUnavailable: No answer within the patience, a refusal, or more than `limit` bytes.
        """
        if not url.startswith((f"{self.url}/", f"{urls.provider(self.url)}/")):
            raise UsageError(f"{url!r:.200} is no address of {self.url}", field="kds")
        until = self._clock.now() + self._patience
        pause = FIRST_PAUSE
        while True:
            try:
                return self._attempt(url, what, limit, until, content)
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

    def _attempt(self, url: str, what: str, limit: int, until: float, content: bytes | None) -> bytes:
        left = until - self._clock.now()
        try:
            answer = self._https.ask(
                url,
                limit=limit,
                seconds=max(min(self._timeout, left), 0.1),
                content=content,
                late=lambda: self._clock.now() > until,
            )
        except NoAnswer as failed:
            if failed.passes:
                raise _Again(str(failed)) from None
            raise KdsUnavailable(f"{self.url} does not give {what}: {failed}", field="kds") from None
        if answer.status == 200:
            return answer.body
        if answer.status in AGAIN:
            pause = retry_after(answer.headers.get("retry-after", ""))
            raise _Again(busy(answer.status), pause, throttled=answer.status == THROTTLED)
        raise refused(self.url, what, answer.status)
