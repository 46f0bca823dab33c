"""The simulator's key distribution service: HTTPS as AMD's, for the certificates of the one simulated chip.

    server = KdsServer(simulator, "127.0.0.1", 0)
    server.start()
    server.url                       # https://127.0.0.1:41234
    server.ca_pem                    # what a client has to trust for it
    server.fault(KdsFault("throttle", seconds=2, times=1))
    server.close()

What it answers is in `kds_answers`. It is bounded in everything that a client has in hand: connections, requests on
one, lengths, and time. Faults are what clients must live with: a service that throttles, fails, is slow, answers the
wrong thing or half of it.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import socket
import ssl
import threading
import time
from collections import deque
from http.server import BaseHTTPRequestHandler
from socketserver import BaseServer, TCPServer, ThreadingMixIn
from typing import TYPE_CHECKING, Any

from sev.errors import InternalError, KernelError, SevError, UsageError
from sev.records import record
from sevd.simulator import kds_answers, tls
from sevd.simulator.kds_answers import Answer, KdsAnswers

if TYPE_CHECKING:
    from sevd.simulator.simulator import Simulator

log = logging.getLogger(__name__)

CONNECTIONS_MAX = 64
REQUESTS_MAX = 100
"""Requests on one connection at most."""

IDLE_SECONDS = 10.0
"""A client that says nothing for so long, also while shaking hands, is left."""

CONNECTION_SECONDS = 120.0
"""No connection lives longer."""

HISTORY = 1000
"""Requests remembered."""

THROTTLE, FAIL, SLOW, GARBAGE, CUT = "throttle", "fail", "slow", "garbage", "cut"
TWISTS = (kds_answers.WRONG, kds_answers.STRANGER, kds_answers.STALE)
FAULTS = (THROTTLE, FAIL, SLOW, GARBAGE, CUT, *TWISTS)

_DELAY_MAX = 100.0
SPEC_MAX = 200


@record
class KdsFault:
    """A fault of the service.

    Attributes:
        kind: "throttle": 429, Retry-After; "fail": 500; "slow": the answer comes late; "wrong": the certificate of
            another TCB; "stranger": of another chip; "stale": a revocation list that ran out; "garbage": bytes that
            are no certificate; "cut": half of the answer, then the end.
        seconds: What Retry-After says, or how late.
        times: Requests that meet it; 0: all until it is cleared.
        path: Start of the paths that meet it.
    """

    kind: str
    seconds: float = 0
    times: int = 0
    path: str = "/"

    @classmethod
    def parse(cls, spec: str) -> KdsFault:
        """A fault from text: "throttle=5:times=2:path=/vcek/v1/Genoa/", "fail", "slow=3".

        Raises:
            UsageError: It is none.
        """
        first, *rest = spec.split(":")
        kind, _, seconds = first.partition("=")
        values = {"seconds": seconds or "0"}
        for word in rest:
            name, equals, value = word.partition("=")
            if name not in ("times", "path") or name in values or not equals:
                raise UsageError(f"fault of the KDS: {word!r}: expected times=N or path=/START", field="fault")
            values[name] = value
        try:
            if len(spec) > SPEC_MAX:
                raise ValueError
            return cls(kind, float(values["seconds"]), int(values.get("times", "0")), values.get("path", "/"))
        except ValueError:
            raise UsageError(f"fault of the KDS: {spec[:40]!r}: a number is none", field="fault") from None

    def __post_init__(self) -> None:
        if self.kind not in FAULTS:
            raise UsageError(f"no fault {self.kind!r}: expected one of {', '.join(FAULTS)}", field="fault")
        if not 0 <= self.seconds <= _DELAY_MAX or self.times < 0:
            raise UsageError(f"a fault of {self.seconds} seconds, {self.times} times: out of range", field="fault")


class KdsServer:
    """The service. Starts threads; nothing waits for it but `close`.

    Args:
        simulator: The host whose chip it knows.
        host: Address to listen on; anything but the machine itself is for isolated networks.
        port: 0 takes a free one.

    Attributes:
        requests: (method, target) of the latest requests, oldest first.
    """

    def __init__(self, simulator: Simulator, host: str = "127.0.0.1", port: int = 0) -> None:
        firmware = simulator.firmware
        self.requests: deque[tuple[str, str]] = deque(maxlen=HISTORY)
        self._answers = KdsAnswers(firmware)
        self._material = tls.open_material(firmware.ca.directory / "kds")
        self._host, self._port = host, port
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None
        self._faults: list[tuple[KdsFault, int]] = []
        self._lock = threading.Lock()
        self._closing = threading.Event()

    @property
    def ca_pem(self) -> bytes:
        """The certificate of the authority behind the service's own, PEM."""
        return self._material.ca

    @property
    def provider_pem(self) -> str:
        """Path of a provider's certificate and key, for what only providers get."""
        return str(self._material.provider)

    @property
    def port(self) -> int:
        """Where it listens. Raises InternalError before `start`."""
        if self._server is None:
            raise InternalError("the service was not started")
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        """Its base URL."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"https://{host}:{self.port}"

    def start(self) -> None:
        """Listens and answers, from when this returns.

        Raises:
            KernelError: The address cannot be listened on.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(self._material.certificate, self._material.key)
        context.load_verify_locations(self._material.authority)
        context.verify_mode = ssl.CERT_OPTIONAL
        try:
            self._server = _Server(self, context, self._host, self._port)
        except (OSError, OverflowError) as error:
            number = (error.errno if isinstance(error, OSError) else None) or 22
            raise KernelError(
                number,
                message=f"the KDS cannot listen on {self._host}:{self._port}: {error}",
                remedy="Choose another address or port (--kds 127.0.0.1:PORT), or 0 for a free one.",
            ) from None
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.2,), name="kds", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops, and ends every connection; once more does nothing."""
        self._closing.set()
        server, self._server = self._server, None
        if server is None:
            return
        server.shutdown()
        server.server_close()
        server.end_connections()
        if self._thread is not None:
            self._thread.join(IDLE_SECONDS)

    def fault(self, fault: KdsFault) -> None:
        """Adds a fault; the first that fits a request happens."""
        with self._lock:
            self._faults.append((fault, fault.times))

    def clear_faults(self) -> None:
        """Ends all faults."""
        with self._lock:
            self._faults.clear()

    def _meet(self, target: str) -> KdsFault | None:
        """The fault that this request meets; counts it."""
        with self._lock:
            for index, (fault, left) in enumerate(self._faults):
                if target.startswith(fault.path):
                    if fault.times:
                        if left <= 1:
                            del self._faults[index]
                        else:
                            self._faults[index] = fault, left - 1
                    return fault
        return None

    def respond(self, method: str, target: str, body: bytes, provider: bool) -> tuple[Answer, KdsFault | None]:
        """The answer to a request, and the fault that it met."""
        self.requests.append((method, target[: kds_answers.TARGET_MAX]))
        fault = self._meet(target)
        kind = fault.kind if fault else ""
        if fault is not None and kind == SLOW:
            self._closing.wait(fault.seconds)
        if kind == THROTTLE:
            return Answer(429, b"too many requests\n"), fault
        if kind == FAIL:
            return Answer(500, b"internal error\n"), fault
        try:
            twist = kind if kind in TWISTS else ""
            answer = self._answers.answer(method, target, body, provider=provider, twist=twist)
        except SevError as error:
            log.warning("the KDS cannot answer %s: %s", target, error.message)
            return Answer(503, b"not available\n"), fault
        if kind == GARBAGE and answer.status == 200:
            answer = Answer(200, secrets.token_bytes(len(answer.body)), answer.kind)
        return answer, fault


class _Server(ThreadingMixIn, TCPServer):
    """Accepts; every connection has a thread, which shakes hands itself."""

    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, service: KdsServer, context: ssl.SSLContext, host: str, port: int) -> None:
        self.service = service
        self._context = context
        self._places = threading.BoundedSemaphore(CONNECTIONS_MAX)
        self._connections: dict[ssl.SSLSocket, float] = {}
        self._lock = threading.Lock()
        if ":" in host:
            self.address_family = socket.AF_INET6
        super().__init__((host, port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """A new connection: refused without a word where there are too many."""
        if not self._places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._places.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """The thread of a connection."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Shakes hands and serves; ends the connection."""
        request.settimeout(IDLE_SECONDS)
        with self._context.wrap_socket(request, server_side=True, do_handshake_on_connect=False) as connection:
            with self._lock:
                self._connections[connection] = time.monotonic() + CONNECTION_SECONDS
            try:
                connection.do_handshake()
                _Handler(connection, client_address, self)
            finally:
                with self._lock:
                    del self._connections[connection]

    def service_actions(self) -> None:
        """Now and then: ends the connections that have lived too long, whatever they are at."""
        now = time.monotonic()
        with self._lock:
            old = [connection for connection, end in self._connections.items() if now > end]
        self._end(old)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away, or spoke no TLS, is no event; anything else is logged."""
        import sys

        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            log.error("unexpected failure of the KDS", exc_info=error)

    def end_connections(self) -> None:
        """Ends what is still connected."""
        with self._lock:
            connections = list(self._connections)
        self._end(connections)

    @staticmethod
    def _end(connections: list[ssl.SSLSocket]) -> None:
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: _Server
    protocol_version = "HTTP/1.1"
    server_version = "sevd-simulator"
    sys_version = ""
    timeout = IDLE_SECONDS

    def __init__(self, connection: ssl.SSLSocket, client_address: Any, server: BaseServer) -> None:
        self._served = 0
        self._provider = bool(connection.getpeercert())
        super().__init__(connection, client_address, server)

    def do_GET(self) -> None:
        """GET."""
        self._serve()

    def do_HEAD(self) -> None:
        """HEAD."""
        self._serve()

    def do_POST(self) -> None:
        """POST."""
        self._serve()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Requests are remembered by the service, not logged."""

    def _serve(self) -> None:
        self._served += 1
        body = self._body()
        if body is None:
            self._send(Answer(413, b"the content is too long, or its length is not said\n"), close=True)
            return
        answer, fault = self.server.service.respond(self.command, self.path, body, self._provider)
        etag = answer.etag
        if etag and self.headers.get("If-None-Match") == etag:
            answer = Answer(304, b"", answer.kind)
        cut = fault is not None and fault.kind == CUT
        over = self._served >= REQUESTS_MAX
        retry = fault.seconds if fault is not None and fault.kind == THROTTLE else None
        self._send(answer, close=cut or over, cut=cut, retry=retry, etag=etag)

    def _body(self) -> bytes | None:
        """The content of a request; None if it is too long, or of no known length."""
        text = self.headers.get("Content-Length", "0").strip()
        if "Transfer-Encoding" in self.headers or not (text.isascii() and text.isdigit()) or len(text) > 8:
            return None
        length = int(text)
        return self.rfile.read(length) if length <= kds_answers.BODY_MAX else None

    def _send(
        self, answer: Answer, *, close: bool, cut: bool = False, retry: float | None = None, etag: str = ""
    ) -> None:
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.kind)
        if answer.status != 304:
            self.send_header("Content-Length", str(len(answer.body)))
        if etag:
            self.send_header("ETag", etag)
        if retry is not None:
            self.send_header("Retry-After", f"{retry:.0f}")
        if close:
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body[: len(answer.body) // 2] if cut else answer.body)
