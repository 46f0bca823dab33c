"""The process that fetches: as a child, and on a socket as systemd passes it; over real sockets of this machine."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from sev import packets
from sev.errors import NotPermitted
from sev.kds.errors import KdsUnavailable
from sevd.config import Settings
from sevd.fetch.client import GRACE_SECONDS, ChildFetcher, SocketFetcher, _Connection, fetcher
from sevd.fetch.wire import BODY_MAX, Question
from tests.unit.kds.test_kds_service import Kds, drop, send

PATH = f"/cek/id/{'0' * 126}01"


@pytest.fixture
def kds() -> Iterator[Kds]:
    server = Kds()
    yield server
    server.close()


def by_socket(folder: Path, *options: str, idle: float = 60) -> tuple[subprocess.Popen[bytes], Path]:
    """`sevd-fetch` as systemd starts it: with a listening socket, as descriptor 3."""
    path = folder / "fetch.sock"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(path))
    listener.listen(8)
    run = "import os, sys; os.dup2(int(sys.argv[1]), 3); os.environ['LISTEN_PID'] = str(os.getpid()); "
    run += "os.environ.update(LISTEN_FDS='1', LISTEN_FDNAMES='fetch'); "
    run += "os.execv(sys.executable, [sys.executable, '-m', 'sevd.fetch', *sys.argv[2:]])"
    with listener:
        process = subprocess.Popen(
            [sys.executable, "-c", run, str(listener.fileno()), "--idle", str(idle), *options],
            pass_fds=[listener.fileno(), 3] if listener.fileno() != 3 else [3],
            stderr=subprocess.PIPE,
        )
    return process, path


@pytest.fixture(params=["child", "socket"])
def asker(request: pytest.FixtureRequest, kds: Kds, tmp_path: Path) -> Iterator[SocketFetcher | ChildFetcher]:
    if request.param == "child":
        child = ChildFetcher(["--kds", kds.url, "--log-level", "warning"])
        yield child
        child.close()
        return
    process, path = by_socket(tmp_path, "--kds", kds.url)
    found = SocketFetcher(path)
    yield found
    found.close()
    process.kill()
    process.communicate()


def test_what_a_service_answers(asker: SocketFetcher | ChildFetcher, kds: Kds) -> None:
    headers = {"ETag": '"x"', "Retry-After": "9", "Set-Cookie": "secret"}
    kds.answers = [send(200, bytes(range(256)) * 200, headers=headers), send(304), send(429, headers=headers), drop]
    reply = asker.fetch(Question(kds.url + PATH))
    assert (reply.status, reply.body, dict(reply.headers)) == (
        200,
        bytes(range(256)) * 200,
        {"etag": '"x"', "retry-after": "9"},
    )
    assert asker.fetch(Question(kds.url + PATH, headers=(("If-None-Match", '"x"'),))).status == 304
    reply = asker.fetch(Question(kds.url + PATH))
    assert (reply.status, reply.headers["retry-after"], reply.body) == (429, "9", b"")
    with pytest.raises(KdsUnavailable, match=r"the connection broke|no connection") as caught:
        asker.fetch(Question(kds.url + PATH))
    assert caught.value.passes


def test_a_header_that_is_no_line_of_ascii_is_left_out(asker: SocketFetcher | ChildFetcher, kds: Kds) -> None:
    kds.answers = [send(200, b"x", headers={"ETag": '"\xe9"', "Retry-After": "9"})]
    reply = asker.fetch(Question(kds.url + PATH))
    assert (reply.status, reply.body, dict(reply.headers)) == (200, b"x", {"retry-after": "9"})


def test_nobody_else_is_asked(asker: SocketFetcher | ChildFetcher, kds: Kds) -> None:
    kds.answers = [send(200)]
    for url in ("http://127.0.0.1:1/cek", f"{kds.url}/else", f"{kds.url}0{PATH}"):
        with pytest.raises(NotPermitted):
            asker.fetch(Question(url))
    assert kds.paths == []
    assert asker.fetch(Question(kds.url + PATH)).status == 200


def test_redirections_stay_with_the_service(asker: SocketFetcher | ChildFetcher, kds: Kds) -> None:
    kds.answers = [send(302, headers={"Location": "https://elsewhere.example/x"})]
    assert asker.fetch(Question(kds.url + PATH)).status == 302


def test_too_much_is_cut(asker: SocketFetcher | ChildFetcher, kds: Kds) -> None:
    kds.answers = [send(200, bytes(BODY_MAX)), send(200, bytes(BODY_MAX + 1))]
    assert len(asker.fetch(Question(kds.url + PATH)).body) == BODY_MAX
    with pytest.raises(KdsUnavailable, match="more than") as caught:
        asker.fetch(Question(kds.url + PATH))
    assert not caught.value.passes


def test_a_child_that_dies_is_replaced(kds: Kds) -> None:
    kds.answers = [send(200)]
    child = ChildFetcher(["--kds", kds.url])
    assert child.fetch(Question(kds.url + PATH)).status == 200
    process = child._child
    assert process is not None
    process.kill()
    process.wait()
    assert child.fetch(Question(kds.url + PATH)).status == 200
    assert child._child is not process
    last = child._child
    child.close()
    assert last is not None
    assert last.poll() is not None, "it ends with its daemon"


def test_closing_while_it_dials_leaves_nobody_waiting() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    closing: list[threading.Thread] = []

    def dial() -> socket.socket:
        closing.append(threading.Thread(target=connection.close))
        closing[0].start()
        while not connection._closed:
            time.sleep(0.001)
        return ours

    connection = _Connection(dial, "nobody")
    begun = time.monotonic()
    with theirs, pytest.raises(KdsUnavailable, match="stops"):
        connection.fetch(Question("https://kds.example/cek", seconds=1))
    assert time.monotonic() - begun < GRACE_SECONDS
    closing[0].join()
    assert ours.fileno() == -1, "it is closed"


def test_closing_ends_a_question_under_way(kds: Kds) -> None:
    done = threading.Event()

    def silent(handler: BaseHTTPRequestHandler) -> None:
        done.wait(20)

    kds.answers = [silent]
    child = ChildFetcher(["--kds", kds.url])
    errors: list[BaseException] = []

    def ask() -> None:
        try:
            child.fetch(Question(kds.url + PATH))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    while not kds.paths:
        time.sleep(0.01)
    begin = time.monotonic()
    child.close()
    thread.join()
    done.set()
    assert time.monotonic() - begin < 5
    assert isinstance(errors[0], KdsUnavailable)
    with pytest.raises(KdsUnavailable, match="this daemon stops"):
        child.fetch(Question(kds.url + PATH))
    assert child._child is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has something to give up")
def test_the_child_of_root_is_nobody(kds: Kds) -> None:
    kds.answers = [send(200)]
    child = ChildFetcher(["--kds", kds.url])
    try:
        child.fetch(Question(kds.url + PATH))
        assert child._child is not None
        status = Path(f"/proc/{child._child.pid}/status").read_text()
        found = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        assert found["Uid"].split() == ["65534"] * 4
        assert found["Gid"].split() == ["65534"] * 4
        assert found["Groups"].split() == []
        assert (found["CapEff"], found["CapPrm"], found["NoNewPrivs"]) == ("0" * 16, "0" * 16, "1")
    finally:
        child.close()


def test_it_ends_when_nobody_asks(kds: Kds, tmp_path: Path) -> None:
    kds.answers = [send(200)]
    process, path = by_socket(tmp_path, "--kds", kds.url, idle=0.5)
    asker = SocketFetcher(path)
    assert asker.fetch(Question(kds.url + PATH)).status == 200
    asker.close()
    _, said = process.communicate(timeout=20)
    assert process.returncode == 0, said


@pytest.mark.parametrize("message", [b"\xff", b"[]", b"{}", b'{"url": 1}'], ids=repr)
def test_who_talks_nonsense_is_told_so(message: bytes, kds: Kds, tmp_path: Path) -> None:
    process, path = by_socket(tmp_path, "--kds", kds.url)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            sock.settimeout(10)
            sock.connect(str(path))
            sock.send(message)
            answer, _ = packets.receive(sock)
            assert answer["error"]
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("by", ["option", "environment"])
def test_a_proxy_is_asked_where_there_is_one(kds: Kds, monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    kds.answers = [send(200, b"by proxy")]
    monkeypatch.delenv("no_proxy", raising=False)
    options = ["--kds", "http://kds.invalid"]
    if by == "option":
        options += ["--proxy", kds.url]
    else:
        monkeypatch.setenv("http_proxy", kds.url)
    child = ChildFetcher(options)
    try:
        assert child.fetch(Question(f"http://kds.invalid{PATH}")).body == b"by proxy"
    finally:
        child.close()
    assert kds.paths == [f"http://kds.invalid{PATH}"]


def test_no_proxy_is_asked_where_there_is_to_be_none(kds: Kds, monkeypatch: pytest.MonkeyPatch) -> None:
    kds.answers = [send(200)]
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    child = ChildFetcher(["--kds", kds.url, "--proxy", "none"])
    try:
        assert child.fetch(Question(kds.url + PATH)).status == 200
    finally:
        child.close()


def test_its_own_configuration_says_whom(kds: Kds, tmp_path: Path) -> None:
    (tmp_path / "sevd.toml").write_text(f'[endorsements]\nkds = "{kds.url}"\n[daemon]\nsocket = "/x"\n')
    kds.answers = [send(200)]
    process, path = by_socket(tmp_path, "--config", str(tmp_path / "sevd.toml"))
    asker = SocketFetcher(path)
    try:
        assert asker.fetch(Question(kds.url + PATH)).status == 200
        with pytest.raises(NotPermitted):
            asker.fetch(Question(f"https://kdsintf.amd.com{PATH}"))
    finally:
        asker.close()
        process.kill()
        process.communicate()


def test_mistakes_are_said() -> None:
    for options, says in (
        (["--kds", "nonsense"], "no address of a service"),
        (["--kds", "https://x", "--kds-ca", "/nowhere"], "/nowhere"),
        ([], "systemd passed no socket"),
    ):
        command = [sys.executable, "-m", "sevd.fetch", "--config", os.devnull, *options]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 2
        assert says in done.stderr
        assert "Traceback" not in done.stderr


def test_whoever_answers_on_the_socket_is_asked_else_a_child(kds: Kds, tmp_path: Path) -> None:
    kds.answers = [send(200)]
    asker = fetcher(Settings(kds=kds.url, fetch_socket=tmp_path / "fetch.sock"))
    assert isinstance(asker, ChildFetcher)
    try:
        assert asker.fetch(Question(kds.url + PATH)).status == 200
        assert asker._child is not None
        asker.rest()
        process, _ = by_socket(tmp_path, "--kds", kds.url)
        try:
            assert asker.fetch(Question(kds.url + PATH)).status == 200
            assert asker._child is None
        finally:
            process.kill()
            process.communicate()
    finally:
        asker.close()
