"""The question and its answer, as they travel between the daemon and `sevd-fetch` (sev.packets, SOCK_SEQPACKET).

{"url", "limit", "seconds", "headers": {"If-None-Match", "If-Modified-Since"}, "content": hex}
{"status", "headers", "body": hex}         what the service answered
{"failed": sentence, "passes": bool}       there was no answer
{"error": {…}}                             the question was refused
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sev import packets
from sev.errors import MalformedInput
from sev.records import record

if TYPE_CHECKING:
    from collections.abc import Mapping

BODY_MAX = 60 << 10
"""Bytes of an answer at most: in hexadecimal they fit a packet. Certificates have under 2 KiB, chains under 8."""

CONTENT_MAX = 16 << 10
"""Bytes that are posted at most."""

SECONDS_MAX = 60
"""Seconds for one question at most."""

CONDITIONS = ("If-None-Match", "If-Modified-Since")
"""Headers that a question may have."""

_HEADER_MAX = 256


@record
class Question:
    """What to ask.

    Attributes:
        url: A whole URL.
        limit: Most bytes to accept.
        seconds: For the whole question, connecting included.
        headers: Of CONDITIONS.
        content: JSON to post; empty: it is got.
    """

    url: str
    limit: int = BODY_MAX
    seconds: int = 30
    headers: tuple[tuple[str, str], ...] = ()
    content: bytes = b""

    def message(self) -> dict[str, object]:
        """As it travels."""
        return {
            "url": self.url,
            "limit": self.limit,
            "seconds": self.seconds,
            "headers": dict(self.headers),
            "content": self.content.hex(),
        }

    @classmethod
    def of(cls, message: dict[str, object]) -> Question:
        """The question of a message. Raises MalformedInput."""
        limit, seconds = packets.whole(message, "limit"), packets.whole(message, "seconds")
        headers, content = packets.table(message, "headers"), packets.octets(message, "content")
        if not 0 < limit <= BODY_MAX or not 0 < seconds <= SECONDS_MAX or len(content) > CONTENT_MAX:
            raise MalformedInput(
                f"a question of {seconds} s, {len(content)} bytes, for up to {limit}: out of range", field="limit"
            )
        return cls(packets.text(message, "url"), limit, seconds, _texts(headers, CONDITIONS), content)


@record
class Reply:
    """What a service answered.

    Attributes:
        status: HTTP status.
        headers: Selected ones, in lower case.
        body: Content; empty for any status but 200.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes

    def message(self) -> dict[str, object]:
        """As it travels."""
        return {"status": self.status, "headers": dict(self.headers), "body": self.body.hex()}

    @classmethod
    def of(cls, message: dict[str, object]) -> Reply:
        """The reply of a message. Raises MalformedInput."""
        headers, body = packets.table(message, "headers"), packets.octets(message, "body")
        return cls(packets.whole(message, "status"), dict(_texts(headers)), body)


def _texts(headers: dict[str, object], names: tuple[str, ...] = ()) -> tuple[tuple[str, str], ...]:
    """Headers that are nothing but short lines. Raises MalformedInput."""
    out = []
    for name, value in headers.items():
        if names and name not in names:
            raise MalformedInput(f"the header {name[:40]!r} is not sent", field="headers")
        if not isinstance(value, str) or len(value) > _HEADER_MAX or not (value.isascii() and value.isprintable()):
            raise MalformedInput(f"the header {name[:40]!r} is no line of {_HEADER_MAX} characters", field="headers")
        out.append((name, value))
    return tuple(out)
