"""The worker's one loop: connections of the daemon, their requests one after the other, and the end.

The first connection is a socket pair that the daemon left to the process. Later ones come through the socket in the
worker's folder, from whoever the kernel says has the worker's own uid; each says first what it is for. A worker without
a guest ends with its first connection; one with a guest goes on without any, until it is told to end.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct

from sev.errors import InternalError, MalformedInput, NotOffered, SevError
from sevd.worker import wire
from sevd.worker.guest import CARD
from sevd.worker.notes import card_from

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from sevd.worker.guest import WorkerGuest

SOCKET = "sock"
"""The socket in the worker's folder."""

ENDED, ORPHAN, PLATFORM_GONE = 0, 1, 3
"""Exit codes: told to, or nobody is left to tell; failed to serve; the platform below is gone."""

_BACKLOG = 16
_CREDENTIALS = struct.Struct("=iII")
_GONE = select.POLLHUP | select.POLLERR | select.POLLNVAL


class Server:
    """Serves one guest.

    Args:
        guest: The guest.
        first: The connection that the process started with.
        created: Called once the guest exists: the worker gives up what it needs no more.

    Attributes:
        run: Takes over a connection that runs vCPUs, on threads of its own; None where nothing executes.
        stop: Ends the vCPUs that run, before the VM ends.
        lifeline: A descriptor that hangs up when the platform below is gone; -1 if there is none.
    """

    def __init__(self, guest: WorkerGuest, first: socket.socket, created: Callable[[Server], None]) -> None:
        self._guest = guest
        self._created = created
        self._poll = select.poll()
        self._connections: dict[int, socket.socket] = {}
        self._strangers: set[int] = set()
        self._listener: socket.socket | None = None
        self._folder = -1
        self._code = -1
        self.run: Callable[[socket.socket], None] | None = None
        self.stop: Callable[[], None] = lambda: None
        self.lifeline = -1
        self._add(first)

    def serve(self) -> int:
        """Serves until the end; answers the exit code."""
        while self._code < 0:
            try:
                ready = self._poll.poll()
            except InterruptedError:
                continue
            for fd, event in ready:
                if fd == self.lifeline:
                    if event & _GONE:
                        self._end(PLATFORM_GONE)
                elif self._listener is not None and fd == self._listener.fileno():
                    self._accept()
                elif fd in self._connections:
                    self._hear(self._connections[fd])
                if self._code >= 0:
                    break
        return self._code

    def _add(self, connection: socket.socket) -> None:
        connection.setblocking(True)
        self._connections[connection.fileno()] = connection
        self._poll.register(connection.fileno(), select.POLLIN)

    def _drop(self, connection: socket.socket) -> None:
        self._release(connection)
        connection.close()
        if self._guest.card is None and not self._connections:
            self._code = ENDED  # a worker that nobody uses, and that nobody can find

    def _release(self, connection: socket.socket) -> None:
        """The connection is no longer this loop's."""
        fd = connection.fileno()
        self._poll.unregister(fd)
        self._strangers.discard(fd)
        del self._connections[fd]

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        if _CREDENTIALS.unpack(raw)[1] not in (os.geteuid(), 0):
            connection.close()
            return
        self._add(connection)
        self._strangers.add(connection.fileno())

    def _hear(self, connection: socket.socket) -> None:
        """One message of a connection."""
        fds: list[int] = []
        try:
            try:
                message, fds = wire.receive(connection)
                if connection.fileno() in self._strangers:
                    self._introduce(connection, message)
                    return
                answer, rights = self._obey(message, fds)
            except SevError as error:
                answer, rights = {"error": wire.error_document(error)}, ()
            except wire.Closed:
                raise
            except Exception as error:
                failure = InternalError(f"{type(error).__name__} in the worker: {error}")
                answer, rights = {"error": wire.error_document(failure)}, ()
            wire.send(connection, answer, rights)
        except OSError:
            self._drop(connection)
        finally:
            wire.close_all(fds)

    def _introduce(self, connection: socket.socket, message: dict[str, object]) -> None:
        """The first message of a connection says what it is for."""
        role = message.get("role")
        self._strangers.discard(connection.fileno())
        if role == "command":
            return
        if role != "run":
            raise MalformedInput(f"role: {role!r:.40}, expected command or run", field="role")
        if self.run is None:
            raise NotOffered("guests do not execute here")
        self._release(connection)
        self.run(connection)

    def _obey(self, message: dict[str, object], fds: list[int]) -> tuple[dict[str, object], tuple[int, ...]]:
        name = wire.text(message, "op")
        if name == "create":
            return self._create(message, fds)
        if name == "end":
            self._end(ENDED)
            return {}, ()
        return self._guest.step(name, message, fds)

    def _create(self, message: dict[str, object], fds: list[int]) -> tuple[dict[str, object], tuple[int, ...]]:
        if len(fds) != 2:
            raise MalformedInput(f"create: {len(fds)} descriptors, expected a socket and a folder", field="create")
        answer = self._guest.create(card_from(wire.table(message, "card")))
        try:
            self._listener = socket.socket(fileno=fds.pop(0))
            self._folder = fds.pop(0)
            self._listener.setblocking(False)
            self._listener.listen(_BACKLOG)  # from here on it tells whoever connects this process's number
            self._guest.write_card(self._folder)
            self._created(self)
        except BaseException:
            self._end(ORPHAN)
            raise
        self._poll.register(self._listener.fileno(), select.POLLIN)
        if self.lifeline >= 0:
            self._poll.register(self.lifeline, 0)
        return answer

    def _end(self, code: int) -> None:
        """Ends the guest. One that did not come to be leaves no card; later nothing can be removed from here."""
        self._code = code
        if self._folder >= 0 and code == ORPHAN:
            for name in (CARD, SOCKET):
                with contextlib.suppress(OSError):
                    os.unlink(name, dir_fd=self._folder)
        # A vCPU that does not leave the guest, and what a platform that is gone held, ends with the process.
        with contextlib.suppress(Exception):
            self.stop()
            self._guest.close()
