"""The daemon's side of fetching: questions to `sevd-fetch`, or to a child process that does the same.

Everything here blocks; it is for threads. What comes back is bytes that prove nothing.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

from sev import packets
from sev.errors import MalformedInput
from sev.kds.errors import KdsUnavailable
from sevd.fetch.wire import SECONDS_MAX, Question, Reply

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import Protocol

    from sevd.settings import Settings

    class Fetcher(Protocol):
        """Who asks."""

        def fetch(self, question: Question) -> Reply:
            """What a service answers, whatever its status. Raises KdsUnavailable: there is no answer."""

        def rest(self) -> None:
            """Nothing is asked for a while: gives up what that costs."""

        def close(self) -> None:
            """Ends it; what is under way ends with KdsUnavailable."""


GRACE_SECONDS = 5.0
"""Seconds beyond those of a question until the process that asks is given up."""

_ENVIRONMENT = ("https_proxy", "http_proxy", "no_proxy", "all_proxy", "ssl_cert_file", "ssl_cert_dir")
"""Variables that a child process gets, in either case; its proxies and authorities."""


class _Connection:
    """One connection, opened when it is needed and again when it broke."""

    def __init__(self, dial: Callable[[], socket.socket], who: str) -> None:
        self._dial = dial
        self._who = who
        self._lock = threading.Lock()
        self._sock: socket.socket | None = None
        self._closed = False

    def fetch(self, question: Question) -> Reply:
        """Asks. Raises KdsUnavailable, NotPermitted."""
        with self._lock:
            answer = self._ask(question)
        if "failed" in answer:
            error = KdsUnavailable(f"there is no answer: {answer['failed']}", field="kds")
            error.passes = bool(answer.get("passes"))
            raise error
        try:
            return Reply.of(answer)
        except MalformedInput as error:
            raise self._gone(f"it says something else: {error.message}") from None

    def rest(self) -> None:
        """Hangs up; the next question dials again."""
        with self._lock:
            self._hang_up()

    def close(self) -> None:
        """Hangs up, also under somebody who waits."""
        self._closed = True
        sock = self._sock
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        with self._lock:
            self._hang_up()

    def _ask(self, question: Question) -> dict[str, object]:
        fresh = self._sock is None
        try:
            return self._once(question)
        except packets.Closed:
            self._hang_up()
            if fresh or self._closed:  # one that was idle for long ends by itself: it is dialled again, once
                raise self._gone("it ended") from None
        except OSError as error:
            self._hang_up()
            raise self._gone(error.strerror or "it says nothing") from None
        try:
            return self._once(question)
        except OSError as error:
            self._hang_up()
            raise self._gone(error.strerror or "it ended") from None

    def _once(self, question: Question) -> dict[str, object]:
        if self._sock is None and not self._closed:
            self._sock = self._dial()
        if self._sock is None or self._closed:  # looked at after dialling: `close` may not have seen the socket yet
            raise self._gone("this daemon stops")
        self._sock.settimeout(min(question.seconds, SECONDS_MAX) + GRACE_SECONDS)
        try:
            return packets.ask(self._sock, question.message())
        except MalformedInput as error:
            self._hang_up()
            raise self._gone(f"it says something else: {error.message}") from None

    def _hang_up(self) -> None:
        sock, self._sock = self._sock, None
        if sock is not None:
            sock.close()

    def _gone(self, why: str) -> KdsUnavailable:
        error = KdsUnavailable(f"{self._who} cannot be asked: {why}", field="fetch_socket")
        error.passes = True
        error.remedy = "See its log: journalctl -u sevd-fetch; systemctl status sevd-fetch.socket."
        return error


class SocketFetcher(_Connection):
    """Asks the `sevd-fetch` that answers on a socket.

    Args:
        path: The socket.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(lambda: _connected(path), f"sevd-fetch at {path}")


class ChildFetcher(_Connection):
    """Asks a child process, started when it is needed; it ends with its socket, or when this process does.

    Args:
        options: Options of `sevd-fetch`: whom to ask, and how.
        path: A socket where `sevd-fetch` may answer, which then is asked instead.
    """

    def __init__(self, options: list[str], path: Path | None = None) -> None:
        self._options = options
        self._path = path
        self._child: subprocess.Popen[bytes] | None = None
        super().__init__(self._start, "the process that fetches")

    def _start(self) -> socket.socket:
        if self._path is not None and self._path.exists():
            return _connected(self._path)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                self._child = subprocess.Popen(  # noqa: S603 - this very interpreter, and options of ours
                    [sys.executable, "-I", "-m", "sevd.fetch", "--serve", str(theirs.fileno()), *self._options],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    env={name: text for name, text in os.environ.items() if name.lower() in _ENVIRONMENT},
                    start_new_session=True,
                )
            except OSError:
                ours.close()
                raise
        return ours

    def _hang_up(self) -> None:
        super()._hang_up()
        child, self._child = self._child, None
        if child is not None:
            child.kill()  # it has nothing to lose
            child.wait()


def _connected(path: Path) -> socket.socket:
    """Raises OSError."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    sock.settimeout(GRACE_SECONDS)
    try:
        sock.connect(os.fspath(path))
    except OSError:
        sock.close()
        raise
    return sock


def fetcher(settings: Settings) -> Fetcher:
    """Who asks for a daemon with these settings: whoever answers on the socket, else a child."""
    options = ["--kds", settings.kds, "--log-level", "warning"]
    for option, path in (("--kds-ca", settings.kds_ca), ("--kds-client", settings.kds_client)):
        if path is not None:
            options += [option, os.fspath(path)]
    if settings.kds_proxy:
        options += ["--proxy", settings.kds_proxy]
    return ChildFetcher(options, settings.fetch_socket)
