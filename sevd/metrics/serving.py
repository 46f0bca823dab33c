"""GET /metrics over HTTP, for Prometheus, on a socket of its own: a loopback port, or a Unix socket.

Answers one request per connection and nothing but this one path; a request has a few seconds and a few kilobytes. On a
loopback port everybody on the machine may read, in its network namespace; on a Unix socket whoever its mode lets.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
from typing import TYPE_CHECKING

from sev.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from prometheus_client.metrics_core import Metric as Family

    from sevd.metrics.model import Metric

REQUEST_BYTES = 8 << 10
"""Largest request."""

REQUEST_SECONDS = 5.0
"""How long a request may take to come, and an answer to be taken."""

REQUESTS = 16
"""Requests answered at once; others wait in the socket's queue."""

_LOOPBACK = "metrics are served on the loopback interface only; a proxy may carry them further"

log = logging.getLogger(__name__)


def listen(address: str) -> socket.socket:
    """A listening socket on a loopback address, "HOST:PORT".

    Raises:
        UsageError: It is no address, not of the loopback interface, or cannot be bound.
    """
    host, colon, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    try:
        where = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
        number = int(port) if colon and port.isascii() else -1
    except ValueError:
        raise _bad(address, "expected an address and a port, such as 127.0.0.1:9463") from None
    if not 0 < number < 65536:
        raise _bad(address, "expected a port from 1 to 65535")
    if not where.is_loopback:
        raise _bad(address, _LOOPBACK)
    family = socket.AF_INET6 if where.version == 6 else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((str(where), number))
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise _bad(address, error.strerror or "cannot be bound") from None
    return listener


def check_loopback(listener: socket.socket) -> None:
    """Raises UsageError for a socket that others than this machine could reach."""
    if listener.family == socket.AF_UNIX:
        return
    host = listener.getsockname()[0]
    if not ipaddress.ip_address(host).is_loopback:
        raise _bad(host, _LOOPBACK)


def check_library() -> None:
    """Raises UsageError where the library that writes Prometheus' format is missing."""
    try:
        import prometheus_client  # noqa: F401
    except ImportError:
        raise UsageError(
            "metrics.listen: the package prometheus-client is not installed",
            field="metrics.listen",
            remedy="Install it (pip install 'sevd[metrics]', or the distribution's python3-prometheus-client).",
        ) from None


class MetricsServer:
    """Serves one listening socket. On the event loop.

    Args:
        listener: Listening; taken over.
        collect: Makes the metrics.
    """

    def __init__(self, listener: socket.socket, collect: Callable[[], Awaitable[list[Metric]]]) -> None:
        self._listener = listener
        self._collect = collect
        self._places = asyncio.Semaphore(REQUESTS)
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Answers from here on."""
        start = asyncio.start_unix_server if self._listener.family == socket.AF_UNIX else asyncio.start_server
        self._server = await start(self._serve, sock=self._listener, limit=REQUEST_BYTES)

    async def close(self) -> None:
        """Answers no more."""
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with self._places, asyncio.timeout(REQUEST_SECONDS):
                answer = await self._answer(reader)
                writer.write(answer)
                await writer.drain()
        except (TimeoutError, OSError):
            pass  # a caller that is slow or gone is no trouble of ours
        except Exception:
            log.exception("metrics could not be served")
        finally:
            with contextlib.suppress(OSError):
                writer.close()

    async def _answer(self, reader: asyncio.StreamReader) -> bytes:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        except asyncio.LimitOverrunError:
            return _response(431, b"the request is too large\n")
        except asyncio.IncompleteReadError:
            return b""
        words = head.split("\r\n", 1)[0].split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            return _response(400, b"expected an HTTP request\n")
        if words[0] not in ("GET", "HEAD"):
            return _response(405, b"only GET\n", ("Allow: GET, HEAD",))
        if words[1].partition("?")[0] != "/metrics":
            return _response(404, b"there is only /metrics\n")
        from prometheus_client.exposition import choose_encoder

        encode, form = choose_encoder(_header(head, "accept"))
        body = encode(_Registry(await self._collect()))
        answer = _response(200, body, (f"Content-Type: {form}",))
        return answer if words[0] == "GET" else answer[: answer.index(b"\r\n\r\n") + 4]


class _Registry:
    """The metrics as the library's encoders want them."""

    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Family]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        from sevd.metrics.model import Kind

        for metric in self._metrics:
            names = list(metric.samples[0].labels)
            if metric.kind is Kind.HISTOGRAM:
                histogram = HistogramMetricFamily(metric.name, metric.help, labels=names)
                for sample in metric.samples:
                    buckets = [(_bound(most), total) for most, total in sample.buckets]
                    histogram.add_metric([*sample.labels.values()], buckets, sample.value)
                yield histogram
                continue
            family = CounterMetricFamily if metric.kind is Kind.COUNTER else GaugeMetricFamily
            values = family(metric.name, metric.help, labels=names)
            for sample in metric.samples:
                values.add_metric([*sample.labels.values()], sample.value)
            yield values


def _bound(most: float) -> str:
    return "+Inf" if most == float("inf") else repr(most)


def _header(head: str, name: str) -> str:
    """A header's value; empty if it is not there."""
    for line in head.split("\r\n")[1:]:
        key, _, value = line.partition(":")
        if key.strip().lower() == name:
            return value.strip()
    return ""


_REASONS = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    431: "Request Header Fields Too Large",
}


def _response(code: int, body: bytes, headers: tuple[str, ...] = ("Content-Type: text/plain; charset=utf-8",)) -> bytes:
    lines = [f"HTTP/1.1 {code} {_REASONS[code]}", *headers, f"Content-Length: {len(body)}", "Connection: close"]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def _bad(address: str, why: str) -> UsageError:
    return UsageError(f"metrics.listen is {address!r:.80}: {why}", field="metrics.listen")
