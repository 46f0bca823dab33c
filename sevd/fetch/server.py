"""Answers questions on a Unix socket: as many at once as CONNECTIONS, each on a connection and a thread of its own.

The process keeps nothing. It ends by itself when nobody has asked for a while, since systemd starts it again for the
next question; one that serves a single daemon ends with that daemon's end of the socket.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from typing import TYPE_CHECKING

from sev import packets
from sev.errors import InternalError, SevError
from sev.kds.https import Answer, Https, NoAnswer
from sevd.fetch.wire import Question, Reply

if TYPE_CHECKING:
    from sevd.fetch.rules import Rules

CONNECTIONS = 8
"""Questions that are answered at once; others wait in the queue of the socket."""

IDLE_SECONDS = 30.0
"""A connection that says nothing for so long is closed."""

SILENCE_SECONDS = 15.0
"""A service that says nothing for so long is given up."""

log = logging.getLogger(__name__)


class Server:
    """Answers questions.

    Args:
        rules: What may be asked.
        open_way: Asks what everybody may.
        provider_way: Asks what only providers may, with their certificate; None where there is none.
    """

    def __init__(self, rules: Rules, open_way: Https, provider_way: Https | None = None) -> None:
        self._rules = rules
        self._open = open_way
        self._provider = provider_way
        self._places = threading.BoundedSemaphore(CONNECTIONS)
        self._last = time.monotonic()
        self._running = 0
        self._lock = threading.Lock()

    def listen(self, listener: socket.socket, idle: float) -> None:
        """Serves who connects, until nobody has for `idle` seconds; 0: for ever."""
        listener.settimeout(1.0)
        while not (idle and self._idle_for() > idle):
            if not self._places.acquire(timeout=1.0):
                continue
            try:
                connection, _ = listener.accept()
            except OSError as error:
                self._places.release()
                if not isinstance(error, TimeoutError):
                    log.warning("a connection cannot be taken: %s", error.strerror)
                    time.sleep(0.1)  # out of descriptors: others end
                continue
            with self._lock:
                self._running += 1
            threading.Thread(target=self._serve_place, args=(connection,), daemon=True).start()

    def serve(self, connection: socket.socket) -> None:
        """Answers one connection's questions until it ends."""
        with connection, contextlib.suppress(packets.Closed, OSError):
            while True:
                try:
                    message, fds = packets.receive(connection)
                    packets.close_all(fds)
                    answer = self._answer(message)
                except SevError as error:
                    answer = {"error": packets.error_document(error)}
                packets.send(connection, answer)

    def _serve_place(self, connection: socket.socket) -> None:
        connection.settimeout(IDLE_SECONDS)
        try:
            self.serve(connection)
        finally:
            with self._lock:
                self._running -= 1
                self._last = time.monotonic()
            self._places.release()

    def _idle_for(self) -> float:
        with self._lock:
            return 0.0 if self._running else time.monotonic() - self._last

    def _answer(self, message: dict[str, object]) -> dict[str, object]:
        question = Question.of(message)
        asked = self._rules.check(question.url, posts=bool(question.content))
        way = self._open
        if asked.provider and self._provider is not None:
            way = self._provider
        until = time.monotonic() + question.seconds
        try:
            answer = way.ask(
                question.url,
                limit=question.limit,
                seconds=min(SILENCE_SECONDS, question.seconds),
                headers=dict(question.headers),
                content=question.content or None,
                late=lambda: time.monotonic() > until,
            )
        except NoAnswer as failed:
            log.warning("%s: %s", question.url, failed)
            return {"failed": str(failed), "passes": failed.passes}
        except Exception as error:
            log.exception("unexpected failure of %s", question.url)
            return {"error": packets.error_document(InternalError(f"unexpected {type(error).__name__}"))}
        log.info("%s: HTTP %d, %d bytes", question.url, answer.status, len(answer.body))
        return _reply(answer).message()


def _reply(answer: Answer) -> Reply:
    return Reply(answer.status, answer.headers, answer.body)
