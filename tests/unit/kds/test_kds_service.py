"""Asking a key distribution service: what it may do to us, and what we do then. Over real sockets of this machine."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from sev.errors import UsageError
from sev.kds.service import Clock, KdsUnavailable, NotAtKds, Service

Answer = Callable[[BaseHTTPRequestHandler], None]


class Kds:
    """A service that answers as a test wants.

    Attributes:
        answers: What to do for each request in turn; the last one stays.
        paths: What was asked.
    """

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.paths: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.paths.append(self.path)
                (outer.answers.pop(0) if len(outer.answers) > 1 else outer.answers[0])(self)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


class Time:
    """Time that passes when somebody sleeps, and really too."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    @property
    def clock(self) -> Clock:
        return Clock(lambda: time.monotonic() + sum(self.slept), self.slept.append)


@pytest.fixture
def kds() -> Iterator[Kds]:
    server = Kds()
    yield server
    server.close()


def send(
    status: int, body: bytes = b"content", *, length: int | None = None, headers: dict[str, str] | None = None
) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in (headers or {}).items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def drop(handler: BaseHTTPRequestHandler) -> None:
    handler.connection.close()


def ask(
    kds: Kds, times: Time | None = None, *, limit: int = 4096, patience: float = 60.0, timeout: float = 5.0
) -> bytes:
    service = Service(kds.url, patience=patience, timeout=timeout, clock=(times or Time()).clock)
    return service.get(f"{kds.url}/cek/id/00", "the CEK", limit)


def test_an_answer(kds: Kds) -> None:
    kds.answers = [send(200)]
    assert ask(kds) == b"content"
    assert kds.paths == ["/cek/id/00"]


@pytest.mark.parametrize(
    ("headers", "slept"),
    [({"Retry-After": "7"}, [7.0, 7.0]), ({}, [10.0, 10.0]), ({"Retry-After": "soon"}, [10.0, 10.0])],
    ids=["as asked", "no word", "no time"],
)
def test_a_service_that_throttles_is_asked_again(kds: Kds, headers: dict[str, str], slept: list[float]) -> None:
    times = Time()
    kds.answers = [send(429, headers=headers), send(429, headers=headers), send(200)]
    assert ask(kds, times) == b"content"
    assert times.slept == slept


def test_a_date_to_come_back_at(kds: Kds) -> None:
    times = Time()
    kds.answers = [send(429, headers={"Retry-After": formatdate(time.time() + 20, usegmt=True)}), send(200)]
    assert ask(kds, times) == b"content"
    assert 17 < times.slept[0] <= 20


def test_patience_ends(kds: Kds) -> None:
    times = Time()
    kds.answers = [send(429, headers={"Retry-After": "40"})]
    with pytest.raises(KdsUnavailable, match="too many requests; it asks to wait 40 s") as caught:
        ask(kds, times)
    assert times.slept == [40.0]
    assert caught.value.exit_code == 5
    kds.answers = [send(429, headers={"Retry-After": "86400"})]
    with pytest.raises(KdsUnavailable, match="wait 86400 s"):
        ask(kds, times)
    assert times.slept == [40.0]


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_failures_that_pass(kds: Kds, status: int) -> None:
    times = Time()
    kds.answers = [send(status), send(status), send(status), send(200)]
    assert ask(kds, times) == b"content"
    assert times.slept == [1.0, 2.0, 4.0]


@pytest.mark.parametrize("broken", [drop, send(200, b"half", length=8)], ids=["dropped", "cut"])
def test_answers_that_break_off(kds: Kds, broken: Answer) -> None:
    times = Time()
    kds.answers = [broken, send(200)]
    assert ask(kds, times) == b"content"
    assert times.slept == [1.0]
    kds.answers = [broken]
    with pytest.raises(KdsUnavailable, match=r"cut off after 4 of 8|connection"):
        ask(kds, times)


@pytest.mark.parametrize(
    ("status", "kind"), [(404, NotAtKds), (400, NotAtKds), (403, KdsUnavailable), (418, KdsUnavailable)]
)
def test_refusals_are_told_at_once(kds: Kds, status: int, kind: type[KdsUnavailable]) -> None:
    times = Time()
    kds.answers = [send(status)]
    with pytest.raises(kind, match=f"HTTP {status}"):
        ask(kds, times)
    assert times.slept == []
    assert len(kds.paths) == 1


def test_more_than_can_be_meant(kds: Kds) -> None:
    kds.answers = [send(200, bytes(4097))]
    with pytest.raises(KdsUnavailable, match="more than 4096 bytes"):
        ask(kds)
    kds.answers = [send(200, bytes(4096))]
    assert len(ask(kds)) == 4096


@pytest.mark.parametrize("target", ["file:///etc/passwd", "http://127.0.0.1:1/x", "ftp://127.0.0.1/x"])
def test_redirections_elsewhere_are_not_followed(kds: Kds, target: str) -> None:
    kds.answers = [send(302, headers={"Location": target})]
    with pytest.raises(KdsUnavailable, match="HTTP 302"):
        ask(kds)


def test_a_service_that_says_nothing(kds: Kds) -> None:
    done = threading.Event()

    def silent(handler: BaseHTTPRequestHandler) -> None:
        done.wait(20)

    kds.answers = [silent]
    begin = time.monotonic()
    try:
        with pytest.raises(KdsUnavailable):
            ask(kds, Time(), patience=0.5, timeout=0.2)
        assert time.monotonic() - begin < 5
    finally:
        done.set()


def test_a_service_that_drips(kds: Kds) -> None:
    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        for _ in range(100):
            try:
                handler.wfile.write(b"x")
            except OSError:
                return
            time.sleep(0.05)

    kds.answers = [drip]
    begin = time.monotonic()
    with pytest.raises(KdsUnavailable):
        ask(kds, Time(), patience=0.4, timeout=0.3)
    assert time.monotonic() - begin < 4


def test_nobody_there(kds: Kds) -> None:
    told: list[str] = []
    times = Time()
    free = Kds()
    free.close()
    service = Service(free.url, patience=4, told=told.append, clock=times.clock)
    with pytest.raises(KdsUnavailable, match="no connection"):
        service.get(f"{free.url}/x", "the CEK")
    assert times.slept == [1.0, 2.0]
    assert "asking again in 1 s" in told[0]


def test_the_proxy_of_the_environment(kds: Kds, monkeypatch: pytest.MonkeyPatch) -> None:
    kds.answers = [send(200, b"by proxy")]
    monkeypatch.setenv("http_proxy", kds.url)
    monkeypatch.delenv("no_proxy", raising=False)
    service = Service("http://kds.invalid")
    assert service.get("http://kds.invalid/cek/id/00", "the CEK") == b"by proxy"
    assert kds.paths == ["http://kds.invalid/cek/id/00"]


def test_only_its_own_addresses(kds: Kds) -> None:
    service = Service(kds.url)
    for url in ("file:///etc/passwd", "http://127.0.0.1/x", f"{kds.url}0/x"):
        with pytest.raises(UsageError):
            service.get(url, "the CEK")
    assert kds.paths == []


@pytest.mark.parametrize("option", ["ca_file", "client_file"])
def test_files_that_hold_no_certificates(tmp_path: Path, option: str) -> None:
    (tmp_path / "junk").write_text("junk")
    for name in ("junk", "nowhere"):
        with pytest.raises(UsageError) as caught:
            Service(**{option: str(tmp_path / name)})  # type: ignore[arg-type]
        assert name in caught.value.message
